"""The configuration of a run: pydantic models, YAML files, `--set key=value`, and errors that name the key."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import Field

from sbm_jax.axes import MODES, OPTIONAL_MODES, SAE_MODES, TOKEN_KIND
from sbm_jax.config_meaning import (
    EditConfig,
    EmergenceConfig,
    ExemplarsConfig,
    ExplainConfig,
    MatchConfig,
    StabilityConfig,
)
from sbm_jax.config_section import Section
from sbm_jax.config_text import apply_override, describe, read_yaml, unknown_keys
from sbm_jax.errors import UserError

Mode = Literal["cls", "patch_mean", "patch_max", "raw", "pca", "random", "random_relu", "untrained"]


class DemoConfig(Section):
    """The embedded dataset: how many scenes, who sees them, how many simulated brains."""

    seed: int = 0
    n_shared: int = Field(default=240, ge=2, description="images seen by every subject (held-out set)")
    n_unique: int = Field(default=600, ge=2, description="images seen by one subject only (selection set), per subject")
    n_extra: int = Field(default=1600, ge=0, description="images no subject saw, for training the autoencoders")
    n_subjects: int = Field(default=2, ge=1)
    size: int = Field(default=128, ge=32, description="side of the square pictures, pixels")
    repeats: int = Field(default=3, ge=2)


class DataConfig(Section):
    """Where the images and the brains are, and which of them."""

    root: str = Field(description="a dataset folder, or `demo` for the embedded one")
    format: str = Field(default="auto", description="the layout, where the folder should not be recognised by itself")
    subjects: list[str] = Field(default_factory=list, description="names; empty means all")
    space: str = Field(default="", description="func1pt8mm, fsaverage, ...; empty: the layout's first")
    betas: str = Field(
        default="", description="version: b1, b2, b3 (NSD), TYPED (GLMsingle); empty: the layout's first"
    )
    mask: str = Field(default="", description="ROI or mask file that chooses the columns; empty: the layout's own")
    stimuli: str = Field(default="", description="pictures outside the folder: a folder or an HDF5 file")
    shared: str = Field(default="", description="file that lists the shared images, where the dataset does not say")
    hold_out: float = Field(
        default=0, ge=0, lt=1, description="instead, this share of the images scores, drawn by a fixed seed"
    )
    demo: DemoConfig = DemoConfig()


class BetasConfig(Section):
    """Single trials to one response per image."""

    zscore: Literal["session", "run", "none"] = Field(default="session", description="within what trials are z-scored")
    dtype: Literal["float16", "float32"] = "float32"
    ncsnr: Literal["auto", "shipped", "estimated"] = Field(
        default="auto", description="auto: the dataset's own where it brings one, else estimated from repeats"
    )
    min_ncsnr: float = Field(default=0, ge=0, description="voxels below it are left out before anything else")
    min_noise_ceiling: float = Field(
        default=0, ge=0, le=1, description="the same by the noise ceiling, a fraction of variance"
    )
    memory_mb: int = Field(default=1024, ge=16, description="budget for trials in memory")
    keep_trials: bool = Field(default=False, description="keep the converted single trials beside the betas")


class BackboneConfig(Section):
    """Which vision transformer, and which layers of it."""

    path: str = Field(description="a Hugging Face model folder, a hub id in the local cache, or `demo`")
    layers: list[int] = Field(default_factory=list, description="0-based blocks; empty means all")
    hooks: list[str] = Field(
        default_factory=list,
        description="places by name, such as block03.attn_out, instead of the residual stream after `layers`",
    )
    image_size: int = Field(
        default=0, ge=0, description="side of the input, pixels; 0: what the model's processor makes"
    )
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="of parameters and products")

    @pydantic.model_validator(mode="after")
    def _layers_or_hooks(self) -> BackboneConfig:
        if self.layers and self.hooks:
            raise ValueError("backbone.layers and backbone.hooks are two ways to say one thing; set one of them")
        return self


class ExtractConfig(Section):
    """Images to activations."""

    dtype: Literal["float16", "float32"] = "float16"
    geometry: Literal["square", "stretch", "processor"] = Field(
        default="square", description="how a picture becomes the square input; processor: as the model's own does"
    )
    batch: int = Field(default=64, ge=1, description="images per step, over all devices")
    shard_images: int = Field(default=256, ge=1, description="images per shard file")
    keep: bool = Field(
        default=True,
        description="false: activations are never written; every stage that needs them computes them again",
    )
    memory_mb: int = Field(
        default=4096,
        ge=0,
        description="host memory for activations that need not be computed again, where keep is false",
    )


ObjectiveName = Literal["topk", "batch_topk", "jumprelu", "relu", "tied_relu", "matryoshka", "archetypal"]


class SweepConfig(Section):
    """Further values, trained beside the primary ones in the same program; every combination is one grid point."""

    expansion: list[int] = Field(default_factory=list)
    objective: list[ObjectiveName] = Field(default_factory=list)
    k: list[int] = Field(default_factory=list)
    sparsity: list[float] = Field(default_factory=list)
    lr: list[float] = Field(default_factory=list)
    seed: list[int] = Field(default_factory=list)


class TrainConfig(Section):
    """Autoencoders, one per (layer, token kind) and grid point, trained side by side."""

    objective: ObjectiveName = "topk"
    expansion: int = Field(default=8, ge=1, description="units per model dimension")
    k: int = Field(default=16, ge=1, description="active units per token (topk, batch_topk, matryoshka, archetypal)")
    sparsity: float = Field(default=8.6e-4, ge=0, description="weight of the sparsity term (relu, tied_relu, jumprelu)")
    points: int = Field(default=512, ge=2, description="tokens of which archetypal decoder rows are mixed")
    steps: int = Field(default=350, ge=1)
    batch: int = Field(default=512, ge=1, description="tokens per autoencoder and step")
    lr: float = Field(default=1.5e-3, gt=0, description="learning rate of a dictionary of 4,096 units")
    lr_scale: Literal["sqrt", "none"] = Field(
        default="sqrt", description="sqrt: other sizes learn at lr sqrt(4,096 / units)"
    )
    warmup: float = Field(default=0.05, ge=0, le=1, description="share of the steps with rising learning rate")
    decay: float = Field(default=0.3, ge=0, le=1, description="share of the steps with falling learning rate")
    clip: float = Field(default=1.0, gt=0, description="limit on the gradient norm of each autoencoder")
    aux_weight: float = Field(default=1 / 32, ge=0, description="weight of the dead-latent loss")
    aux_k: int = Field(default=0, ge=0, description="dead latents used by that loss; 0 means half the model width")
    dead_tokens: int = Field(default=20_000, ge=1, description="a latent is dead when silent for this many tokens")
    encoder_scale: float = Field(
        default=0.577, gt=0, description="encoder = this times the decoder's transpose at start"
    )
    centre: Literal["mean", "geometric_median"] = Field(
        default="mean", description="of the tokens, where the decoder bias starts"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of the factors of products; sums, weights and optimiser are float32"
    )
    split_units: int = Field(
        default=1, ge=1, description="devices that share one dictionary, each a block of its units"
    )
    pool_tokens: int = Field(default=131_072, ge=1, description="tokens mixed in memory, per layer and token kind")
    checkpoint_every: int = Field(default=100, ge=1, description="steps between checkpoints")
    fidelity_images: int = Field(
        default=256, ge=0, description="held-out images on which reconstructions replace activations; 0: none"
    )
    seed: int = 0
    sweep: SweepConfig = SweepConfig()


class EncodeConfig(Section):
    """Activations to per-image codes."""

    modes: list[Mode] = Field(default_factory=lambda: [m for m in MODES if m not in OPTIONAL_MODES], min_length=1)
    batch: int = Field(default=128, ge=1)
    seed: int = Field(default=0, description="of the random directions, and of an untrained backbone")


class AlignConfig(Section):
    """Codes to voxels."""

    select: Literal["shared", "kfold", "none"] = Field(
        default="shared",
        description="shared: unique images select, shared ones score; kfold: all in turn; none: no held-out score",
    )
    folds: int = Field(default=5, ge=2, description="parts that the images are dealt into by `seed` (kfold)")
    k_voxel: int = Field(default=5, ge=1, description="best units kept per voxel")
    k_unit: int = Field(default=5, ge=1, description="best voxels kept per unit")
    min_ncsnr: float = Field(default=0.2, ge=0, description="voxels at or above it are called responsive in tables")
    shuffles: int = Field(
        default=9, ge=1, description="image permutations B of the shuffled control; p is at least 1 / (1 + B)"
    )
    max_shuffles: int = Field(
        default=0, ge=0, description="go on to so many for voxels that fewer than `stop_after` have reached; 0: do not"
    )
    stop_after: int = Field(default=10, ge=1, description="permutations that reach a voxel before it is decided")
    sign: Literal["signed", "absolute"] = Field(default="signed", description="maximise s, or |s|")
    memory_mb: int = Field(default=512, ge=16, description="budget for codes, responses and blocks in flight")
    precision: Literal["f32", "bf16x3", "bf16"] = Field(
        default="f32", description="of the products of codes and responses (error: docs/methods.md)"
    )
    seed: int = 0


class AssignConfig(Section):
    """One-to-one and soft matching of units and voxels, over the pairs that `align` lists."""

    soft: bool = Field(
        default=True, description="soft matching too: a linear program per mode and subject, a minute for 500,000 pairs"
    )


class SizesConfig(Section):
    """Score against the number of candidate units."""

    voxels: int = Field(default=1000, ge=1, description="responsive voxels looked at, drawn by seed")
    draws: int = Field(default=3, ge=1, description="random subsets of every size")
    seed: int = 0


class RsaConfig(Section):
    """Representational similarity."""

    metric: Literal["correlation", "euclidean", "cosine"] = "correlation"
    brain_metric: Literal["same", "crossnobis"] = "same"  # crossnobis: from single repeats of the shared images
    method: Literal["corr", "spearman", "tau-a", "rho-a", "cosine", "corr_cov", "cosine_cov"] = "spearman"
    bootstrap: int = Field(default=200, ge=0, description="draws of images and subjects for 95 % intervals; 0: none")
    structure_voxels: int = Field(default=1000, ge=3, description="voxels in the voxel-structure score, drawn by seed")
    seed: int = 0


class RoiConfig(Section):
    """Regions of interest."""

    names: list[str] = Field(
        default_factory=list,
        description="`ATLAS` or `ATLAS/LABEL`; empty: V1, V2, V3, hV4 and every other atlas as one",
    )
    top_units: int = Field(default=100, ge=1, description="units kept per layer and ROI")
    exemplars: int = Field(default=20, ge=1, description="images shown to the judge per unit")
    stable: int = Field(
        default=10, ge=0, description="a unit is stable when one concept has more than this many exemplars"
    )
    modes: list[Mode] = Field(default_factory=lambda: ["cls", "patch_mean"], min_length=1)
    min_voxels: int = Field(default=5, ge=1, description="smaller ROIs are reported and left out")


_LAMBDAS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000]


class JointConfig(Section):
    """Models of a responsive voxel from several units. Modes that are not encoded are left out; without any the stage is."""

    modes: list[Mode] = Field(default=["cls", "patch_mean", "raw"])
    atoms: int = Field(default=5, ge=1, description="most units in a voxel's matching pursuit")
    candidates: int = Field(default=20, ge=1, description="best units of a voxel, over all layers, that it picks from")
    predictors: int = Field(default=0, ge=0, description="predictors p of every ridge; 0 means the backbone's width")
    lambdas: list[pydantic.PositiveFloat] = Field(
        default=_LAMBDAS, min_length=1, description="ridge penalties, per image"
    )
    validation: float = Field(default=0.2, gt=0, lt=1, description="share of the fitting images that chooses the rest")
    seed: int = Field(default=0, description="of the validation images")


class LayersConfig(Section):
    """Layer profiles."""

    bootstrap: int = Field(
        default=200,
        ge=0,
        description="draws of the scoring images for the 95 % intervals of profiles and depth; 0: none",
    )
    seed: int = 0


class PoolingConfig(Section):
    """Receptive fields over patches; sizes are standard deviations over the image's side."""

    mode: Literal["patch_mean", "patch_max"] = Field(
        default="patch_mean", description="whose best units are candidates"
    )
    rois: list[str] = Field(default_factory=list, description="`ATLAS` or `ATLAS/LABEL`; empty: all responsive voxels")
    field: Literal["learned", "prf", "both"] = Field(default="learned", description="prf: the voxel's own, as known")
    positions: int = Field(default=5, ge=1, description="centres per side")
    sizes: list[Annotated[float, Field(gt=0)]] = Field(default_factory=lambda: [0.1, 0.2, 0.4], min_length=1)
    image_degrees: float = Field(default=8.4, gt=0, description="visual angle of the image's side, for known pRFs")
    bootstrap: int = Field(default=1000, ge=0, description="draws of images for the interval of the gain; 0: none")


