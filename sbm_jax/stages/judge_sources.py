"""Where the judges of a configuration get what they know from, and what that says of the identity of their names."""

from __future__ import annotations

from pathlib import Path

from sbm_jax.backbones.describe import describe_backbone
from sbm_jax.config import Config
from sbm_jax.config_text import read_yaml
from sbm_jax.demo import CLIP_FOLDER
from sbm_jax.errors import UserError
from sbm_jax.stages.facts import Facts, identity
from sbm_jax.stages.probe import STIMULI

PROMPTS = Path(__file__).parent / "prompts.yaml"
OWN_MASKS = "masks"  # folder of a dataset


def judge_identity(config: Config, facts: Facts) -> dict[str, str]:
    """Changes when what a judge knows does; {judge: ...}. The labels of a dataset are part of the images' identity.

    Raises UserError for a file or model that is not there, prompts of another form, or a judge that is the backbone itself.
    """
    out = {}
    if config.explain.labels:
        out["labels"] = identity([_there(config.explain.labels, "explain.labels", "a CSV file")])
    if config.explain.clip:
        out["clip"] = _judging_model(config, facts)
    if (folder := mask_folder(config, facts)) is not None and (config.explain.masks or facts.demo is None):
        files = sorted(path for path in folder.rglob("*") if path.suffix in (".png", ".csv"))
        out["masks"] = identity(files, *(path.relative_to(folder).as_posix() for path in files))
    return out


def mask_folder(config: Config, facts: Facts) -> Path | None:
    """Of the configuration, or the dataset's own where that is the probe set; the demo's is not there before it is made."""
    if config.explain.masks:
        return _there(config.explain.masks, "explain.masks", "a folder of masks", folder=True)
    own = facts.root / OWN_MASKS
    return own if config.exemplars.probe == STIMULI and (facts.demo is not None or own.is_dir()) else None


def clip_folder(config: Config) -> Path:
    return CLIP_FOLDER if config.explain.clip == "demo" else Path(config.explain.clip)


def _judging_model(config: Config, facts: Facts) -> str:
    model = describe_backbone(str(clip_folder(config)))
    if model.weights_hash == facts.backbone.weights_hash and not config.explain.own_judge:
        raise UserError(
            f"explain.clip: {config.explain.clip} is the backbone itself ({facts.backbone.path}), and a model should not be the "
            "judge of its own units: what it cannot tell apart it would not find missing. Give another model with a text tower, or "
            "set explain.own_judge=true."
        )
    return model.weights_hash


def read_prompts(config: Config) -> dict[str, list[str]]:
    """Groups of prompts: of `explain.prompts`, the demo's where its own model judges (it knows no other words), or the shipped
    six. Raises UserError naming the file and the group.
    """
    if not config.explain.prompts and config.explain.clip == "demo":
        from sbm_jax.demo.scenes import CONCEPT_PROMPTS

        return {name: list(texts) for name, texts in CONCEPT_PROMPTS.items()}
    path = _there(config.explain.prompts, "explain.prompts", "a YAML file") if config.explain.prompts else PROMPTS
    raw = read_yaml(path)
    for name, texts in raw.items():
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{path}: expected texts as names of groups, found {name!r}; put it in quotes")
        if (
            not isinstance(texts, list)
            or not texts
            or not all(isinstance(text, str) and text.strip() for text in texts)
        ):
            raise UserError(f"{path}: expected a list of prompts under {name!r}, found {texts!r}")
    if len(raw) < 2:
        raise UserError(f"{path}: expected at least two groups of prompts to choose between, found {len(raw)}")
    return raw


def _there(name: str, key: str, what: str, *, folder: bool = False) -> Path:
    path = Path(name).expanduser()
    if not (path.is_dir() if folder else path.is_file()):
        raise UserError(f"{key}: {name}: expected {what}, found {'a folder' if path.is_dir() else 'no such thing'}")
    return path
