"""sbm_jax: sparse autoencoder units of vision transformers, aligned with every voxel of many subjects."""

__version__ = "0.1.0"
