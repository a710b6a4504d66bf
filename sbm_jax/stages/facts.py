"""What a run is about, known before anything is computed: images, subjects, layers. Needs neither JAX nor the images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sbm_jax.axes import TOKEN_KIND, hook_name
from sbm_jax.backbones.describe import BackboneFacts, describe_backbone
from sbm_jax.brain.dataset import Dataset, Subject
from sbm_jax.brain.opening import open_dataset
from sbm_jax.brain.readers.options import ReadOptions
from sbm_jax.brain.transforms import transform_files
from sbm_jax.config import Config
from sbm_jax.demo import CLIP_FOLDER, DATASET_VERSION
from sbm_jax.errors import UserError
from sbm_jax.store.spec import HASH_LENGTH, StoreSpec

FSAVERAGE5_VERTICES = 20_484
_HASHED_BYTES = 1 << 26


@dataclass(frozen=True)
class SubjectFacts:
    """Sizes of one subject's data; `fingerprint` changes when the data do.

    trial_bytes: of one stored response where the trials must be converted before columns can be read, 0 otherwise.
    source_bytes: of the files that hold the responses. transforms: identity of the files that lead to the template surface.
    """

    name: str
    n_trials: int
    n_images: int
    n_unique: int
    n_voxels: int
    fingerprint: str
    trial_bytes: int = 0
    source_bytes: int = 0
    transforms: str = ""


@dataclass(frozen=True)
class Facts:
    """Sizes and identities of everything that comes into a run."""

    root: Path
    demo: StoreSpec | None
    n_images: int
    n_shared: int
    images_fingerprint: str
    subjects: tuple[SubjectFacts, ...]
    backbone: BackboneFacts
    hooks: tuple[str, ...]
    dataset: Dataset | None = None

    @property
    def n_trained(self) -> int:
        """Images that autoencoders are trained on: those that are not shared; all where none is, or every one."""
        return self.n_images - self.n_shared or self.n_images

    @property
    def n_measured(self) -> int:
        """Images that autoencoders are measured on: the shared ones, or all as above."""
        return self.n_shared or self.n_images

    @property
    def width(self) -> int:
        """Channels at the hooks."""
        return self.backbone.hook_shape(self.hooks[0])[1]

    @property
    def depth(self) -> int:
        """Blocks that must run for the last hook."""
        blocks = [int(hook[5:].split(".")[0]) + 1 for hook in self.hooks if hook.startswith("block")]
        return self.backbone.n_layers if "final_norm" in self.hooks else max(blocks, default=0)

    @property
    def layer_labels(self) -> tuple[str, ...]:
        """Short names of the hooks: "3" for block03.resid, the whole name elsewhere."""
        short = {hook_name(i): str(i) for i in range(self.backbone.n_layers)}
        return tuple(short.get(hook, hook) for hook in self.hooks)

    @property
    def has_rdms(self) -> bool:
        """True when the dataset brings people's RDMs instead of responses: there is nothing to align, RDMs are compared."""
        return self.dataset is not None and self.dataset.rdms is not None

    @property
    def has_truth(self) -> bool:
        """True when the dataset says which latent drives which vertex (folder `truth`)."""
        tables = self.dataset is not None and self.dataset.format == "sbm-tables"
        return self.demo is not None or (tables and (self.root / "truth").is_dir())


def token_kinds(config: Config, facts: Facts) -> tuple[str, ...]:
    """Kinds of tokens that are kept of every image: CLS where there is one, patches, and where an encoded mode needs them
    those of the untrained backbone.
    """
    wanted = {TOKEN_KIND[mode] for mode in config.encode.modes} if not facts.has_rdms else set()
    own = ("cls", "patch") if facts.backbone.has_cls else ("patch",)
    return own + (("untrained",) if "untrained" in wanted else ())


def gather_facts(config: Config, stores: Path) -> Facts:
    """Read the dataset's tables and the backbone's configuration (for the demo: derive them from the settings).

    Raises UserError for a dataset or backbone that is missing or inconsistent, an unknown subject, or a layer the
    backbone does not have.
    """
    path = str(CLIP_FOLDER) if config.backbone.path == "demo" else config.backbone.path
    backbone = describe_backbone(path, config.backbone.image_size or None)
    hooks = _hooks(config, backbone)
    if config.data.root == "demo":
        return _demo_facts(config, stores, backbone, hooks)
    dataset = open_dataset(Path(config.data.root), read_options(config), config.data.format)
    subjects = tuple(_subject_facts(dataset, subject) for subject in dataset.subjects)
    return Facts(
        root=dataset.root,
        demo=None,
        n_images=len(dataset.images.ids),
        n_shared=int(dataset.images.shared.sum()),
        images_fingerprint=identity([*dataset.tables, *dataset.images.files()], *dataset.images.ids, _flags(dataset)),
        subjects=subjects,
        backbone=backbone,
        hooks=hooks,
        dataset=dataset,
    )


