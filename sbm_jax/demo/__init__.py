"""The demonstration data: procedural scenes with known content, simulated brains that look at them, and a small CLIP."""

from pathlib import Path

CLIP_FOLDER = Path(__file__).parent / "clip"
DATASET_VERSION = 1  # raised when the bytes of the dataset change for the same settings
