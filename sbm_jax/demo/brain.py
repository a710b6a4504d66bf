"""The simulated brain: which latent of the scenes drives which vertex, how strongly, and how noisy it is.

Signals come from the pictures and from what was drawn in them; no network has a part in them.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from sbm_jax.brain.geometry import mesh_edges
from sbm_jax.brain.surfaces import load_fsaverage5
from sbm_jax.demo.areas import CATEGORY_AREAS, HemiAreas, subject_areas
from sbm_jax.demo.features import FEATURES, ORIENTED, pooled, receptive_fields
from sbm_jax.demo.retinotopy import EARLY
from sbm_jax.demo.scenes import CONCEPTS, Scene

AREA_CONCEPTS = ("face", "body", "place", "word", "food")
CONTRALATERAL_BIAS = 0.3  # weight of the opposite visual half is 1 + bias, of the own half 1 - bias
PRESENCE = 0.3  # part of a concept's salience that does not depend on its size
CROSS = {  # weights of other concepts' salience in an area, in units of its own concept's
    "face": {"body": 0.15},
    "body": {"face": 0.25},
    "place": {"object": 0.15, "face": -0.1},
    "word": {"object": 0.1},
    "food": {"object": 0.15},
}
SUBPREFERENCE = 0.3  # SD over the cortex of the weights of size and of the attribute below
# Within-concept attribute that neighbouring vertices prefer alike: the first group counts +1, everything else
# -1.
ATTRIBUTES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "face": ("smile", "expression", ("smiling", "surprised")),
    "body": ("action", "pose", ("running", "jumping", "dancing")),
    "place": ("indoor", "setting", ("indoor",)),
    "word": ("sign", "word_sign", ("board", "round", "post")),
    "food": ("red", "food_colour", ("red", "orange", "pink")),
}
# ncsnr at an area's centre, chosen so that the median over responsive vertices falls among those of NSD's
# eight subjects (0.32 to 0.54 in nsdgeneral on fsaverage).
_NCSNR = {
    "prf-visualrois": {
        "V1v": 0.50,
        "V1d": 0.50,
        "V2v": 0.47,
        "V2d": 0.47,
        "V3v": 0.44,
        "V3d": 0.44,
        "hV4": 0.42,
    },
    "floc-faces": {"OFA": 0.44, "FFA-1": 0.56, "FFA-2": 0.52},
    "floc-bodies": {"EBA": 0.62, "FBA-1": 0.50, "FBA-2": 0.44},
    "floc-places": {"OPA": 0.50, "PPA": 0.58, "RSC": 0.44},
    "floc-words": {"OWFA": 0.42, "VWFA-1": 0.48, "VWFA-2": 0.44},
    "food": {"food-medial": 0.48, "food-lateral": 0.45},
}
NCSNR_RANGE = (0.1, 1.0)
_CONTRAST_WEIGHT = 0.4  # of local contrast, in every early vertex, beside its preferred feature
_COLOUR_SHARE = {"V1": 0.15, "V2": 0.20, "V3": 0.15, "hV4": 0.45}  # early vertices that prefer colour
_SMOOTH_STEPS = 4  # rounds of averaging with neighbours, about 9 mm full width at half maximum
_SMOOTH_NOISE = 0.5  # share of the noise variance that neighbours have in common
_STREAM = 0xB2A1


@dataclass(frozen=True)
class Latents:
    """Standardised scene latents: names and float64 [n, latents]; mean 0 and SD 1 over images seen."""

    names: tuple[str, ...]
    values: np.ndarray

    def column(self, name: str) -> np.ndarray:
        return self.values[:, self.names.index(name)]


@dataclass(frozen=True)
class SubjectModel:
    """One simulated subject; the arrays have one entry per vertex, left hemisphere first (20,484).

    latent, concept: text, "" where nothing drives the vertex. weight: percent signal change per SD of the
    latent. ncsnr: true SD of the signal over SD of the noise. rf_x, rf_y, rf_size: image fractions, NaN
    outside early areas. noise_sd, baseline: percent signal change. responsive: vertices that respond, [r];
    signal_nr: float32 [n seen, r] in percent signal change.
    """

    areas: tuple[HemiAreas, HemiAreas]
    latent: list[str]
    concept: list[str]
    weight: np.ndarray
    ncsnr: np.ndarray
    rf_x: np.ndarray
    rf_y: np.ndarray
    rf_size: np.ndarray
    noise_sd: np.ndarray
    baseline: np.ndarray
    responsive: np.ndarray
    signal_nr: np.ndarray


def scene_measures(scene: Scene) -> np.ndarray:
    """What the category areas need of a scene, float64 [concepts, 3].

    Columns: fraction of the picture's pixels that show the concept in the left half, in the right half, and
    the attribute of ATTRIBUTES (+1, -1, or 0 where the concept is absent or has none).
    """
    half = scene.mask.shape[1] // 2
    sides = [
        np.bincount(side.ravel(), minlength=len(CONCEPTS) + 1)[1 : len(CONCEPTS) + 1] / scene.mask.size
        for side in (scene.mask[:, :half], scene.mask[:, half:])
    ]
    attribute = np.zeros(len(CONCEPTS))
    for concept, (_, key, group) in ATTRIBUTES.items():
        if scene.labels[concept] > 0:
            attribute[CONCEPTS.index(concept)] = 1.0 if scene.attributes.get(key) in group else -1.0
    return np.stack([*sides, attribute], axis=1)


def scene_latents(measures_nc3: np.ndarray, feature_means_nf: np.ndarray, rows: np.ndarray) -> Latents:
    """Latents of every image, standardised over the images of `rows`.

    CONCEPT-L and CONCEPT-R: salience for the left and right hemisphere, presence + sqrt(visible fraction),
    pixels of the opposite visual half weighing more. CONCEPT-size: log fraction, CONCEPT-ATTRIBUTE: +1 or -1,
    both centred on the images that show the concept and 0 elsewhere. Then the mean of every early feature
    over the whole picture.
    """
    columns: dict[str, np.ndarray] = {}
    for i, concept in enumerate(CONCEPTS):
        left, right, attribute = measures_nc3[:, i].T
        present = (left + right) > 0
        for hemi, opposite, same in (("L", right, left), ("R", left, right)):
            share = (1 + CONTRALATERAL_BIAS) * opposite + (1 - CONTRALATERAL_BIAS) * same
            columns[f"{concept}-{hemi}"] = PRESENCE * present + np.sqrt(share)
        if concept in ATTRIBUTES:
            size = np.log(np.maximum(left + right, 1e-6))
            columns[f"{concept}-size"] = _centred_where(size, present, rows)
            columns[f"{concept}-{ATTRIBUTES[concept][0]}"] = _centred_where(attribute, present, rows)
    for f, feature in enumerate(FEATURES):
        columns[feature] = feature_means_nf[:, f]
    values = np.stack(list(columns.values()), axis=1).astype(np.float64)
    return Latents(tuple(columns), _standardised(values, values[rows]))


def _centred_where(x: np.ndarray, present: np.ndarray, rows: np.ndarray) -> np.ndarray:
    inside = rows[present[rows]]
    mean = x[inside].mean() if len(inside) else 0.0
    return np.where(present, x - mean, 0.0)


def _standardised(x: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(x - mean) / SD of the reference's columns; a constant column becomes 0."""
    spread = reference.std(axis=0)
    safe = np.where(spread > 1e-12, spread, 1.0)
    return (x - reference.mean(axis=0)) / safe * (spread > 1e-12)


