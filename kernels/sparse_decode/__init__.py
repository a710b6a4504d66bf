"""Weighted sum of the decoder rows of the active units."""
