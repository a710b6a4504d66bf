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


SAME = Transform(None, lambda x: x, lambda x: x)
TRANSPOSE = Transform(2, np.transpose, np.transpose)  # torch keeps dense weights as [out, in]
PATCHES = Transform(4, _patches, _patches_inverse)
SCALAR = Transform(1, lambda x: x.reshape(()) if x.size == 1 else x, lambda x: x.reshape(1))
# Tokens are stored with a batch axis of 1, the CLS token with a token axis of 1 too.
BATCHED = Transform(3, lambda x: x.reshape(-1, x.shape[-1]), lambda x: x[None])
TOKEN = Transform(3, lambda x: x.reshape(-1), lambda x: x[None, None])


@dataclass(frozen=True)
class Rule:
    """One row of a table: checkpoint name, module path, transform. `{i}` is a block number in both.

    part: (index, of) if the parameter is one of several equal parts of the tensor's first axis; each part has a row.
    """

    checkpoint: str
    module: str
    transform: Transform = SAME
    part: tuple[int, int] = (0, 1)

    def to_module(self, name: str) -> str | None:
        """Module path of a checkpoint name, or None if this row is not about it."""
        return _rename(name, self.checkpoint, self.module)

    def to_checkpoint(self, path: str) -> str | None:
        """Checkpoint name of a module path, or None if this row is not about it."""
        return _rename(path, self.module, self.checkpoint)


def _rename(name: str, source: str, target: str) -> str | None:
    match = re.fullmatch(re.escape(source).replace(r"\{i\}", r"(?P<i>\d+)"), name)
    return target.format(**match.groupdict()) if match else None


def norm_rules(theirs: str, ours: str) -> list[Rule]:
    """Rows of a LayerNorm."""
    return [Rule(f"{theirs}.weight", f"{ours}.scale"), Rule(f"{theirs}.bias", f"{ours}.bias")]


def dense_rules(theirs: str, ours: str, part: tuple[int, int] = (0, 1)) -> list[Rule]:
    """Rows of a dense layer."""
    return [
        Rule(f"{theirs}.weight", f"{ours}.kernel", TRANSPOSE, part),
        Rule(f"{theirs}.bias", f"{ours}.bias", SAME, part),
    ]


def fused_attention_rules(theirs: str, ours: str) -> list[Rule]:
    """Rows of a torch.nn.MultiheadAttention, which keeps query, key and value in one tensor."""
    rows = [
        Rule(f"{theirs}.in_proj_{kind}", f"{ours}.{name}.{param}", transform, (i, 3))
        for kind, param, transform in (("weight", "kernel", TRANSPOSE), ("bias", "bias", SAME))
        for i, name in enumerate(("query", "key", "value"))
    ]
    return [*rows, *dense_rules(f"{theirs}.out_proj", f"{ours}.out")]


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
    prefix: str = "",
) -> ModuleT:
    """Build a module abstractly and fill every parameter, in its own dtype, from checkpoint tensors (f16, bf16 or f32).

    build makes the module; it is traced, never run. ignored: regular expressions of checkpoint names left out
    on purpose. prefix: a regular expression of what may come before the names of the table. Raises one UserError that
    names `source`, every tensor without a place, every parameter without a tensor, and every wrong shape or dtype.
    """
    rules = tuple(rules)
    graph, state = nnx.split(nnx.eval_shape(build))
    params = _paths(state)
    unfilled = dict.fromkeys(params)  # a dict keeps the order
    faults: list[str] = []
    for name in sorted(tensors):
        bare = re.sub(f"^(?:{prefix})", "", name)
        if any(re.fullmatch(pattern, bare) for pattern in ignored):
            continue
        places = [(rule, path) for rule in rules if (path := rule.to_module(bare)) is not None]
        if not places:
            faults.append(f"tensor {name}: no rule names it")
            continue
        tensor = tensors[name]
        for rule, path in places:
            if path not in params:
                faults.append(f"tensor {name}: its place would be {path}, which this model lacks")
            elif path not in unfilled:
                faults.append(f"tensor {name}: parameter {path} has another tensor already")
            else:
                del unfilled[path]
                fault = _fill(params[path], tensor, rule)
                if fault:
                    faults.append(f"tensor {name} -> parameter {path}: {fault}")
    for path in unfilled:
        faults.append(f"parameter {path}: no tensor {_row(path, rules)[1]} in the checkpoint")
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
    parts: dict[str, dict[int, np.ndarray]] = {}
    for path, leaf in _paths(nnx.state(model)).items():
        rule, name = _row(path, rules)
        parts.setdefault(name, {})[rule.part[0]] = rule.transform.save(np.asarray(leaf[...], np.float32))
    return {name: _join(found).astype(dtype, order="C") for name, found in parts.items()}


def _join(parts: dict[int, np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate([parts[i] for i in sorted(parts)])


def _row(path: str, rules: tuple[Rule, ...]) -> tuple[Rule, str]:
    """The one rule of a module path, and the checkpoint name it gives."""
    found = [(rule, name) for rule in rules if (name := rule.to_checkpoint(path)) is not None]
    if len(found) != 1:
        raise ValueError(f"{len(found)} rules name the parameter {path}; a table has exactly one for each")
    return found[0]


def _fill(param: nnx.Variable, tensor: np.ndarray, rule: Rule) -> str | None:
    """Put the tensor (or its part) into the parameter, or say why it does not fit."""
    if tensor.dtype.name not in ("float16", "bfloat16", "float32"):
        return f"dtype {tensor.dtype.name}, expected float16, bfloat16 or float32"
    index, count = rule.part
    whole = tensor.ndim > 0 and tensor.shape[0] % count == 0
    piece = np.split(tensor, count)[index] if count > 1 and whole else tensor
    fits = rule.transform.rank is None or piece.ndim == rule.transform.rank
    try:
        value = rule.transform.load(piece) if fits else piece
    except ValueError as error:
        return str(error)
    if value.shape != param.shape:
        return f"shape {_shape(tensor.shape)} in the file; the parameter is {_shape(param.shape)}" + (
            f" and takes {_shape(value.shape)} from it" if value.shape != tensor.shape else ""
        )
    param.set_value(jnp.asarray(value, param.dtype))
    return None
