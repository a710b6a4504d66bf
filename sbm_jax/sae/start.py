"""What training starts from: statistics of the inputs, and the first state of every group, laid over the mesh."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sbm_jax.errors import UserError
from sbm_jax.mesh import put
from sbm_jax.sae.model import Norm, init_params, with_points, with_threshold
from sbm_jax.sae.stack import Group, Stack
from sbm_jax.sae.step import SAE, Knobs, Step, TrainState, init_state, make_step, state_specs
from sbm_jax.sae.stream import Activations, array_name

STATISTICS_IMAGES = 4096  # enough for a mean to 1.6 % of a standard deviation even when patches of one image are equal
_READ_IMAGES = 256
_MEDIAN_TOKENS = 4096
_MEDIAN_STEPS = 50


def input_norm(store: Activations, stack: Stack, images: np.ndarray, seed: int) -> Norm:
    """mean [m, d] and scale [m] of every stream of tokens, over at most STATISTICS_IMAGES of the images; float64 sums.

    Raises UserError when the tokens of a layer do not vary.
    """
    chosen = np.sort(np.random.default_rng([seed, 0]).permutation(images)[:STATISTICS_IMAGES])
    sums: list[tuple[Any, Any, int]] = [(0.0, 0.0, 0)] * len(stack.tokens)
    # Images outermost: activations that are computed when asked for are then computed once.
    for start in range(0, len(chosen), _READ_IMAGES):
        for j, (kind, hook) in enumerate(stack.tokens):
            x = store.read(array_name(hook, kind), chosen[start : start + _READ_IMAGES])
            x = x.reshape(-1, x.shape[-1]).astype(np.float64)
            total, square, count = sums[j]
            sums[j] = total + x.sum(axis=0), square + (x * x).sum(axis=0), count + len(x)
    means, scales = [], []
    for (kind, hook), (total, square, count) in zip(stack.tokens, sums, strict=True):
        mean = total / count
        if not np.isfinite(total).all():
            raise UserError(
                f"{hook}: the {kind} tokens hold NaN or infinity (channel {int(np.argmin(np.isfinite(total)))}). Check the "
                "images and weights they were made from, or delete the activation store and extract again."
            )
        variance = float(np.mean(np.maximum(square / count - mean**2, 0.0)))
        if not variance > 1e-12 * float(np.mean(square / count)):
            raise UserError(
                f"{hook}: the {kind} tokens of {len(chosen)} images do not vary; there is nothing to train on."
            )
        means.append(mean)
        scales.append(1.0 / np.sqrt(variance))
    mean, scale = np.stack(means).astype(np.float32), np.array(scales, np.float32)
    return Norm(mean, scale)  # pyright: ignore[reportArgumentType]


def sampled_tokens(
    store: Activations, stack: Stack, images: np.ndarray, norm: Norm, count: int, seed: int
) -> np.ndarray:
    """Normalised tokens float32 [m, c, d] of randomly chosen images and places; c is `count`, or all tokens of as many images."""
    rng = np.random.default_rng([seed, 2])
    chosen = np.sort(rng.permutation(images)[:count])
    tokens = {kind: int(np.prod(store.array(array_name(stack.hooks[0], kind)).shape[1:-1])) for kind in stack.kinds}
    count = min(count, len(chosen) * min(tokens.values()))
    places = [np.sort(rng.permutation(len(chosen) * tokens[kind])[:count]) for kind, _ in stack.tokens]
    out_mcd = np.empty((len(places), count, norm.mean.shape[1]), np.float32)
    for start in range(0, len(chosen), _READ_IMAGES):
        for j, (kind, hook) in enumerate(stack.tokens):
            x = store.read(array_name(hook, kind), chosen[start : start + _READ_IMAGES])
            x, first = x.reshape(-1, x.shape[-1]), start * tokens[kind]
            low, high = np.searchsorted(places[j], [first, first + len(x)])
            kept = x[places[j][low:high] - first].astype(np.float32)
            out_mcd[j, low:high] = (kept - np.asarray(norm.mean[j])) * float(norm.scale[j])
    return out_mcd


def geometric_median(x_td: np.ndarray) -> np.ndarray:
    """The point [d] with the least sum of distances to the tokens, by Weiszfeld's iteration, float64 (Weiszfeld 1937)."""
    x = x_td.astype(np.float64)
    point = x.mean(axis=0)
    for _ in range(_MEDIAN_STEPS):
        distance = np.maximum(np.linalg.norm(x - point, axis=1), 1e-9)
        new = (x / distance[:, None]).sum(axis=0) / (1 / distance).sum()
        if np.linalg.norm(new - point) <= 1e-9 * (1 + np.linalg.norm(point)):
            return new
        point = new
    return point


class Program:
    """One group over the mesh: its first state, its step, and both as shapes."""

    def __init__(
        self,
        group: Group,
        norm: Norm,
        points: np.ndarray | None,
        centre: np.ndarray,
        mesh: Mesh,
        n_logs: int,
        log_every: int,
    ):
        """norm: [m, d] and [m]. points: [m, c, d] for archetypal decoders. centre: [m, d] first b_dec, normalised."""
        self.config, self.mesh = group.config, mesh
        count, (m, d) = len(group.points), norm.mean.shape
        self.seeds = np.array([token + 1_000 * point.seed for token in range(m) for point in group.points])
        self.units, self.n_logs = group.units(d), n_logs
        self.points = np.repeat(points, count, axis=0) if self.config.objective == "archetypal" else None  # type: ignore[arg-type]
        self.centre = np.repeat(centre, count, axis=0)
        split = NamedSharding(mesh, P(SAE))
        spread = Norm(*(put(np.repeat(x, count, axis=0), split) for x in norm))
        lr = np.tile([point.lr for point in group.points], m).astype(np.float32) * group.lr_factor(d)
        sparsity = np.tile([point.sparsity for point in group.points], m).astype(np.float32)
        knobs = Knobs(put(lr, split), put(sparsity, split))
        aux_k = min(self.config.aux_k or d // 2, self.units)
        self.step: Step = make_step(mesh, self.config, spread, aux_k, log_every, knobs)
        shapes = jax.eval_shape(self._first, self.seeds, self.centre, self.points)
        self.shapes: TrainState = jax.tree.map(
            lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec)),
            shapes,
            state_specs(shapes),
        )

    def _first(self, seeds: Any, centre: Any, points: Any) -> TrainState:
        config = self.config
        params = init_params(seeds, centre.shape[1], self.units, config.encoder_scale)._replace(b_dec=centre)
        if config.objective == "jumprelu":
            params = with_threshold(params)
        if config.objective == "tied_relu":
            params = params._replace(w_enc=params.w_dec.transpose(0, 2, 1))
        if config.objective == "archetypal":
            params = with_points(params, seeds, points, config.encoder_scale)
        return init_state(params, config, self.n_logs)

    def first_state(self) -> TrainState:
        """Made where it belongs: no device ever holds more than its share."""
        shardings = jax.tree.map(lambda x: x.sharding, self.shapes)
        return jax.jit(self._first, out_shardings=shardings)(self.seeds, self.centre, self.points)
