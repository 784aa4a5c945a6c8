import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from perfuse import organ_statistics, storage
from perfuse.bundle import Bundle
from perfuse.catalog import Scan
from perfuse.errors import PerfuseError, RecipeError, ScanError
from perfuse.geometry import Box
from perfuse.models import build
from perfuse.recipes import load_recipe
from perfuse.training import TrainingJob, checkpoints, finished_bundle, is_finished, plan_job, validation
from perfuse.training.checkpoints import latest_step
from perfuse.training.engine import train
from perfuse.training.local import train_local
from perfuse.training.validation import VOXELS, middle, scored_box

TINY = [
    "network.encoder=tu-test_resnet",
    "network.decoder_channels=16,16,8,8,8",
    "network.planes=1",
    "crop=32",
    "batch=4",
    "tile=64",
    "validation=v",
    "steps=6",
    "validate_every=3",
    "checkpoint_every=2",
]
SHAPE = (32, 48, 40)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_scan, tubes) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    for seed, specimen in enumerate("av"):
        image, mask = tubes(seed, SHAPE)
        make_scan(folder, specimen, image, {"human": mask})
    return folder


def _job(folder: Path, storage_url: Path, *settings: str) -> TrainingJob:
    return plan_job(load_recipe("quickstart", [*TINY, *settings]), str(folder), str(storage_url))


class Reports(dict[int, dict[str, float]]):
    def __call__(self, step: int, metrics: dict[str, float], pictures: dict[str, bytes]) -> None:
        self[step] = metrics
        self.pictures = pictures


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory) -> tuple[TrainingJob, Reports, Bundle]:
    job, reports = _job(folder, tmp_path_factory.mktemp("runs")), Reports()
    train_local(job, reports)
    return job, reports, finished_bundle(job)


def test_a_job_learns_validates_and_ends_as_a_bundle(undisturbed) -> None:
    job, reports, bundle = undisturbed
    assert is_finished(job)
    assert sorted(reports) == [1, 3, 6]
    learning, validation = (
        {"loss", "bce_loss", "dice_loss", "learning_rate", "steps_per_s", "crops_per_s", "wait_share"},
        {"val_dice", "val_surface_dice", "val_threshold"},
    )
    assert set(reports[1]) == learning
    for step in (3, 6):
        assert set(reports[step]) >= learning | validation
        assert 0 <= reports[step]["val_surface_dice"] <= 1
    assert all(np.isfinite(v) for metrics in reports.values() for v in metrics.values())
    assert reports.pictures["v"].startswith(b"\x89PNG")
    build(bundle.contract.forward.network).load_state_dict(bundle.weights)
    assert bundle.contract.forward.voxel_size_um == (50 / 1.5, 75)
    assert bundle.lineage["key"] == job.key
    assert [s["specimen"] for s in bundle.lineage["train"]] == ["a"]
    assert bundle.lineage["train"][0]["scan_digest"] == Scan.open(job.train[0].url).info.digest
    json.dumps(bundle.lineage)


def test_a_finished_job_does_nothing_again(undisturbed) -> None:
    job, _, bundle = undisturbed
    again = Reports()
    train_local(job, again)
    assert not again
    assert finished_bundle(job).digest() == bundle.digest()


def test_the_same_job_gives_the_same_network(undisturbed, folder, tmp_path) -> None:
    job = _job(folder, tmp_path)
    train_local(job, Reports())
    assert finished_bundle(job).digest() == undisturbed[2].digest()


SCRIPT = """
import sys, torch
from pathlib import Path
from perfuse.training import TrainingJob
from perfuse.training.local import train_local
torch.set_num_threads(1)
train_local(TrainingJob.model_validate_json(Path(sys.argv[1]).read_text()), lambda *report: None)
"""


def test_after_kill_9_the_same_job_goes_on_to_the_same_network(folder, tmp_path) -> None:
    job = _job(folder, tmp_path / "killed", "steps=60", "validate_every=60", "checkpoint_every=2")
    (tmp_path / "job.json").write_text(job.model_dump_json())
    child = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path / "job.json")])
    latest = Path(job.folder) / "latest.json"
    deadline = time.monotonic() + 120
    while not latest.exists():
        assert child.poll() is None, "ended before its first checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    reached = json.loads(latest.read_text())["step"]
    assert 0 < reached < 60, "it was to be killed in the middle"
    with pytest.raises(RecipeError, match="not finished"):
        finished_bundle(job)

    steps = Reports()
    train_local(job, steps)
    assert min(steps) > reached, "it went on, and did not begin anew"
    whole = _job(folder, tmp_path / "whole", "steps=60", "validate_every=60", "checkpoint_every=60")
    train_local(whole, Reports())
    killed_weights, whole_weights = finished_bundle(job).weights, finished_bundle(whole).weights
    for name, value in whole_weights.items():
        torch.testing.assert_close(killed_weights[name], value, rtol=0, atol=0)


