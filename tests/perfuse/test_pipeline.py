"""Reading, network and writing go on at once; what fails in any of them ends all, and marks nothing that is not written."""

import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from perfuse.catalog import Scan
from perfuse.contract import Forward, Network
from perfuse.inference import scratch
from perfuse.inference.engine import Engine
from perfuse.inference.grid import Grid
from perfuse.inference.pipeline import Slab, finished
from perfuse.inference.planning import plan
from perfuse.inference.region import Region
from perfuse.inference.scratch import SLAB, Scratch
from perfuse.parallel import in_order

FORWARD = Forward(network=Network(), voxel_size_um=(10, 100), tile=32, overlap=0, axes=("z",))
SHAPE = (2 * SLAB, 80, 40)
BANDS = 6
"""Rows of tiles: three of each slab."""
PATIENCE = 20


class Same(torch.nn.Module):
    """Answers what it is shown, after `before` was called with the number of the batch."""

    def __init__(self, before: Callable[[int], object] = lambda _: None) -> None:
        super().__init__()
        self.before, self.calls = before, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.before(self.calls)
        self.calls += 1
        return x


@pytest.fixture
def scan(tmp_path: Any, make_scan: Any, tubes: Any, monkeypatch: pytest.MonkeyPatch) -> Scan:
    """Whose slabs are written in two pieces."""
    monkeypatch.setattr(scratch, "BAND", 64)
    return make_scan(tmp_path, "organ", tubes(0, SHAPE)[0], {})


def slabs(scan: Scan, forward: Forward = FORWARD, key: str = "key") -> list[Slab]:
    logits = Scratch(scan.url, "perfuse/scratch/test", 0, key, scan.shape_zyx)
    depth = scan.shape_zyx[0]
    return [Slab({"task": n}, logits, n, (a, min(a + SLAB, depth))) for n, a in enumerate(range(0, depth, SLAB))]


def everywhere(scan: Scan) -> Region:
    return Region.of(Grid.of(scan, FORWARD), FORWARD, None)


def engine(network: torch.nn.Module, forward: Forward = FORWARD) -> Engine:
    return Engine(network, forward, "cpu", "eager-fp32")


def test_all_three_go_on_at_once(scan: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network waits until a band is read that it needs later, of the next slab too, and until shards are being written
    whose writing waits, in turn, for the network: this ends only when they overlap."""
    read: list[threading.Event] = [threading.Event() for _ in range(BANDS)]
    writing, network_went_on = threading.Event(), threading.Event()
    plain_read, plain_write, count = Grid.read, Scratch.write, iter(range(BANDS))

    def noting(self: Grid, box: Any) -> Any:
        read[next(count)].set()
        return plain_read(self, box)

    def waiting(self: Scratch, *words: Any) -> Any:
        writing.set()
        assert network_went_on.wait(PATIENCE)
        return plain_write(self, *words)

    batches = SLAB // engine(Same()).pictures * 2

    def before(call: int) -> None:
        band = call // batches
        if band + 1 < BANDS:
            assert read[band + 1].wait(PATIENCE), f"band {band + 1} is not read ahead"
        if band == 3:
            assert writing.wait(PATIENCE), "the first slab is not written beside the network"
            network_went_on.set()

    monkeypatch.setattr(Grid, "read", noting)
    monkeypatch.setattr(Scratch, "write", waiting)
    assert [row["task"] for row in finished(everywhere(scan), slabs(scan), engine(Same(before)))] == [0, 1]
    assert slabs(scan)[0].scratch.intact() == {0, 1}


@pytest.mark.parametrize("where", ["read", "network", "interrupt", "write"])
def test_what_fails_ends_all(scan: Scan, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """In the second slab. The first stays done, where it was written; no thread is left behind."""
    error = KeyboardInterrupt if where == "interrupt" else OSError
    calls = {"read": 0, "write": 0}
    plain = {"read": Grid.read, "write": Scratch.write}

    def failing(name: str) -> Callable[..., Any]:
        def call(*words: Any) -> Any:
            calls[name] += 1
            if where == name and calls[name] == {"read": 5, "write": 3}[name]:
                raise error("no more")
            return plain[name](*words)

        return call

    def before(call: int) -> None:
        if where in {"network", "interrupt"} and call == SLAB // 8 * 2 * 4:
            raise error("no more")

    monkeypatch.setattr(Grid, "read", failing("read"))
    monkeypatch.setattr(Scratch, "write", failing("write"))
    with pytest.raises(error, match="no more"):
        list(finished(everywhere(scan), slabs(scan), engine(Same(before))))
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("in-order")]
    assert slabs(scan)[0].scratch.intact() <= {0}
    left = [s for s in slabs(scan) if s.task not in s.scratch.intact()]
    assert [row["task"] for row in finished(everywhere(scan), left, engine(Same()))] == [s.task for s in left]
    assert slabs(scan)[0].scratch.intact() == {0, 1}


def test_memory_is_within_the_plan(tmp_path: Any, make_scan: Any) -> None:
    """Of several slabs of several bands, where the network holds nothing."""
    shape = (3 * SLAB, 400, 330)
    forward = FORWARD.changed(tile=128, overlap=0.25)
    image = np.random.default_rng(0).integers(0, 60_000, shape).astype(np.uint16)
    scan = make_scan(tmp_path, "large", image, {})
    del image
    list(finished(everywhere(scan), slabs(scan)[:1], engine(Same(), forward)))
    tracemalloc.start()
    list(finished(everywhere(scan), slabs(scan, key="other"), engine(Same(), forward)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.4 * plan(scan, forward).peak_bytes < peak < plan(scan, forward).peak_bytes


@pytest.mark.parametrize("waiting", [0, 1, 3])
def test_only_so_many_are_begun_before_their_results_are_taken(waiting: int) -> None:
    given: list[int] = []

    def items() -> Any:
        for number in range(10):
            given.append(number)
            yield number

    results = in_order(lambda number: number * number, items(), threads=1, waiting=waiting)
    for taken in range(10):
        assert next(results) == taken**2
        assert len(given) == min(taken + waiting + 1, 10)
