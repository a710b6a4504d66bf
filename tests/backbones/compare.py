"""Activations against a reference, hook by hook in the order of computation."""

from collections.abc import Mapping

import numpy as np

RELATIVE = 2e-5  # of a hook's largest value: f32 sums in another order
_KINDS = ("attn_out", "mlp_hidden", "resid")


def in_order(hooks) -> list[str]:
    """Hooks as a forward pass reaches them."""

    def key(hook: str) -> tuple[int, int]:
        block, _, kind = hook.partition(".")
        if not kind:
            return {"embed": (-1, 0), "final_norm": (10**6, 0), "projection": (10**6, 1)}[hook]
        return int(block[5:]), _KINDS.index(kind)

    return sorted(hooks, key=key)


def assert_same(got: Mapping, expected: Mapping[str, np.ndarray], relative: float = RELATIVE) -> None:
    """Fail at the first hook that differs by more than `relative` of its largest value, and say which it is."""
    assert set(got) == set(expected)
    errors = {}
    for hook in in_order(expected):
        theirs, ours = expected[hook], np.asarray(got[hook], np.float32)
        assert ours.shape == theirs.shape, f"{hook}: shape {ours.shape}, expected {theirs.shape}"
        errors[hook] = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    wrong = [hook for hook, error in errors.items() if not error <= relative]
    listed = "\n".join(f"  {hook}: {error:.1e}" for hook, error in errors.items())
    assert not wrong, f"first difference at {wrong[0]} (relative to the largest value, tolerance {relative}):\n{listed}"
