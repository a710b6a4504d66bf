"""The vocabulary of axes: one letter per axis in shape strings, einsum strings and name suffixes.

| letter | axis |
|---|---|
| n | stimuli (images) |
| b | batch |
| l | layers |
| t | tokens (CLS first, then patches row by row) |
| d | model width |
| a | autoencoders of one stacked run: token kind x layer |
| u | SAE units (or other candidate features) |
| k | kept (top-k) |
| v | voxels or vertices |
| p | parcels (ROIs) |
| r | repeats of one image |
| s | subjects |
| f | folds |

So `acts_ntd`, `values_nk` with `units_nk`, `betas_nv`, `values_vk`, `rdm_nn`, `"nu,nv->uv"`.
A *mode* names a kind of per-image feature: `cls`, `patch_mean`, `patch_max`, `raw`, `random`.
"""

MODES = ("cls", "patch_mean", "patch_max", "raw", "random")
MODE_TITLES = {
    "cls": "CLS SAE",
    "patch_mean": "patch SAE (mean)",
    "patch_max": "patch SAE (max)",
    "raw": "raw neurons",
    "random": "random directions",
}
SAE_MODES = ("cls", "patch_mean", "patch_max")
TOKEN_KIND = {"cls": "cls", "patch_mean": "patch", "patch_max": "patch", "raw": "patch", "random": "patch"}


def hook_name(block: int) -> str:
    """Name of the residual stream after block `block` (0-based), e.g. `block03.resid`."""
    return f"block{block:02d}.resid"
