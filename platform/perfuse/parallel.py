"""Work on the cores of this machine, in order and a few items ahead."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], *, threads: int | None = None, waiting: int | None = None
) -> Generator[Result]:
    """Results of `work` in the order of the items, which are taken by the calling thread as room is made for them.

    threads: one a core where nothing is said. waiting: how many are under way or wait to be taken, besides the one that is
    taken next; two a thread. What fails, here or there, ends all: what is not begun never is, and what is begun is awaited.
    """
    threads = threads or os.cpu_count() or 1
    waiting = 2 * threads if waiting is None else waiting
    ready: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="in-order") as pool:
        try:
            for item in items:
                ready.append(pool.submit(work, item))
                if len(ready) > waiting:
                    yield ready.popleft().result()
            while ready:
                yield ready.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
