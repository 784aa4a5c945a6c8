"""On Ray Data the voxels are those of one process, for any number of actors, also after a kill."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from perfuse import storage, volumes
from perfuse.bundle import Bundle, Ensemble
from perfuse.catalog import Scan
from perfuse.contract import Contract, Forward, Network
from perfuse.errors import PlanError, QuarantineError, ScanError
from perfuse.geometry import Box, Index3
from perfuse.inference import Runner, predict, prepare, scratch
from perfuse.inference.prediction import Prediction
from perfuse.models import build
from perfuse_jobs.predict import Share, on_ray
from perfuse_jobs.session import quieten
from perfuse_jobs.workers import Workers

TINY = Network(encoder="tu-test_resnet", encoder_weights=None, decoder_channels=(16, 8, 8, 8, 8))


def bundle(seed: int = 0, classes: tuple[str, ...] = ()) -> Bundle:
    torch.manual_seed(seed)
    forward = Forward(network=TINY.changed(classes=classes), voxel_size_um=(10, 100), tile=64)
    return Bundle(Contract(forward=forward), build(forward.network).state_dict(), {})


def ingested(folder: Path, shape_zyx: Index3, layout: volumes.Layout = volumes.LAYOUT) -> str:
    from perfuse_ingest.ingest import ingest
    from perfuse_ingest.phantom import write_phantom

    write_phantom(str(folder / "slices"), shape_zyx=shape_zyx, seed=3)
    url = str(folder / "p.ome.zarr")
    about = {"voxel_size_um": (50, 50, 50), "specimen": "p", "organ": "phantom"}
    ingest(str(folder / "slices" / "images"), url, **about, layout=layout)
    return url


@pytest.fixture
def scan_url(tmp_path: Path) -> str:
    return ingested(tmp_path, (80, 72, 96))


@pytest.mark.usefixtures("in_process_ray")
def test_any_number_of_actors(scan_url: str) -> None:
    """Two models as one, each of two classes."""
    classes = ("a", "b")
    together = Ensemble((bundle(classes=classes), bundle(seed=1, classes=classes)), 128)
    predict(scan_url, together, "one")
    predict(scan_url, together, "two", runner=on_ray(Workers(2, 2)))
    scan = Scan.open(scan_url)
    for name in classes:
        np.testing.assert_array_equal(scan.label(f"one-{name}")[:], scan.label(f"two-{name}")[:])
        assert scan.label_info(f"one-{name}").digest == scan.label_info(f"two-{name}").digest
    assert scan.label_info("one-a").digest != scan.label_info("one-b").digest
    begin = time.perf_counter()
    predict(scan_url, together, "two", runner=on_ray(Workers(1, 3)))
    assert time.perf_counter() - begin < 5, "a finished label is not computed again"


class Killer(threading.Thread):
    """Kills actors that hold the network at random, one after the other, until it has killed enough or is stopped."""

    def __init__(self, enough: int) -> None:
        super().__init__()
        self.enough, self.killed, self.over, self.rng = enough, list[int](), threading.Event(), np.random.default_rng(5)

    def run(self) -> None:
        while not self.over.wait(self.rng.uniform(0.05, 0.5)) and len(self.killed) < self.enough:
            children = psutil.Process().children(recursive=True)
            actors = [p.pid for p in children if "SlabActor" in p.name() and p.pid not in self.killed]
            if actors:
                self.killed.append(int(self.rng.choice(actors)))
                os.kill(self.killed[-1], signal.SIGKILL)

    def __enter__(self) -> "Killer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()


@pytest.mark.usefixtures("in_process_ray")
def test_actors_killed_at_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half by one actor, the rest by three, other shards of scan and scratch: what is decoded is the same, bit for bit."""
    shape, made = (80, 136, 136), bundle()
    whole, cut = (
        ingested(tmp_path / "a", shape),
        ingested(tmp_path / "b", shape, volumes.Layout(shard_chunks=(1, 1, 2))),
    )
    predict(whole, made, "soft")
    monkeypatch.setattr(scratch, "BAND", 64)
    prediction = prepare(cut, made, "soft")
    rows = prediction.slabs_to_do()
    with monkeypatch.context() as patch, Killer(2) as first:
        patch.setattr(Prediction, "slabs_to_do", lambda self: rows[: len(rows) // 2])
        on_ray(Workers(1, 1)).fill(prediction, made)
    assert len(prediction.slabs_to_do()) == len(rows) - len(rows) // 2
    with Killer(3) as second:
        predict(cut, made, "soft", runner=on_ray(Workers(3, 3)))
    assert first.killed
    assert second.killed
    one, other = Scan.open(whole), Scan.open(cut)
    np.testing.assert_array_equal(one.label("soft")[:], other.label("soft")[:])
    assert one.label_info("soft").digest == other.label_info("soft").digest


@pytest.mark.usefixtures("in_process_ray")
def test_a_poisoned_slab_is_named_and_the_rest_is_done(scan_url: str) -> None:
    """Along z the second of two slabs cannot be decoded; mended, only that one is computed."""
    made = bundle()
    along_z = made.contract.forward.changed(axes=("z",))
    poisoned = Bundle(Contract(forward=along_z), made.weights, {})
    torn = max(p for p in Path(scan_url, "0", "c").rglob("*") if p.is_file())
    kept = torn.read_bytes()
    torn.write_bytes(kept[: len(kept) // 2] + bytes(len(kept) - len(kept) // 2))
    with pytest.raises(QuarantineError, match=r"slab axis z, planes 64 to 79 .*is damaged"):
        predict(scan_url, poisoned, "soft", runner=on_ray(Workers(2, 2)))
    torn.write_bytes(kept)
    assert [row["task"] for row in prepare(scan_url, poisoned, "soft").slabs_to_do()] == [1]
    predict(scan_url, poisoned, "soft", runner=on_ray(Workers(1, 1)))
    predict(scan_url, poisoned, "whole")
    scan = Scan.open(scan_url)
    np.testing.assert_array_equal(scan.label("soft")[:], scan.label("whole")[:])


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_predict import bundle
from perfuse.inference import predict
from perfuse.inference.engine import Engine
import time
plain = Engine._logits
Engine._logits = lambda self, images: (time.sleep(0.02), plain(self, images))[1]
predict(sys.argv[1], bundle(), "killed")
"""


def test_kill_and_again(scan_url: str) -> None:
    """kill -9 in the middle; the same call finishes, redoing only what was not done, with the same voxels."""
    here = str(Path(__file__).parent)
    process = subprocess.Popen([sys.executable, "-c", KILLED, scan_url, here], stderr=subprocess.DEVNULL)
    prediction = prepare(scan_url, bundle(), "killed")
    marks = Path(scan_url, prediction.members[0].scratch, "done-z", "c")
    deadline = time.monotonic() + 120
    while not (marks.exists() and any(marks.rglob("*"))) and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    left = prediction.slabs_to_do()
    assert 0 < len(left) < len(prediction.slabs())
    predict(scan_url, bundle(), "killed")
    predict(scan_url, bundle(), "undisturbed")
    scan = Scan.open(scan_url)
    np.testing.assert_array_equal(scan.label("killed")[:], scan.label("undisturbed")[:])


@pytest.mark.usefixtures("in_process_ray")
def test_a_damaged_scan_is_one_message_also_from_an_actor(scan_url: str) -> None:
    shard = next(path for path in Path(scan_url, "0", "c").rglob("*") if path.is_file())
    shard.write_bytes(shard.read_bytes()[:-100])
    for runner in (Runner(), on_ray(Workers(2, 2))):
        with pytest.raises(ScanError, match=r"p\.ome\.zarr is damaged.*\n?.*perfuse scan verify") as raised:
            predict(scan_url, bundle(), "vessels", runner=runner)
        assert "\n" not in str(raised.value)


def test_where_only_workers_have_gpus_one_of_them_chooses_the_backend(
    scan_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray believes in a GPU here; the task that gets it finds none, and says so."""
    import ray

    quieten()
    ray.shutdown()  # that of the module's other tests
    ray.init(address="local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False)
    try:
        monkeypatch.setattr("perfuse.inference.preparing.best_device", lambda: pytest.fail("chosen by the driver"))
        prepare_there = on_ray(Workers(1, 1)).prepare
        prediction = prepare_there(scan_url, bundle(), "soft")
        with pytest.raises(PlanError, match="must hold a voxel"):
            prepare_there(scan_url, bundle(), "soft", roi=Box((0, 0, 0), (0, 1, 1)))
    finally:
        ray.shutdown()
    monkeypatch.undo()
    assert prediction == prepare(scan_url, bundle(), "soft")


def test_processes_share_the_memory_and_the_cpus_of_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three on two nodes: two on one of them; of half of what the smaller one has, for networks take the rest."""
    monkeypatch.setattr("os.cpu_count", lambda: 9)
    monkeypatch.setattr("perfuse.inference.preparing.available_bytes", lambda: 1200)
    nodes = [{"Resources": {"memory": 900.0}}, {"Resources": {"memory": 800.0}}]
    assert Share.of(Workers(1, 3), nodes) == Share(neighbours=2, memory_bytes=200)
    assert Share.of(Workers(1, 3), []) == Share(neighbours=3, memory_bytes=200)
    assert Share.of(Workers(1, 3), nodes).threads == 4


def test_a_node_that_is_gone(tmp_path: Path) -> None:
    """Killed with what it computes when the first slab is written: the other, full, does the rest, with the same voxels."""
    url = ingested(tmp_path, (136, 72, 96))
    env = {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # nodes may be on the loopback
    words = [sys.executable, str(Path(__file__).with_name("lost_node.py")), url, "left"]
    ended = subprocess.run(words, env=env, capture_output=True, text=True, timeout=400, check=False)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert 0 < told["left"] < 7, "it was killed in the middle"
    assert told["actors"] == 1
    assert told["nodes"] == 2, "the head, and the one that was left"
    predict(url, bundle(), "undisturbed")
    scan = Scan.open(url)
    assert scan.label_info("left").digest == scan.label_info("undisturbed").digest


def test_a_store_that_is_away_for_a_while(
    tmp_path: Path,
    s3_url: str,
    s3_again: Callable[[], object],
    stack_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The gateway dies when the first slab is written, and comes back 20 s later at the same address."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # botocore itself says nothing of the minutes that it waits
    url = ingested(tmp_path, (80, 72, 96))
    storage.filesystem(s3_url).put(url, f"{s3_url}/p.ome.zarr", recursive=True)
    back = threading.Timer(20, s3_again)
    mark = scratch.Scratch.mark

    def go_away(*words: Any) -> None:
        mark(*words)
        if back.ident is None:
            os.kill(int((stack_folder / "run/radosgw.pid").read_text().split()[0]), signal.SIGKILL)
            back.start()

    monkeypatch.setattr(scratch.Scratch, "mark", go_away)
    begin = time.monotonic()
    try:
        (info,) = predict(f"{s3_url}/p.ome.zarr", bundle(), "soft")
    finally:
        back.join()
        s3_again()
    assert time.monotonic() - begin > 20
    told = capsys.readouterr().err
    assert re.search(rf"tried again( in \d+ s)?: Cannot reach the store of {s3_url}", told), told
    assert "Traceback" not in told
    assert predict(url, bundle(), "soft")[0].digest == info.digest
