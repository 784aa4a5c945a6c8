"""Slabs are as thick as memory allows, planes as large as they like, and the voxels are the same."""

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

from perfuse.bundle import Bundle, Ensemble
from perfuse.catalog import Scan
from perfuse.contract import Contract, Forward, Network
from perfuse.errors import PlanError
from perfuse.geometry import Box
from perfuse.inference import Runner, plan, predict, prepare, preparing
from perfuse.inference.estimate import estimate
from perfuse.inference.logits import fuse
from perfuse.inference.planning import THICKNESSES, slab_bytes, thickest
from perfuse.inference.prediction import Worker
from perfuse.memory import available_bytes
from perfuse.models import build

pytestmark = pytest.mark.usefixtures("one_thread")

HERE = Path(__file__).parent


class Small(torch.nn.Sequential):
    """One convolution: quick."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__(torch.nn.Conv2d(in_channels, classes, 3, padding=1))


def bundle(**network: Any) -> Bundle:
    torch.manual_seed(0)
    made = Network(module=f"{__name__}:Small", **network)
    forward = Forward(network=made, voxel_size_um=(10, 100), tile=32, overlap=0.25, precision="fp32")
    return Bundle(Contract(forward=forward), build(made).state_dict(), {})


@pytest.fixture
def scan(tmp_path: Path, make_scan: Any, tubes: Any) -> Scan:
    made: Scan = make_scan(tmp_path, "organ", tubes(0, (130, 40, 70))[0], {})
    return made


@pytest.mark.parametrize("network", [{"planes": 3}, {"planes": 4, "outputs": "all"}])
def test_slabs_are_as_thick_as_fits_and_the_voxels_the_same(scan: Scan, network: dict[str, Any]) -> None:
    made = bundle(**network)
    forward, digests = made.contract.forward, set()
    needed = [slab_bytes(scan, forward, planes) for planes in THICKNESSES]
    assert needed == sorted(needed, reverse=True)
    for planes, memory in zip(THICKNESSES, needed, strict=True):
        assert prepare(scan.url, made, "soft", memory_bytes=memory).members[0].slab == planes
        runner = Runner(prepare=partial(prepare, memory_bytes=memory))
        digests.add(predict(scan.url, made, f"by-{planes}", runner=runner)[0].digest)
        assert plan(scan, forward, slab_planes=[planes]).slabs == sum(-(-n // planes) for n in scan.shape_zyx)
    assert len(digests) == 1
    with pytest.raises(PlanError) as refused:
        prepare(scan.url, made, "soft", memory_bytes=needed[-1] - 1)
    assert "8 planes of 130 × 70 in tiles of 32 need" in str(refused.value)
    assert len(re.findall(r"0\.\d\d GiB", str(refused.value))) == 2
    assert "--set tile=" in str(refused.value)


def test_slabs_are_no_thicker_than_is_enough_but_for_that_alone_not_the_thinnest(
    scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bundle()
    needed = dict(zip(THICKNESSES, (slab_bytes(scan, made.contract.forward, n) for n in THICKNESSES), strict=True))
    for enough, memory, planes in (
        (needed[64], needed[64], 64),
        (needed[64] - 1, needed[64], 32),
        (needed[32] - 1, needed[64], 16),
        (1, needed[64], 16),
        (1, needed[16] - 1, 8),
    ):
        monkeypatch.setattr(preparing, "ENOUGH", enough)
        assert prepare(scan.url, made, "soft", memory_bytes=memory).members[0].slab == planes
    prediction = prepare(scan.url, made, "soft", memory_bytes=needed[16])
    list(Worker(prediction, made, 1).run(prediction.slabs_to_do()[:1]))
    monkeypatch.setattr(preparing, "ENOUGH", needed[64])
    assert prepare(scan.url, made, "soft").members[0].slab == 16, "what is there stays"
    assert thickest(scan, made.contract.forward, needed[64]) == 64, "as on GPUs, which would wait for what is decoded"
    monkeypatch.setattr(preparing, "ENOUGH", 1)
    fsspec.filesystem("memory").put(scan.url, "/elsewhere/organ.ome.zarr", recursive=True)
    other = bundle(planes=3)  # of which nothing is there
    far = prepare("memory://elsewhere/organ.ome.zarr", other, "soft", memory_bytes=2 * needed[64])
    assert far.members[0].slab == 64, "its chunks come from another machine"


def test_what_is_there_stays_while_it_fits(scan: Scan) -> None:
    made = bundle()
    thin, thick = (slab_bytes(scan, made.contract.forward, planes) for planes in (16, 64))
    prediction = prepare(scan.url, made, "soft", memory_bytes=thin)
    rows = prediction.slabs_to_do()
    list(Worker(prediction, made, 1).run(rows[:3]))
    again = prepare(scan.url, made, "soft", memory_bytes=thick)
    assert again.members[0].slab == 16
    assert again.slabs_left() == again.slabs_to_do() == rows[3:]
    less = prepare(scan.url, made, "soft", memory_bytes=thin - 1)
    assert less.members[0].slab == 8
    assert less.slabs_left() == less.slabs_to_do() == less.slabs(), "slabs of another thickness are begun anew"
    runner = Runner(prepare=partial(prepare, memory_bytes=thin - 1))
    assert predict(scan.url, made, "soft", runner=runner)[0].digest == predict(scan.url, made, "whole")[0].digest


def test_the_time_is_of_what_is_left_by_as_many_as_find_work(scan: Scan) -> None:
    made = bundle()
    first = estimate(scan, made, "soft")
    assert (first.slabs, first.slabs_left) == (6, 6)
    prediction = prepare(scan.url, made, "soft")  # from now on the measured time stays
    whole = estimate(scan, made, "soft")
    several = estimate(scan, made, "soft", workers=3, pace=0.5)
    assert several.network_seconds == pytest.approx(whole.network_seconds / 1.5)
    many = estimate(scan, made, "soft", workers=100)
    assert many.network_seconds == pytest.approx(whole.network_seconds / 6)
    rows = prediction.slabs_to_do()
    list(Worker(prediction, made, 1).run(rows[:2]))
    left = estimate(scan, made, "soft")
    assert (left.slabs, left.slabs_left) == (6, 4)
    tiles = {0: 2 * 4, 1: 8 * 4, 2: 8 * 2}
    count = {axis: -(-n // 8) * tiles[axis] for axis, n in enumerate(scan.shape_zyx)}
    done = 2 * 8 * tiles[0]
    assert left.network_seconds == pytest.approx(whole.network_seconds * (1 - done / sum(count.values())))
    predict(scan.url, made, "soft")
    done_all = estimate(scan, made, "soft")
    assert (done_all.slabs_left, done_all.network_seconds) == (0, 0)


def seen_along(made: Bundle, *axes: str, **changes: Any) -> Bundle:
    return made.with_forward(made.contract.forward.changed(axes=axes, **changes))


def test_a_plan_for_further_axes_writes_nothing(scan: Scan) -> None:
    made = seen_along(bundle(), "z", "y", "x", tile=64)
    predict(scan.url, seen_along(made, "x"), "one", keep_scratch=True)
    before = {path: path.stat().st_mtime_ns for path in Path(scan.url).rglob("*")}
    further = estimate(scan, made, "soft")
    assert {path: path.stat().st_mtime_ns for path in Path(scan.url).rglob("*")} == before
    assert (further.slabs, further.slabs_left) == (6, 4)


@pytest.mark.parametrize(
    ("network", "roi", "changes"),
    [
        ({"planes": 5, "plane_stride": 2}, None, {}),
        ({}, Box((60, 3, 40), (69, 40, 70)), {}),
        ({"planes": 2, "outputs": "all"}, None, {"resample_um": 80.0}),
    ],
)
def test_a_plan_knows_the_bytes_that_are_read(
    scan: Scan, network: dict[str, Any], roi: Box | None, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = seen_along(bundle(**network), "z", "x", tile=64, **changes)
    prediction = prepare(scan.url, made, "soft", roi=roi)
    read, real = [], Scan.read_image
    monkeypatch.setattr(Scan, "read_image", lambda *about, **level: read.append(real(*about, **level)) or read[-1])
    list(Worker(prediction, made, 1).run(prediction.slabs_to_do()))
    (member,) = prediction.members
    planned = plan(scan, member.forward, roi=roi, slab_planes=[member.slab])
    assert planned.input_bytes == sum(voxels.nbytes for voxels in read)


def test_members_of_the_same_logits_share_them_and_the_work(scan: Scan) -> None:
    """Along z planes are smaller: alone, the last member would work thicker slabs than the first."""
    made = seen_along(bundle(), "z", "y", "x", tile=64)
    members = seen_along(made, "x", "y"), seen_along(made, "y", "z", axis_weights=(3, 1)), seen_along(made, "z")
    room = max(slab_bytes(scan, member.contract.forward, 64) for member in members) - 1
    runner = Runner(prepare=partial(prepare, memory_bytes=room))
    model = Ensemble(members, 128)
    prediction = runner.prepare(scan.url, model, "shared")
    rows = prediction.slabs()
    assert len(rows) == len({(row["axis"], row["start"]) for row in rows}) == 3 + 2 + 5
    assert [row["member"] for row in rows] == 5 * [0] + 5 * [1]
    counted = estimate(scan, model, "shared", memory_bytes=room)
    assert counted.tiles == plan(scan, made.contract.forward).tiles
    assert (counted.slabs, counted.slabs_left) == (10, 10)
    predict(scan.url, model, "shared", runner=runner)
    predict(scan.url, made, "alone", keep_scratch=True)
    whole = Box.whole(scan.shape_zyx)
    expected = fuse([seen for member in members for seen in prepare(scan.url, member, "alone").sight().of(whole)])
    np.testing.assert_array_equal(scan.label("shared")[:], expected)


def test_a_scan_of_fewer_planes_than_a_batch_takes_time_too(tmp_path: Path, make_scan: Any, tubes: Any) -> None:
    thin = make_scan(tmp_path, "thin", tubes(0, (3, 30, 30))[0], {})
    made = bundle()
    along_z = Bundle(Contract(forward=made.contract.forward.changed(axes=("z",))), made.weights, {})
    assert estimate(thin, along_z, "soft").network_seconds > 0


def test_planes_of_10_000_squared(tmp_path: Path) -> None:
    """Four of them, in a process of its own: it grows by less than the planner says, a fifth of what the whole would take."""
    ended = subprocess.run(
        [sys.executable, str(HERE / "wide_planes.py"), str(tmp_path), "4"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    voxels = 4 * 10_000**2
    whole = voxels * (2 + 4 + 4 + 2)  # as it is stored, normalised, summed up, as logits
    assert 0 < told["grown"] < told["planned"] < whole / 5
    intensity = np.array([0, *range(0, 51_200, 100), 0])
    normalised = (intensity - 327) / (65_207 - 327)  # from the 0.5th to the 99.5th percentile of 16 bits
    expected = 255 / (1 + np.exp(4 - 8 * normalised))
    np.testing.assert_allclose(told["line"], expected, rtol=0, atol=0.54)  # logits are in steps of 1/1024
    assert told["corners"] == [4, 4]


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {}, 1000),
        ("0::/a/b\n", {"a/memory.max": "900", "a/memory.current": "600", "a/b/memory.max": "max", "a/b/memory.current": "600"}, 500),
        ("0::/outside\n", {"memory.max": "700", "memory.current": "600"}, 300),
        ("4:cpu,memory:/a\n1:cpu:/\n", {"memory/a/memory.limit_in_bytes": "800", "memory/a/memory.usage_in_bytes": "900"}, 100),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9999999", "memory/memory.usage_in_bytes": "0"}, 1000),
    ],
)  # fmt: skip
def test_memory_is_what_machine_and_containers_leave(
    tmp_path: Path, groups: str, files: dict[str, str], expected: int
) -> None:
    """In KiB. 200 of what a container uses only cache files."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    (tmp_path / "proc/meminfo").write_text("MemTotal:  2000 kB\nMemAvailable:   1000 kB\n")
    for name, text in files.items():
        path = tmp_path / "cgroups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text if text == 'max' else 1024 * int(text)}\n")
        begin = "total_" if "bytes" in name else ""
        (path.parent / "memory.stat").write_text(
            f"{begin}active_file {150 * 1024}\n{begin}inactive_file {50 * 1024}\nanon 7\n"
        )
    assert available_bytes(tmp_path / "proc", tmp_path / "cgroups") == 1024 * expected
