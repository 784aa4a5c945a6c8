"""Equalisation: as another library does it where both can, the same however it is cut, and monotonic."""

from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skimage import exposure

from perfuse.catalog import Scan
from perfuse.geometry import Box
from perfuse_ingest import clahe
from perfuse_ingest.ingest import ingest
from perfuse_ingest.shaping import Shaping
from perfuse_ingest.sources import open_source

Volume = np.ndarray[Any, Any]


def equalised(folder: Path, pool: Executor, box: Box | None = None) -> Volume:
    with clahe.Equalised(open_source(str(folder))) as source:
        source.learn(pool)
        return source.read(box or Box.whole(source.shape_zyx), pool)[0]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_one_block_without_limit_is_plain_equalisation(
    tmp_path: Path, stack_folder: Callable[..., Path], pool: Executor, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.setattr(clahe, "CLIP", 1.0)
    volume = (np.random.default_rng(0).gamma(2, 25, (20, 30, 30))).clip(0, 255).astype(dtype)
    found = equalised(stack_folder(tmp_path / "s", volume), pool)
    low, high = float(volume.min()), float(volume.max())
    wanted = exposure.equalize_hist(volume.astype(float), nbins=256) * (high - low) + low
    assert found.dtype == volume.dtype
    assert np.abs(found - wanted).max() < 0.02 * (high - low)


def test_contrast_becomes_alike_where_it_was_not(
    tmp_path: Path, stack_folder: Callable[..., Path], pool: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clahe, "CLIP", 0.1)
    contrast = np.linspace(100, 2000, 128)
    volume = (20000 + contrast * np.random.default_rng(1).normal(size=(64, 64, 128))).astype(np.uint16)
    found = equalised(stack_folder(tmp_path / "s", volume), pool)
    before, after = (v[..., 120].std() / v[..., 8].std() for v in (volume.astype(float), found.astype(float)))
    assert before > 7
    assert after < 3
    steps = np.abs(np.diff(found.astype(float).mean(axis=(0, 1))))
    assert steps.max() < 0.05 * (found.max() - found.min()), "no edge where two blocks meet"


def test_the_same_slab_by_slab(
    tmp_path: Path, stack_folder: Callable[..., Path], noise: Callable[..., Volume], pool: Executor
) -> None:
    folder = stack_folder(tmp_path / "s", noise((70, 40, 50)))
    whole = equalised(folder, pool)
    np.testing.assert_array_equal(equalised(folder, pool, Box((33, 5, 7), (48, 30, 44))), whole[33:48, 5:30, 7:44])
    url = str(tmp_path / "k.ome.zarr")
    about: dict[str, Any] = {"voxel_size_um": (1, 1, 1), "specimen": "k", "organ": "kidney", "mask": False}
    ingest(str(folder), url, shaping=Shaping(clahe=True), **about)
    np.testing.assert_array_equal(Scan.open(url).image[:], whole)