class ReportConfig(Section):
    """The page."""

    title: str = "sbm_jax"
    mode: Mode = Field(default="patch_mean", description="the mode drawn on the cortex")
    units_per_roi: int = Field(default=4, ge=1)
    images_per_unit: int = Field(default=8, ge=1)


class Config(Section):
    """One run. `devices` is not part of any store's name: results do not depend on it beyond rounding."""

    data: DataConfig
    betas: BetasConfig = BetasConfig()
    backbone: BackboneConfig
    extract: ExtractConfig = ExtractConfig()
    train: TrainConfig = TrainConfig()
    encode: EncodeConfig = EncodeConfig()
    align: AlignConfig = AlignConfig()
    assign: AssignConfig = AssignConfig()
    sizes: SizesConfig = SizesConfig()
    rsa: RsaConfig = RsaConfig()
    roi: RoiConfig = RoiConfig()
    joint: JointConfig = JointConfig()
    layers: LayersConfig = LayersConfig()
    pooling: PoolingConfig = PoolingConfig()
    exemplars: ExemplarsConfig = ExemplarsConfig()
    explain: ExplainConfig = ExplainConfig()
    emergence: EmergenceConfig = EmergenceConfig()
    match: MatchConfig = MatchConfig()
    edit: EditConfig = EditConfig()
    stability: StabilityConfig = StabilityConfig()
    report: ReportConfig = ReportConfig()
    devices: int = Field(default=0, ge=0, description="devices to use; 0 means all that JAX finds")

    @pydantic.model_validator(mode="after")
    def _modes_are_encoded(self) -> Config:
        if len(set(self.encode.modes)) < len(self.encode.modes):
            raise ValueError(f"encode.modes names a mode twice ({self.encode.modes})")
        for key, modes in (("roi.modes", self.roi.modes), ("report.mode", [self.report.mode])):
            missing = [m for m in modes if m not in self.encode.modes]
            if missing:
                raise ValueError(f"{key} names {missing}, which encode.modes does not list ({self.encode.modes})")
        return self

    @property
    def sae_modes(self) -> list[str]:
        """The encoded modes that need an autoencoder, in the fixed order of `axes.SAE_MODES`."""
        return [m for m in SAE_MODES if m in self.encode.modes]

    @property
    def kinds(self) -> list[str]:
        """Kinds of tokens, of the backbone itself, whose autoencoders are looked into: those of `exemplars.kinds` that some
        encoded mode needs.
        """
        trained = {TOKEN_KIND[mode] for mode in self.sae_modes}
        return [kind for kind in self.exemplars.kinds if kind in trained]

    @property
    def joint_modes(self) -> list[str]:
        """The encoded modes of which joint models are fitted, in the order of `axes.MODES`."""
        return [m for m in MODES if m in self.joint.modes and m in self.encode.modes]


