"""Linear encoder followed by the k largest units."""
