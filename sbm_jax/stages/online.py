"""What it costs to compute activations when they are asked for instead of storing them: memory, and images computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sbm_jax.axes import FITTED_MODES, TOKEN_KIND

if TYPE_CHECKING:
    from sbm_jax.stages.context import Context

_STATISTICS_IMAGES = 4096  # of sae.trainer, whose import would start JAX


def used_kinds(ctx: Context) -> set[str]:
    """Token kinds that the run reads."""
    return {TOKEN_KIND[mode] for mode in ctx.config.encode.modes}


def image_bytes(ctx: Context, kind: str) -> int:
    """Bytes of the tokens of one kind of one image, at all hooks."""
    item = 2 if ctx.config.extract.dtype == "float16" else 4
    tokens = ctx.facts.backbone.n_patches if kind == "patch" else int(ctx.facts.backbone.has_cls)
    return sum(tokens * ctx.facts.backbone.hook_shape(hook)[1] * item for hook in ctx.facts.hooks)


def rooms(ctx: Context) -> dict[str, int]:
    """Images per token kind that `extract.memory_mb` holds between passes; none of a kind that is not read twice."""
    budget, out = ctx.config.extract.memory_mb << 20, {}
    for kind in ("cls", "patch") if ctx.facts.backbone.has_cls else ("patch",):
        size = image_bytes(ctx, kind)
        wanted = kind in used_kinds(ctx) and not ctx.facts.has_rdms
        out[kind] = min(ctx.facts.n_images, budget // size) if wanted else 0
        budget -= out[kind] * size
    return out


def kept_bytes(ctx: Context) -> int:
    """Bytes of the images that are kept between passes."""
    return sum(count * image_bytes(ctx, kind) for kind, count in rooms(ctx).items())


def training_images(ctx: Context) -> float:
    """Images through the backbone in training and its measurement; those seen before only as far as they are not kept."""
    facts, train = ctx.facts, ctx.config.train
    n = facts.n_trained
    seen = float(min(n, _STATISTICS_IMAGES))
    total = seen + facts.n_measured
    kinds = {TOKEN_KIND[mode] for mode in ctx.config.sae_modes}
    for kind in sorted(kinds, reverse=True):  # patch pools are read first
        tokens = facts.backbone.n_patches if kind == "patch" else 1
        # a pool of all images is read once and mixed anew in every epoch
        drawn = n if train.pool_tokens >= n * tokens else train.steps * train.batch / tokens
        first, kept = min(drawn, n), rooms(ctx)[kind] / facts.n_images
        total += first * (1 - kept * seen / n) + (drawn - first) * (1 - kept)
        seen = max(seen, first)
    return total


def encoding_images(ctx: Context) -> float:
    """Images through the backbone in encoding, those that controls are fitted to among them."""
    kept = min((rooms(ctx)[kind] for kind in used_kinds(ctx)), default=0)
    facts, fitted = ctx.facts, set(FITTED_MODES) & set(ctx.config.encode.modes)
    seen = min(facts.n_trained, _STATISTICS_IMAGES) if fitted else 0
    return facts.n_images - kept + seen * (1 - kept / facts.n_images)
