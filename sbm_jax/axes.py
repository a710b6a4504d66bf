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
A *mode* names a kind of per-image feature: those of `MODES`.
"""

MODES = ("cls", "patch_mean", "patch_max", "raw", "pca", "random", "random_relu", "untrained")
MODE_TITLES = {
    "cls": "CLS SAE",
    "patch_mean": "patch SAE (mean)",
    "patch_max": "patch SAE (max)",
    "raw": "raw neurons",
    "pca": "principal components",
    "random": "random directions",
    "random_relu": "random ReLU units",
    "untrained": "SAE, untrained backbone",
}
OPTIONAL_MODES = ("untrained",)  # made when asked for: a second backbone, and autoencoders of its tokens
SAE_MODES = ("cls", "patch_mean", "patch_max", "untrained")
CONTROLS = ("raw", "pca", "random", "random_relu")
FITTED_MODES = ("pca", "random_relu")  # need statistics of the activations first
WIDTH_MODES = ("raw", "pca")  # as many units as the backbone is wide; the others as many as a dictionary has
TOKEN_KIND = {mode: mode if mode in ("cls", "untrained") else "patch" for mode in MODES}
REAL_KINDS = ("cls", "patch")  # tokens of the backbone itself; `untrained` are patch tokens of its untrained twin


def hook_name(block: int) -> str:
    """Name of the residual stream after block `block` (0-based), e.g. `block03.resid`."""
    return f"block{block:02d}.resid"
