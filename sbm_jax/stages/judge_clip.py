"""The judge `clip`: a model with a text tower that says which group of prompts an image fits best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sbm_jax.backbones import Backbone, image_features, load_backbone, text_features
from sbm_jax.errors import UserError
from sbm_jax.images import ImageSource, square, square_batches
from sbm_jax.mesh import make_mesh
from sbm_jax.progress import progress
from sbm_jax.stages.judging import ImageJudge

BATCH = 64


def zero_shot_judge(
    model: Path, prompts: Mapping[str, Sequence[str]], sources: Sequence[ImageSource], devices: list[Any]
) -> ImageJudge:
    """Every image shows the group whose embedding is nearest to its own by cosine; a group's is the mean of the unit text
    embeddings of its prompts. Images go through the model once, in batches; only their scores [n, c] are kept.

    Raises UserError for a model that cannot be loaded or has no text tower, or an image that cannot be read.
    """
    backbone = load_backbone(model)
    targets_ce = group_embeddings(backbone, prompts)
    scores = np.zeros((len(sources), len(prompts)), np.float32)
    encode = _encoder(backbone, make_mesh({"data": len(devices)}, devices))
    batch = -(-BATCH // len(devices)) * len(devices)
    done = 0
    with progress("explain: clip", len(sources), "images") as task:
        for pixels in square_batches(sources, square(backbone.image_size), batch):
            padded = np.pad(pixels, [(0, batch - len(pixels)), (0, 0), (0, 0), (0, 0)])  # one shape, one program
            found = np.asarray(encode(padded), np.float32)[: len(pixels)]
            scores[done : done + len(pixels)] = found @ targets_ce.T
            done += len(pixels)
            task.advance(len(pixels))
    shows = np.zeros(scores.shape, bool)
    shows[np.arange(len(shows)), scores.argmax(axis=1)] = True
    about = (
        f"zero-shot by {model.name}: an image shows the one of {len(prompts)} groups of prompts that it is nearest to"
    )
    return ImageJudge("clip", about, tuple(prompts), shows, np.ones(len(shows), bool), exclusive=True, scores=scores)


def group_embeddings(backbone: Backbone, prompts: Mapping[str, Sequence[str]]) -> np.ndarray:
    """Unit-norm float32 [c, e]. Raises UserError without a text tower."""
    if backbone.text is None:
        raise UserError(f"explain.clip: {backbone.folder} has no text tower; give a CLIP or SigLIP model")
    ids = backbone.tokenize([text for group in prompts.values() for text in group])
    encoded = np.array(jax.jit(text_features)(backbone.text, ids), np.float32)
    encoded /= np.linalg.norm(encoded, axis=1, keepdims=True)
    ends = np.cumsum([len(group) for group in prompts.values()])
    means = np.stack([part.mean(axis=0) for part in np.split(encoded, ends[:-1])])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def _encoder(backbone: Backbone, mesh: Mesh) -> Callable[[np.ndarray], jax.Array]:
    """uint8 [b, s, s, 3] -> unit-norm embeddings [b, e], one compiled program; the batch is split over the devices."""
    mean, std = (jnp.asarray(x, jnp.float32)[None, None, None] for x in (backbone.mean, backbone.std))

    @jax.jit
    def encode(model, pixels: jax.Array) -> jax.Array:
        features = image_features(model, (pixels.astype(jnp.float32) / 255 - mean) / std)
        return features / jnp.linalg.norm(features, axis=1, keepdims=True)

    model = jax.device_put(backbone.model, NamedSharding(mesh, P()))
    return lambda pixels: encode(model, jax.device_put(pixels, NamedSharding(mesh, P("data"))))
