"""TopK autoencoder, forward and backward, at the cost of its encoder product."""
