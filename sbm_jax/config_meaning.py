"""Settings of the stages that say what units mean."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sbm_jax.config_section import Section


class ExemplarsConfig(Section):
    """The images that drive each wanted unit most."""

    kinds: list[Literal["patch", "cls"]] = Field(
        default=["patch", "cls"],
        description="token kinds; those without an autoencoder are left out, and without any all stages up to `stability`",
    )
    probe: str = Field(default="stimuli", description="`stimuli`, or a folder of pictures")
    score: Literal["max", "mean"] = Field(default="max", description="of an image: over its patches")
    top: int = Field(default=20, ge=1, description="images kept per unit")
    units: list[str] = Field(
        default_factory=list,
        description="KIND/HOOK/UNIT, such as patch/block03.resid/17, beside those of voxels and ROIs",
    )
    random: int = Field(default=50, ge=0, description="units per layer and kind drawn as controls, of those that fire")
    batch: int = Field(default=64, ge=1, description="images per step, over all devices")
    memory_mb: int = Field(default=1024, ge=16, description="budget for lists and heat maps in memory")
    seed: int = 0


class ExplainConfig(Section):
    """Names for units. A judge without data is left out."""

    labels: str = Field(default="", description="CSV of image labels; empty: the dataset's own, where it has any")
    masks: str = Field(default="", description="segmentation folder; empty: the dataset's own, where it has one")
    clip: str = Field(default="", description="model with a text tower that judges zero-shot; empty: none")
    prompts: str = Field(default="", description="YAML of groups of prompts; empty: the shipped six groups")
    own_judge: bool = Field(default=False, description="allow `clip` to be the backbone that is judged")
    stable: int = Field(
        default=10, ge=0, description="a unit is stable when one concept has more than this many exemplars"
    )
    bootstrap: int = Field(default=1000, ge=0, description="draws of units for intervals; 0: none")
    seed: int = 0


class EmergenceConfig(Section):
    """Where along the layers concepts and low-level tuning appear."""

    concepts: list[str] = Field(default_factory=list, description="empty: all that a judge knows")
    bootstrap: int = Field(default=1000, ge=0, description="draws of units for intervals; 0: none")
    seed: int = 0


class MatchConfig(Section):
    """The same concept in two dictionaries."""

    others: list[str] = Field(
        default_factory=list,
        description="folders of other finished runs over the same images, or their stores of codes",
    )
    pairs: Literal["near", "all"] = Field(
        default="near",
        description="near: each layer with the next, and with that at the same depth of other runs; all: every",
    )
    top: int = Field(default=10, ge=1, description="best partners kept per unit")
    images: int = Field(default=10_000, ge=0, description="images over which codes are compared, drawn by seed; 0: all")
    least_images: int = Field(default=10, ge=1, description="units active on fewer images take no part")
    shuffles: int = Field(default=4, ge=0, description="permutations of the images that show what chance reaches")
    shown: int = Field(default=3, ge=0, description="matched units drawn per pair of dictionaries")
    exemplars: int = Field(default=8, ge=1, description="images drawn of each")
    memory_mb: int = Field(default=512, ge=16, description="budget for blocks of codes")
    seed: int = 0


class EditConfig(Section):
    """Causal tests on the frozen backbone: units that ROIs known for a concept selected are removed and driven."""

    images: int = Field(default=96, ge=0, description="held-out images, evenly spread over their order; 0: all")
    units: int = Field(default=20, ge=1, description="per ROI, hook and token kind: the first of its contrast ranking")
    hooks: list[str] = Field(default_factory=list, description="one at a time; empty: all on the residual stream")
    draws: int = Field(default=5, ge=0, description="sets of control units matched on firing rate and energy")
    doses: list[float] = Field(default=[0.5, 2.0, 4.0], description="codes times these, at the ROI's best hook")
    drive: list[float] = Field(
        default=[0.5, 1.0], description="codes set to these multiples of each unit's largest code"
    )
    voxels: bool = Field(
        default=True, description="predict responses through the alignment, where it is of patches or CLS"
    )
    head: str = Field(
        default="", description="segmentation head (`sbm-jax segmentation-head`) on which to test; empty: none"
    )
    bootstrap: int = Field(default=1000, ge=0, description="draws of images for intervals; 0: none")
    seed: int = 0


class StabilityConfig(Section):
    """What stays when something is done again."""

    variants: list[list[str]] = Field(
        default_factory=list,
        description="settings to compare with, each a list such as [train.seed=1]; their stores must be in the same folder",
    )
    modes: list[Literal["cls", "patch_mean", "patch_max"]] = Field(
        default=["cls", "patch_mean"], description="those that are not encoded are left out"
    )
    voxels: int = Field(default=500, ge=1, description="responsive voxels looked at, drawn by seed")
    draws: int = Field(default=5, ge=1, description="random halves of the images")
    seed: int = 0
