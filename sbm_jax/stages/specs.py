"""The identity of every store of a run: the whole graph in one place."""

from __future__ import annotations

from dataclasses import dataclass

from sbm_jax.config import Config
from sbm_jax.stages.facts import Facts, token_kinds
from sbm_jax.stages.specs_meaning import meaning_specs
from sbm_jax.store.spec import StoreSpec


@dataclass(frozen=True)
class Specs:
    """The identity of every store of a run; each names its inputs, so a change anywhere renames what follows."""

    trials: dict[str, StoreSpec]
    betas: dict[str, StoreSpec]
    activations: StoreSpec
    saes: StoreSpec
    codes: StoreSpec
    align: dict[str, StoreSpec]
    assign: dict[str, StoreSpec]
    sizes: StoreSpec
    joint: dict[str, StoreSpec]
    pooling: dict[str, StoreSpec]
    rsa: StoreSpec
    roi: StoreSpec
    layers: StoreSpec
    recovery: StoreSpec | None
    exemplars: StoreSpec | None
    explain: StoreSpec | None
    emergence: StoreSpec | None
    match: StoreSpec | None
    edit: StoreSpec | None
    stability: StoreSpec | None
    report: StoreSpec
    rdms: StoreSpec


def make_specs(config: Config, facts: Facts) -> Specs:
    """The chain of specs. Settings that cannot change the numbers (batch sizes, devices, budgets) are left out."""
    extract = config.extract.model_dump(include={"dtype", "shard_images", "geometry"})
    model = {"image_size": facts.backbone.image_size, "compute": config.backbone.dtype}
    twin = {"untrained": config.encode.seed} if "untrained" in token_kinds(config, facts) else {}
    activations = StoreSpec(
        "activations",
        1,
        {"extract": extract, "hooks": list(facts.hooks), **model, **twin},
        {"images": facts.images_fingerprint, "weights": facts.backbone.weights_hash},
    )
    saes = StoreSpec(
        "saes",
        1,
        {"train": config.train.model_dump(exclude={"checkpoint_every", "split_units"}), "modes": config.sae_modes},
        {"activations": activations.name},
    )
    codes = StoreSpec(
        "codes",
        1,
        {"encode": config.encode.model_dump(exclude={"batch"}), "expansion": config.train.expansion},
        {"saes": saes.name, "activations": activations.name},
    )
    trials = {s.name: StoreSpec("trials", 1, {"subject": s.name}, {"subject": s.fingerprint}) for s in facts.subjects}
    averaging = config.betas.model_dump(exclude={"memory_mb", "keep_trials"})
    betas = {
        s.name: StoreSpec("betas", 1, {"subject": s.name, **averaging}, {"subject": s.fingerprint})
        for s in facts.subjects
    }
    select = config.align.select
    unused = {"shared": {"select", "folds"}, "none": {"folds"}, "kfold": set()}[select]
    align_settings = config.align.model_dump(exclude={"memory_mb", *unused})
    align = {
        name: StoreSpec("align", 3, {"align": align_settings}, {"codes": codes.name, "betas": spec.name})
        for name, spec in betas.items()
    }
    images = {"min_ncsnr", "select", "sign", "precision"} | ({"folds", "seed"} if select == "kfold" else set())
    modelled = {
        "joint": {**config.joint.model_dump(), "modes": config.joint_modes},
        "align": config.align.model_dump(include=images),
    }
    joint = {
        name: StoreSpec("joint", 1, modelled, {"codes": codes.name, "betas": spec.name})
        for name, spec in betas.items()
        if config.joint_modes
    }
    aligned = {name: spec.name for name, spec in align.items()}
    floor = {"min_ncsnr": config.align.min_ncsnr}
    by_roi = {"roi": config.roi.model_dump(include={"names", "min_voxels"}), **floor}
    same = {"brain_metric"} if config.rsa.brain_metric == "same" else set()
    rsa = StoreSpec("rsa", 1, {"rsa": config.rsa.model_dump(exclude=same), **by_roi}, aligned)
    brains = {name: spec.name for name, spec in betas.items()}
    assign = {
        name: StoreSpec(
            "assign",
            1,
            {"assign": config.assign.model_dump(), **by_roi},
            {"align": aligned[name], "betas": brains[name]},
        )
        for name in betas
    }
    unscored = {"select": select} if select == "none" else {}
    candidates = {"sizes": config.sizes.model_dump(), "sign": config.align.sign, **floor, **unscored}
    sizes = StoreSpec("sizes", 1, candidates, {"codes": codes.name, **brains})
    roi = StoreSpec("roi", 1, {"roi": config.roi.model_dump(), **floor, **unscored}, {"codes": codes.name, **brains})
    redrawn = {"layers": config.layers.model_dump()} if select == "shared" else {}
    layers = StoreSpec("layers", 2, by_roi | redrawn, aligned)
    recovery = StoreSpec("recovery", 1, floor, aligned) if facts.has_truth else None
    transforms = {f"transforms {s.name}": s.transforms for s in facts.subjects if s.transforms}
    joints = {f"joint {name}": spec.name for name, spec in joint.items()}
    pooled = {"pooling": config.pooling.model_dump(), **by_roi}
    pooling = {
        name: StoreSpec("pooling", 1, pooled, {"align": store, "activations": activations.name})
        for name, store in (aligned if config.pooling.mode in config.encode.modes else {}).items()
    }
    made = {"activations": activations, "saes": saes, "codes": codes, "roi": roi, "rsa": rsa}
    made |= {"recovery": recovery} if recovery else {}
    meaning = meaning_specs(config, facts, made, brains, aligned)
    report = StoreSpec(
        "report",
        3,
        {"report": config.report.model_dump(), **floor},
        {
            **{f"assign {name}": spec.name for name, spec in assign.items()},
            "sizes": sizes.name,
            "rsa": rsa.name,
            "roi": roi.name,
            "layers": layers.name,
            **aligned,
            **joints,
            **transforms,
            **{f"pooling {name}": spec.name for name, spec in pooling.items()},
            **{kind: spec.name for kind, spec in meaning.items() if spec is not None},
        },
    )
    compared = {
        "rsa": config.rsa.model_dump(include={"metric", "method", "bootstrap", "seed"}),
        "title": config.report.title,
    }
    rdms = StoreSpec("rdms", 1, compared, {"activations": activations.name})
    return Specs(
        trials,
        betas,
        activations,
        saes,
        codes,
        align,
        assign,
        sizes,
        joint,
        pooling,
        rsa,
        roi,
        layers,
        recovery,
        meaning["exemplars"],
        meaning["explain"],
        meaning["emergence"],
        meaning["match"],
        meaning["edit"],
        meaning["stability"],
        report,
        rdms,
    )
