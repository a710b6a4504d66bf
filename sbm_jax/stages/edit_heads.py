"""The part of the edit stage that tests patches: what a segmentation head answers where an ROI's patch units were changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sbm_jax.config_meaning import EditConfig
from sbm_jax.errors import UserError
from sbm_jax.images.batches import square_batches
from sbm_jax.progress import progress
from sbm_jax.stages.context import Context
from sbm_jax.stages.edit_cases import REMOVE, Trial
from sbm_jax.stages.edit_inputs import Selected
from sbm_jax.stages.edit_segmentation import segmentation_change
from sbm_jax.stages.editing import Editor
from sbm_jax.stages.pictures import geometry_of
from sbm_jax.stages.segmentation import patch_classes_of, patch_tokens, read_head, scores

_SIDE = 2  # patches along one side of the square in the middle of the picture that is driven


def middle(grid: int, side: int = _SIDE) -> list[int]:
    """Patches of a square in the middle of the picture."""
    first = (grid - side) // 2
    return [row * grid + column for row in range(first, first + side) for column in range(first, first + side)]


def segmentation_records(
    ctx: Context,
    editor: Editor,
    rows: np.ndarray,
    sets: list[Selected],
    trials: list[list[Trial]],
    config: EditConfig,
) -> dict[str, Any] | None:
    """head: scores of the un-edited backbone on these images. sets: per set of units and hook, what `segmentation_change` says of
    the ROI's patch units and, at the ROI's best hook, of each control set. None where no head is given.

    Raises UserError for a head of another backbone, or one whose classes are not those of the masks.
    """
    if not config.head:
        return None
    head = read_head(Path(config.head), editor.backbone)
    names, true_nt = patch_classes_of(ctx, rows)
    if names != head.names:
        raise UserError(
            f"edit.head: {config.head} knows {', '.join(head.names)}, the masks of this run {', '.join(names)}; train it again"
        )
    sources = [ctx.dataset.images.sources[row] for row in rows]
    pixels = np.concatenate(list(square_batches(sources, geometry_of(ctx, editor.backbone), len(rows))))
    out = []
    with progress("edit: segmentation", len(sets), "sets") as task:
        for chosen, of_set in zip(sets, trials, strict=True):
            record: dict[str, Any] = {
                "subject": chosen.subject,
                "roi": chosen.roi,
                "concept": chosen.concept,
                "hooks": {},
            }
            for hook, tested in (
                _tested(chosen, of_set).items() if chosen.concept in head.names and config.drive else ()
            ):
                concept, square = head.names.index(chosen.concept), middle(editor.backbone.grid)
                record["hooks"][hook] = segmentation_change(
                    editor, head, pixels, true_nt, concept, hook, tested, max(config.drive), square
                )
            out.append(record)
            task.advance()
    answers = head.classes(patch_tokens(ctx, editor.backbone, rows))
    return {"head": scores(answers, true_nt, head.names), "sets": out}


def _tested(chosen: Selected, trials: list[Trial]) -> dict[str, dict[str, tuple[int, ...]]]:
    """Per hook the ROI's patch units and, at its best hook, those of every control set."""
    out = {}
    for hook, units in chosen.units.items():
        if "patch" not in units:
            continue
        out[hook] = {"roi": units["patch"]}
        if hook == chosen.best:
            controls = [t for t in trials if t.what == REMOVE and t.draw is not None]
            out[hook] |= {f"control {t.draw}": t.units["patch"] for t in controls}
    return out
