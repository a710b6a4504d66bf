"""Best units per voxel and best voxels per unit by cosine similarity, without the unit x voxel matrix."""
