"""Slices in an object store, however they are packed, are those of the disk."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import tifffile

from perfuse import storage
from perfuse.geometry import Box
from perfuse_ingest.sources import open_source

pytestmark = pytest.mark.journey


def test_archives_and_pages_in_an_object_store(tmp_path: Path, s3_url: str) -> None:
    volume = np.random.default_rng(0).integers(0, 4000, (12, 150, 200), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "stack.tif", volume, photometric="minisblack", compression="lzw", metadata=None)
    (tmp_path / "images").mkdir()
    for k, plane in enumerate(volume):
        tifffile.imwrite(tmp_path / "images" / f"s{k}.tif", plane)
    for name, method in (("stored.zip", 0), ("deflated.zip", ZIP_DEFLATED)):
        with ZipFile(tmp_path / name, "w", method) as archive:
            for file in (tmp_path / "images").iterdir():
                archive.write(file, file.name)
    storage.filesystem(s3_url).put(str(tmp_path), f"{s3_url}/p", recursive=True)
    for name in ("images", "stack.tif", "stored.zip", "deflated.zip"):
        source, local = open_source(f"{s3_url}/p/{name}"), open_source(str(tmp_path / name))
        assert (source.names, source.identity) == (local.names, local.identity)
        with ThreadPoolExecutor(3) as pool:
            voxels, digests = source.read(Box.whole(volume.shape), pool)
            assert digests == local.digests(0, 12, pool)
        np.testing.assert_array_equal(voxels, volume)
