"""Finished directories on disk: a plain-JSON spec, zarr v3 arrays written by TensorStore, a manifest committed last."""
