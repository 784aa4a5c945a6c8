"""Slabs that fail: tried again, and in the end named and left out, so that the rest is done.

A store that does not answer is waited for, more than a minute in all; if it stays away, all ends, for no other slab would fare
better. So does what would befall every slab: a full disk, or a network that answers with no numbers.
"""

import errno
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeVar

from perfuse import storage
from perfuse.console import say
from perfuse.errors import ContractError, PlanError, QuarantineError, ServerError
from perfuse.inference.prediction import Prediction, Worker
from perfuse.outages import outlast

Row = dict[str, int]
Result = TypeVar("Result")

TRIES = 3
"""Failures after which a slab is left out."""
PAUSES = (1.0, 4.0)
"""Seconds before it is tried again."""
BEGUN = "begun"
"""In a member's scratch: how many processes have begun each slab that is under way."""
OUTAGE = (5.0, 20.0, 45.0)
"""Seconds that a store which does not answer is given, again and again."""


def all_of(worker: Worker, rows: Iterable[Row]) -> Iterator[Row]:
    """Do slabs, each row given back when it is done; QuarantineError at the end names those that failed."""
    todo, failed = list(rows), list[str]()
    while todo:
        try:
            for row in worker.run(list(todo)):
                todo.remove(row)
                yield row
        except Exception as error:  # noqa: BLE001 - `alone` tells which of them end all
            row = todo.pop(0)
            say(f"{name_of(row)} has to be tried again: {error}")
            reason = alone(worker, row)
            if reason is None:
                yield row
            else:
                failed.append(f"{name_of(row)} ({reason})")
    refuse(failed)


def alone(worker: Worker, row: Row) -> str | None:
    """Do one slab, in several tries; why it failed, None when it is done.

    Raises what would befall every slab; ServerError where the store stays away.
    """
    pauses = iter(PAUSES)
    while True:
        try:
            patiently(worker.prediction.scan_url, lambda: list(worker.run([row])))
            return None
        except (ContractError, PlanError, ServerError):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            pause = next(pauses, None)
            if pause is None:
                return " ".join(f"{type(error).__name__}: {error}".split())
        time.sleep(pause)


def patiently(url: str, work: Callable[[], Result]) -> Result:
    """What `work` answers, asked again where the store of a URL does not answer; ServerError when it stays away."""

    def reached() -> Result:
        with storage.reaching(url):
            return work()

    return outlast(reached, OUTAGE)


def counted(prediction: Prediction, worker: Worker, row: Row) -> str | None:
    """As `alone`, for a process that may die of a slab: what `TRIES` processes have begun and none has ended is left out."""
    url = _count_url(prediction, row)
    begun = patiently(url, lambda: int(storage.read_bytes(url)) if storage.exists(url) else 0)
    if begun >= TRIES:
        return f"{TRIES} processes died of it"
    patiently(url, lambda: storage.write_bytes(url, str(begun + 1).encode()))
    reason = alone(worker, row)
    patiently(url, lambda: storage.remove_file(url))
    return reason


def fuse(prediction: Prediction, row: Row) -> None:
    """`Prediction.run_fuse`, patiently."""
    patiently(prediction.scan_url, partial(prediction.run_fuse, row))


def forget(prediction: Prediction) -> None:
    """Whoever begins anew has all tries again."""
    for member in prediction.members:
        storage.remove_tree(storage.join(prediction.scan_url, member.scratch, BEGUN))


def _count_url(prediction: Prediction, row: Row) -> str:
    scratch = prediction.members[row["member"]].scratch
    return storage.join(prediction.scan_url, scratch, BEGUN, f"{'zyx'[row['axis']]}-{row['task']}")


def name_of(row: Row) -> str:
    """What a slab is called in messages."""
    member = f"of model {row['member'] + 1}, " if row["member"] else ""
    return f"slab {member}axis {'zyx'[row['axis']]}, planes {row['start']} to {row['stop'] - 1}"


def refuse(failed: list[str]) -> None:
    """QuarantineError if any slab failed."""
    if failed:
        raise QuarantineError(
            f"Failed {TRIES} times: {'; '.join(failed)}. The other slabs are done and kept. Mend what these need, and say the "
            "same command again: only they are computed."
        )
