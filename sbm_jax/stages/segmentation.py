"""A segmentation head: multinomial logistic regression from a patch's token after the last norm to what the patch shows."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sbm_jax.backbones import Backbone, forward
from sbm_jax.errors import UserError
from sbm_jax.images.batches import square_batches
from sbm_jax.progress import log, progress
from sbm_jax.stages.context import Context
from sbm_jax.stages.fidelity import spread
from sbm_jax.stages.image_sets import autoencoder_sets
from sbm_jax.stages.judge_masks import read_masks
from sbm_jax.stages.judge_sources import mask_folder
from sbm_jax.stages.judges import mask_classes
from sbm_jax.stages.pictures import seen_geometry

BACKGROUND = "none"
_BATCH = 64
_STEPS = 200


@dataclass(frozen=True)
class Head:
    """Logits [..., c] = tokens [..., d] @ weight_dc + bias_c. names: of the classes, the first for patches of no class.
    weights_hash: of the backbone it was trained on.
    """

    names: tuple[str, ...]
    weight_dc: np.ndarray
    bias_c: np.ndarray
    weights_hash: str

    def classes(self, tokens_td: np.ndarray) -> np.ndarray:
        """The likeliest class of every patch, int [...]."""
        return (tokens_td @ self.weight_dc + self.bias_c).argmax(axis=-1)

    def save(self, path: Path) -> None:
        """One safetensors file."""
        from safetensors.numpy import save_file

        arrays = {"weight": self.weight_dc.astype(np.float32), "bias": self.bias_c.astype(np.float32)}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(arrays, path, {"names": json.dumps(self.names), "backbone": self.weights_hash})


def read_head(path: Path, backbone: Backbone) -> Head:
    """Raises UserError for a file that is no head, or one of another backbone."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as opened:
            about = opened.metadata() or {}
            head = Head(
                tuple(json.loads(about["names"])),
                opened.get_tensor("weight"),
                opened.get_tensor("bias"),
                about["backbone"],
            )
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(
            f"{path}: not a segmentation head ({error}); make one with `sbm-jax segmentation-head`"
        ) from error
    if head.weights_hash != backbone.weights_hash or head.weight_dc.shape != (backbone.d_model, len(head.names)):
        raise UserError(
            f"{path}: this head was trained on another backbone than {backbone.folder}; train it again with "
            "`sbm-jax segmentation-head`"
        )
    return head


def fit_head(tokens_nd: np.ndarray, classes_n: np.ndarray, count: int, l2: float) -> tuple[np.ndarray, np.ndarray]:
    """weight [d, c] and bias [c] that minimise mean cross-entropy + l2 / 2 |W|^2, with W of standardised tokens (L-BFGS)."""
    from scipy.optimize import minimize

    mean, spread_d = tokens_nd.mean(axis=0, dtype=np.float64), tokens_nd.std(axis=0, dtype=np.float64) + 1e-6
    x = jnp.asarray((tokens_nd - mean) / spread_d, jnp.float32)
    y, d = jnp.asarray(classes_n), tokens_nd.shape[1]

    @jax.jit
    def loss(flat: jax.Array) -> tuple[jax.Array, jax.Array]:
        def value(flat: jax.Array) -> jax.Array:
            w_dc, b_c = flat[: d * count].reshape(d, count), flat[d * count :]
            logits = jnp.matmul(x, w_dc, precision=jax.lax.Precision.HIGHEST) + b_c[None]
            own = jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]
            return jnp.mean(jax.nn.logsumexp(logits, axis=1) - own) + l2 / 2 * jnp.sum(w_dc**2)

        return jax.value_and_grad(value)(flat)

    def evaluate(flat: np.ndarray) -> tuple[float, np.ndarray]:
        found, slope = loss(jnp.asarray(flat, jnp.float32))
        return float(found), np.asarray(slope, np.float64)

    found = minimize(evaluate, np.zeros((d + 1) * count), jac=True, method="L-BFGS-B", options={"maxiter": _STEPS})
    w_dc = found.x[: d * count].reshape(d, count) / spread_d[:, None]
    return w_dc, found.x[d * count :] - mean @ w_dc


