"""Scores, topology and cleaned masks are the same from processes of Ray as from this one."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from perfuse import passes, scoring
from perfuse.bundle import Bundle
from perfuse.catalog import Scan
from perfuse.contract import Contract, Forward, Network
from perfuse.errors import PerfuseError, ScanError
from perfuse.inference import predict
from perfuse.models import build
from perfuse.passes import over_blocks, spread_over
from perfuse.postprocessing import cleaning_of, postprocess
from perfuse.topology import topology

TINY = Network(encoder="tu-test_resnet", encoder_weights=None, decoder_channels=(16, 8, 8, 8, 8))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, verb: Any) -> str:
    """A labelled scan of three shards, with the answers of a network that has learnt nothing."""
    folder = tmp_path_factory.mktemp("scan")
    url = folder / "p.ome.zarr"
    verb("phantom", folder / "slices", "--shape", "150,60,70")
    about = ["--voxel-size-um", "50", "--specimen", "p", "--organ", "phantom", "--labels", folder / "slices" / "labels"]
    verb("ingest", folder / "slices" / "images", url, *about)
    torch.manual_seed(0)
    forward = Forward(network=TINY, voxel_size_um=(10, 100), tile=64, axes=("z",))
    predict(str(url), Bundle(Contract(forward=forward), build(TINY).state_dict(), {}), "soft")
    return str(url)


@pytest.fixture
def scan(url: str, monkeypatch: pytest.MonkeyPatch) -> Scan:
    """Of many layers of blocks."""
    monkeypatch.setattr(passes, "BLOCK", (8, 32, 48))
    return Scan.open(url)


@pytest.mark.usefixtures("in_process_ray")
def test_what_is_counted_is_the_same(scan: Scan) -> None:
    def counted() -> list[object]:
        curve = scoring.counts_by_scan([scan], "soft", "human")[0].curve()
        return [
            asdict(scoring.evaluate(scan, "soft", "human")),
            scoring.surface_dice_within(scan, "soft", "human", 100.0),
            curve.dice.tolist(),
            curve.surface_dice.tolist(),
            asdict(topology(scan.url, "soft")),
        ]

    here = counted()
    with spread_over(2):
        assert counted() == here
        assert os.getpid() not in set(over_blocks(list(range(16)), "", lambda _: os.getpid()))


@pytest.mark.usefixtures("in_process_ray")
def test_a_cleaned_mask_is_the_same(scan: Scan) -> None:
    low, high = np.percentile(scan.label("soft")[:], (60, 90)) / 255
    cleaning = cleaning_of(hysteresis=f"{low},{high}", min_voxels=20, fill_holes=True)
    postprocess(scan.url, "soft", "here", cleaning)
    with spread_over(2):
        postprocess(scan.url, "soft", "there", cleaning)
    scan = Scan.open(scan.url)
    assert 0.01 < scan.label_info("here").foreground < 0.9
    np.testing.assert_array_equal(scan.label("here")[:], scan.label("there")[:])
    assert scan.label_info("here").digest == scan.label_info("there").digest


@pytest.mark.usefixtures("in_process_ray")
def test_an_error_of_a_task_is_the_users(scan: Scan) -> None:
    """One message that names the scan, as without Ray."""
    shard = next(path for path in Path(scan.url, "labels", "soft", "0", "c").rglob("*") if path.is_file())
    kept = shard.read_bytes()
    shard.write_bytes(kept[:-100])
    try:
        with spread_over(2), pytest.raises(ScanError, match="is damaged") as raised:
            scoring.evaluate(scan, "soft", "human")
    finally:
        shard.write_bytes(kept)
    assert "\n" not in str(raised.value)


def test_without_ray_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "entry_points", lambda group: [])
    with pytest.raises(PerfuseError, match="needs Ray"), spread_over(2):
        pass
