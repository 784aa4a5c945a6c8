"""Stacks of slices on disk; clusters to ingest on."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

Volume = np.ndarray[Any, Any]


@pytest.fixture(scope="session")
def stack_folder() -> Callable[..., Path]:
    """stack_folder(folder, volume, first=0, name="slice_{:04d}.tif") writes one TIFF a slice; returns the folder."""

    def write(folder: Path, volume: Volume, *, first: int = 0, name: str = "slice_{:04d}.tif", **how: Any) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for k, plane in enumerate(volume):
            tifffile.imwrite(folder / name.format(first + k), plane, photometric="minisblack", **how)
        return folder

    return write


@pytest.fixture
def noise() -> Callable[..., Volume]:
    """noise(shape, dtype, seed) with some structure, so that chunks differ."""

    def draw(shape: tuple[int, int, int], dtype: str = "uint16", seed: int = 0) -> Volume:
        rng = np.random.default_rng(seed)
        ramp = np.add.outer(np.arange(shape[0]) * 7, np.arange(shape[1]) * 3)[:, :, None]
        return (rng.integers(0, 60, shape) + ramp).astype(dtype)

    return draw


@pytest.fixture
def stored_bytes() -> Callable[[Path], dict[str, str]]:
    """All files below a folder, by digest."""

    def read(folder: Path) -> dict[str, str]:
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    return read


@pytest.fixture
def dask_cluster() -> Iterator[str]:
    """Address of a Dask scheduler with two workers, each a process."""
    from distributed import LocalCluster

    with LocalCluster(  # type: ignore[no-untyped-call]
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def ray_here() -> Iterator[None]:
    """A Ray of this process."""
    import ray

    from perfuse_jobs.session import connect

    connect(2)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    """Two threads to read sources with."""
    with ThreadPoolExecutor(2) as threads:
        yield threads


@pytest.fixture
def multi_page(tmp_path: Path) -> Path:
    """A TIFF of twelve LZW pages without metadata of tifffile's own."""
    path = tmp_path / "stack.tif"
    volume = np.random.default_rng(0).integers(0, 9, (12, 32, 32), dtype=np.uint8)
    tifffile.imwrite(path, volume, photometric="minisblack", compression="lzw", metadata=None)
    return path
