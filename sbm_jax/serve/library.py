"""The finished stores of a run, opened once and read by many threads."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sbm_jax import __version__
from sbm_jax.axes import MODE_TITLES, SAE_MODES, TOKEN_KIND
from sbm_jax.brain.dataset import Subject
from sbm_jax.brain.reliability import noise_ceiling
from sbm_jax.serve.answers import Refused
from sbm_jax.stages.context import Context
from sbm_jax.stages.inputs import responsive
from sbm_jax.store.spec import StoreSpec
from sbm_jax.store.store import Store

T = TypeVar("T")
# What later stages add to the explorer: store, the document it must hold, and what cannot be shown without it.
ADDED = {
    "exemplars": ("probe.json", "patch highlights, firing statistics, and the units that voxels and ROIs asked for"),
    "explain": ("explain.json", "names of units by the judges"),
    "match": ("match.json", "the same unit in other dictionaries"),
    "roi": ("rois.json", "units by ROI, and exemplar images of all units"),
    "layers": ("profiles.json", "depth of voxels and its intervals"),
    "recovery": ("recovery.json", "the planted truth beside what was found"),
}
KEPT_BYTES = 512 << 20  # of results kept in memory


class Kept:
    """Results by key, the least used thrown away when they take more than `limit` bytes; each is made by one thread."""

    def __init__(self, limit: int):
        self.limit, self.used = limit, 0
        self._items: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()
        self._making: dict[Hashable, threading.Lock] = {}

    def get(self, key: Hashable, make: Callable[[], T], size: Callable[[T], int]) -> T:
        """The result under `key`, made if it is not there. An error of `make` is raised and nothing is kept."""
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                return self._items[key][0]
            own = self._making.setdefault(key, threading.Lock())
        with own:
            with self._lock:
                if key in self._items:
                    return self._items[key][0]
            try:
                value = make()
            finally:
                with self._lock:
                    self._making.pop(key, None)
            with self._lock:
                taken = size(value)
                self._items[key] = value, taken
                self.used += taken
                while self.used > self.limit and len(self._items) > 1:
                    self.used -= self._items.popitem(last=False)[1][1]
            return value


class Library:
    """A run as the explorer sees it.

    command: what to type after `sbm-jax STAGE` to make what is missing. head: a segmentation head for edits.
    """

    def __init__(self, ctx: Context, command: str, head: Path | None = None):
        self.ctx, self.command = ctx, command
        self.head = head or (Path(ctx.config.edit.head) if ctx.config.edit.head else None)
        self.kept = Kept(KEPT_BYTES)
        self._stores: dict[str, Store] = {}
        self._lock = threading.Lock()
        self.subjects: dict[str, Subject] = {s.name: s for s in ctx.subjects}
        self.images = ctx.dataset.images
        index = self.store(next(iter(ctx.specs.align.values()))).json("index.json")
        self.modes: list[str] = [mode for mode in MODE_TITLES if mode in index["modes"]]
        self.units_per_layer: dict[str, int] = index["units_per_layer"]
        self.permutations: dict[str, int] = index["permutations"]
        self.hooks = ctx.facts.hooks

    # Stores ----------------------------------------------------------------------------------------------------------

    def store(self, spec: StoreSpec | None) -> Store:
        """A finished store. Raises Refused, naming the command that makes it, where it is not there."""
        if spec is None:
            raise Refused(404, "this configuration has nothing of the kind")
        with self._lock:
            if spec.name not in self._stores:
                if not self.ctx.has(spec):
                    raise Refused(404, f"The store of `{spec.kind}` is not there yet.", self.command_for(spec.kind))
                self._stores[spec.name] = self.ctx.open(spec)
            return self._stores[spec.name]

    def optional(self, kind: str) -> Store | None:
        """A store of `ADDED`, None where it is not there or was written before it held what is shown."""
        spec = getattr(self.ctx.specs, kind)
        if spec is None or not self.ctx.has(spec):
            return None
        store = self.store(spec)
        return store if (store.path / ADDED[kind][0]).is_file() else None

    def command_for(self, kind: str) -> str:
        return f"sbm-jax {kind} {self.command}"

    def missing(self) -> list[dict[str, str]]:
        """Stores that are not there: their name, what cannot be shown, and the command that makes them."""
        return [
            {"store": kind, "shows": shows, "command": self.command_for(kind)}
            for kind, (_, shows) in ADDED.items()
            if getattr(self.ctx.specs, kind) is not None and self.optional(kind) is None
        ]

    def key(self) -> str:
        """Changes when a store appears or the program does; equal keys mean equal answers."""
        specs = [getattr(self.ctx.specs, f.name) for f in fields(self.ctx.specs)]
        flat = [spec for item in specs for spec in (item.values() if isinstance(item, dict) else [item])]
        names = sorted(spec.name for spec in flat if spec is not None and self.ctx.has(spec))
        text = "\n".join((__version__, self.command, self.ctx.config.report.mode, *names))
        return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:20]

    # What is asked for -----------------------------------------------------------------------------------------------

    def subject(self, name: str) -> Subject:
        if name not in self.subjects:
            raise Refused(404, f"there is no subject {name!r}; there are {', '.join(self.subjects)}")
        return self.subjects[name]

    def mode(self, name: str) -> str:
        if name not in self.modes:
            raise Refused(404, f"there is no kind of features {name!r}; there are {', '.join(self.modes)}")
        return name

    @property
    def kinds(self) -> list[str]:
        """Token kinds with a dictionary whose units are shown."""
        return [kind for kind in ("patch", "cls") if self.modes_of(kind)]

    def modes_of(self, kind: str) -> list[str]:
        """Kinds of features that are codes of the dictionaries of a token kind."""
        return [mode for mode in self.modes if mode in SAE_MODES and TOKEN_KIND[mode] == kind and kind != "untrained"]

    def unit_key(self, kind: str, hook: str, unit: int) -> tuple[int, int]:
        """(layer, units per layer) of a unit that exists. Raises Refused otherwise."""
        if kind not in self.kinds or hook not in self.hooks:
            raise Refused(404, f"there is no dictionary {kind}/{hook}")
        width = self.units_per_layer[self.modes_of(kind)[0]]
        if not 0 <= unit < width:
            raise Refused(404, f"{kind}/{hook} has the units 0 to {width - 1}")
        return self.hooks.index(hook), width

    def align(self, subject: str) -> Store:
        return self.store(self.ctx.specs.align[self.subject(subject).name])

    def betas(self, subject: str) -> Store:
        return self.store(self.ctx.specs.betas[self.subject(subject).name])

    def array(self, store: Store, name: str) -> np.ndarray:
        """A whole array, kept in memory while there is room."""
        return self.kept.get((store.name, name), lambda: store.read(name), lambda x: x.nbytes)

    def responsive(self, subject: str) -> np.ndarray:
        """bool [v]."""
        betas = self.betas(subject)
        key = (betas.name, "responsive")
        return self.kept.get(key, lambda: responsive(betas, self.ctx.config.align.min_ncsnr), lambda x: x.nbytes)

    def ceiling(self, subject: str) -> np.ndarray:
        """[v] the ceiling on r of the images that score, NaN where unknown: the square root of the noise ceiling."""

        def make() -> np.ndarray:
            person, betas = self.subject(subject), self.betas(subject)
            values, config = betas.read("noise_ceiling"), self.ctx.config
            brought = person.ncsnr is None and person.noise_ceiling is not None and config.betas.ncsnr != "estimated"
            if config.align.select != "shared" and not brought:
                counts = np.unique(person.trial_image, return_counts=True)[1]
                values = noise_ceiling(betas.read("ncsnr"), counts)
            return np.sqrt(np.where(values > 0, values, np.nan))

        return self.kept.get((subject, "ceiling"), make, lambda x: x.nbytes)
