"""What edits of patch units do to a segmentation head: on the patches that are meant, and on the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sbm_jax.stages.editing import Editor, UnitEdit
from sbm_jax.stages.segmentation import Head

_BATCH = 16


def segmentation_change(
    editor: Editor,
    head: Head,
    pixels: np.ndarray,
    true_nt: np.ndarray,
    concept: int,
    hook: str,
    units: Mapping[str, tuple[int, ...]],
    drive: float,
    square: Sequence[int],
) -> dict[str, dict[str, Any]]:
    """Per set of patch units (one may be the ROI's, others its controls) and edit, over images with a mask [n, t]:

    `remove`: at the patches of the concept of every image that has some, the units are set to zero. on_target: of those patches
    that were answered with the concept, the share that no longer is. `drive`: at the patches `square` of every image without the
    concept, the units are set to `drive` times their largest code. on_target: the share of those patches now answered with the
    concept that were not. off_target: of all other patches of these images the share whose answer changed. patches: how many
    patches on_target is a share of.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in units}
    has = (true_nt == concept).any(axis=1)
    known = true_nt[:, 0] >= 0
    for what, rows in (("remove", np.flatnonzero(has)), ("drive", np.flatnonzero(~has & known))):
        counts = {name: np.zeros(4) for name in units}  # on target and out of how many, off target and out of how many
        # Patches to remove from differ by image, those to drive do not: images of a call share their patches.
        step = 1 if what == "remove" else _BATCH
        for group in (rows[at : at + step] for at in range(0, len(rows), step)):
            chosen = np.flatnonzero(true_nt[group[0]] == concept) if what == "remove" else np.asarray(square)
            how = ("zero", 0.0) if what == "remove" else ("clamp", drive)
            places = tuple(int(patch) for patch in chosen)
            cases = [(), *((UnitEdit("patch", hook, u, *how, places),) for u in units.values())]
            padded = pixels[np.resize(group, step)]
            tokens = editor.run(padded, cases, ("final_norm",))["final_norm"][:, : len(group), editor.prefix :]
            answers = head.classes(tokens)
            inside = np.zeros(answers.shape[2], bool)
            inside[chosen] = True
            meant = inside[None] & ((answers[0] == concept) == (what == "remove"))
            for name, now in zip(units, answers[1:], strict=True):
                moved = now != answers[0]
                reached = moved & meant & ((now == concept) == (what == "drive"))
                others = ~inside[None] & np.ones_like(moved)
                counts[name] += [reached.sum(), meant.sum(), (moved & others).sum(), others.sum()]
        for name, (on, meant, off, others) in counts.items():
            found[name][what] = {
                "images": len(rows),
                "patches": int(meant),
                "on_target": float(on / meant) if meant else None,
                "off_target": float(off / others) if others else None,
            }
    return found