def test_sigterm_ends_a_step_with_a_checkpoint_and_the_same_command_goes_on(folder, tmp_path) -> None:
    job = _job(folder, tmp_path, "checkpoint_every=100", "validate_every=100")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        train_local(job, lambda step, metrics, pictures: os.kill(os.getpid(), signal.SIGTERM))
    assert signal.getsignal(signal.SIGTERM) is before
    assert latest_step(job.folder) == 2, "the wish came in the first step's report, and was heard after the next"
    train_local(job, Reports())
    whole = _job(folder, tmp_path, "checkpoint_every=101", "validate_every=100")
    train_local(whole, Reports())
    for name, value in finished_bundle(whole).weights.items():
        torch.testing.assert_close(finished_bundle(job).weights[name], value, rtol=0, atol=0)


def test_a_validation_that_was_cut_off_is_made_up_for(undisturbed, folder, tmp_path, monkeypatch) -> None:
    """Killed while it validates, it has lost no step; the same job validates first, and ends with the same network."""
    job = _job(folder, tmp_path)

    def killed(*_: object) -> None:
        raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr("perfuse.training.engine.validate", killed)
        with pytest.raises(SystemExit):
            train_local(job, Reports())
    reached = latest_step(job.folder)
    assert reached == job.recipe.validate_every
    reports = Reports()
    train_local(job, reports)
    assert min(reports) == reached
    assert "val_score" in reports[reached]
    assert finished_bundle(job).digest() == undisturbed[2].digest()


def test_the_last_validation_is_made_up_for_too(folder, tmp_path) -> None:
    job = _job(folder, tmp_path, "steps=2", "validate_every=2", "checkpoint_every=2")
    with pytest.raises(KeyboardInterrupt):
        train_local(job, lambda step, metrics, pictures: os.kill(os.getpid(), signal.SIGTERM))
    assert latest_step(job.folder) == 2
    assert not is_finished(job)
    reports = Reports()
    train_local(job, reports)
    assert list(reports) == [2]
    assert is_finished(job)


def test_a_save_that_dies_half_done_leaves_the_checkpoint_before(folder, tmp_path, monkeypatch) -> None:
    """Also the second save of a step, after its validation."""
    job = _job(folder, tmp_path, "steps=2", "validate_every=2")

    def die(url: str, value: dict[str, object]) -> None:
        if value.get("judged") and value.get("step") == 2:
            raise SystemExit(9)
        write(url, value)

    write = storage.write_json
    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_json", die)
        with pytest.raises(SystemExit):
            train_local(job, Reports())
    assert checkpoints.load(job.folder)["step"] == 2
    train_local(job, Reports())
    assert is_finished(job)
    assert len(list(Path(job.folder).glob("*.pt"))) == 1


def test_checkpoints_of_before_validations_were_made_up_for_count_as_validated(folder, tmp_path) -> None:
    job = _job(folder, tmp_path, "steps=2", "validate_every=2")
    train_local(job, Reports())
    entry = storage.read_json(latest := str(Path(job.folder) / "latest.json"))
    state = checkpoints.load(job.folder)
    torch.save({k: v for k, v in state.items() if k != "judged"}, file := Path(job.folder) / entry["file"])
    digest = storage.digest_bytes(file.read_bytes())
    storage.write_json(latest, {k: v for k, v in entry.items() if k != "judged"} | {"sha256": digest})
    assert is_finished(job)
    again = Reports()
    train_local(job, again)
    assert not again
    finished_bundle(job)


def test_the_checkpoint_of_a_dead_write_is_never_the_latest(undisturbed, folder, tmp_path) -> None:
    job = _job(folder, tmp_path)
    (tmp_path / job.key[:16]).mkdir()
    (tmp_path / job.key[:16] / ".step-0000004.pt.partial").write_bytes(b"torn")
    train_local(job, Reports())
    assert is_finished(job)


def test_a_damaged_checkpoint_is_named(folder, tmp_path) -> None:
    job = _job(folder, tmp_path, "steps=1", "validate_every=1")
    train_local(job, Reports())
    file = Path(job.folder) / storage.read_json(storage.join(job.folder, "latest.json"))["file"]
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(PerfuseError, match="damaged"):
        finished_bundle(job)


def test_only_the_latest_checkpoint_is_kept(undisturbed) -> None:
    job = undisturbed[0]
    assert sorted(p.name for p in Path(job.folder).iterdir()) == ["latest.json", "step-0000006.pt"]


def test_learning_lifts_the_score(folder, tmp_path) -> None:
    reports = Reports()
    train_local(
        _job(folder, tmp_path, "steps=60", "validate_every=60", "crop=64", "learning_rate=3e-3", "ema_decay=0.9"),
        reports,
    )
    assert reports[60]["val_dice"] > 0.8


