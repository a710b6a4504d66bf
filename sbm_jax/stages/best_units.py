"""The best units of some responses over all layers, as `align` finds them: for other images, or images in another order."""

from __future__ import annotations

import numpy as np

from sbm_jax.stages.inputs import n_units, read_codes
from sbm_jax.stages.ranking import Engine, Ranking
from sbm_jax.store.store import Store


def best_units(
    codes: Store,
    saes: Store,
    mode: str,
    hooks: tuple[str, ...],
    rows_n: np.ndarray,
    y_nw: np.ndarray,
    k: int,
    memory_bytes: int,
    absolute: bool,
) -> np.ndarray:
    """The k units of largest r (absolute: |r|) with each column of `y_nw` over the images `rows_n`: layer x units + unit, int32
    [w, k]. Ties go to the lowest unit, counted over layers in order; constant units come last.
    """
    engine = Engine(None, memory_bytes, absolute)
    responses, best = engine.prepare(y_nw), Ranking(y_nw.shape[1], k)
    every, per_layer = np.arange(y_nw.shape[1]), n_units(codes, saes, mode, hooks[0])
    for layer, hook in enumerate(hooks):
        found = engine.best(read_codes(codes, mode, hook, rows_n, per_layer), responses, min(k, per_layer))
        best.bring(every, found.keys_vk, found.units_vk + layer * per_layer, found.signs_vk, None)
    return best.units
