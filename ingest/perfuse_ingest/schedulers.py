"""Where the tasks of an ingest run: threads of this process, a dask.distributed cluster, or Ray.

All run the same Dask graph. On a cluster a task is a slab, with two threads of its own, and halves travel between workers.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from dask.base import compute
from dask.delayed import delayed

from perfuse.errors import ServerError, SourceError
from perfuse_ingest.plan import Slab
from perfuse_ingest.slabs import Key, Pass

POLL_S = 5.0
"""How often the done-marks are looked at, to say how far a cluster has come."""
ANSWER_S = 30.0
"""How long a Dask scheduler has to answer."""
CLUSTER_THREADS = 2
"""Of one task on a cluster, whose parallelism is the number of tasks."""


def default_scheduler() -> str:
    """`ray` inside a submitted Ray job, else `threads`."""
    return "ray" if os.environ.get("RAY_ADDRESS") else "threads"


def check_scheduler(name: str) -> None:
    """SourceError unless `run` knows it."""
    if name not in ("threads", "ray") and "://" not in name:
        raise SourceError(
            f"A scheduler is threads, ray, or the address of a Dask scheduler (tcp://…:8786); got {name!r}."
        )


def run(work: Pass, scheduler: str, advance: Callable[[int], None]) -> None:
    """Do every slab of a pass that is not stored intact. advance: called with the number of slices that are done.

    scheduler: `threads`, `ray`, or the address of a Dask scheduler. Raises what the tasks raise, ServerError when no cluster answers.
    """
    if scheduler != "threads":
        work.plan = replace(work.plan, threads=CLUSTER_THREADS)
    todo = work.todo()
    advance(sum(s.box.shape[0] for s in work.tree[0] if (0, s.index) not in todo))
    if scheduler == "threads":
        work.advance = advance
    with _computing(work, scheduler, advance) as get:
        for tasks in _graphs(work, todo):
            get(tasks)


def _graphs(work: Pass, todo: set[Key]) -> Iterator[list[Any]]:
    """Lists of Dask tasks, one list to be done after the other."""
    if not work.plan.in_bands:
        yield _tree(work, todo)
        return
    for slabs in work.tree:
        wanted = [s for s in slabs if (s.level, s.index) in todo]
        yield [delayed(work.do_from_stored if s.level else work.do_in_bands)(s) for s in wanted]


def _tree(work: Pass, todo: set[Key]) -> list[Any]:
    """A task gives its halves to its parent; the last ones give None, which are returned."""
    parent = {(s.level - 1, c): (s.level, s.index) for slabs in work.tree[1:] for s in slabs for c in s.children}
    tasks: dict[Key, Any] = {}

    def halves(child: Slab) -> Any:
        key = child.level, child.index
        return tasks[key] if key in tasks else delayed(partial(work.stored_halves, child))()

    for slab in (s for slabs in work.tree for s in slabs if (s.level, s.index) in todo):
        wanted = parent.get((slab.level, slab.index)) in todo
        parts = [halves(work.tree[slab.level - 1][c]) for c in slab.children]
        tasks[slab.level, slab.index] = delayed(partial(work.do, slab, wanted))(parts)
    return [task for key, task in tasks.items() if parent.get(key) not in todo]


Get = Callable[[Sequence[Any]], Any]


@contextmanager
def _computing(work: Pass, scheduler: str, advance: Callable[[int], None]) -> Iterator[Get]:
    if scheduler == "threads":
        with ThreadPoolExecutor(work.plan.in_flight) as workers:
            yield lambda tasks: compute(*tasks, scheduler="threads", pool=workers)  # type: ignore[no-untyped-call]
        return
    with _watched(work, advance), _on_ray() if scheduler == "ray" else _on_dask(scheduler) as get:
        yield get


@contextmanager
def _on_ray() -> Iterator[Get]:
    import ray
    from ray.util.dask import ray_dask_get

    if not ray.is_initialized():
        ray.init(logging_level="error", log_to_driver=False)

    def get(tasks: Sequence[Any]) -> Any:
        try:
            return compute(*tasks, scheduler=ray_dask_get)  # type: ignore[no-untyped-call]
        except ray.exceptions.RayTaskError as error:  # whose own text is a traceback
            raise error.cause from error

    yield get


@contextmanager
def _on_dask(address: str) -> Iterator[Get]:
    from distributed import Client

    try:
        client = Client(address, timeout=ANSWER_S)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise ServerError(
            f"No Dask scheduler answers at {address}: {error}. Start one with `dask scheduler`."
        ) from error
    with client:
        yield lambda tasks: client.gather(client.compute(list(tasks)))  # type: ignore[no-untyped-call]


@contextmanager
def _watched(work: Pass, advance: Callable[[int], None]) -> Iterator[None]:
    """Advance by what the done-marks of level 0 say, while the body runs."""
    known = {k for k, mark in enumerate(work.marks[0].digests()) if any(mark)}
    ended = threading.Event()

    def look() -> None:
        for k, mark in enumerate(work.marks[0].digests()):
            if any(mark) and k not in known:
                known.add(k)
                advance(work.tree[0][k].box.shape[0])

    def watch() -> None:
        while not ended.wait(POLL_S):
            look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
    look()


class Rates:
    """Slices and megabytes a second, for the line of progress."""

    def __init__(self, advance: Callable[..., None], slice_bytes: int) -> None:
        self._advance, self._bytes = advance, slice_bytes
        self._begun, self._done = time.monotonic(), 0
        self._first = True

    def __call__(self, slices: int) -> None:
        """Count slices that are done; the first call tells those that were done before."""
        if self._first:
            self._first = False
            self._advance(slices)
            return
        self._done += slices
        rate = self._done / max(time.monotonic() - self._begun, 1e-3)
        self._advance(slices, f"{rate:.1f} slices/s, {rate * self._bytes / 1e6:.0f} MB/s")
