"""Every kind of file that holds trials x places: the names that dataset readers import."""

from sbm_jax.brain.trialfiles_cifti import CiftiTrials
from sbm_jax.brain.trialfiles_flat import MghTrials, NiftiTrials, NpyTrials
from sbm_jax.brain.trialfiles_gifti import GiftiTrials
from sbm_jax.brain.trialfiles_hdf5 import Hdf5Array, Hdf5Vertices, Hdf5Volumes

__all__ = [
    "CiftiTrials",
    "GiftiTrials",
    "Hdf5Array",
    "Hdf5Vertices",
    "Hdf5Volumes",
    "MghTrials",
    "NiftiTrials",
    "NpyTrials",
]
