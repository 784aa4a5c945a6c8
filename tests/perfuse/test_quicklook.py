"""The picture of a scan: the same bytes for the same scan, other ones for other labels; harmless to readers of the scan."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.image
import numpy as np
import numpy.typing as npt
import pytest
import tensorstore
import zarr
from matplotlib.colors import to_rgb
from ome_zarr_models import open_ome_zarr
from typer.testing import CliRunner

from perfuse import quicklook, storage, upkeep, volumes
from perfuse.catalog import ORGAN, Scan
from perfuse.cli import build

MakeScan = Callable[..., Scan]
SHAPE = (48, 80, 64)


def voxels(seed: int = 0) -> npt.NDArray[np.uint16]:
    return np.random.default_rng(seed).normal(20_000, 300, SHAPE).astype(np.uint16)


def block(*cut: slice) -> npt.NDArray[np.uint8]:
    mask = np.zeros(SHAPE, np.uint8)
    mask[cut] = 255
    return mask


def pixels(picture: bytes) -> npt.NDArray[Any]:
    """float[rows, columns, 3]"""
    return mpl.image.imread(io.BytesIO(picture))[..., :3]


def share_of(picture: bytes, colour: str) -> float:
    return float((np.abs(pixels(picture) - to_rgb(colour)).max(axis=2) < 0.02).mean())


def test_the_same_scan_gives_the_same_bytes_whatever_the_users_settings(tmp_path: Path, make_scan: MakeScan) -> None:
    first, second = (make_scan(tmp_path / k, "k1", voxels(), {"human": block(slice(10, 30))}) for k in "ab")
    picture = quicklook.render(first)
    assert b"Software" not in picture
    with mpl.rc_context(
        {"axes.facecolor": "red", "savefig.facecolor": "red", "lines.linewidth": 9, "image.origin": "lower"}
    ):
        assert quicklook.render(second) == picture
    other = make_scan(tmp_path / "c", "k1", voxels(1), {"human": block(slice(10, 30))})
    assert quicklook.render(other) != picture


def test_labels_and_organ_are_seen_where_they_lie(tmp_path: Path, make_scan: MakeScan) -> None:
    organ = block(slice(8, 40), slice(10, 60), slice(10, 50))
    plain = make_scan(tmp_path / "a", "k1", voxels(), {})
    marked = make_scan(
        tmp_path / "b", "k1", voxels(), {ORGAN: organ, "human": block(slice(20, 28), slice(30, 40), slice(0, 64))}
    )
    upkeep.refresh(marked.url)
    before, after = quicklook.render(plain), quicklook.render(Scan.open(marked.url))
    assert share_of(before, quicklook.ORGAN_COLOUR) == 0
    assert share_of(after, quicklook.ORGAN_COLOUR) > 0.0005
    reddish = [(p[..., 0] - p[..., 2] > 0.2).mean() for p in (pixels(before), pixels(after))]
    assert reddish[0] == 0
    assert reddish[1] > 0.005


def test_planes_go_through_the_middle_of_the_organ(tmp_path: Path, make_scan: MakeScan) -> None:
    scan = make_scan(tmp_path, "k1", voxels(), {ORGAN: block(slice(0, 10), slice(60, 80), slice(40, 60))})
    for at, middle in zip(quicklook._middle(scan), (5, 70, 50), strict=True):
        assert abs(at - middle) <= 2


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 30, 20), (3, 900, 40), (200, 3, 5), (5, 64, 64)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_any_shape_and_constant_images_are_drawn(
    tmp_path: Path, make_scan: MakeScan, shape: tuple[int, int, int], dtype: str
) -> None:
    marked = np.full(shape, 255, np.uint8)
    for specimen, image in {"flat": np.full(shape, 7), "ramp": np.arange(np.prod(shape)).reshape(shape) % 251}.items():
        scan = make_scan(tmp_path, specimen, image.astype(dtype), {"human": marked, ORGAN: marked})
        rows, columns, _ = pixels(storage.read_bytes(upkeep.refresh(scan.url))).shape
        assert max(rows, columns) < 2000


def test_the_cost_does_not_grow_with_the_scan(
    tmp_path: Path, make_scan: MakeScan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only coarse levels are read, or single planes."""
    monkeypatch.setattr(quicklook, "MOST_PIXELS", 40)
    scan = make_scan(tmp_path, "k1", np.random.default_rng(0).integers(0, 999, (130, 140, 150)).astype(np.uint16), {})
    read, get = [], zarr.Array.__getitem__

    def counted(self: Any, key: Any) -> Any:
        values = get(self, key)
        read.append(np.asarray(values).size if self.ndim == 3 else 0)
        return values

    monkeypatch.setattr(zarr.Array, "__getitem__", counted)
    quicklook.render(scan)
    assert 0 < sum(read) <= 3 * 40**2


