"""Orbax checkpoints of a training state: asynchronous, the last two and the best kept, restored onto any mesh."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

from sbm_jax.errors import UserError
from sbm_jax.sae.step import TrainState
from sbm_jax.store.arrays import guarded

logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs every save, and with a traceback what it then raises


_LATEST = 2


class Checkpoints:
    """Checkpoints of one training run in one folder.

    Orbax writes time stamps into its folders, so their bytes differ between runs; the restored numbers do not.
    """

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        with guarded(f"making {folder}"):
            self.folder.mkdir(parents=True, exist_ok=True)
        kept = policy.AnyPreservationPolicy(
            [policy.LatestN(_LATEST), policy.BestN(get_metric_fn=lambda m: -m["mse"], n=1)]
        )
        options = ocp.CheckpointManagerOptions(preservation_policy=kept, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, states: tuple[TrainState, ...], step: int, mse: float) -> None:
        """Save in the background; the states may be donated to the next step right away. mse: says which is the best."""
        with guarded(f"writing a checkpoint to {self.folder}"):
            self._manager.save(step, args=ocp.args.StandardSave(_named(states)), metrics={"mse": mse})

    def restore(self, like: tuple[TrainState, ...]) -> tuple[TrainState, ...]:
        """The newest checkpoint, laid out as `like` (shapes with shardings). Raises UserError when its shapes are others."""
        step = self.latest()
        try:
            restored: Any = self._manager.restore(step, args=ocp.args.StandardRestore(_named(like)))
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
