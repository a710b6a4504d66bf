"""How a backbone answers from the embedding of a picture: zero-shot over named categories, or by its own classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from sbm_jax.backbones import Backbone, text_features
from sbm_jax.backbones.folder import read_json, weight_files
from sbm_jax.demo.scenes import CONCEPT_PROMPTS
from sbm_jax.progress import log
from sbm_jax.stages.inputs import relative_extents

# Classifiers over the CLS token after the last norm, as Hugging Face's and torchvision's vision transformers name them.
_HEADS = ("classifier", "heads.head")


@dataclass(frozen=True)
class Readout:
    """Logits [b, c] = f(embedding) @ weight_ec + bias_c. cosine: f scales embeddings to norm 1, else it leaves them.

    names: of the categories. Zero-shot: columns of weight_ec are unit text embeddings times the inverse temperature.
    """

    names: tuple[str, ...]
    weight_ec: np.ndarray
    bias_c: np.ndarray
    cosine: bool

    def logits(self, embeddings_be: np.ndarray) -> np.ndarray:
        """float64 [b, c]."""
        x = unit(embeddings_be) if self.cosine else np.asarray(embeddings_be, np.float64)
        return x @ self.weight_ec + self.bias_c


def readout_of(backbone: Backbone, concepts: Sequence[str]) -> Readout | None:
    """Zero-shot where there is a text tower, the model's classifier where its folder has one over the CLS token, else None.

    concepts: names of the dataset's; with fewer than two the demo's six take their place.
    """
    return zero_shot(backbone, concepts) if backbone.text is not None else classifier(backbone)


def zero_shot(backbone: Backbone, concepts: Sequence[str]) -> Readout | None:
    """A category is the mean of the text embeddings of its prompts: the demo's, or `a photo of a NAME`."""
    if not any((backbone.folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        log(f"fidelity: {backbone.folder} has a text tower but no tokenizer; embeddings alone are compared")
        return None
    names = tuple(concepts) if len(concepts) > 1 else tuple(CONCEPT_PROMPTS)
    prompts = [CONCEPT_PROMPTS.get(name, (f"a photo of a {name}",)) for name in names]
    encoded = jax.jit(text_features)(backbone.text, backbone.tokenize([text for group in prompts for text in group]))
    ends = np.cumsum([len(group) for group in prompts])
    targets = unit(np.stack([part.mean(axis=0) for part in np.split(np.asarray(encoded, np.float64), ends[:-1])]))
    return Readout(names, backbone.logit_scale * targets.T, np.zeros(len(names)), cosine=True)


def classifier(backbone: Backbone) -> Readout | None:
    """The linear classifier beside the weights; names from `id2label` of config.json, else numbers."""
    from safetensors import safe_open

    tensors: dict[str, np.ndarray] = {}
    wanted = {f"{head}.{part}" for head in _HEADS for part in ("weight", "bias")}
    for path in weight_files(backbone.folder):
        with safe_open(path, framework="numpy") as opened:
            tensors |= {name: opened.get_tensor(name).astype(np.float64) for name in wanted & set(opened.keys())}
    for head in _HEADS:
        weight = tensors.get(f"{head}.weight")
        # DINOv2's reads CLS and the mean patch, which is another embedding.
        if weight is None or weight.shape[1] != backbone.d_model or not backbone.has_cls:
            continue
        labels = read_json(backbone.folder / "config.json").get("id2label", {})
        names = tuple(str(labels.get(str(i), i)) for i in range(len(weight)))
        return Readout(names, weight.T, tensors.get(f"{head}.bias", np.zeros(len(weight))), cosine=False)
    return None


def categories_of(names: tuple[str, ...], labels: dict[str, np.ndarray]) -> np.ndarray | None:
    """Index [n] of each image's category, its concept of greatest relative extent; -1 for an image without any, None where
    the categories are not the dataset's concepts.
    """
    if names != tuple(labels):
        return None
    _, extents = relative_extents(labels)
    return np.where(extents.max(axis=1) > 0, extents.argmax(axis=1), -1)


def unit(x_be: np.ndarray) -> np.ndarray:
    """Rows of norm 1, float64."""
    x = np.asarray(x_be, np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)
