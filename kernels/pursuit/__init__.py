"""Orthogonal matching pursuit of many responses, each over its own few candidate units."""
