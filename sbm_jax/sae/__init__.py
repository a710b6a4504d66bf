"""Sparse autoencoders: stacked TopK models, their training step, token streams, checkpoints and held-out metrics."""
