"""Causal edits: the engine against a plain float64 transformer, what changes nothing, and the laws of the edits."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbm_jax.backbones import load_backbone
from sbm_jax.errors import UserError
from sbm_jax.sae.model import Norm, Params
from sbm_jax.stages.editing import Editor, UnitEdit
from sbm_jax.stages.members import Code, Member

_SPEC = importlib.util.spec_from_file_location(
    "random_models_for_editing", Path(__file__).parents[1] / "backbones" / "random_models.py"
)
assert _SPEC and _SPEC.loader
_MODULE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)

D, U, K, SIDE, B = 16, 40, 5, 32, 3
HOOKS = ("block00.resid", "block01.resid", "block02.resid")
PATCHES = (SIDE // 8) ** 2


def dictionary(seed: int) -> Member:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    params = Params(draw(D, U) / 4, draw(U) / 10, draw(U, D), draw(D))  # pyright: ignore[reportArgumentType]
    threshold = np.abs(draw(U)) / 4
    return Member(Norm(draw(1, D), np.array([0.7], np.float32)), params, threshold)  # pyright: ignore[reportArgumentType]


@functools.cache
def made(folder: Path, family: str, objective: str = "topk") -> Editor:
    path = folder / f"{family}"
    if not path.exists():
        _MODULE.write_random(path, family, width=D, layers=3)
    backbone = load_backbone(path, SIDE)
    kinds = ("cls", "patch") if backbone.has_cls else ("patch",)
    members = {(kind, hook): dictionary(7 * i + len(kind)) for i, hook in enumerate(HOOKS) for kind in kinds}
    largest = {key: np.linspace(0.5, 2, U).astype(np.float32) for key in members}
    return Editor(backbone, members, Code(objective, K), largest, jax.devices()[:2], rows=2 * B)


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("editing")


@functools.cache
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (B, SIDE, SIDE, 3), np.uint8)


def exact(module, x: np.ndarray) -> np.ndarray:
    kernel = np.asarray(module.kernel[...], np.float64)
    return x @ kernel + (0 if module.bias is None else np.asarray(module.bias[...], np.float64))


def normed(module, x: np.ndarray, eps: float) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)
    return scaled * np.asarray(module.scale[...], np.float64) + np.asarray(module.bias[...], np.float64)


def plain_block(block, spec, x: np.ndarray) -> np.ndarray:
    """A CLIP block in float64."""
    y, heads = normed(block.norm1, x, spec.eps), spec.heads
    q, k, v = (
        exact(part, y).reshape(*x.shape[:2], heads, -1)
        for part in (block.attention.query, block.attention.key, block.attention.value)
    )
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    x = x + exact(block.attention.out, np.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape))
    hidden = exact(block.mlp_in, normed(block.norm2, x, spec.eps))
    return x + exact(block.mlp_out, hidden / (1 + np.exp(-1.702 * hidden)))


def plain_codes(member: Member, objective: str, x: np.ndarray) -> np.ndarray:
    """Codes [..., u] in float64."""
    norm, params = member.norm, member.params
    z = (x - np.asarray(norm.mean[0], np.float64)) * float(norm.scale[0])
    pre = z @ np.asarray(params.w_enc, np.float64) + np.asarray(params.b_enc)
    if objective == "topk":
        least = np.sort(pre, axis=-1)[..., -K, None]
        return np.where(pre >= least, np.maximum(pre, 0), 0)
    return np.where(pre > np.asarray(member.threshold), np.maximum(pre, 0), 0)


def plain_edit(editor: Editor, members: dict, case, kind: str, hook: str, objective: str, x: np.ndarray) -> np.ndarray:
    member = members[kind, hook]
    rows, scale = np.asarray(member.params.w_dec, np.float64), float(member.norm.scale[0])
    z = plain_codes(member, objective, x)
    new, largest, base = z.copy(), editor.dictionaries[kind, hook].largest, x
    assert largest is not None
    for edit in case:
        if (edit.kind, edit.hook) != (kind, hook):
            continue
        for token in range(x.shape[1]) if edit.patches is None else edit.patches:
            if edit.how == "rebuild":
                x_hat = (z[:, token] @ rows + np.asarray(member.params.b_dec)) / scale + np.asarray(member.norm.mean[0])
                base = base.copy()
                base[:, token] = x_hat
            for u in edit.units:
                now = new[:, token, u]
                new[:, token, u] = {
                    "zero": 0,
                    "set": edit.value,
                    "scale": edit.value * now,
                    "clamp": edit.value * largest[u],
                }[edit.how]
    return base + (new - z) @ rows / scale


def plain(editor: Editor, members: dict, case, objective: str = "topk") -> tuple[np.ndarray, np.ndarray]:
    """Embedding [b, e] and the last stream [b, t, d] of a CLIP with edits, all in float64."""
    backbone, model = editor.backbone, editor.backbone.model
    pixels = (pictures() / 255 - np.array(backbone.mean)) / np.array(backbone.std)
    x = np.asarray(model.embed(jnp.asarray(pixels, jnp.float32)), np.float64)
    for i, block in enumerate(model.blocks):
        x = plain_block(block, model.spec.block, x)
        for kind, tokens in (("cls", slice(0, 1)), ("patch", slice(editor.prefix, None))):
            x = x.copy()
            x[:, tokens] = plain_edit(editor, members, case, kind, HOOKS[i], objective, x[:, tokens])
    return exact(model.projection, normed(model.post_norm, x[:, 0], model.spec.block.eps)), x


def members_of(editor: Editor) -> dict:
    return {(kind, hook): dictionary(7 * i + len(kind)) for i, hook in enumerate(HOOKS) for kind in editor.stacked}


CASES = (
    (),
    (UnitEdit("patch", HOOKS[0], (0, 3, 9), "zero"),),
    (UnitEdit("patch", HOOKS[1], tuple(range(20)), "scale", 2.5, (1, 5)), UnitEdit("cls", HOOKS[1], (3,), "set", 1.5)),
    (
        UnitEdit("cls", HOOKS[2], (7, 8), "clamp", 2.0),
        UnitEdit("patch", HOOKS[0], (4,), "clamp", 0.5, (0,)),
        UnitEdit("patch", HOOKS[0], (4, 5), "scale", 3.0, (0, 2)),
    ),
    (UnitEdit("patch", HOOKS[1], (), "rebuild", patches=(2, 3)), UnitEdit("patch", HOOKS[1], (1, 2), "set", 1.0, (3,))),
    (UnitEdit("cls", HOOKS[0], (), "rebuild"), UnitEdit("patch", HOOKS[0], (), "rebuild")),
)


@pytest.mark.parametrize("objective", ["topk", "jumprelu"])
def test_edits_are_those_of_a_plain_network(folder, objective):
    """Every case in one batch against float64, embedding and streams."""
    editor = made(folder, "clip", objective)
    out = editor.run(pictures(), CASES, ("embedding", HOOKS[2]))
    for e, case in enumerate(CASES):
        embedding, stream = plain(editor, members_of(editor), case, objective)
        np.testing.assert_allclose(out["embedding"][e], embedding, atol=2e-4 * np.abs(embedding).max())
        np.testing.assert_allclose(out[HOOKS[2]][e], stream, atol=2e-4 * np.abs(stream).max())
    assert all(np.abs(out["embedding"][e] - out["embedding"][0]).max() > 1e-3 for e in range(1, len(CASES)))


@pytest.mark.parametrize("family", ["clip", "dinov3_vit", "siglip"])
def test_no_change_is_the_identity_to_the_bit(family, folder):
    """Scaling by 1, editing no unit, and editing no patch give the un-edited bits; the stream before the edit is untouched."""
    editor = made(folder, family)
    nothing = (
        (UnitEdit("patch", HOOKS[1], tuple(range(U)), "scale", 1.0),),
        (UnitEdit("patch", HOOKS[1], (), "zero"),),
        (UnitEdit("patch", HOOKS[1], (1, 2), "clamp", 3.0, ()),),
    )
    moved = (UnitEdit("patch", HOOKS[1], tuple(range(U)), "zero"),)
    out = editor.run(pictures(), [(), *nothing, moved], ("embedding", "final_norm", *HOOKS))
    for values in out.values():
        for e in range(1, 4):
            np.testing.assert_array_equal(values[e], values[0])
    assert np.abs(out["final_norm"][4] - out["final_norm"][0]).max() > 1e-3
    np.testing.assert_array_equal(out[HOOKS[0]][4], out[HOOKS[0]][0])
    np.testing.assert_allclose(out[HOOKS[1]][0], editor.streams(pictures())[1], rtol=1e-6)


def test_what_is_not_rebuilt_never_leaks_in(folder):
    """Zeroing all units of a poor dictionary is not the reconstruction of nothing: x - decode(z) stays, which is no b_dec."""
    editor, hook = made(folder, "clip"), HOOKS[2]
    case = (UnitEdit("patch", hook, tuple(range(U)), "zero"),)
    out = editor.run(pictures(), [(), case], (hook,))[hook].astype(np.float64)
    before = out[0][:, editor.prefix :]
    member = members_of(editor)["patch", hook]
    z = plain_codes(member, "topk", before)
    expected = before - z @ np.asarray(member.params.w_dec, np.float64) / float(member.norm.scale[0])
    np.testing.assert_allclose(out[1][:, editor.prefix :], expected, atol=1e-5 * np.abs(expected).max())


edits = st.builds(
    UnitEdit,
    st.sampled_from(["cls", "patch"]),
    st.sampled_from(HOOKS),
    st.lists(st.integers(0, U - 1), max_size=6).map(tuple),
    st.sampled_from(["zero", "set", "scale", "clamp"]),
    st.floats(-2, 4, width=32),
)


@settings(max_examples=15, deadline=None)
@given(cases=st.lists(st.lists(edits, max_size=3), min_size=2, max_size=6))
def test_a_batch_of_cases_is_its_cases_one_by_one(cases, folder):
    editor = made(folder, "clip")
    together = editor.run(pictures(), cases)["embedding"]
    for e in (0, len(cases) - 1):
        alone = editor.run(pictures(), [cases[e]])["embedding"][0]
        np.testing.assert_allclose(together[e], alone, atol=1e-5 * max(1, np.abs(alone).max()))


@settings(max_examples=15, deadline=None)
@given(
    unit=st.integers(0, U - 1),
    value=st.floats(-3, 3, width=32),
    patches=st.lists(st.integers(0, PATCHES - 1), max_size=5).map(tuple),
    other=st.floats(-3, 3, width=32),
)
def test_laws_of_edits(unit, value, patches, other, folder):
    """zero = set 0 = scale 0; clamp = set to a multiple of the largest code; a set after anything is that set; scales multiply;
    and tokens that are not chosen keep their stream.
    """
    editor, hook = made(folder, "clip"), HOOKS[1]
    largest = editor.dictionaries["patch", hook].largest
    assert largest is not None
    one = lambda how, x: UnitEdit("patch", hook, (unit,), how, x, patches)  # noqa: E731
    pairs = [
        ([one("zero", 5.0)], [one("set", 0.0)]),
        ([one("zero", 5.0)], [one("scale", 0.0)]),
        ([one("clamp", value)], [one("set", float(np.float32(value) * largest[unit]))]),
        ([one("scale", other), one("set", value)], [one("set", value)]),
        ([one("scale", other), one("scale", value)], [one("scale", other * value)]),
    ]
    cases = [case for pair in pairs for case in pair]
    out = editor.run(pictures(), [*cases, ()], (hook,))[hook]
    for i in range(len(pairs)):
        np.testing.assert_allclose(out[2 * i], out[2 * i + 1], atol=1e-5)
    rest = [0, *(editor.prefix + t for t in range(PATCHES) if t not in patches)]
    for e in range(len(cases)):
        np.testing.assert_array_equal(out[e][:, rest], out[-1][:, rest])


def test_codes_of_an_edited_stream(folder):
    """Codes of a few units are those of the whole dictionary, before and after an edit."""
    editor, hook = made(folder, "clip"), HOOKS[1]
    out = editor.run(pictures(), [(), (UnitEdit("patch", HOOKS[0], (3,), "set", 9.0),)], (hook,))[hook]
    units = (31, 2, 17)
    for stream in out:
        expected = plain_codes(members_of(editor)["patch", hook], "topk", stream[:, editor.prefix :].astype(np.float64))
        found = editor.codes(stream, "patch", hook, units)
        assert found.shape == (B, PATCHES, 3)
        np.testing.assert_allclose(found, expected[..., units], atol=1e-5)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (UnitEdit("patch", "block01.mlp_hidden", (0,), "zero"), "only residual streams"),
        (UnitEdit("word", HOOKS[0], (0,), "zero"), "only residual streams"),
        (UnitEdit("patch", HOOKS[0], (U,), "zero"), f"within 0..{U - 1}"),
        (UnitEdit("patch", HOOKS[0], (0,), "set", float("nan")), "finite"),
        (UnitEdit("patch", HOOKS[0], (0,), "zero", patches=(PATCHES,)), f"within 0..{PATCHES - 1}"),
        (UnitEdit("cls", HOOKS[0], (0,), "zero", patches=(1,)), "no patches"),
        (UnitEdit("patch", HOOKS[0], (0,), "cut"), "none of"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_edits_of_what_is_not_there_are_refused(edit, says, folder):
    with pytest.raises(UserError, match=says):
        made(folder, "clip").run(pictures(), [(edit,)])
