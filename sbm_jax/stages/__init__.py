"""The stages: each reads finished stores and writes one new kind of store. None imports another."""
