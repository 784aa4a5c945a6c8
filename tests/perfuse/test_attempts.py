"""A slab that fails is tried again, then named; the rest is done, and the next run does only what is missing."""

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from perfuse.bundle import Bundle
from perfuse.catalog import Scan
from perfuse.contract import Contract, Forward, Network
from perfuse.errors import ContractError, QuarantineError, ServerError
from perfuse.inference import attempts, predict, prepare
from perfuse.inference.prediction import Prediction, Worker
from perfuse.models import build
from perfuse.upkeep import refresh


class Small(torch.nn.Sequential):
    """One convolution: quick."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__(torch.nn.Conv2d(in_channels, classes, 3, padding=1))


@pytest.fixture
def bundle() -> Bundle:
    torch.manual_seed(0)
    network = Network(module=f"{__name__}:Small")
    forward = Forward(network=network, voxel_size_um=(10, 100), tile=32, axes=("z", "x"), precision="fp32")
    return Bundle(Contract(forward=forward), build(network).state_dict(), {})


@pytest.fixture
def scan(tmp_path: Path, make_scan: Any, tubes: Any) -> Scan:
    made: Scan = make_scan(tmp_path, "organ", tubes(0, (130, 40, 70))[0], {})
    return made


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(attempts.time, "sleep", slept.append)
    return slept


def chunk_files(scan: Scan) -> list[Path]:
    return sorted(p for p in Path(scan.url, "0", "c").rglob("*") if p.is_file())


def test_a_damaged_shard_stops_no_other_slab(scan: Scan, bundle: Bundle, pauses: list[float], capsys: Any) -> None:
    """The second of three shards along z is torn: one slab of three along z, and both along x, which read all of it."""
    predict(scan.url, bundle, "whole")
    torn = chunk_files(scan)[1]
    kept = torn.read_bytes()
    torn.write_bytes(kept[: len(kept) // 2] + bytes(len(kept) - len(kept) // 2))
    with pytest.raises(QuarantineError) as failed:
        predict(scan.url, bundle, "soft")
    assert failed.value.exit_code == 3
    named = "slab axis z, planes 64 to 127", "slab axis x, planes 0 to 63", "slab axis x, planes 64 to 69"
    assert all(name in str(failed.value) for name in named)
    assert "is damaged" in str(failed.value)
    assert pauses == [*attempts.PAUSES] * 3
    todo = prepare(scan.url, bundle, "soft").slabs_to_do()
    assert [attempts.name_of(row) for row in todo] == [*named]
    assert "soft" not in scan.labels()
    torn.write_bytes(kept)
    predict(scan.url, bundle, "soft")
    np.testing.assert_array_equal(scan.label("soft")[:], scan.label("whole")[:])


def fails(monkeypatch: pytest.MonkeyPatch, errors: list[BaseException | None]) -> list[int]:
    """From now on slabs are only counted: each call raises the next of the errors, until none are left."""
    asked: list[int] = []

    def run(self: Worker, rows: Any) -> Any:
        for row in rows:
            asked.append(row["task"])
            error = errors.pop(0) if errors else None
            if error is not None:
                raise error
            yield row

    monkeypatch.setattr(Worker, "run", run)
    return asked


def rows(count: int) -> list[dict[str, int]]:
    return [{"member": 0, "axis": 0, "task": n, "start": 64 * n, "stop": 64 * n + 64} for n in range(count)]


def test_a_store_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, pauses: list[float], scan: Scan, bundle: Bundle
) -> None:
    worker = Worker(prepare(scan.url, bundle, "soft"), bundle, 1)
    asked = fails(monkeypatch, [None, ServerError("away"), ServerError("away"), ServerError("away")])
    assert list(attempts.all_of(worker, rows(4))) == rows(4)
    assert asked == [0, 1, 1, 1, 1, 2, 3]
    assert pauses == [*attempts.OUTAGE[:2]]
    assert sum(attempts.OUTAGE) > 60, "a store may fail for a minute"
    fails(monkeypatch, [ServerError("away")] * 9)
    with pytest.raises(ServerError, match="away"):
        list(attempts.all_of(worker, rows(4)))


@pytest.mark.parametrize("error", [ContractError("no numbers"), OSError(errno.ENOSPC, "No space left on device")])
def test_what_would_befall_all_ends_all(
    monkeypatch: pytest.MonkeyPatch, pauses: list[float], scan: Scan, bundle: Bundle, error: Exception
) -> None:
    worker = Worker(prepare(scan.url, bundle, "soft"), bundle, 1)
    fails(monkeypatch, [error] * 9)
    with pytest.raises(type(error)):
        list(attempts.all_of(worker, rows(4)))
    assert not pauses


def test_a_slab_that_kills_its_processes_is_left_out(
    monkeypatch: pytest.MonkeyPatch, pauses: list[float], scan: Scan, bundle: Bundle
) -> None:
    prediction = prepare(scan.url, bundle, "soft")
    worker = Worker(prediction, bundle, 1)
    asked = fails(monkeypatch, [KeyboardInterrupt()] * 3)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            attempts.counted(prediction, worker, rows(1)[0])
    assert attempts.counted(prediction, worker, rows(1)[0]) == "3 processes died of it"
    assert attempts.counted(prediction, worker, rows(2)[1]) is None
    assert asked == [0, 0, 0, 1]
    attempts.forget(prediction)
    assert attempts.counted(prediction, worker, rows(1)[0]) is None
    assert not pauses


def test_a_store_that_is_away_for_a_moment_ends_neither_fusing_nor_the_last_step(
    monkeypatch: pytest.MonkeyPatch, pauses: list[float], scan: Scan, bundle: Bundle
) -> None:
    away = [ServerError("away")]

    def failing(method: Any) -> Any:
        def answer(self: Prediction, *words: Any, **options: Any) -> Any:
            if away:
                raise away.pop()
            return method(self, *words, **options)

        return answer

    monkeypatch.setattr(Prediction, "run_fuse", failing(Prediction.run_fuse))
    predict(scan.url, bundle, "soft")
    assert pauses == [attempts.OUTAGE[0]]
    away.append(ServerError("away"))
    monkeypatch.setattr(Prediction, "finish", failing(Prediction.finish))
    predict(scan.url, bundle, "more")
    away.append(ServerError("away"))
    monkeypatch.undo()
    monkeypatch.setattr(attempts.time, "sleep", lambda _: None)
    monkeypatch.setattr("perfuse.inference.prediction.refresh", failing(refresh))
    predict(scan.url, bundle, "last")  # the logits are gone when the last step is tried again
    assert Scan.open(scan.url).labels().keys() == {"soft", "more", "last"}
