"""What every stage is handed: the configuration, the folder, and the names of all stores of the run."""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sbm_jax import processes
from sbm_jax.brain.dataset import Dataset, Subject
from sbm_jax.brain.opening import open_dataset
from sbm_jax.config import Config, dump_config
from sbm_jax.errors import StoreError, UserError
from sbm_jax.provenance import provenance
from sbm_jax.stages.facts import Facts, gather_facts, read_options, token_kinds
from sbm_jax.store.spec import StoreSpec, pretty_json
from sbm_jax.store.store import PARTIAL, Store, StoreWriter, is_finished

if TYPE_CHECKING:
    from sbm_jax.sae.stream import Activations

# Kinds of stores whose command has another name.
_MADE_BY = {"dataset": "data demo", "activations": "extract", "saes": "train", "codes": "encode"}


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
    report = StoreSpec(
        "report",
        2,
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
        report,
        rdms,
    )


@dataclass
class Context:
    """One run in one folder.

    config: the resolved settings. out: the run's folder; stores live in `out/stores`, checkpoints in `out/checkpoints`.
    known: the facts, where another run with the same `data` and `backbone` has gathered them.
    """

    config: Config
    out: Path
    known: InitVar[Facts | None] = None
    facts: Facts = field(init=False)
    specs: Specs = field(init=False)
    _opened: dict[str, Store] = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self, known: Facts | None) -> None:
        self.facts = known or gather_facts(self.config, self.stores)
        self.specs = make_specs(self.config, self.facts)

    @property
    def stores(self) -> Path:
        return self.out / "stores"

    @cached_property
    def devices(self) -> list[Any]:
        """The JAX devices of this process (asking for them starts JAX)."""
        return [device for device in self.all_devices if device.process_index == processes.rank()]

    @cached_property
    def all_devices(self) -> list[Any]:
        """The JAX devices of all processes of the run."""
        from sbm_jax.mesh import choose_devices

        return choose_devices(self.config.devices)

    @cached_property
    def dataset(self) -> Dataset:
        """The images and brains. Raises UserError when the demo's have not been made yet."""
        if self.facts.demo is not None and not self.has(self.facts.demo):
            raise UserError(f"the demo's dataset {self.facts.root} is not there yet. Run `sbm-jax data demo` first.")
        if self.facts.dataset is not None:
            return self.facts.dataset
        return open_dataset(self.facts.root, read_options(self.config), self.config.data.format)

    @property
    def subjects(self) -> list[Subject]:
        return list(self.dataset.subjects)

    @cached_property
    def documents(self) -> dict[str, str]:
        """Texts laid beside every store."""
        kinds = [f"{d.platform}:{d.device_kind}" for d in self.all_devices]
        return {"config.yaml": dump_config(self.config), "provenance.json": pretty_json(provenance(kinds))}

    @property
    def last(self) -> StoreSpec:
        """The store whose page and summary end the run."""
        return self.specs.rdms if self.facts.has_rdms else self.specs.report

    def writer(self, spec: StoreSpec) -> StoreWriter:
        return StoreWriter(self.stores, spec, self.documents)

    def has(self, spec: StoreSpec) -> bool:
        return is_finished(spec.path(self.stores))

    @cached_property
    def activations(self) -> Activations:
        """The activation store or, where it is neither there nor to be kept, what computes the same numbers when asked."""
        if self.config.extract.keep or self.has(self.specs.activations):
            return self.open(self.specs.activations)
        from sbm_jax.stages.activations import OnlineActivations

        return OnlineActivations(self)

    def forget_activations(self) -> None:
        """Let go of what `activations` holds in memory; call when no later stage reads them."""
        self.__dict__.pop("activations", None)

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
