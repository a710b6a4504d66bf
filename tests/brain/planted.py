"""Pictures that vary along one latent, and responses of which some columns follow it: what the layout writers store."""

from dataclasses import dataclass

import numpy as np

RED, BLUE = np.array([225.0, 60.0, 40.0]), np.array([35.0, 70.0, 220.0])


@dataclass(frozen=True)
class Pictures:
    """images: uint8 [n, side, side, 3]. latent_n: float64 [n], standardised: red (low) to blue (high)."""

    images: np.ndarray
    latent_n: np.ndarray


def make_pictures(n: int, side: int, seed: int = 0) -> Pictures:
    """Coloured noise whose mean colour says the latent; no two pictures are equal."""
    rng = np.random.default_rng([7, seed])
    share = (np.arange(n) + 0.5) / n
    share = share[rng.permutation(n)]
    colour = RED + share[:, None] * (BLUE - RED)
    noise = rng.normal(0, 12, (n, side, side, 3))
    images = np.clip(colour[:, None, None] + noise, 0, 255).astype(np.uint8)
    return Pictures(images, (share - share.mean()) / share.std())


def plant(latent_t: np.ndarray, planted_v: np.ndarray, seed: int = 0, noise: float = 0.5) -> np.ndarray:
    """Percent signal change float32 [t, v]: the latent plus noise in the planted columns, noise of the same variance elsewhere."""
    rng = np.random.default_rng([8, seed])
    planted_v = np.asarray(planted_v, bool)
    spread = np.where(planted_v, noise, np.sqrt(1 + noise**2))
    x_tv = rng.normal(0, 1, (len(latent_t), len(planted_v))) * spread
    return (x_tv + np.where(planted_v, np.asarray(latent_t)[:, None], 0)).astype(np.float32)
