"""Checkpoint tensors <-> module parameters: one table of names per family, checked in full when read."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from sbm_jax.errors import UserError

ModuleT = TypeVar("ModuleT", bound=nnx.Module)

# A wholly wrong file would otherwise print hundreds of lines.
MAX_FAULTS = 40


def _patches(kernel: np.ndarray) -> np.ndarray:
    """Convolution [d, 3, p, p] -> dense [p * p * 3, d] over patches flattened row, column, channel."""
    return kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0])


def _patches_inverse(kernel: np.ndarray) -> np.ndarray:
    p = round((kernel.shape[0] / 3) ** 0.5)
    return kernel.reshape(p, p, 3, -1).transpose(3, 2, 0, 1)


@dataclass(frozen=True)
class Transform:
    """How a checkpoint tensor of `rank` axes becomes a parameter, and back."""

    rank: int | None
    load: Callable[[np.ndarray], np.ndarray]
    save: Callable[[np.ndarray], np.ndarray]


TRANSFORMS: dict[str, Transform] = {
    "same": Transform(None, lambda x: x, lambda x: x),
    "transpose": Transform(2, np.transpose, np.transpose),  # torch keeps dense weights as [out, in]
    "patches": Transform(4, _patches, _patches_inverse),
}


@dataclass(frozen=True)
class Rule:
    """One row of a table: checkpoint name, module path, transform. `{i}` is a block number in both."""

    checkpoint: str
    module: str
    transform: str = "same"

    def to_module(self, name: str) -> str | None:
        """Module path of a checkpoint name, or None if this row is not about it."""
        return _rename(name, self.checkpoint, self.module)

    def to_checkpoint(self, path: str) -> str | None:
        """Checkpoint name of a module path, or None if this row is not about it."""
        return _rename(path, self.module, self.checkpoint)


def _rename(name: str, source: str, target: str) -> str | None:
    match = re.fullmatch(re.escape(source).replace(r"\{i\}", r"(?P<i>\d+)"), name)
    return target.format(**match.groupdict()) if match else None


def _paths(state: nnx.State) -> dict[str, nnx.Variable]:
    return {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}


def _shape(shape: Iterable[int]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def load_weights(
    build: Callable[[], ModuleT],
    tensors: Mapping[str, np.ndarray],
    rules: Iterable[Rule],
    ignored: Iterable[str],
    source: str,
) -> ModuleT:
    """Build a module abstractly and fill every parameter, as f32, from checkpoint tensors (f16, bf16 or f32).

    build makes the module; it is traced, never run. ignored: regular expressions of checkpoint names left out
    on purpose. Raises one UserError that names `source`, every tensor without a place, every parameter
    without a tensor, and every wrong shape or dtype.
    """
    rules = tuple(rules)
    graph, state = nnx.split(nnx.eval_shape(build))
    params = _paths(state)
    unfilled = dict.fromkeys(params)  # a dict keeps the order
    faults: list[str] = []
    for name in sorted(tensors):
        if any(re.fullmatch(pattern, name) for pattern in ignored):
            continue
        path, transform = _find(name, rules)
        if path not in params:
            place = f"its place would be {path}, which this model lacks" if path else "no rule names it"
            faults.append(f"tensor {name}: {place}")
            continue
        unfilled.pop(path, None)
        fault = _fill(params[path], tensors[name], TRANSFORMS[transform])
        if fault:
            faults.append(f"tensor {name} -> parameter {path}: {fault}")
    for path in unfilled:
        name = _checkpoint_name(path, rules)
        faults.append(f"parameter {path}: no tensor {name} in the checkpoint")
    if faults:
        listed = "\n  ".join(faults[:MAX_FAULTS])
        more = f"\n  ... and {len(faults) - MAX_FAULTS} more" if len(faults) > MAX_FAULTS else ""
        raise UserError(
            f"{source}: the weights do not fit the model that config.json describes "
            f"({len(faults)} differences):\n  {listed}{more}\n"
            "Take config.json and the weights from the same release of the model."
        )
    return nnx.merge(graph, state)


def save_weights(
    model: nnx.Module, rules: Iterable[Rule], dtype: np.typing.DTypeLike = np.float32
) -> dict[str, np.ndarray]:
    """The inverse of load_weights: checkpoint name -> contiguous array of `dtype`."""
    rules = tuple(rules)
    tensors = {}
    for path, leaf in _paths(nnx.state(model)).items():
        name = _checkpoint_name(path, rules)
        _, transform = _find(name, rules)
        tensors[name] = np.array(TRANSFORMS[transform].save(np.asarray(leaf[...])), dtype, order="C")
    return tensors


def _find(name: str, rules: tuple[Rule, ...]) -> tuple[str | None, str]:
    """Module path (None if no rule matches) and transform of a checkpoint name."""
    for rule in rules:
        path = rule.to_module(name)
        if path is not None:
            return path, rule.transform
    return None, "same"


def _checkpoint_name(path: str, rules: tuple[Rule, ...]) -> str:
    names = [name for rule in rules if (name := rule.to_checkpoint(path)) is not None]
    if len(names) != 1:
        raise ValueError(f"{len(names)} rules name the parameter {path}; a table has exactly one for each")
    return names[0]


def _fill(param: nnx.Variable, tensor: np.ndarray, transform: Transform) -> str | None:
    """Put the tensor into the parameter, or say why it does not fit."""
    if tensor.dtype.name not in ("float16", "bfloat16", "float32"):
        return f"dtype {tensor.dtype.name}, expected float16, bfloat16 or float32"
    fits = transform.rank is None or tensor.ndim == transform.rank
    value = transform.load(tensor) if fits else tensor
    if value.shape != param.shape:
        return f"shape {_shape(tensor.shape)} in the file; the parameter is {_shape(param.shape)}" + (
            f" and takes {_shape(value.shape)} from it" if value.shape != tensor.shape else ""
        )
    param.set_value(jnp.asarray(value, jnp.float32))
    return None