def patch_classes_of(ctx: Context, rows: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names, the first for no class, and the class of every patch of some images, int [n, t]; -1: the image has no mask.

    Raises UserError where the run has no masks.
    """
    folder = mask_folder(ctx.config, ctx.facts)
    ids = [ctx.dataset.images.ids[row] for row in rows]
    classes = mask_classes(ctx, folder) if folder is not None else {}
    files = [f"{name}.png" for name in ids]
    grid = math.isqrt(ctx.facts.backbone.n_patches)
    found = read_masks(folder, classes, files, seen_geometry(ctx), grid) if folder else None
    if found is None:
        raise UserError("no segmentation masks of these images; give a folder of them (explain.masks)")
    return (BACKGROUND, *found.concepts), np.where(found.classes < -1, -1, found.classes + 1)


def patch_tokens(ctx: Context, backbone: Backbone, rows: np.ndarray) -> np.ndarray:
    """Patch tokens after the last norm, float32 [n, t, d]."""
    mean, std = (jnp.asarray(x, jnp.float32)[None, None, None] for x in (backbone.mean, backbone.std))

    @jax.jit
    def tokens(model: Any, pixels: jax.Array) -> jax.Array:
        x = (pixels.astype(jnp.float32) / 255.0 - mean) / std
        return forward(model, x, ("final_norm",))["final_norm"][:, backbone.prefix_tokens :].astype(jnp.float32)

    out = []
    sources = [ctx.dataset.images.sources[row] for row in rows]
    with progress("segmentation: tokens", len(rows), "images") as task:
        for pixels in square_batches(sources, seen_geometry(ctx), _BATCH):
            padded = np.pad(pixels, [(0, _BATCH - len(pixels)), (0, 0), (0, 0), (0, 0)])
            out.append(np.asarray(tokens(backbone.model, padded))[: len(pixels)])
            task.advance(len(pixels))
    return np.concatenate(out)


def scores(found_nt: np.ndarray, true_nt: np.ndarray, names: tuple[str, ...]) -> dict[str, Any]:
    """Over patches of images with a mask: accuracy, intersection over union of every class (null: on no patch), and its mean."""
    known = true_nt >= 0
    found, true = found_nt[known], true_nt[known]
    iou: dict[str, float | None] = {}
    for c, name in enumerate(names):
        union = ((found == c) | (true == c)).sum()
        iou[name] = float(((found == c) & (true == c)).sum() / union) if union else None
    there = [x for x in iou.values() if x is not None]
    return {"accuracy": float((found == true).mean()), "mean_iou": float(np.mean(there)), "iou": iou}


def train_head(ctx: Context, backbone: Backbone, images: int, l2: float) -> tuple[Head, dict[str, Any]]:
    """A head from the masks of images that are not held out, and its scores on the held-out ones with a mask."""
    trained, held_out = autoencoder_sets(ctx.dataset.images.shared)
    rows = spread(trained, images or len(trained))
    names, classes_nt = patch_classes_of(ctx, rows)
    rows, classes_nt = rows[classes_nt[:, 0] >= 0], classes_nt[classes_nt[:, 0] >= 0]
    tokens = patch_tokens(ctx, backbone, rows)
    weight, bias = fit_head(tokens.reshape(-1, tokens.shape[2]), classes_nt.ravel(), len(names), l2)
    head = Head(names, weight, bias, backbone.weights_hash)
    _, true_nt = patch_classes_of(ctx, held_out)
    test, true_nt = held_out[true_nt[:, 0] >= 0], true_nt[true_nt[:, 0] >= 0]
    about = {"trained_images": len(rows), "images": len(test)}
    about |= scores(head.classes(patch_tokens(ctx, backbone, test)), true_nt, names)
    if not set(test).isdisjoint(rows):
        log("segmentation: no image is held out; these scores are in sample")
    return head, about