def read_options(config: Config) -> ReadOptions:
    """What `data:` says about how a dataset folder is opened."""
    data = config.data
    return ReadOptions(
        subjects=tuple(data.subjects),
        space=data.space,
        betas=data.betas,
        mask=data.mask,
        stimuli=Path(data.stimuli).expanduser() if data.stimuli else None,
        shared=Path(data.shared).expanduser() if data.shared else None,
        hold_out=data.hold_out,
    )


def _hooks(config: Config, backbone: BackboneFacts) -> tuple[str, ...]:
    """The hooks of the run. Raises UserError for a layer or hook the backbone lacks, or hooks that cannot stand side by side."""
    layers = tuple(config.backbone.layers) or tuple(range(backbone.n_layers))
    wrong = [layer for layer in layers if not 0 <= layer < backbone.n_layers]
    if wrong or len(set(layers)) != len(layers):
        raise UserError(
            f"backbone.layers: {list(layers)} must be different blocks within 0..{backbone.n_layers - 1} of {backbone.path}"
        )
    hooks = tuple(config.backbone.hooks) or tuple(hook_name(layer) for layer in layers)
    shapes = {hook: backbone.hook_shape(hook) for hook in hooks}
    if len(set(hooks)) != len(hooks) or len(set(shapes.values())) != 1 or None in next(iter(shapes.values())):
        listed = ", ".join(f"{hook} {shape}" for hook, shape in shapes.items())
        raise UserError(
            "backbone.hooks must be different places with tokens, of one width: their autoencoders are trained side by "
            f"side; found (tokens, width) {listed}"
        )
    if "cls" in config.encode.modes and not backbone.has_cls:
        raise UserError(
            f"encode.modes lists cls, but {backbone.path} ({backbone.family}) has no CLS token; leave cls out"
        )
    return hooks


def _subject_facts(dataset: Dataset, subject: Subject) -> SubjectFacts:
    shared, unique = dataset.image_sets(subject)
    return SubjectFacts(
        name=subject.name,
        n_trials=subject.n_trials,
        n_images=len(shared) + len(unique),
        n_unique=len(unique),
        n_voxels=subject.n_voxels,
        fingerprint=identity([*dataset.tables, *subject.files()], dataset.space, _columns(subject), _flags(dataset)),
        source_bytes=sum(path.stat().st_size for path in dict.fromkeys(subject.responses.files)),
        transforms=_transforms(subject),
        trial_bytes=0 if subject.responses.by_voxel else subject.responses.dtype.itemsize,
    )


def _transforms(subject: Subject) -> str:
    names = transform_files(subject.space)
    if subject.transforms is None or not names:
        return ""
    return identity([path for name in names if (path := subject.transforms / name).is_file()])


def _flags(dataset: Dataset) -> str:
    return "".join("01"[int(flag)] for flag in dataset.images.shared)


def _columns(subject: Subject) -> str:
    """Digest of which columns and trials were chosen: a mask changes them without changing any file."""
    places = getattr(subject.space, "index", subject.vertex)
    return hashlib.sha256(places.tobytes() + subject.trial_image.tobytes()).hexdigest()


def identity(files: Sequence[Path], *texts: str) -> str:
    """Changes when a text or a file does: content of small files, size and modification time of large ones and of pictures."""
    seen = hashlib.sha256("\0".join(texts).encode())
    for path in files:
        status = path.stat()
        if status.st_size <= _HASHED_BYTES and path.suffix in (".csv", ".json"):
            mark = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            mark = f"{status.st_size} {status.st_mtime_ns}"
        seen.update(f"{path.name}\0{mark}\0".encode())
    return seen.hexdigest()[:HASH_LENGTH]


def _demo_facts(config: Config, stores: Path, backbone: BackboneFacts, hooks: tuple[str, ...]) -> Facts:
    demo = config.data.demo
    spec = StoreSpec("dataset", DATASET_VERSION, demo.model_dump(), {})
    names = [f"subj{i + 1:02d}" for i in range(demo.n_subjects)]
    unknown = [name for name in config.data.subjects if name not in names]
    if unknown:
        raise UserError(f"data.subjects: {unknown} not in the demo, which has {', '.join(names)}")
    n_images = demo.n_shared + demo.n_unique
    return Facts(
        root=spec.path(stores) / "data",
        demo=spec,
        n_images=demo.n_shared + demo.n_subjects * demo.n_unique + demo.n_extra,
        n_shared=demo.n_shared,
        images_fingerprint=f"{spec.name}/images",
        subjects=tuple(
            SubjectFacts(
                name, n_images * demo.repeats, n_images, demo.n_unique, FSAVERAGE5_VERTICES, f"{spec.name}/{name}"
            )
            for name in names
            if not config.data.subjects or name in config.data.subjects
        ),
        backbone=backbone,
        hooks=hooks,
    )
