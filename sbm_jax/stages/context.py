"""What every stage is handed: the configuration, the folder, and the names of all stores of the run."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sbm_jax.brain.dataset import Dataset, Subject, open_dataset
from sbm_jax.config import Config, dump_config
from sbm_jax.errors import StoreError, UserError
from sbm_jax.provenance import provenance
from sbm_jax.stages.facts import Facts, gather_facts, pick_subjects
from sbm_jax.store.spec import StoreSpec, pretty_json
from sbm_jax.store.store import PARTIAL, Store, StoreWriter, is_finished

# Kinds of stores whose command has another name.
_MADE_BY = {"dataset": "data demo", "activations": "extract", "saes": "train", "codes": "encode"}


@dataclass(frozen=True)
class Specs:
    """The identity of every store of a run; each names its inputs, so a change anywhere renames what follows."""

    betas: dict[str, StoreSpec]
    activations: StoreSpec
    saes: StoreSpec
    codes: StoreSpec
    align: dict[str, StoreSpec]
    rsa: StoreSpec
    roi: StoreSpec
    layers: StoreSpec
    recovery: StoreSpec | None
    report: StoreSpec


def make_specs(config: Config, facts: Facts) -> Specs:
    """The chain of specs. Settings that cannot change the numbers (batch sizes, devices, budgets) are left out."""
    extract = config.extract.model_dump(include={"dtype", "shard_images"})
    activations = StoreSpec(
        "activations",
        1,
        {"extract": extract, "hooks": list(facts.hooks), "image_size": facts.backbone.image_size},
        {"images": facts.images_fingerprint, "weights": facts.backbone.weights_hash},
    )
    saes = StoreSpec(
        "saes",
        1,
        {"train": config.train.model_dump(exclude={"checkpoint_every"}), "modes": config.sae_modes},
        {"activations": activations.name},
    )
    codes = StoreSpec(
        "codes",
        1,
        {"encode": config.encode.model_dump(exclude={"batch"}), "expansion": config.train.expansion},
        {"saes": saes.name, "activations": activations.name},
    )
    betas = {
        s.name: StoreSpec("betas", 1, {"subject": s.name, "zscore": "session"}, {"subject": s.fingerprint})
        for s in facts.subjects
    }
    align_settings = config.align.model_dump(exclude={"memory_mb"})
    align = {
        name: StoreSpec("align", 1, {"align": align_settings}, {"codes": codes.name, "betas": spec.name})
        for name, spec in betas.items()
    }
    aligned = {name: spec.name for name, spec in align.items()}
    floor = {"min_ncsnr": config.align.min_ncsnr}
    by_roi = {"roi": config.roi.model_dump(include={"names", "min_voxels"}), **floor}
    rsa = StoreSpec("rsa", 1, {"rsa": config.rsa.model_dump(), **by_roi}, aligned)
    brains = {name: spec.name for name, spec in betas.items()}
    roi = StoreSpec("roi", 1, {"roi": config.roi.model_dump(), **floor}, {"codes": codes.name, **brains})
    layers = StoreSpec("layers", 1, by_roi, aligned)
    recovery = StoreSpec("recovery", 1, floor, aligned) if facts.has_truth else None
    report = StoreSpec(
        "report",
        1,
        {"report": config.report.model_dump(), **floor},
        {"rsa": rsa.name, "roi": roi.name, "layers": layers.name, **aligned},
    )
    return Specs(betas, activations, saes, codes, align, rsa, roi, layers, recovery, report)


@dataclass
class Context:
    """One run in one folder.

    config: the resolved settings. out: the run's folder; stores live in `out/stores`, checkpoints in `out/checkpoints`.
    """

    config: Config
    out: Path
    facts: Facts = field(init=False)
    specs: Specs = field(init=False)
    _opened: dict[str, Store] = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.facts = gather_facts(self.config, self.stores)
        self.specs = make_specs(self.config, self.facts)

    @property
    def stores(self) -> Path:
        return self.out / "stores"

    @cached_property
    def devices(self) -> list[Any]:
        """The JAX devices of the run (asking for them starts JAX)."""
        from sbm_jax.mesh import choose_devices

        return choose_devices(self.config.devices)

    @cached_property
    def dataset(self) -> Dataset:
        """The images and brains. Raises UserError when the demo's have not been made yet."""
        if self.facts.demo is not None and not self.has(self.facts.demo):
            raise UserError(f"the demo's dataset {self.facts.root} is not there yet. Run `sbm-jax data demo` first.")
        return open_dataset(self.facts.root)

    @property
    def subjects(self) -> list[Subject]:
        return pick_subjects(self.dataset, self.config)

    @cached_property
    def documents(self) -> dict[str, str]:
        """Texts laid beside every store."""
        kinds = [f"{d.platform}:{d.device_kind}" for d in self.devices]
        return {"config.yaml": dump_config(self.config), "provenance.json": pretty_json(provenance(kinds))}

    def writer(self, spec: StoreSpec) -> StoreWriter:
        return StoreWriter(self.stores, spec, self.documents)

    def has(self, spec: StoreSpec) -> bool:
        return is_finished(spec.path(self.stores))

    def open(self, spec: StoreSpec) -> Store:
        """The finished store of `spec`. Raises StoreError, naming the command that makes it, otherwise."""
        path = spec.path(self.stores)
        if not self.has(spec):
            state = (
                "is unfinished" if path.with_name(path.name + PARTIAL).exists() or path.exists() else "does not exist"
            )
            raise StoreError(
                f"store {path} {state}. Run `sbm-jax {_MADE_BY.get(spec.kind, spec.kind)}` with the same --config, --set and "
                "--out first, or `sbm-jax run`, which makes all that is missing; finished shards are not computed twice."
            )
        return Store(path)
