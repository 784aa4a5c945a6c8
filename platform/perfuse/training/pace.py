"""How fast a training goes, and what share of its time it waits for data."""

from collections.abc import Iterable, Iterator
from time import perf_counter
from typing import TypeVar

Batch = TypeVar("Batch")


class Pace:
    """A clock that runs while batches are waited for and learnt from, and stands while a network is validated or saved."""

    def __init__(self, crops: int) -> None:
        """crops: how many a step sees, on all workers together."""
        self._crops = crops
        self._steps, self._waiting, self._learning, self._ready = 0, 0.0, 0.0, 0.0

    def batches(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches; the time until each is there is waiting."""
        iterator = iter(batches)
        while True:
            begin = perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._ready = perf_counter()
            self._waiting += self._ready - begin
            yield batch

    def step(self) -> None:
        """Count a step, which took from the last batch until now."""
        self._steps += 1
        self._learning += perf_counter() - self._ready

    def speed(self) -> dict[str, float]:
        """Since it was last asked: steps_per_s, crops_per_s, and wait_share, the share of time that data was waited for."""
        seconds = max(self._waiting + self._learning, 1e-9)
        rate, share = self._steps / seconds, self._waiting / seconds
        self._steps, self._waiting, self._learning = 0, 0.0, 0.0
        return {"steps_per_s": rate, "crops_per_s": rate * self._crops, "wait_share": share}