def test_rank_0_alone_validates_and_saves(folder, tmp_path) -> None:
    from perfuse import sampling

    job, reports = _job(folder, tmp_path), Reports()

    def feed(first: int):
        return (b for row in sampling.rows(job, 1, 2, first) for b in sampling.cut(job, row))

    train(job, feed, rank=1, report=reports)
    assert sorted(reports) == [1, 3, 6]
    assert not any(key.startswith("val") for key in reports[6])
    assert not Path(job.folder).exists()


def test_the_key_is_of_recipe_voxels_and_labels_not_of_the_place(folder, tmp_path, make_scan, tubes) -> None:
    for seed, specimen in enumerate("av"):
        image, mask = tubes(seed, SHAPE)
        make_scan(tmp_path / "same", specimen, image, {"human": mask})
        make_scan(tmp_path / "other", specimen, image, {"human": mask[::-1].copy()})
    key = _job(folder, tmp_path).key
    assert _job(tmp_path / "same", tmp_path / "elsewhere").key == key
    assert _job(tmp_path / "other", tmp_path).key != key
    assert _job(folder, tmp_path, "seed=1").key != key


def test_validation_by_a_sparse_label_is_refused(tmp_path, make_scan, tubes) -> None:
    for seed, specimen in enumerate("av"):
        image, mask = tubes(seed, SHAPE)
        make_scan(tmp_path, specimen, image, {"human": mask}, kind="sparse", coverage=0.6)
    with pytest.raises(RecipeError, match=r"dense.*sparse"):
        _job(tmp_path, tmp_path)


def test_a_validation_scan_that_the_model_would_not_be_allowed_on_is_refused(tmp_path, make_scan, tubes) -> None:
    image, mask = tubes(0, SHAPE)
    for voxel, specimen in ((50.0, "a"), (5.2, "v")):
        make_scan(tmp_path, specimen, image, {"human": mask}, voxel=voxel)
    said = r"Scan v is to validate.*5\.2 × 5\.2 × 5\.2 µm.*33\.3333 to 75 µm only.*--set voxel_size_range="
    with pytest.raises(RecipeError, match=said):
        _job(tmp_path, tmp_path)
    assert _job(tmp_path, tmp_path, "voxel_size_range=10").forward().voxel_size_um == pytest.approx((5, 500))
    seen = _job(tmp_path, tmp_path, "resample_um=50").forward()
    seen.check_voxel_size((5.2, 5.2, 5.2), "v")


def test_no_scans_is_an_error(tmp_path) -> None:
    with pytest.raises(ScanError, match="No complete scans"):
        _job(tmp_path, tmp_path)


@pytest.mark.parametrize("shape", [(15, 512, 512), (4000, 4000, 4000), (10, 10, 10)])
def test_the_box_of_validation_is_bounded_and_central(shape) -> None:
    whole = Box.whole(shape).shifted((496, 0, 3))
    box = middle(whole)
    assert 0 < box.size <= VOXELS
    for first, a, b, last in zip(whole.start, box.start, box.stop, whole.stop, strict=True):
        assert abs((a - first) - (last - b)) <= 1


def test_a_checkpoint_is_judged_where_vessels_lie_in_the_organ(tmp_path, make_scan, monkeypatch) -> None:
    """In neither the densest nor the emptiest of the boxes that hold any; in the middle where nothing is marked."""
    monkeypatch.setattr(validation, "VOXELS", 16**3)
    label, organ, train = (np.zeros((64, 128, 64), np.uint8) for _ in range(3))
    label[2, 2, 2] = label[50:60, 2:12, 50:60] = label[4:8, 20:24, 50] = 255
    label[:, 100, :] = 255
    organ[:, :60, :] = 255
    train[:8] = 255
    for specimen, mask in zip("ave", (train, label, np.zeros_like(label)), strict=True):
        scan = make_scan(
            tmp_path / "scans", specimen, np.zeros(label.shape, np.uint16), {"human": mask, "organ": organ}
        )
        organ_statistics.refresh(scan)
    job = _job(tmp_path / "scans", tmp_path, "validation=v,e")
    found = {source.specimen: scored_box(source) for source in job.validation}
    assert found == {"v": Box((0, 16, 48), (16, 32, 64)), "e": Box((24, 56, 24), (40, 72, 40))}
    (marked,) = (source for source in job.validation if source.specimen == "v")
    counts, _ = validation._score(marked, lambda source, box: np.full(box.shape, 200, np.uint8))
    assert np.nanmax(counts.curve().dice) > 0


def test_crops_that_would_be_mostly_mirror_images_are_refused_with_the_axes_that_are_left(folder, tmp_path) -> None:
    with pytest.raises(RecipeError, match=r"Planes of a along axis y have 32 × 40 pixels.*--set axes=z,x"):
        _job(folder, tmp_path, "crop=96", "axes=y,z,x")
    assert _job(folder, tmp_path, "crop=64").recipe.crop == 64, "half of a crop is enough"
    with pytest.raises(RecipeError, match=r"along axis z have 48 × 40"):
        _job(folder, tmp_path, "crop=128", "axes=z")
