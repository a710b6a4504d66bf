"""Lists of top images, heat maps and firing against a plain float64 loop over all images x units."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbm_jax.errors import UserError
from sbm_jax.mesh import make_mesh
from sbm_jax.sae.model import Norm, Params
from sbm_jax.stages.exemplar_search import TopLists, list_bytes
from sbm_jax.stages.exemplars import Dictionary, group, search
from sbm_jax.stages.members import Code, Member

N, T, D, U, E = 37, 9, 5, 23, 6
TOLERANCE = 3e-6  # float32 products of 5 channels, sums of 9 patches
CODES = (Code("topk", 3), Code("relu", 1), Code("batch_topk", 3))


def member(seed: int = 0, dead: int = 4) -> Member:
    """A random autoencoder; its first units never fire, the next hardly ever."""
    rng = np.random.default_rng(seed)
    w_enc, w_dec = rng.standard_normal((D, U)), rng.standard_normal((U, D))
    b_enc = rng.standard_normal(U) * 0.3
    b_enc[:dead], b_enc[dead : 2 * dead] = -100, -4
    arrays = (jnp.asarray(x, jnp.float32) for x in (w_enc, b_enc, w_dec, np.zeros(D)))
    norm = Norm(jnp.asarray(rng.standard_normal((1, D)), jnp.float32), jnp.asarray([0.7], jnp.float32))
    return Member(norm, Params(*arrays), jnp.asarray(rng.random(U) * 0.5, jnp.float32))


def plain_codes(member: Member, code: Code, x_ntd: np.ndarray) -> np.ndarray:
    """Codes of all tokens, float64 [n, t, u]."""
    params = Params(*(None if p is None else np.asarray(p, np.float64) for p in member.params))  # pyright: ignore
    mean, scale = np.asarray(member.norm.mean, np.float64), float(member.norm.scale[0])
    pre = scale * (x_ntd.astype(np.float64) - mean[0]) @ params.w_enc + params.b_enc
    if code.any_number:
        return np.where(pre > np.asarray(member.threshold, np.float64), np.maximum(pre, 0), 0)
    kept = np.sort(pre, axis=-1)[..., -code.k][..., None]
    return np.where(pre >= kept, np.maximum(pre, 0), 0)


class Images:
    """A probe set in memory, in blocks of `block` images."""

    def __init__(self, arrays: dict[str, np.ndarray], block: int):
        self.arrays, self.block = arrays, block
        self.ids = [str(i) for i in range(len(next(iter(arrays.values()))))]

    def blocks(self, names):
        for start in range(0, len(self.ids), self.block):
            yield start, {name: self.arrays[name][start : start + self.block] for name in names}


def tokens(kind: str, seed: int = 1, twice: int = 0) -> np.ndarray:
    """Activations float16; the last `twice` images are the first ones again."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((N, T, D) if kind == "patch" else (N, D)).astype(np.float16)
    if twice:
        x[-twice:] = x[:twice]
    return x


def dictionary(kind: str = "patch", why: np.ndarray | None = None, patches: int = T) -> Dictionary:
    return Dictionary(kind, "h", 0, np.ones(U, np.uint8) if why is None else why, patches)


def found(
    x: np.ndarray, kind: str, code: Code, score: Any, devices: int = 1, step: int = 8, block: int = 16, **of: Any
):
    mesh = make_mesh({"data": devices}, jax.devices()[:devices])
    probe: Any = Images({f"h/{kind}": x}, block)
    d = dictionary(kind, **of)
    [(lists, firing)] = search(probe, [d], {0: member()}, code, mesh, step * devices, E, score)
    return d, lists, firing


def check(x: np.ndarray, kind: str, code: Code, score: str, d: Dictionary, lists: TopLists, firing: Any) -> None:
    """Everything beside loops over images x units."""
    z = plain_codes(member(), code, x.reshape(N, -1, D))
    for row, unit in enumerate(d.units):
        values = [z[i, :, unit].max() if score == "max" else z[i, :, unit].mean() for i in range(N)]
        order = [i for i in sorted(range(N), key=lambda i: -values[i]) if values[i] > 0][:E]
        assert lists.images[row].tolist() == order + [-1] * (E - len(order)), unit
        expected = np.array([values[i] for i in order] + [0] * (E - len(order)))
        assert np.abs(lists.scores[row] - expected).max() < TOLERANCE * 10
        for place, i in enumerate(lists.images[row]):
            if lists.heat is not None:
                heat = z[i, :, unit] if i >= 0 else np.zeros(T)
                assert np.abs(lists.heat[row, place] - heat).max() <= 1e-3 * np.abs(heat).max()
    length = np.sum(np.asarray(member().params.w_dec, np.float64) ** 2, axis=1)
    n_tokens = z.shape[0] * z.shape[1]
    for unit in range(U):
        fired = z[..., unit] > 0
        assert firing.image_rate[unit] == np.float32(fired.any(axis=1).mean())
        assert firing.token_rate[unit] == np.float32(fired.mean())
        active = z[..., unit][fired]
        assert firing.mean_active[unit] == pytest.approx(active.mean() if active.size else 0, abs=1e-5)
        assert firing.largest[unit] == pytest.approx(active.max() if active.size else 0, abs=1e-5)
        assert firing.energy[unit] == pytest.approx((active**2).sum() * length[unit] / n_tokens, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("score", ["max", "mean"])
@pytest.mark.parametrize("code", CODES, ids=lambda code: code.objective)
def test_every_image_times_unit(code, score):
    """Dead units (no list), rare units (fewer images than the list holds) and frequent ones are among them."""
    x = tokens("patch")
    d, lists, firing = found(x, "patch", code, score)
    assert (lists.images == -1).all(axis=1).any() and ((lists.images == -1).sum(axis=1) % E).any()
    check(x, "patch", code, score, d, lists, firing)


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.objective)
def test_cls_tokens_have_lists_without_heat(code):
    x = tokens("cls")
    d, lists, firing = found(x, "cls", code, "max")
    assert lists.heat is None
    check(x, "cls", code, "max", d, lists, firing)


