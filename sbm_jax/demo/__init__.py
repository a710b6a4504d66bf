"""The demonstration data: procedural scenes with known content and the simulated brains that look at them."""
