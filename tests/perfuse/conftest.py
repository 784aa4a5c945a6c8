"""Small scans, written through the library itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from perfuse import storage, volumes
from perfuse.catalog import LabelInfo, Scan, ScanInfo
from perfuse.geometry import Spacing, index3
from perfuse.labels import writer_for

MakeScan = Callable[..., Scan]


def _write_label(scan: Scan, name: str, values: npt.NDArray[np.uint8], about: dict[str, Any]) -> None:
    writer = writer_for(scan, name, storage.digest_bytes(values.tobytes()))
    for task in writer.todo():
        writer.write(task, values[writer.tasks[task].slices])
    writer.finish(lambda share, digest: LabelInfo(name=name, foreground=share, digest=digest, **about))


def _write_image(folder: Path, specimen: str, image: npt.NDArray[Any], size: Spacing) -> Scan:
    url, shape = str(folder / f"{specimen}.ome.zarr"), index3(image.shape)
    root = volumes.open_group(url, "a")
    levels = volumes.pyramid_levels(shape, size)
    _, arrays = volumes.create_pyramid(root, "", levels, image.dtype)
    arrays[0][:] = image
    volumes.fill_coarser(arrays, levels, "mean")
    counts = np.bincount(image.ravel(), minlength=1 << (8 * image.dtype.itemsize))
    root.require_group("perfuse").create_array("histogram", data=counts.astype(np.int64))
    root.attrs["perfuse"] = ScanInfo(
        id=specimen,
        specimen=specimen,
        donor=specimen,
        organ="phantom",
        voxel_size_um=size,
        shape_zyx=shape,
        dtype=str(image.dtype),
        digest=storage.digest_bytes(image.tobytes()),
        intensity={},
    ).model_dump(mode="json")
    return Scan.open(url)


@pytest.fixture(scope="session")
def make_scan() -> MakeScan:
    """make_scan(folder, specimen, image, labels={name: values}, voxel=50.0, **label_info) → Scan."""

    def make(
        folder: Path,
        specimen: str,
        image: npt.NDArray[Any],
        labels: dict[str, npt.NDArray[np.uint8]],
        voxel: float | Spacing = 50.0,
        **about: Any,
    ) -> Scan:
        scan = _write_image(folder, specimen, image, voxel if isinstance(voxel, tuple) else (voxel, voxel, voxel))
        for name, values in labels.items():
            _write_label(scan, name, values, {"kind": "dense", **about})
        return Scan.open(scan.url)

    return make


@pytest.fixture(scope="session")
def tubes() -> Callable[[int, tuple[int, int, int]], tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8]]]:
    """A noisy volume (uint16) with bright tubes along all axes, and its mask (uint8, 0 or 255), by seed and shape."""

    def draw(seed: int, shape: tuple[int, int, int]) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8]]:
        rng = np.random.default_rng(seed)
        mask = np.zeros(shape, np.bool_)
        grid = np.indices(shape)
        for axis in (0, 1, 2) * 3:
            others = [a for a in range(3) if a != axis]
            centre = [rng.integers(shape[a]) for a in others]
            distance = sum((grid[a] - c) ** 2 for a, c in zip(others, centre, strict=True))
            mask |= distance <= rng.integers(2, 12)
        image = rng.normal(20_000 + 6_000 * mask, 2_000)
        return image.astype(np.uint16), mask.astype(np.uint8) * np.uint8(255)

    return draw


@pytest.fixture(scope="session")
def campaign_scans(tmp_path_factory: pytest.TempPathFactory, make_scan: MakeScan) -> list[Scan]:
    """Dense a, d and e; b, of which 85 % is marked, and c, of which 65 % is; u without labels. Each of a donor of its own."""
    folder, shape, scans = tmp_path_factory.mktemp("scans"), (24, 32, 32), []
    for seed, specimen in enumerate("abcdeu"):
        rng = np.random.default_rng(seed)
        image = rng.integers(0, 60_000, shape).astype(np.uint16)
        human = {"human": (rng.random(shape) < 0.1).astype(np.uint8) * np.uint8(255)}
        about: dict[str, Any] = {"b": {"coverage": 0.85}, "c": {"coverage": 0.65}}.get(specimen, {})
        kind = {"kind": "sparse"} if about else {}
        scans.append(make_scan(folder, specimen, image, {} if specimen == "u" else human, **about, **kind))
    return scans
