"""Write tests/backbones/golden/<family>/: tiny random models by torch and what torch computes with them.

Run by hand where torch is installed: pip install torch==2.13.0 torchvision==0.28.0 transformers==5.23.0 numpy
safetensors; then python tests/backbones/make_golden.py
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from torch_models import END, FAMILIES, Sizes, make, save

GOLDEN = Path(__file__).parent / "golden"
SIDES = (32, 24, 56)  # as trained, and stretched to smaller and larger grids (3 and 7 patches beside 4)


def token_ids() -> np.ndarray:
    """Three texts of different lengths [3, 10]."""
    ids = np.random.default_rng(1).integers(1, 56, (3, 10)).astype(np.int32)
    ids[:, 0] = 56
    for row, end in enumerate((9, 4, 6)):
        ids[row, end], ids[row, end + 1 :] = END, 0
    return ids


def main() -> None:
    sizes = Sizes()
    for family in FAMILIES:
        reference = make(family, sizes)
        save(reference, GOLDEN / family, sizes, sizes.image)
        arrays: dict[str, np.ndarray] = {}
        for side in SIDES[: 1 if family == "torchvision_vit" else None]:  # torchvision's model takes one size
            pixels = np.random.default_rng(side).standard_normal((2, side, side, 3)).astype(np.float32)
            acts = reference.activations(pixels)
            kept = acts if side == sizes.image else ("embed", f"block{sizes.layers - 1:02d}.resid")
            arrays |= {f"{side}/{name}": np.ascontiguousarray(acts[name]) for name in kept}
        if family in ("clip", "siglip", "siglip2"):
            arrays["ids"] = token_ids()
            arrays["text_features"] = reference.text(arrays["ids"])
        save_file(arrays, GOLDEN / family / "outputs.safetensors")
        for path in (GOLDEN / family).iterdir():
            path.chmod(0o644)


if __name__ == "__main__":
    main()
