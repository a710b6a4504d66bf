"""Orbax checkpoints of a training state: asynchronous, the last two kept, restored onto whatever mesh is in use."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding

from sbm_jax.errors import UserError
from sbm_jax.sae.step import TrainState, state_specs
from sbm_jax.store.arrays import guarded

logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs every save, and with a traceback what it then raises


class Checkpoints:
    """Checkpoints of one training run in one folder.

    Orbax writes time stamps into its folders, so their bytes differ between runs; the restored numbers do not.
    """

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        with guarded(f"making {folder}"):
            self.folder.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, states: tuple[TrainState, ...], step: int) -> None:
        """Save in the background; the states may be donated to the next step right away."""
        with guarded(f"writing a checkpoint to {self.folder}"):
            self._manager.save(step, args=ocp.args.StandardSave(_named(states)))

    def restore(self, like: tuple[TrainState, ...], mesh: Mesh) -> tuple[TrainState, ...]:
        """The newest checkpoint, laid over `mesh`. Raises UserError when its shapes are not those of `like`."""
        step = self.latest()
        target = jax.tree.map(
            lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec)),
            like,
            tuple(map(state_specs, like)),
        )
        try:
            restored: Any = self._manager.restore(step, args=ocp.args.StandardRestore(_named(target)))
        except Exception as error:  # Orbax and TensorStore raise many kinds, their own among them
            reason = str(error).splitlines()[0][:200]
            raise UserError(
                f"the checkpoint of step {step} in {self.folder} cannot be restored ({reason}). Delete that folder and rerun."
            ) from None
        names = list(_named(like))
        return jax.tree.unflatten(jax.tree.structure(like), [restored[name] for name in names])

    def close(self) -> None:
        """Wait for saves under way."""
        with guarded(f"writing a checkpoint to {self.folder}"):
            self._manager.wait_until_finished()
            self._manager.close()


def _named(states: Any) -> dict[str, Any]:
    """Leaves by their path, such as `0.params.w_enc`: parameters that an objective lacks leave no trace."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(states)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
