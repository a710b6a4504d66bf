"""The part of the edit stage that tests patches: what a segmentation head answers where an ROI's patch units were changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sbm_jax.config_meaning import EditConfig
from sbm_jax.errors import UserError
from sbm_jax.images.batches import square_batches
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
    for chosen, of_set in zip(sets, trials, strict=True):
        record: dict[str, Any] = {"subject": chosen.subject, "roi": chosen.roi, "concept": chosen.concept, "hooks": {}}
        if chosen.concept in head.names and config.drive:
            for hook, units in chosen.units.items():
                if "patch" not in units:
                    continue
                tested = {"roi": units["patch"]}
                if hook == chosen.best:
                    controls = [t for t in of_set if t.what == REMOVE and t.draw is not None]
                    tested |= {f"control {t.draw}": t.units["patch"] for t in controls}
                record["hooks"][hook] = segmentation_change(
                    editor,
                    head,
                    pixels,
                    true_nt,
                    head.names.index(chosen.concept),
                    hook,
                    tested,
                    max(config.drive),
                    middle(editor.backbone.grid),
                )
        out.append(record)
    answers = head.classes(patch_tokens(ctx, editor.backbone, rows))
    return {"head": scores(answers, true_nt, head.names), "sets": out}
