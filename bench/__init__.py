"""Benchmarks: each a script of its own; five of them also by `sbm-jax bench`."""
