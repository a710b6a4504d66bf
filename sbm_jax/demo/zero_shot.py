"""Held-out zero-shot accuracy of a CLIP on procedural scenes: `python -m sbm_jax.demo.zero_shot [MODEL]`."""

import json
from pathlib import Path
from typing import Any

import click
import jax
import numpy as np
from PIL import Image

from sbm_jax.backbones import Backbone, image_features, load_backbone, text_features
from sbm_jax.demo.scenes import CONCEPT_PROMPTS, CONCEPTS, image_set
from sbm_jax.errors import UserError
from sbm_jax.images import normalise, to_square

DEMO_CLIP = Path(__file__).parent / "clip"
HELD_OUT_SEED = 2  # scenes of this seed train nothing; the demo's stimuli are seed 0, training is seed 1
DOMINANCE = 2.0  # a dominant concept covers more than this many times the pixels of the next one
PLACE = CONCEPTS.index("place")


def concept_embeddings(backbone: Backbone) -> np.ndarray:
    """Unit-norm f32 [6, e]: for each of CONCEPTS the mean of its prompts' text embeddings."""
    if backbone.text is None:
        raise UserError(f"{backbone.name}: zero-shot classification needs a model with a text tower, such as CLIP")
    encode = jax.jit(text_features)
    means = []
    for concept in CONCEPTS:
        ids = backbone.tokenize(CONCEPT_PROMPTS[concept])
        means.append(np.asarray(encode(backbone.text, ids)).mean(axis=0))
    embeddings = np.stack(means)
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def dominant_concept(labels_nc: np.ndarray) -> np.ndarray:
    """Index of the dominant concept per scene, -1 if there is none.

    labels_nc: visible fraction of pixels per scene and concept. Dominant is the thing that covers more than
    DOMINANCE times the pixels of the next one; a place, being behind everything, counts only when alone.
    """
    things = labels_nc.copy()
    things[:, PLACE] = 0
    ranked = np.sort(things, axis=1)
    found = np.where(ranked[:, -1] > DOMINANCE * ranked[:, -2], things.argmax(axis=1), -1)
    alone = (ranked[:, -1] == 0) & (labels_nc[:, PLACE] > 0)
    return np.where(alone, PLACE, found)


def average_precision(scores_n: np.ndarray, present_n: np.ndarray) -> float:
    """Mean over the positives of the precision at their rank (best score first; ties in index order)."""
    hits = present_n[np.argsort(-scores_n, kind="stable")].astype(bool)
    if not hits.any():
        raise ValueError("no positives")
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits].mean())


def zero_shot_accuracy(
    model: str | Path = DEMO_CLIP, n_scenes: int = 2000, seed: int = HELD_OUT_SEED, batch: int = 100
) -> dict[str, Any]:
    """Zero-shot figures of a model on n_scenes scenes of `seed`, by cosine of image and prompt embeddings.

    Returns accuracy (6-way over scenes with one dominant concept), its binomial standard error, the
    accuracy per concept, and the average precision per concept of telling scenes with it from scenes without,
    over all scenes. Raises UserError if the model cannot be loaded or has no text tower.
    """
    backbone = load_backbone(model)
    targets_ce = concept_embeddings(backbone)
    encode = jax.jit(image_features)
    scores, labels = [], []
    scenes = image_set(seed, range(n_scenes))
    for start in range(0, n_scenes, batch):
        squares = []
        for _ in range(min(batch, n_scenes - start)):
            scene = next(scenes)
            squares.append(to_square(Image.fromarray(scene.image), backbone.image_size))
            labels.append([scene.labels[concept] for concept in CONCEPTS])
        pixels = normalise(np.stack(squares), backbone.mean, backbone.std)
        scores.append(np.asarray(encode(backbone.model, pixels)) @ targets_ce.T)
    return _figures(np.concatenate(scores), np.array(labels)) | {
        "model": backbone.name,
        "weights_sha256": backbone.weights_hash,
        "seed": seed,
        "scenes": n_scenes,
    }


def _figures(scores_nc: np.ndarray, labels_nc: np.ndarray) -> dict[str, Any]:
    dominant = dominant_concept(labels_nc)
    judged = dominant >= 0
    right = scores_nc.argmax(axis=1) == dominant
    accuracy = float(right[judged].mean())
    precision = {concept: average_precision(scores_nc[:, i], labels_nc[:, i] > 0) for i, concept in enumerate(CONCEPTS)}
    return {
        "accuracy": accuracy,
        "accuracy_standard_error": float(np.sqrt(accuracy * (1 - accuracy) / judged.sum())),
        "chance": 1 / len(CONCEPTS),
        "judged_scenes": int(judged.sum()),
        "accuracy_by_concept": {
            concept: float(right[dominant == i].mean()) for i, concept in enumerate(CONCEPTS) if (dominant == i).any()
        },
        "mean_average_precision": float(np.mean(list(precision.values()))),
        "average_precision": precision,
        "prevalence": {concept: float((labels_nc[:, i] > 0).mean()) for i, concept in enumerate(CONCEPTS)},
    }


@click.command()
@click.argument("model", default=str(DEMO_CLIP))
@click.option("--scenes", default=2000, show_default=True, help="Held-out scenes to draw.")
@click.option("--seed", default=HELD_OUT_SEED, show_default=True, help="Series of scenes.")
def main(model: str, scenes: int, seed: int) -> None:
    """Print the zero-shot figures of MODEL (a folder or cached hub name; default: the demo's) as JSON."""
    try:
        click.echo(json.dumps(zero_shot_accuracy(model, scenes, seed), indent=2))
    except UserError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