@dataclass(frozen=True)
class Smoothing:
    """Turns independent into smooth numbers of unit variance; matrix is float32 [vertices, sources]."""

    matrix: sparse.csr_array
    n_vertices: int
    n_sources: int

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """`count` smooth random maps over both hemispheres, float32 [vertices, count]."""
        return np.asarray(self.matrix @ rng.standard_normal((self.n_sources, count), dtype=np.float32))


def cortex_smoothing(steps: int = _SMOOTH_STEPS) -> Smoothing:
    """Smoothing over the mesh of both hemispheres.

    Sources are every fourth vertex (those of fsaverage4, the first 2,562 of each hemisphere); weights are
    what `steps` rounds of averaging over neighbours on the mesh carry from them.
    """
    blocks = []
    for surface in load_fsaverage5():
        edges, n = mesh_edges(surface.faces), len(surface.white)
        ones = np.ones(len(edges))
        upper = sparse.coo_array((ones, (edges[:, 0], edges[:, 1])), shape=(n, n))
        neighbours = sparse.csr_array(upper + upper.T + sparse.eye_array(n))
        average = sparse.diags_array(1 / neighbours.sum(axis=1)) @ neighbours
        carried = sparse.csr_array(average[:, : (n - 2) // 4 + 2])
        for _ in range(steps - 1):
            carried = average @ carried
        norm = np.sqrt(carried.power(2).sum(axis=1))
        blocks.append(sparse.diags_array(1 / norm) @ carried)
    n_vertices, n_sources = (sum(block.shape[axis] for block in blocks) for axis in (0, 1))
    return Smoothing(sparse.csr_array(sparse.block_diag(blocks), dtype=np.float32), n_vertices, n_sources)


def build_subject(
    seed: int,
    subject: int,
    latents: Latents,
    maps_nfc: np.ndarray,
    seen: np.ndarray,
    smoothing: Smoothing,
) -> SubjectModel:
    """Wire one subject: areas, preferred latents, true ncsnr and the noise-free responses to the images seen.

    Args:
        seed, subject: decide everything random (subject counts from 0).
        latents: of all images.
        maps_nfc: feature maps [n seen, len(FEATURES), cells] of the images seen.
        seen: rows of these images in the latents; all are taken to be shown equally often.
        smoothing: from cortex_smoothing.
    """
    rng = np.random.default_rng([_STREAM, seed, subject])
    areas = subject_areas(seed, subject)
    n_vertices = smoothing.n_vertices
    # smooth random maps of unit variance: sub-preferences (two), reliability, noise level
    fields = smoothing.draw(rng, 4).astype(np.float64).T
    noise_sd = 1.5 * np.exp(0.15 * fields[3])
    subject_factor = float(np.exp(rng.normal(0, 0.08)))

    latent, concept = [""] * n_vertices, [""] * n_vertices
    ncsnr = np.zeros(n_vertices)
    main = np.zeros(n_vertices)
    signals: list[tuple[np.ndarray, np.ndarray]] = []
    for hemi, offset in zip(areas, (0, n_vertices // 2), strict=True):
        for i, area in enumerate(CATEGORY_AREAS):
            local = np.flatnonzero(hemi.area_v == i)
            vertices = local + offset
            if not len(vertices):
                continue
            raw = _category_signal(latents, area.concept, hemi.hemi, fields[:2, vertices])[seen]
            _note(latent, vertices, f"{area.concept}-{hemi.hemi}")
            _note(concept, vertices, area.concept)
            ncsnr[vertices] = _NCSNR[area.atlas][area.label] * (0.6 + 0.5 * hemi.centrality[local])
            signals.append((vertices, raw))
            main[vertices] = 1.0
        local = np.flatnonzero(hemi.early.label_v >= 0)
        features = _preferred_features(hemi, local, rng)
        _note(concept, local + offset, "early")
        fields_cv = receptive_fields(hemi.early, local)
        contrast = _zscore(pooled(maps_nfc, "contrast", fields_cv))
        for feature in FEATURES:
            mine = np.flatnonzero(features == feature)
            vertices = local[mine] + offset
            if not len(vertices):
                continue
            preferred = _zscore(pooled(maps_nfc, feature, fields_cv[:, mine]))
            _note(latent, vertices, feature)
            weight = _CONTRAST_WEIGHT if feature != "contrast" else 0.0
            signals.append((vertices, preferred + weight * contrast[:, mine]))
            main[vertices] = 1.0
        ncsnr[local + offset] = [_NCSNR["prf-visualrois"][EARLY[k]] for k in hemi.early.label_v[local]]

    responsive = np.concatenate([vertices for vertices, _ in signals])
    raw_nr = np.concatenate([raw for _, raw in signals], axis=1)
    order = np.argsort(responsive)
    responsive, raw_nr = responsive[order], raw_nr[:, order]
    spread = raw_nr.std(axis=0)
    varied = ncsnr * subject_factor * np.exp(0.25 * fields[2])
    # a vertex whose latent never varies over the images seen (tiny datasets) has no signal
    ncsnr = np.where(main > 0, np.clip(varied, *NCSNR_RANGE), 0.0)
    ncsnr[responsive] *= spread > 1e-9
    gain = np.divide(ncsnr[responsive] * noise_sd[responsive], spread, out=np.zeros(len(spread)), where=spread > 1e-9)
    weight = np.zeros(n_vertices)
    weight[responsive] = gain
    signal_nr = ((raw_nr - raw_nr.mean(axis=0)) * gain).astype(np.float32)
    return SubjectModel(
        areas=areas,
        latent=latent,
        concept=concept,
        weight=weight,
        ncsnr=ncsnr,
        rf_x=np.concatenate([hemi.early.rf_x for hemi in areas]),
        rf_y=np.concatenate([hemi.early.rf_y for hemi in areas]),
        rf_size=np.concatenate([hemi.early.rf_size for hemi in areas]),
        noise_sd=noise_sd,
        baseline=1.5 * ncsnr * noise_sd,
        responsive=responsive,
        signal_nr=signal_nr,
    )


def _category_signal(latents: Latents, concept: str, hemi: str, preference_2v: np.ndarray) -> np.ndarray:
    """Drive of an area's vertices by all images, float64 [n, v], in SD of the area's own salience."""
    shared = latents.column(f"{concept}-{hemi}").copy()
    for other, weight in CROSS[concept].items():
        shared += weight * latents.column(f"{other}-{hemi}")
    modulators = [latents.column(f"{concept}-size"), latents.column(f"{concept}-{ATTRIBUTES[concept][0]}")]
    return shared[:, None] + SUBPREFERENCE * np.stack(modulators, axis=1) @ preference_2v


def _preferred_features(hemi: HemiAreas, vertices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One of FEATURES per early vertex: mostly an orientation, more often colour in hV4."""
    chosen = []
    for k in hemi.early.label_v[vertices].tolist():
        colour = _COLOUR_SHARE[EARLY[k].rstrip("vd")]
        share = {feature: (0.85 - colour) / len(ORIENTED) for feature in ORIENTED}
        share |= {"contrast": 0.1, "luminance": 0.05, "red-green": colour / 2, "blue-yellow": colour / 2}
        chosen.append(FEATURES[rng.choice(len(FEATURES), p=[share[f] for f in FEATURES])])
    return np.array(chosen, dtype=str)


def _zscore(x: np.ndarray) -> np.ndarray:
    return _standardised(x, x)


def _note(names: list[str], vertices: np.ndarray, text: str) -> None:
    for v in vertices.tolist():
        names[v] = text


def noise_block(rng: np.random.Generator, n_trials: int, smoothing: Smoothing) -> np.ndarray:
    """Noise of unit variance, float32 [n_trials, vertices]: a smooth part and an independent part."""
    smooth = smoothing.draw(rng, n_trials)
    noise = rng.standard_normal((n_trials, smoothing.n_vertices), dtype=np.float32)
    noise *= np.float32(np.sqrt(1 - _SMOOTH_NOISE))
    noise += np.float32(np.sqrt(_SMOOTH_NOISE)) * smooth.T
    return noise
