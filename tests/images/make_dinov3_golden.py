"""Write golden/dinov3.npz: what transformers' DINOv3ViTImageProcessor, which needs torchvision, makes of noise.

Run with `python tests/images/make_dinov3_golden.py` where torch, torchvision and transformers are installed. Pictures
are [h, w, 3] uint8 and the processor's floats before normalising, in units of 1/255, [side, side, 3].
"""

from pathlib import Path

import numpy as np
from PIL import Image
from transformers import DINOv3ViTImageProcessor

SIDE = 32
SIZES = [(32, 32), (61, 45), (20, 97), (150, 131)]


def main() -> None:
    rng = np.random.default_rng(0)
    processor = DINOv3ViTImageProcessor(size={"height": SIDE, "width": SIDE}, resample=2, do_normalize=False)
    arrays = {}
    for i, (height, width) in enumerate(SIZES):
        picture = rng.integers(0, 256, (height, width, 3), np.uint8)
        pixels = processor(Image.fromarray(picture), return_tensors="np")["pixel_values"][0]
        arrays[f"picture_{i}"] = picture
        arrays[f"pixels_{i}"] = np.asarray(pixels, np.float32).transpose(1, 2, 0) * 255
    np.savez_compressed(Path(__file__).parent / "golden" / "dinov3.npz", **arrays)


if __name__ == "__main__":
    main()
