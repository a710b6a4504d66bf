"""The judge `clip`: a model with a text tower that says which group of prompts an image fits best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sbm_jax.backbones import Backbone, image_features, load_backbone, text_features
from sbm_jax.errors import UserError
from sbm_jax.images import ImageSource, square, square_batches
from sbm_jax.progress import progress
from sbm_jax.stages.judging import ImageJudge

BATCH = 64


def zero_shot_judge(model: Path, prompts: Mapping[str, Sequence[str]], sources: Sequence[ImageSource]) -> ImageJudge:
    """Every image shows the group whose embedding is nearest to its own by cosine; a group's is the mean of the unit text
    embeddings of its prompts. Images go through the model once, in batches; only their scores [n, c] are kept.

    Raises UserError for a model that cannot be loaded or has no text tower, or an image that cannot be read.
    """
    backbone = load_backbone(model)
    targets_ce = group_embeddings(backbone, prompts)
    scores = np.zeros((len(sources), len(prompts)), np.float32)
    encode = _encoder(backbone)
    done = 0
    with progress("explain: clip", len(sources), "images") as task:
        for pixels in square_batches(sources, square(backbone.image_size), BATCH):
            padded = np.pad(pixels, [(0, BATCH - len(pixels)), (0, 0), (0, 0), (0, 0)])  # one shape, one program
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


def _encoder(backbone: Backbone):
    """uint8 [b, s, s, 3] -> unit-norm embeddings [b, e], one compiled program."""
    mean, std = (jnp.asarray(x, jnp.float32)[None, None, None] for x in (backbone.mean, backbone.std))

    @jax.jit
    def encode(model, pixels: jax.Array) -> jax.Array:
        features = image_features(model, (pixels.astype(jnp.float32) / 255 - mean) / std)
        return features / jnp.linalg.norm(features, axis=1, keepdims=True)

    return lambda pixels: encode(backbone.model, pixels)
