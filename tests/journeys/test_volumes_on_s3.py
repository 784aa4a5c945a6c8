"""Volumes on a real object store: the same voxels and identity as on disk, and a wrong password is one message."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
import zarr

from perfuse.errors import ServerError
from perfuse.geometry import Box
from perfuse_ingest.sources.volumes import is_volume, open_volume

SHAPE = (40, 50, 60)


def test_volumes_on_s3(s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    voxels = np.random.default_rng(0).integers(0, 60000, SHAPE).astype(np.uint16)
    zarr.create_array(tmp_path / "v.zarr", data=voxels, chunks=(16, 16, 16), shards=(32, 32, 32))
    np.save(tmp_path / "v.npy", voxels)
    files = fsspec.filesystem("s3")
    files.put(str(tmp_path / "v.zarr"), f"{s3_url}/v.zarr", recursive=True)
    files.put(str(tmp_path / "v.npy"), f"{s3_url}/v.npy")
    assert is_volume(f"{s3_url}/v.zarr")
    assert not is_volume(f"{s3_url}/other")
    for name in ("v.zarr", "v.npy"):
        with open_volume(f"{s3_url}/{name}") as volume, ThreadPoolExecutor(2) as pool:
            np.testing.assert_array_equal(volume.read(Box.whole(SHAPE), pool)[0], voxels)
            part = Box((3, 17, 0), (9, 40, 60))
            np.testing.assert_array_equal(volume.rows(part, pool), voxels[part.slices])
            assert volume.identity == open_volume(str(tmp_path / name)).identity
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(ServerError, match="No permission for s3://"):
        open_volume(f"{s3_url}/v.zarr")
