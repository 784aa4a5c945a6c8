"""N5 as several tools write it, and volumes over HTTP: read as z, y, x, like those of Zarr."""

import json
from collections.abc import Iterator
from concurrent.futures import Executor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import tensorstore
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from perfuse.errors import ServerError
from perfuse.geometry import Box
from perfuse_ingest.sources.volumes import is_volume, open_volume

Volume = np.ndarray[Any, Any]
SHAPE = (21, 34, 45)
WHOLE = Box.whole(SHAPE)


@pytest.fixture(scope="module")
def voxels() -> Volume:
    return np.random.default_rng(0).integers(1, 60000, SHAPE).astype(np.uint16)


def halved(volume: Volume) -> Volume:
    return volume[::2, ::2, ::2]


def write_n5(path: Path, voxels: Volume, group: dict[str, Any], **array: Any) -> str:
    """s0 and s1 as x, y, z, with the group attributes that are given."""
    path.mkdir(parents=True)
    for level, volume in enumerate((voxels, halved(voxels))):
        metadata = {
            "dimensions": volume.shape[::-1],
            "blockSize": [8, 16, 8],
            "dataType": str(voxels.dtype),
            "compression": {"type": "blosc", "cname": "zstd", "clevel": 9, "shuffle": 2, "blocksize": 0},
            **{name: value(level) if callable(value) else value for name, value in array.items()},
        }
        store = {"driver": "file", "path": f"{path}/s{level}/"}
        spec = {"driver": "n5", "kvstore": store, "metadata": metadata, "create": True}
        tensorstore.open(spec).result()[...] = volume.T
    if group:
        (path / "attributes.json").write_text(json.dumps(group))
    return str(path)


HOA_N5 = {
    "axes": ["x", "y", "z"],
    "downsamplingFactors": [[1, 1, 1], [2, 2, 2]],
    "multiScale": True,
    "resolution": [25.08, 25.08, 25.08],
    "units": ["um", "um", "um"],
}
N5_LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "HOA": (HOA_N5, {"axes": ["x", "y", "z"]}),
    "per level": (
        {"pixelResolution": {"unit": "mm", "dimensions": [0.02508] * 3}},
        {"downsamplingFactors": lambda level: [2**level] * 3},
    ),
    "on arrays": (
        {},
        {"pixelResolution": {"unit": "nm", "dimensions": [25080] * 3}, "downsamplingFactors": lambda k: [2**k] * 3},
    ),
    "multiscales": (
        {
            "multiscales": [
                {
                    "datasets": [
                        {
                            "path": f"s{k}",
                            "transform": {"axes": ["z", "y", "x"], "scale": [25080 * 2**k] * 3, "units": ["nm"] * 3},
                        }
                        for k in range(2)
                    ]
                }
            ]
        },
        {},
    ),
    "unstated": ({"n5": "2.0.0"}, {}),
    "bare": ({}, {}),
}


@pytest.mark.parametrize("kind", N5_LAYOUTS)
def test_n5(tmp_path: Path, voxels: Volume, pool: Executor, kind: str) -> None:
    group, array = N5_LAYOUTS[kind]
    url = write_n5(tmp_path / "v", voxels, group, **array)
    assert is_volume(url)
    for level, wanted in enumerate((voxels, halved(voxels))):
        volume = open_volume(url, level=level)
        np.testing.assert_array_equal(volume.read(Box.whole(volume.shape_zyx), pool)[0], wanted)
        stated = pytest.approx((25.08 * 2**level,) * 3)
        assert volume.voxel_size_um == (None if kind in ("unstated", "bare") else stated)
    array_alone = open_volume(f"{url}/s1")
    np.testing.assert_array_equal(array_alone.read(Box.whole(array_alone.shape_zyx), pool)[0], halved(voxels))


def test_n5_voxel_size_is_by_axis(tmp_path: Path, voxels: Volume) -> None:
    url = write_n5(
        tmp_path / "v", voxels, {**HOA_N5, "resolution": [1, 2, 3], "downsamplingFactors": [[1, 1, 1], [2, 4, 8]]}
    )
    assert open_volume(url).voxel_size_um == (3, 2, 1)
    assert open_volume(url, level=1).voxel_size_um == (24, 8, 2)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_box_of_n5_is_the_same_part(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory, voxels: Volume, pool: Executor
) -> None:
    path = tmp_path_factory.getbasetemp() / "n5-boxes"
    url = str(path) if path.exists() else write_n5(path, voxels, HOA_N5)
    cut = [sorted(data.draw(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)))) for n in SHAPE]
    box = Box(tuple(a for a, _ in cut), tuple(b + 1 for _, b in cut))  # type: ignore[arg-type]
    np.testing.assert_array_equal(open_volume(url).rows(box, pool), voxels[box.slices])


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The URL of a web server over tmp_path."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_over_http(tmp_path: Path, voxels: Volume, pool: Executor, served: str) -> None:
    zarr.create_array(tmp_path / "v.zarr", data=voxels, chunks=(8, 8, 8))
    write_n5(tmp_path / "organ", voxels, HOA_N5)
    for name in ("v.zarr", "organ/"):
        assert is_volume(f"{served}/{name}")
        np.testing.assert_array_equal(open_volume(f"{served}/{name}").read(WHOLE, pool)[0], voxels)
    assert not is_volume(f"{served}/nothing")


def test_a_store_that_is_away_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from perfuse_ingest.sources.volumes import stores

    impatient = {"max_retries": 1, "initial_delay": "1ms", "max_delay": "1ms"}
    context = tensorstore.Context({f"{kind}_request_retries": impatient for kind in ("s3", "http")})
    monkeypatch.setattr(stores, "context", lambda: context)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    for url in ("s3://bucket/organ", "http://127.0.0.1:9/organ"):
        with pytest.raises(ServerError, match=f"Cannot reach the store of {url}"):
            open_volume(url)