def demo_config() -> dict[str, Any]:
    """The embedded default as plain data."""
    return {
        "data": {"root": "demo"},
        "backbone": {"path": "demo"},
        "align": {"shuffles": 39},
        "report": {"title": "sbm_jax demo"},
    }


def load_config(path: Path | None, overrides: typing.Sequence[str] = ()) -> Config:
    """Read a YAML file (None: the embedded default) and apply `key.sub=value` overrides.

    Raises UserError for an unreadable file, an unknown key (naming the nearest one), a missing key or a bad value.
    """
    source = "the embedded default" if path is None else str(path)
    return parse_config(demo_config() if path is None else read_yaml(path), overrides, source)


def parse_config(raw: dict[str, Any], overrides: typing.Sequence[str], source: str) -> Config:
    """Plain data, which are changed, with `key.sub=value` overrides. Raises UserError as `load_config`, naming the source."""
    for override in overrides:
        apply_override(raw, override)
    problems = list(unknown_keys(raw, Config, Config))
    if problems:
        raise UserError(f"{source}: " + "; ".join(problems))
    try:
        return Config.model_validate(raw)
    except pydantic.ValidationError as error:
        lines = [describe(e) for e in error.errors(include_url=False)]
        raise UserError(f"{source}: " + "; ".join(lines)) from None


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML, every key spelled out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
