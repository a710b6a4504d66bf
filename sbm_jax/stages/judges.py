"""The judges that a run has data for, and why the others are left out."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from sbm_jax.errors import UserError
from sbm_jax.stages.context import Context
from sbm_jax.stages.judge_clip import zero_shot_judge
from sbm_jax.stages.judge_labels import dataset_labels, file_labels
from sbm_jax.stages.judge_masks import CLASSES, read_classes, read_masks
from sbm_jax.stages.judge_sources import clip_folder, mask_folder, read_prompts
from sbm_jax.stages.judging import Judge
from sbm_jax.stages.pictures import seen_geometry
from sbm_jax.stages.probe import STIMULI, probe_sources


def open_judges(ctx: Context, probe: dict[str, Any]) -> tuple[list[Judge], dict[str, str]]:
    """Judges, and {judge: why it is left out}. probe: probe.json of the exemplars.

    Raises UserError for labels, prompts, masks or a model that cannot be used.
    """
    config, stimuli = ctx.config.explain, probe["kind"] == STIMULI
    judges: list[Judge] = []
    left_out = {}
    if config.labels:
        judges.append(file_labels(Path(config.labels).expanduser(), probe["ids"]))
    elif stimuli and ctx.dataset.images.labels:
        judges.append(dataset_labels(ctx.dataset.images.labels))
    else:
        left_out["labels"] = (
            "the dataset labels no images" if stimuli else "the probe set is a folder, and explain.labels is not set"
        )
    if config.clip:
        prompts, model = read_prompts(ctx.config), clip_folder(ctx.config)
        judges.append(zero_shot_judge(model, prompts, probe_sources(ctx), ctx.devices))
    else:
        left_out["clip"] = "explain.clip is not set"
    masks = _masks(ctx, probe)
    if isinstance(masks, str):
        left_out["masks"] = masks
    else:
        judges.append(masks)
    return judges, left_out


def _masks(ctx: Context, probe: dict[str, Any]) -> Judge | str:
    folder = mask_folder(ctx.config, ctx.facts)
    if folder is None:
        return "the dataset has no folder of masks, and explain.masks is not set"
    if "patch" not in ctx.config.kinds:
        return "only units of patch tokens have heat maps, and exemplars.kinds or encode.modes leaves them out"
    stems = probe["ids"] if probe["kind"] == STIMULI else [str(PurePosixPath(i).with_suffix("")) for i in probe["ids"]]
    found = read_masks(
        folder, mask_classes(ctx, folder), [f"{stem}.png" for stem in stems], seen_geometry(ctx), probe["grid"]
    )
    if found is not None:
        return found
    if ctx.config.explain.masks:
        raise UserError(
            f"explain.masks: {folder} holds no mask of a probe image; expected files such as {stems[0]}.png, one class index per "
            "pixel"
        )
    return f"{folder.name} of the dataset holds no mask of a probe image"


def mask_classes(ctx: Context, folder: Path) -> dict[int, str]:
    """Of classes.csv in the folder; in a dataset's own without one the dataset's concepts in order from 1, 0 being background."""
    if (folder / CLASSES).is_file() or ctx.config.explain.masks:
        return read_classes(folder / CLASSES)
    if not ctx.dataset.concepts:
        raise UserError(f"{folder}: expected {CLASSES} with the columns index and name, or concepts in dataset.json")
    return dict(enumerate(ctx.dataset.concepts, start=1))
