"""What a run is about, known before anything is computed: images, subjects, layers. Needs neither JAX nor the images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sbm_jax.axes import hook_name
from sbm_jax.backbones.describe import BackboneFacts, describe_backbone
from sbm_jax.brain.dataset import Dataset, Subject, open_dataset
from sbm_jax.config import Config
from sbm_jax.demo import CLIP_FOLDER, DATASET_VERSION
from sbm_jax.errors import UserError
from sbm_jax.store.spec import HASH_LENGTH, StoreSpec

FSAVERAGE5_VERTICES = 20_484
_HASHED_BYTES = 1 << 26


@dataclass(frozen=True)
class SubjectFacts:
    """Sizes of one subject's data; `fingerprint` changes when the data do."""

    name: str
    n_trials: int
    n_images: int
    n_unique: int
    n_voxels: int
    fingerprint: str


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
    layers: tuple[int, ...]

    @property
    def has_truth(self) -> bool:
        """True when the dataset says which latent drives which vertex (folder `truth`)."""
        return self.demo is not None or (self.root / "truth").is_dir()

    @property
    def hooks(self) -> tuple[str, ...]:
        return tuple(hook_name(layer) for layer in self.layers)


def gather_facts(config: Config, stores: Path) -> Facts:
    """Read the dataset's tables and the backbone's configuration (for the demo: derive them from the settings).

    Raises UserError for a dataset or backbone that is missing or inconsistent, an unknown subject, or a layer the
    backbone does not have.
    """
    path = str(CLIP_FOLDER) if config.backbone.path == "demo" else config.backbone.path
    backbone = describe_backbone(path)
    layers = tuple(config.backbone.layers) or tuple(range(backbone.n_layers))
    wrong = [layer for layer in layers if not 0 <= layer < backbone.n_layers]
    if wrong or len(set(layers)) != len(layers):
        raise UserError(
            f"backbone.layers: {list(layers)} must be different blocks within 0..{backbone.n_layers - 1} of {path}"
        )
    if config.data.root == "demo":
        return _demo_facts(config, stores, backbone, layers)
    dataset = open_dataset(Path(config.data.root))
    picked = pick_subjects(dataset, config)
    subjects = tuple(_subject_facts(dataset, subject) for subject in picked)
    return Facts(
        root=Path(config.data.root),
        demo=None,
        n_images=len(dataset.images.ids),
        n_shared=subjects[0].n_images - subjects[0].n_unique,
        images_fingerprint=identity([*dataset.files(), *dataset.images.files]),
        subjects=subjects,
        backbone=backbone,
        layers=layers,
    )


def _subject_facts(dataset: Dataset, subject: Subject) -> SubjectFacts:
    shared, unique = dataset.image_sets(subject)
    return SubjectFacts(
        name=subject.name,
        n_trials=subject.n_trials,
        n_images=len(shared) + len(unique),
        n_unique=len(unique),
        n_voxels=subject.n_voxels,
        fingerprint=identity([*dataset.files(), *subject.files()]),
    )


def identity(files: Sequence[Path]) -> str:
    """Changes when a file does: content of small files, size and modification time of large ones and of pictures."""
    seen = hashlib.sha256()
    for path in files:
        status = path.stat()
        if status.st_size <= _HASHED_BYTES and path.suffix in (".csv", ".json"):
            mark = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            mark = f"{status.st_size} {status.st_mtime_ns}"
        seen.update(f"{path.name}\0{mark}\0".encode())
    return seen.hexdigest()[:HASH_LENGTH]


def pick_subjects(dataset: Dataset, config: Config) -> list[Subject]:
    """The subjects that the configuration names, or all. Raises UserError for a name the dataset does not have."""
    known = {subject.name: subject for subject in dataset.subjects}
    unknown = [name for name in config.data.subjects if name not in known]
    if unknown:
        raise UserError(f"data.subjects: {unknown} not in {config.data.root}, which has {', '.join(known)}")
    return [known[name] for name in config.data.subjects] if config.data.subjects else list(dataset.subjects)


def _demo_facts(config: Config, stores: Path, backbone: BackboneFacts, layers: tuple[int, ...]) -> Facts:
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
        layers=layers,
    )
