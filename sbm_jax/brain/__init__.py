"""Brains on disk: dataset layouts, single trials to betas with reliability, surfaces, and maps back out."""

from sbm_jax.brain.opening import open_dataset

__all__ = ["open_dataset"]
