"""The demo's CLIP: how it is trained, the committed model, and its zero-shot figures on held-out scenes."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn.metrics import average_precision_score

from sbm_jax.backbones import load_backbone
from sbm_jax.demo import train_clip
from sbm_jax.demo.scenes import CONCEPT_PROMPTS, CONCEPTS
from sbm_jax.demo.zero_shot import (
    DEMO_CLIP,
    PLACE,
    average_precision,
    concept_embeddings,
    dominant_concept,
    zero_shot_accuracy,
)
from sbm_jax.errors import UserError

WORD = CONCEPTS.index("word")


@pytest.fixture(scope="module")
def pool() -> train_clip.Pool:
    return train_clip.render_pool(48, train_clip.make_tokenizer(), workers=1)


def test_the_committed_model_tells_concepts_apart():
    figures = zero_shot_accuracy(n_scenes=300)
    # Well below its figures on 2,000 scenes (see the README), for 300 scenes have a standard error of 0.03.
    assert figures["accuracy"] >= 3 * figures["chance"]
    assert figures["mean_average_precision"] >= 0.6
    assert all(figures["average_precision"][c] > figures["prevalence"][c] + 0.05 for c in CONCEPTS)
    assert figures["weights_sha256"] == load_backbone(DEMO_CLIP).weights_hash


def test_the_committed_model_is_the_documented_one():
    backbone = load_backbone(DEMO_CLIP)
    assert (backbone.n_layers, backbone.d_model, backbone.grid, backbone.image_size) == (6, 128, 8, 96)
    assert len(backbone.tokenizer) == backbone.text.spec.vocabulary
    size = sum(path.stat().st_size for path in DEMO_CLIP.iterdir())
    assert size < 5e6


def test_the_tokenizer_knows_every_prompt_and_cuts_long_texts():
    backbone = load_backbone(DEMO_CLIP)
    unknown = backbone.tokenizer.convert_tokens_to_ids("<unknown>")
    prompts = [prompt for group in CONCEPT_PROMPTS.values() for prompt in group]
    ids = backbone.tokenize([*prompts, "A Zebra", "face " * 99])
    assert ids.dtype == np.int32 and ids.shape == (len(prompts) + 2, train_clip.TOKENS)
    assert not (ids[: len(prompts)] == unknown).any()
    assert (ids == backbone.text.spec.end_token).sum(axis=1).tolist() == [1] * len(ids)
    assert ids[-2, :5].tolist()[::2] == [1, unknown, 0]
    np.testing.assert_array_equal(ids[-2, 1], backbone.tokenize(["a"])[0, 1])


def test_a_model_without_its_words_is_refused(tmp_path):
    for path in DEMO_CLIP.iterdir():
        if "token" not in path.name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="no tokenizer here"):
        concept_embeddings(load_backbone(tmp_path))


def test_dominance_needs_twice_the_next_and_a_place_alone():
    labels = np.zeros((5, 6))
    labels[0, [0, 1]] = 0.3, 0.1
    labels[1, [0, 1]] = 0.3, 0.2
    labels[2, [PLACE, 4]] = 0.9, 0.05
    labels[3, PLACE] = 0.7
    assert dominant_concept(labels).tolist() == [0, -1, 4, PLACE, -1]


def test_average_precision_is_scikit_learns(rng):
    scores, present = rng.standard_normal(60), rng.random(60) < 0.3
    assert average_precision(scores, present) == pytest.approx(average_precision_score(present, scores))
    with pytest.raises(ValueError, match="no positives"):
        average_precision(scores, np.zeros(60, bool))


def test_batches_depend_on_seed_and_step_alone(pool):
    first, again, later = (train_clip.draw_batch(pool, 8, step, 3, whole=False) for step in (5, 5, 6))
    assert first["images"].shape == (8, 96, 96, 3) and first["images"].dtype == np.uint8
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    assert (first["images"] != later["images"]).any()
    kept = first["kept"]
    assert kept.shape == (8, 33) and (kept[:, 0] == 0).all()
    assert all(len(set(row)) == 33 and row[1:].min() >= 1 and row.max() <= 64 for row in kept)
    assert "kept" not in train_clip.draw_batch(pool, 8, 5, 3, whole=True)


def test_scenes_with_words_or_sides_are_never_mirrored(pool):
    tokenizer = train_clip.make_tokenizer()
    sided = np.isin(pool.ids, tokenizer.convert_tokens_to_ids(["left", "right"])).any(axis=1)
    assert sided.any() and pool.flips.any()
    assert not pool.flips[sided | (pool.labels[:, WORD] > 0)].any()
    assert pool.flips[~sided & (pool.labels[:, WORD] == 0)].all()


def test_equal_captions_share_their_target(pool):
    """Contrastive loss of identical images and captions is log(batch), however the scale is set."""
    tokenizer = train_clip.make_tokenizer()
    spec = train_clip.make_spec(tokenizer)
    shallow = replace(spec, vision=replace(spec.vision, n_layers=1), text=replace(spec.text, n_layers=1))
    model = train_clip.Trained(shallow, nnx.Rngs(0))
    batch = train_clip.draw_batch(pool, 4, 0, 0, whole=False)
    batch = {
        k: np.repeat(v[..., :1] if k == "light" else v[:1], 4, -1 if k == "light" else 0) for k, v in batch.items()
    }
    prompts = tuple(jnp.asarray(tokenizer(list(CONCEPT_PROMPTS[c]), padding=True)["input_ids"]) for c in CONCEPTS)
    _, parts = jax.jit(train_clip.losses)(model, batch, prompts)
    assert float(parts["contrast"]) == pytest.approx(np.log(4), rel=1e-5)


def test_patch_coverage_counts_pixels_row_major():
    masks = np.zeros((2, 96, 96), np.uint8)
    masks[1, 12:24, 36:42] = WORD + 1  # half of the patch in row 1, column 3
    covered = np.asarray(train_clip.patch_coverage(jnp.asarray(masks)))
    assert covered.shape == (2, 64, 6)
    assert covered[1, 8 + 3, WORD] == 0.5 and covered.sum() == 0.5


def test_masks_are_cropped_and_mirrored_with_their_images(pool):
    marked = pool.images.copy()
    marked[..., 0] = pool.masks
    batch = train_clip.draw_batch(replace(pool, images=marked), 16, 1, 0, whole=True)
    np.testing.assert_array_equal(batch["images"][..., 0], batch["masks"])
    assert batch["masks"].any()


def test_the_rate_warms_up_and_falls_to_zero():
    assert train_clip.learning_rate(0) == 0
    assert train_clip.learning_rate(train_clip.WARM_UP) == pytest.approx(train_clip.PEAK_RATE)
    assert train_clip.learning_rate(1) == pytest.approx(0)
    assert train_clip.learning_rate(0.3) > train_clip.learning_rate(0.6)


def test_training_goes_on_from_an_export_with_the_same_words(tmp_path):
    tokenizer = train_clip.make_tokenizer()
    clip = train_clip.load_export(DEMO_CLIP, train_clip.make_spec(tokenizer), tokenizer)
    committed = load_backbone(DEMO_CLIP)
    np.testing.assert_array_equal(clip.text.tokens[...], committed.text.tokens[...])
    other = json.loads((DEMO_CLIP / "tokenizer.json").read_text())
    other["model"]["vocab"]["zebra"] = other["model"]["vocab"].pop("word")
    (tmp_path / "tokenizer.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match="its words are not those of the scenes now"):
        train_clip.load_export(tmp_path, train_clip.make_spec(tokenizer), tokenizer)


def test_an_export_is_an_ordinary_model_directory(tmp_path: Path):
    tokenizer = train_clip.make_tokenizer()
    model = train_clip.Trained(train_clip.make_spec(tokenizer), nnx.Rngs(0))
    tokenizer(["a face", "a large body"], padding=True)  # leaves its settings in the tokenizer
    train_clip.export(tmp_path, model, tokenizer)
    assert {path.name for path in DEMO_CLIP.iterdir()} == {path.name for path in tmp_path.iterdir()}
    for path in tmp_path.glob("*.json"):
        assert json.loads(path.read_text()) == json.loads((DEMO_CLIP / path.name).read_text())
    loaded = load_backbone(tmp_path)
    kernel = np.asarray(model.clip.vision.blocks[5].mlp_in.kernel[...])
    np.testing.assert_array_equal(loaded.model.blocks[5].mlp_in.kernel[...], kernel.astype(np.float16))
