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
from sbm_jax.stages.facts import Facts, gather_facts, read_options
from sbm_jax.stages.specs import Specs, make_specs
from sbm_jax.store.spec import StoreSpec, pretty_json
from sbm_jax.store.store import PARTIAL, Store, StoreWriter, is_finished

if TYPE_CHECKING:
    from sbm_jax.sae.stream import Activations

# Kinds of stores whose command has another name.
_MADE_BY = {"dataset": "data demo", "activations": "extract", "saes": "train", "codes": "encode"}


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
