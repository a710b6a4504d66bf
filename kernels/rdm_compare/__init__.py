"""Comparison of two representational dissimilarity matrices."""
