"""One trained autoencoder as a run's stages apply it: its normalisation, its parameters, and how its codes come about."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sbm_jax.sae.model import Norm, Params
from sbm_jax.sae.objectives import OBJECTIVES
from sbm_jax.store.store import Store


class Code(NamedTuple):
    """How codes follow from pre-activations: the objective's way, k for those that keep k."""

    objective: str
    k: int

    @property
    def any_number(self) -> bool:
        """A token may have any number of active units."""
        return OBJECTIVES[self.objective].dense


class Member(NamedTuple):
    """One autoencoder: norm (mean [1, d], scale [1]), params without the leading axis, threshold [u]."""

    norm: Norm
    params: Params
    threshold: jax.Array


def read_member(saes: Store, a: int) -> Member:
    """Autoencoder number `a` of the store."""
    norm = Norm(*(jnp.asarray(saes.read(name, slice(a, a + 1))) for name in Norm._fields))
    params = Params(
        *(jnp.asarray(saes.read(name, slice(a, a + 1))[0]) for name in ("w_enc", "b_enc", "w_dec", "b_dec"))
    )
    return Member(norm, params, jnp.asarray(saes.read("threshold", slice(a, a + 1))[0]))


def member_numbers(saes: Store) -> dict[tuple[str, str], int]:
    """Number in the store of the autoencoder of every (token kind, hook) at the primary setting; those of a sweep come behind."""
    found: dict[tuple[str, str], int] = {}
    for a, member in enumerate(saes.json("metrics.json")["members"]):
        found.setdefault((member["kind"], member["hook"]), a)
    return found
