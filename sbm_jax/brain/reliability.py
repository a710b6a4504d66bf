"""How reliable responses are: NSD's noise-ceiling signal-to-noise ratio, noise ceilings, and split-half
reliability.

Notation: z_tv are responses of single trials, z-scored within session (total variance 1), NaN where missing;
image_t says which image a trial showed (numbers from 0). Reference: Allen et al. 2022, Nature Neuroscience
25, 116.
"""

import numpy as np
from scipy import sparse


def trial_matrix(image_t: np.ndarray, n_images: int) -> sparse.csr_array:
    """Float32 [n, t], 1 where a trial showed an image: `matrix @ z_tv` sums over repeats."""
    n_trials = len(image_t)
    ones = np.ones(n_trials, dtype=np.float32)
    return sparse.csr_array((ones, (image_t, np.arange(n_trials))), shape=(n_images, n_trials))


def average_repeats(z_tv: np.ndarray, image_t: np.ndarray, n_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the repeats that are there.

    Returns betas_nv float32 (NaN where no repeat is there) and counts_nv int32, the number of repeats
    averaged.
    """
    sums = trial_matrix(image_t, n_images)
    present = ~np.isnan(z_tv)
    if present.all():
        counts_n = np.bincount(image_t, minlength=n_images).astype(np.int32)
        counts_nv = np.broadcast_to(counts_n[:, None], (n_images, z_tv.shape[1]))
        totals_nv = sums @ z_tv
    else:
        counts_nv = (sums @ present.astype(np.float32)).astype(np.int32)
        totals_nv = sums @ np.where(present, z_tv, np.float32(0))
    betas_nv = np.divide(
        totals_nv, counts_nv, out=np.full(totals_nv.shape, np.nan, dtype=np.float32), where=counts_nv > 0
    )
    return betas_nv, counts_nv


def noise_variance(z_tv: np.ndarray, image_t: np.ndarray, betas_nv: np.ndarray, counts_nv: np.ndarray) -> np.ndarray:
    """Pooled variance of single trials around the mean of their image, float64 [v]; NaN without any repeated
    image.

    sum_i sum_r (z_ir - mean_i)^2 / sum_i (n_i - 1) over images i with n_i >= 2 repeats. Where all these have
    the same number of repeats it is NSD's mean over images of the sample variance (ddof 1).
    """
    residual_tv = z_tv - betas_nv[image_t]
    np.nan_to_num(residual_tv, copy=False, nan=0.0)
    squares_v = np.einsum("tv,tv->v", residual_tv, residual_tv, dtype=np.float64)
    freedom_v = np.maximum(counts_nv - 1, 0).sum(axis=0, dtype=np.int64)
    return np.divide(squares_v, freedom_v, out=np.full(len(squares_v), np.nan), where=freedom_v > 0)


def ncsnr_from_noise_variance(noise_v: np.ndarray) -> np.ndarray:
    """ncsnr = sqrt(max(0, 1 - v^2)) / v with v^2 the noise variance of z-scored trials; inf where v is 0."""
    noise_v = np.asarray(noise_v, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return np.sqrt(np.maximum(0.0, 1.0 - noise_v) / noise_v)


def ncsnr(z_tv: np.ndarray, image_t: np.ndarray) -> np.ndarray:
    """Noise-ceiling signal-to-noise ratio of every voxel, float64 [v]: SD of the signal over SD of the noise.

    Args:
        z_tv: [trials, voxels], z-scored within session; NaN is left out.
        image_t: int [trials], image of every trial.
    """
    image_t = np.unique(image_t, return_inverse=True)[1]
    betas_nv, counts_nv = average_repeats(z_tv, image_t, int(image_t.max()) + 1)
    return ncsnr_from_noise_variance(noise_variance(z_tv, image_t, betas_nv, counts_nv))


def noise_ceiling(ncsnr_v: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Explainable fraction of the variance of averaged responses: ncsnr^2 / (ncsnr^2 + mean over images of
    1/n).

    With A, B, C images of 3, 2, 1 repeats the mean is NSD's (A/3 + B/2 + C) / (A + B + C).

    Args:
        ncsnr_v: [v].
        counts: repeats averaged, [n], or [n, v] where voxels miss some; images with 0 repeats are left out.
    """
    counts = np.asarray(counts)
    counts = counts[:, None] if counts.ndim == 1 else counts
    inverse = np.divide(1.0, counts, out=np.zeros(counts.shape), where=counts > 0)
    there = (counts > 0).sum(axis=0)
    mean_v = np.divide(inverse.sum(axis=0), there, out=np.full(len(there), np.nan), where=there > 0)
    with np.errstate(divide="ignore"):
        return 1.0 / (1.0 + mean_v / np.square(np.asarray(ncsnr_v, dtype=np.float64)))


def r_max(ceiling_v: np.ndarray) -> np.ndarray:
    """Highest Pearson correlation that a perfect model can reach with averaged responses: sqrt(noise
    ceiling).
    """
    return np.sqrt(ceiling_v)


def split_half(z_tv: np.ndarray, image_t: np.ndarray, seed: int = 0) -> np.ndarray:
    """Reliability of responses averaged over all repeats, from halves of the repeats, float64 [v].

    Each image with n >= 2 repeats gives floor(n / 2) random ones to either half. The correlation r of the two
    halves' means
    over images is carried to full length by Spearman and Brown: k r / (1 + (k - 1) r), k = mean n / mean
    floor(n / 2). Its expectation is the noise ceiling for n repeats. NaN with fewer than 3 repeated images or
    a constant half.

    Args:
        z_tv: [trials, voxels]; an image is left out at the voxels where one of its chosen trials is NaN.
        image_t: int [trials].
        seed: chooses the halves.
    """
    image_t = np.unique(image_t, return_inverse=True)[1]
    shuffled = np.random.default_rng([0x5B117, seed]).permutation(len(image_t))
    order = shuffled[np.argsort(image_t[shuffled], kind="stable")]
    counts_n = np.bincount(image_t)
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts_n) - counts_n, counts_n)
    half_n = counts_n // 2
    half_t = np.repeat(half_n, counts_n)
    repeated = np.cumsum(half_n > 0) - 1  # row of an image among the repeated ones
    n_repeated = int((half_n > 0).sum())
    if n_repeated < 3:
        return np.full(z_tv.shape[1], np.nan)
    halves = []
    for first in (0, 1):
        chosen = order[(rank >= first * half_t) & (rank < (first + 1) * half_t)]
        sums_nv = trial_matrix(repeated[image_t[chosen]], n_repeated) @ z_tv[chosen]
        halves.append(sums_nv / half_n[half_n > 0, None])
    r_v = _column_correlation(*halves)
    k = counts_n[half_n > 0].mean() / half_n[half_n > 0].mean()
    return k * r_v / (1 + (k - 1) * r_v)


def _column_correlation(a_nv: np.ndarray, b_nv: np.ndarray) -> np.ndarray:
    """Pearson r of columns over the rows present in both; NaN for fewer than 3 rows or a constant column."""
    present = ~(np.isnan(a_nv) | np.isnan(b_nv))
    count = np.maximum(present.sum(axis=0), 1)
    centred = []
    for x in (a_nv, b_nv):
        x = np.where(present, x, 0.0)
        centred.append(np.where(present, x - x.sum(axis=0) / count, 0.0))
    a, b = centred
    scale = np.sqrt((a * a).sum(axis=0) * (b * b).sum(axis=0))
    usable = (scale > 0) & (present.sum(axis=0) >= 3)
    return np.divide((a * b).sum(axis=0), scale, out=np.full(len(scale), np.nan), where=usable)
