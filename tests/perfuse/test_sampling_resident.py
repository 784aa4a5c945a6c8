"""Crops that are cut by PyTorch from scans in its memory are those that everyone cuts; here on the CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from perfuse import sampling
from perfuse.recipes import load_recipe
from perfuse.sampling.resident import ResidentCutter, feed_resident, resident_bytes
from perfuse.training import TrainingJob, local, plan_job

SHAPE = (40, 72, 90)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_scan: Any, tubes: Any) -> Path:
    folder = tmp_path_factory.mktemp("resident")
    for seed, specimen in enumerate("abcv"):
        image, mask = tubes(seed, (30, 40, 20) if specimen == "b" else SHAPE)
        about = {"kind": "sparse", "coverage": 0.6} if specimen == "a" else {}
        make_scan(
            folder, specimen, (image >> 8).astype(np.uint8) if specimen == "c" else image, {"human": mask}, **about
        )
    return folder


def planned(folder: Path, *extra: str) -> TrainingJob:
    still = [f"augmentation.{k}=0" for k in ("flips", "quarter_turns", "brightness", "contrast", "gamma", "noise")]
    alike = [] if "sampling.order=grid" in extra else ["sampling.by_coverage=false"]
    values = ["crop=32", "batch=8", "steps=12", "validation=v", *alike, *still, *extra]
    return plan_job(load_recipe("quickstart", values), str(folder), str(folder / "runs"))


@pytest.mark.parametrize(
    "extra",
    [
        ["network.planes=5", "network.plane_stride=2"],
        ["network.planes=4", "network.outputs=all"],
        ["sampling.order=grid", "sampling.overlap=0.4"],
    ],
)
def test_crops_along_axes_are_equal_bit_for_bit(folder: Path, extra: list[str]) -> None:
    job = planned(folder, *extra)
    for ours, theirs in zip(feed_resident(job, "cpu", first_step=3), sampling.feed(job, first_step=3), strict=True):
        assert ours["step"] == theirs["step"]
        assert np.array_equal(ours["position"], theirs["position"])
        for name in ("image", "target", "known"):
            assert isinstance(ours[name], torch.Tensor)
            assert np.array_equal(ours[name].numpy(), theirs[name])


@pytest.mark.parametrize("extra", [["sampling.scale=0.7,1.6"], ["sampling.oblique=1"]])
def test_resampled_crops_differ_by_rounding_only(folder: Path, extra: list[str]) -> None:
    job = planned(folder, *extra)
    for ours, theirs in zip(feed_resident(job, "cpu"), sampling.feed(job), strict=True):
        np.testing.assert_allclose(ours["image"].numpy(), theirs["image"], atol=0.008, err_msg="one of 256 grey values")
        for name in ("target", "known"):
            assert np.mean(ours[name].numpy() != theirs[name]) < 1e-4, "where a position lies between two voxels"


def test_a_job_says_what_it_would_hold(folder: Path) -> None:
    job = planned(folder)
    sizes = {"a": 40 * 72 * 90 * 4, "b": 30 * 40 * 20 * 3, "c": 40 * 72 * 90 * 2}
    assert resident_bytes(job) == sum(sizes[source.specimen] for source in job.train)
    held = ResidentCutter(job, "cpu")._scans
    assert resident_bytes(job) == sum(p.nbytes for s in held for p in (s.image, s.labels[0].values, s.labels[0].known))


def test_ranks_share_what_is_cut_on_their_gpus(folder: Path) -> None:
    job = planned(folder)
    whole = next(iter(feed_resident(job, "cpu", first_step=3)))
    parts = [next(iter(feed_resident(job, "cpu", rank, 2, 3))) for rank in range(2)]
    for name in ("image", "target", "known"):
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), whole[name], rtol=0, atol=0)


@pytest.mark.parametrize(("memory", "resident"), [(100, True), (1, False)])
def test_a_gpu_holds_scans_that_fit_in_half_of_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, memory: int, resident: bool
) -> None:
    job = planned(folder)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, memory * resident_bytes(job)))
    monkeypatch.setattr(local, "feed_resident", lambda _job, _device, first_step: iter([{"resident": first_step}]))
    first = next(local.batches(job, 7))
    assert ("resident" in first) == resident
    assert int(first.get("resident", first.get("step"))) == 7
