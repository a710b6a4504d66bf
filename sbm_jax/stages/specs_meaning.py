"""The identity of the stores that say what units mean. One function per stage; None where a configuration has no use for it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sbm_jax.config import Config
from sbm_jax.errors import UserError
from sbm_jax.stages.facts import Facts
from sbm_jax.stages.judge_sources import judge_identity, read_prompts
from sbm_jax.stages.match_dictionaries import find_codes, folder_of
from sbm_jax.stages.probe import STIMULI, probe_identity
from sbm_jax.stages.variants import needed, variants
from sbm_jax.stages.wanted import user_units
from sbm_jax.store.spec import HASH_LENGTH, StoreSpec


def meaning_specs(
    config: Config, facts: Facts, made: Mapping[str, StoreSpec], betas: Mapping[str, str], aligned: Mapping[str, str]
) -> dict[str, StoreSpec | None]:
    """made: activations, saes, codes, rsa and roi, and recovery where there is one. betas, aligned: names of stores by subject."""
    if not config.kinds:
        return dict.fromkeys(("exemplars", "explain", "emergence", "match", "edit", "stability"))
    names = {kind: spec.name for kind, spec in made.items()}
    exemplars = _exemplars(config, facts, names, aligned)
    explain = _explain(config, facts, names, exemplars)
    return {
        "exemplars": exemplars,
        "explain": explain,
        "emergence": _emergence(config, facts, names, explain),
        "match": _match(config, names),
        "edit": _edit(config, facts, names, exemplars, aligned),
        "stability": _stability(config, facts, names, betas, aligned),
    }


def _exemplars(config: Config, facts: Facts, names: Mapping[str, str], aligned: Mapping[str, str]) -> StoreSpec:
    user_units(config.exemplars.units, config.kinds, facts.hooks, config.train.expansion * facts.width)
    probe = config.exemplars.probe
    settings = {"exemplars": config.exemplars.model_dump(exclude={"batch", "memory_mb"}), "kinds": config.kinds}
    inputs = {"saes": names["saes"], "activations": names["activations"], "roi": names["roi"], **aligned}
    if probe != STIMULI:
        inputs["probe"] = probe_identity(probe)
    return StoreSpec("exemplars", 1, settings, inputs)


def _explain(config: Config, facts: Facts, names: Mapping[str, str], exemplars: StoreSpec) -> StoreSpec:
    settings = config.explain.model_dump(exclude={"labels", "clip", "masks", "prompts", "own_judge"})
    if config.explain.clip:
        settings["prompts"] = read_prompts(config)
    inputs = {"exemplars": exemplars.name, "roi": names["roi"], **judge_identity(config, facts)}
    return StoreSpec("explain", 1, {"explain": settings}, inputs)


def _emergence(config: Config, facts: Facts, names: Mapping[str, str], explain: StoreSpec) -> StoreSpec:
    settings = {"emergence": config.emergence.model_dump()}
    return StoreSpec("emergence", 1, settings, {"explain": explain.name, "codes": names["codes"], "roi": names["roi"]})


def _match(config: Config, names: Mapping[str, str]) -> StoreSpec:
    """Other runs by the names of their stores of codes, and of their folders, by which they are called."""
    others = [find_codes(entry) for entry in config.match.others]
    settings = {"match": config.match.model_dump(exclude={"others", "memory_mb"}), "kinds": config.kinds}
    if others:
        settings["others"] = [folder_of(path).name for path in others]
    inputs = {f"other {i}": path.name for i, path in enumerate(others)}
    return StoreSpec("match", 1, settings, {"codes": names["codes"], "saes": names["saes"], **inputs})


def _edit(
    config: Config, facts: Facts, names: Mapping[str, str], exemplars: StoreSpec, aligned: Mapping[str, str]
) -> StoreSpec:
    inputs = {"saes": names["saes"], "exemplars": exemplars.name, "roi": names["roi"], **aligned}
    settings = {
        "edit": config.edit.model_dump(exclude={"head"}),
        "mode": config.report.mode if config.edit.voxels else "",
    }
    if config.edit.head:
        path = Path(config.edit.head)
        if not path.is_file():
            raise UserError(f"edit.head: {path} is not there; make one with `sbm-jax segmentation-head --save {path}`")
        settings["head"] = hashlib.sha256(path.read_bytes()).hexdigest()[:HASH_LENGTH]
    return StoreSpec("edit", 1, settings, inputs)


def _stability(
    config: Config, facts: Facts, names: Mapping[str, str], betas: Mapping[str, str], aligned: Mapping[str, str]
) -> StoreSpec:
    """With the names of the stores of all variants, and how dictionaries are compared with theirs."""
    from sbm_jax.stages.specs import make_specs  # which asks for this one

    settings: dict[str, Any] = {"stability": config.stability.model_dump(exclude={"variants"}), "kinds": config.kinds}
    settings |= {"min_ncsnr": config.align.min_ncsnr}
    inputs = {key: names[key] for key in ("codes", "saes", "rsa", "roi", "recovery") if key in names}
    found = variants(config)
    if found:
        settings["variants"] = [str(variant) for variant in found]
        settings["match"] = config.match.model_dump(include={"images", "least_images", "top", "seed"})
    for i, variant in enumerate(found):
        inputs |= {f"variant {i} {key}": spec.name for key, spec in needed(make_specs(variant.config, facts))}
    inputs |= {f"betas {name}": store for name, store in betas.items()}
    return StoreSpec("stability", 1, settings, {**inputs, **aligned})
