"""Where voxels come from: stacks of slices and volumes, in any format, on any fsspec URL."""