def test_the_picture_is_brought_up_to_date_and_otherwise_left_alone(
    tmp_path: Path, make_scan: MakeScan, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = make_scan(tmp_path, "k1", voxels(), {"human": block(slice(10, 30))})
    path = Path(upkeep.refresh(scan.url))
    assert path == tmp_path / "k1.ome.zarr" / "perfuse" / "quicklook.png"
    stamp, first = path.stat().st_mtime_ns, path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(quicklook, "render", None)
        upkeep.refresh(scan.url)
    assert path.stat().st_mtime_ns == stamp
    for damaged in (first[:20], b"no picture"):
        path.write_bytes(damaged)
        upkeep.refresh(scan.url)
        assert path.read_bytes() == first
    volumes.open_group(f"{scan.url}/labels/human", "r+").attrs.pop("perfuse")
    upkeep.refresh(scan.url)
    assert path.read_bytes() != first


def test_readers_do_not_mind_the_picture(tmp_path: Path, make_scan: MakeScan) -> None:
    image = voxels()
    scan = make_scan(tmp_path, "k1", image, {"human": block(slice(10, 30))})
    upkeep.refresh(scan.url)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(scan.url, mode="r")
        assert {"0", "labels", "perfuse"} <= set(group.keys())
        assert type(open_ome_zarr(group)).__name__ == "Image"
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{scan.url}/0/"}}
    np.testing.assert_array_equal(tensorstore.open(spec).result().read().result(), image)


def test_scan_show_tells_where_it_is_and_copies_it_out(tmp_path: Path, make_scan: MakeScan) -> None:
    scan = make_scan(tmp_path, "k1", voxels(), {ORGAN: block(slice(8, 40))})
    run = CliRunner().invoke
    none = run(build(), ["scan", "show", scan.url, "--picture", str(tmp_path / "out.png")])
    assert none.exit_code != 0
    assert f"perfuse scan refresh {scan.url}" in str(none.exception)
    assert run(build(), ["scan", "refresh", scan.url]).exit_code == 0
    shown = run(build(), ["scan", "show", scan.url, "--json", "--picture", str(tmp_path / "out.png")])
    assert f'"picture": "{quicklook.path(scan.url)}"' in shown.stdout
    inside = np.asarray(scan.image[8:40])
    assert f'"p50": {np.percentile(inside, 50, method="inverted_cdf")}' in shown.stdout
    assert (tmp_path / "out.png").read_bytes() == storage.read_bytes(quicklook.path(scan.url))


def test_statistics_and_picture_in_an_object_store(tmp_path: Path, make_scan: MakeScan, s3_url: str) -> None:
    scan, url = make_scan(tmp_path, "k1", voxels(), {ORGAN: block(slice(8, 40))}), f"{s3_url}/k1.ome.zarr"
    storage.filesystem(url).put(scan.url, url, recursive=True)
    assert upkeep.refresh(url) == f"{url}/perfuse/quicklook.png"
    upkeep.refresh(scan.url)
    np.testing.assert_array_equal(Scan.open(url).histogram(), Scan.open(scan.url).histogram())
    out = tmp_path / "out.png"
    assert CliRunner().invoke(build(), ["scan", "show", url, "--picture", str(out)]).exit_code == 0
    assert out.read_bytes() == storage.read_bytes(quicklook.path(scan.url))
