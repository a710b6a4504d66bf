"""Other settings of the same run in the same folder: their configurations, and the stores that must be there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sbm_jax.config import Config, parse_config
from sbm_jax.errors import StoreError, UserError

if TYPE_CHECKING:
    from sbm_jax.stages.context import Context
    from sbm_jax.stages.specs import Specs
    from sbm_jax.store.spec import StoreSpec

_FIXED = ("data", "backbone")  # what makes the images and the layers


@dataclass(frozen=True)
class Variant:
    """Settings that differ from the run's in `overrides` (`key.sub=value`). It has no variants itself."""

    overrides: tuple[str, ...]
    config: Config

    def __str__(self) -> str:
        return ", ".join(self.overrides)


def variants(config: Config) -> list[Variant]:
    """Those of `stability.variants`. Raises UserError for a key or value that is none, no difference, or other data or layers."""
    out = []
    plain = config.model_copy(update={"stability": config.stability.model_copy(update={"variants": []})})
    for overrides in config.stability.variants:
        where = f"stability.variants {overrides}"
        found = parse_config(plain.model_dump(mode="json"), overrides, where)
        for part in _FIXED:
            if getattr(found, part) != getattr(config, part):
                raise UserError(
                    f"{where}: it changes `{part}`; a variant has the run's images, brains and layers. Compare other backbones "
                    "with match.others."
                )
        if found == plain:
            raise UserError(f"{where}: these are the run's own settings; a variant must differ in something")
        out.append(Variant(tuple(overrides), found))
    return out


def needed(specs: Specs) -> Iterator[tuple[str, StoreSpec]]:
    """(what it is called among inputs, store) of what is read of a variant."""
    yield "saes", specs.saes
    yield "codes", specs.codes
    yield "rsa", specs.rsa
    yield from specs.align.items()
    if specs.recovery is not None:
        yield "recovery", specs.recovery


def open_variants(ctx: Context) -> list[tuple[Variant, Context]]:
    """The run's variants. Raises StoreError, with the commands that make it, where a store of one is not there."""
    from sbm_jax.stages.context import Context

    out = []
    for variant in variants(ctx.config):
        other = Context(variant.config, ctx.out, ctx.facts)
        missing = [spec.name for _, spec in needed(other.specs) if not other.has(spec)]
        if missing:
            settings = " ".join(f"--set {override}" for override in variant.overrides)
            raise StoreError(
                f"stability.variants: of {variant} there is no {', '.join(missing)} in {other.stores}. Make it with `sbm-jax run` "
                f"and the same --config and --out, {settings} --set stability.variants=[]"
                + _by_sweep(ctx.config, variant.overrides)
                + "."
            )
        out.append((variant, other))
    return out


def _by_sweep(config: Config, overrides: Sequence[str]) -> str:
    """How a sweep makes it, where one setting differs."""
    if len(overrides) != 1:
        return ""
    key, _, value = overrides[0].partition("=")
    here = config.model_dump(mode="json")
    for part in key.strip().split("."):
        here = here[part]
    return f", or with others at once: `sbm-jax sweep CONFIG --grid {key}={here},{value} --out OUT`"