def test_some_units_only():
    why = np.zeros(U, np.uint8)
    why[[3, 9, 10, 22]] = 1
    x = tokens("patch")
    d, lists, firing = found(x, "patch", CODES[0], "max", why=why)
    assert d.units.tolist() == [3, 9, 10, 22]
    check(x, "patch", CODES[0], "max", d, lists, firing)


@pytest.mark.parametrize(("devices", "step", "block"), [(1, 1, 1), (1, 37, 37), (3, 2, 7), (8, 1, 37)])
@pytest.mark.parametrize("code", CODES[:2], ids=lambda code: code.objective)
def test_any_batch_and_number_of_devices_give_the_same_lists(code, devices, step, block):
    x = tokens("patch", twice=9)
    _, plain, _ = found(x, "patch", code, "max")
    _, lists, firing = found(x, "patch", code, "max", devices, step, block)
    assert (lists.images == plain.images).all()
    assert np.abs(lists.scores - plain.scores).max() < TOLERANCE
    assert np.abs(lists.heat.astype(float) - plain.heat).max() < 2e-3  # pyright: ignore
    z = plain_codes(member(), code, x)
    assert (firing.token_rate == (z > 0).mean(axis=(0, 1)).astype(np.float32)).all()


def test_ties_go_to_the_earlier_image():
    """The last 9 images are the first 9 again: in a list both or the first."""
    x = tokens("patch", twice=9)
    _, lists, _ = found(x, "patch", CODES[0], "max")
    seen = 0
    for row in lists.images:
        for i in row[row >= N - 9]:
            earlier = i - (N - 9)
            assert row.tolist().index(earlier) + 1 == row.tolist().index(i)
            seen += 1
    assert seen > 5


def test_more_places_than_images():
    x = tokens("patch")[:4]
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    probe: Any = Images({"h/patch": x}, 4)
    [(lists, _)] = search(probe, [dictionary()], {0: member()}, CODES[1], mesh, 4, E, "max")
    assert (lists.images[:, 4:] == -1).all() and (lists.heat[:, 4:] == 0).all()  # pyright: ignore
    z = plain_codes(member(), CODES[1], x).max(axis=1)
    assert ((lists.images >= 0).sum(axis=1) == (z > 0).sum(axis=0)).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 5), st.integers(1, 7), st.data())
def test_lists_are_those_of_a_stable_sort(seed, n, w, e, data):
    """Few different scores, so that most are ties; any cuts of the images into batches."""
    scores = np.random.default_rng(seed).integers(0, 4, (n, w)).astype(np.float32)
    cuts = sorted(data.draw(st.sets(st.integers(1, n), max_size=5)) | {0, n})
    lists = TopLists(w, e, 1)
    for start, stop in itertools.pairwise(cuts):
        entered = lists.take(start, scores[start:stop])
        lists.heat[entered.row, entered.slot, 0] = entered.image + start  # pyright: ignore
    lists.sort()
    for unit in range(w):
        order = [i for i in np.argsort(-scores[:, unit], kind="stable") if scores[i, unit] > 0][:e]
        filled = lists.images[unit] >= 0
        assert lists.images[unit][filled].tolist() == order
        assert lists.scores[unit][filled].tolist() == scores[order, unit].tolist()
        assert lists.heat[unit, filled, 0].tolist() == order  # pyright: ignore


def test_dictionaries_are_grouped_by_the_budget():
    every = [dictionary(), dictionary(), dictionary("cls"), dictionary()]
    size = U * list_bytes(E, T) + 40 * U
    assert [len(part) for part in group(every, 10**9, E)] == [4]
    assert [len(part) for part in group(every, 2 * size, E)] == [2, 2]
    assert [len(part) for part in group(every, size, E)] == [1, 1, 1, 1]
    with pytest.raises(UserError, match=r"(?s)23 units of patch/h.*exemplars.memory_mb.*exemplars.top"):
        group(every, size - 1, E)


def test_one_pass_serves_all_dictionaries():
    """The probe set is gone through once, and every dictionary has the lists it has alone."""
    x = {f"{hook}/patch": tokens("patch", seed) for seed, hook in enumerate("abc")}
    probe: Any = Images(x, 10)
    calls: list[Any] = []
    probe.blocks = lambda names, plain=probe.blocks: calls.append(names) or plain(names)
    mesh = make_mesh({"data": 2}, jax.devices()[:2])
    three = [Dictionary("patch", hook, i, np.ones(U, np.uint8), T) for i, hook in enumerate("abc")]
    members = {i: member(i) for i in range(3)}
    together = search(probe, three, members, CODES[0], mesh, 4, E, "max")
    assert calls == [list(x)]
    for d, (lists, _) in zip(three, together, strict=True):
        [(alone, _)] = search(probe, [d], members, CODES[0], mesh, 4, E, "max")
        assert (alone.images == lists.images).all() and (alone.heat == lists.heat).all()
