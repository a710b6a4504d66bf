"""What the page says of units that are the same in two dictionaries."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from sbm_jax.images.sources import open_image
from sbm_jax.report.data import Column, RoiExemplars, Table, Thumb, UnitCard
from sbm_jax.report.thumbs import thumbnail
from sbm_jax.stages.context import Context
from sbm_jax.stages.match_lists import describe
from sbm_jax.store.store import Store

_MOST_SHOWN = 6  # pairs of dictionaries with pictures on the page


def match_tables(match: dict[str, Any] | None) -> list[Table]:
    """A row per pair of dictionaries, from `match.json`."""
    if match is None or not match["pairs"]:
        return []
    rows = []
    for pair in match["pairs"]:
        a, b, decoder = pair["from_a"], pair["from_b"], pair["decoder"] or {}
        above = a.get("above", {})
        rows.append(
            [
                _title(pair, match["seed"]),
                a["units"],
                b["units"],
                a.get("mean"),
                b.get("mean"),
                a.get("chance"),
                above.get("0.5"),
                above.get("0.7"),
                a.get("above_chance"),
                pair["one_to_one"]["mean"],
                decoder.get("from_a"),
                decoder.get("chance"),
                decoder.get("same"),
            ]
        )
    columns = [
        "dictionaries a | b",
        Column("units", "of a"),
        Column("units", "of b"),
        Column(
            "best r", "a in b", help="mean over units of the largest Pearson r of their codes with a unit of the other"
        ),
        Column("best r", "b in a"),
        Column("best r", "by chance", help="the same with the images of b permuted"),
        Column("above 0.5", "a in b", help="share of a's units"),
        Column("above 0.7", "a in b"),
        Column(
            "above chance",
            "a in b",
            help=f"share of a's units whose r no permutation reaches; by chance {1 / (1 + match['shuffles']):.2f}",
        ),
        Column("one to one", "r", help="mean over the pairs that there could be; a unit that stays alone counts 0"),
        Column("best cosine", "decoders", help="mean over a's units; a dash where decoder rows share no space"),
        Column("best cosine", "by chance", help="the same with b's rows rotated at random"),
        Column("same partner", help="share of a's units whose best partner by r is that by decoder cosine too"),
    ]
    images = match["pairs"][0]["images"]
    note = (
        f"Codes of the same {images:,} images; units active on fewer than {match['least_images']} of them take no part. "
        "Decoder rows of two layers share the residual stream, to which every block adds."
    )
    return [Table("The same unit in two dictionaries", note, columns, rows, section="layers")]


def _title(pair: dict[str, Any], seed: int) -> str:
    """`patch block00.resid | block01.resid`: of b what tells it from a."""
    a, b = describe(pair["a"], seed), describe(pair["b"], seed)
    return f"{a} | {b.removeprefix(pair['a']['kind']).strip()}"


def match_exemplars(ctx: Context) -> list[RoiExemplars]:
    """Matched units side by side, with the images that drive each most, of some pairs of dictionaries."""
    if ctx.specs.match is None:
        return []
    store, images = ctx.open(ctx.specs.match), ctx.dataset.images

    @functools.cache
    def thumb(row: int) -> Thumb:
        return thumbnail(np.asarray(open_image(images.sources[row])), images.captions[row] or images.ids[row])

    document = store.json("match.json")
    shown, seed = [pair for pair in document["pairs"] if pair["one_to_one"]["pairs"]], document["seed"]
    some = np.unique(np.linspace(0, len(shown) - 1, min(_MOST_SHOWN, len(shown))).astype(int))
    found = [(shown[i], _cards(store, shown[i], seed, thumb)) for i in some]
    subtitle = "matched one to one, two by two: the best pair of units, then down to the median"
    return [RoiExemplars(_title(pair, seed), subtitle, cards) for pair, cards in found if cards]


def _cards(store: Store, pair: dict[str, Any], seed: int, thumb: Callable[[int], Thumb]) -> list[UnitCard]:
    name, cards = pair["name"], []
    units, images, values = (store.read(f"{name}/{key}") for key in ("shown_units", "shown_images", "one_to_one_value"))
    cosines = store.read(f"{name}/one_to_one_cosine") if pair["decoder"] else None
    for mine, rows in zip(units, images, strict=True):
        text = f"r {values[mine[0]]:.2f}" + ("" if cosines is None else f", decoder cosine {cosines[mine[0]]:.2f}")
        for side in range(2):
            which = pair["ab"[side]]
            pictures = [thumb(int(row)) for row in rows[side] if row >= 0]
            cards.append(
                UnitCard(which["hook"], int(mine[side]), "" if side else text, describe(which, seed), pictures)
            )
    return cards


def match_summary(ctx: Context) -> dict[str, Any] | None:
    """`match` of summary.json; None where nothing was compared."""
    return None if ctx.specs.match is None else ctx.open(ctx.specs.match).json("match.json")
