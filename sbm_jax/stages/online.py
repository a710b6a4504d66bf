"""What it costs to compute activations when they are asked for instead of storing them: memory, and images computed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sbm_jax.axes import FITTED_MODES, TOKEN_KIND
from sbm_jax.stages.facts import token_kinds

if TYPE_CHECKING:
    from sbm_jax.stages.context import Context

_STATISTICS_IMAGES = 4096  # of sae.trainer, whose import would start JAX


def used_kinds(ctx: Context) -> set[str]:
    """Token kinds that the run reads."""
    return {TOKEN_KIND[mode] for mode in ctx.config.encode.modes}


def image_bytes(ctx: Context, kind: str) -> int:
    """Bytes of the tokens of one kind of one image, at all hooks."""
    item = 2 if ctx.config.extract.dtype == "float16" else 4
    tokens = int(ctx.facts.backbone.has_cls) if kind == "cls" else ctx.facts.backbone.n_patches
    return sum(tokens * ctx.facts.backbone.hook_shape(hook)[1] * item for hook in ctx.facts.hooks)


def rooms(ctx: Context) -> dict[str, int]:
    """Images per token kind that `extract.memory_mb` holds between passes; none of a kind that is not read twice."""
    budget, out = ctx.config.extract.memory_mb << 20, {}
    for kind in token_kinds(ctx.config, ctx.facts):
        size = image_bytes(ctx, kind)
        wanted = kind in used_kinds(ctx) and not ctx.facts.has_rdms
        out[kind] = min(ctx.facts.n_images, budget // size) if wanted else 0
        budget -= out[kind] * size
    return out


def kept_bytes(ctx: Context) -> int:
    """Bytes of the images that are kept between passes."""
    return sum(count * image_bytes(ctx, kind) for kind, count in rooms(ctx).items())


def by_backbone(kinds: Iterable[str]) -> list[set[str]]:
    """Token kinds that come from one forward pass: of the backbone, and of its untrained twin."""
    return [found for found in ({*kinds} - {"untrained"}, {*kinds} & {"untrained"}) if found]


def training_images(ctx: Context) -> float:
    """Images through a backbone in training and its measurement; those seen before only as far as they are not kept."""
    return sum(_training_images(ctx, kinds) for kinds in by_backbone(TOKEN_KIND[mode] for mode in ctx.config.sae_modes))


def _training_images(ctx: Context, kinds: set[str]) -> float:
    facts, train = ctx.facts, ctx.config.train
    n = facts.n_trained
    seen = float(min(n, _STATISTICS_IMAGES))
    total = seen + facts.n_measured
    for kind in sorted(kinds, reverse=True):  # patch pools are read first
        tokens = 1 if kind == "cls" else facts.backbone.n_patches
        # a pool of all images is read once and mixed anew in every epoch
        drawn = n if train.pool_tokens >= n * tokens else train.steps * train.batch / tokens
        first, kept = min(drawn, n), rooms(ctx)[kind] / facts.n_images
        total += first * (1 - kept * seen / n) + (drawn - first) * (1 - kept)
        seen = max(seen, first)
    return total


def encoding_images(ctx: Context) -> float:
    """Images through a backbone in encoding, those that controls are fitted to among them."""
    kept = min((rooms(ctx)[kind] for kind in used_kinds(ctx)), default=0)
    facts, fitted = ctx.facts, set(FITTED_MODES) & set(ctx.config.encode.modes)
    seen = min(facts.n_trained, _STATISTICS_IMAGES) if fitted else 0
    # all arrays of a few images are at hand together, so where there are two backbones both run
    return len(by_backbone(used_kinds(ctx))) * (facts.n_images - kept + seen * (1 - kept / facts.n_images))
