"""Batches of crops: bricks are read ahead and kept while they are needed, crops are cut by threads, in order and in bounded memory."""

import os
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from perfuse.errors import PlanError, RecipeError
from perfuse.recipes import Recipe
from perfuse.sampling import cutting
from perfuse.sampling.bricks import Brick, Memory, PlacedBrick, read_brick
from perfuse.sampling.grid_order import GridOrder
from perfuse.sampling.places import HELD_VOXELS, Place, Window
from perfuse.sampling.random_order import GROUP_STEPS, RandomOrder
from perfuse.sampling.sources import opened
from perfuse.training.job import TrainingJob

Crops = dict[str, npt.NDArray[Any]]

BRICK_BYTES = 4 * HELD_VOXELS
"""Of all bricks that are held at a time, at most; besides, the memory of two that are gone waits for the next ones."""
BATCH_BYTES = 1 << 30
"""Of all batches that are ready or being cut, unless two are larger."""
MOST_AHEAD = 8
"""Batches that are kept ready."""
MOST_THREADS = 8


class Order(Protocol):
    """Which crops are seen: both are pure functions of the job."""

    def place(self, step: int, position: int) -> Place:
        """The brick of which the crop at a position of a step is cut."""

    def window(self, step: int, position: int, brick: PlacedBrick) -> Window:
        """Where in its brick it lies."""

    def read(self, batches: int, shares: Sequence[range] = ()) -> Iterator[Place]:
        """The bricks that so many batches are cut of, each as often as it has to be read.

        By one process that goes through them; shares: of ranks, by whom each row (see `sampling.rows`) is cut apart from others.
        """


def order_of(job: TrainingJob) -> Order:
    """The order in which a job sees crops."""
    return GridOrder(job) if job.recipe.sampling.order == "grid" else RandomOrder(job)


def positions(recipe: Recipe, rank: int, world: int) -> range:
    """A rank's share of each batch; shares differ by one crop at most. Raises RecipeError when some rank would get none."""
    if world > recipe.batch:
        raise RecipeError(
            f"batch = {recipe.batch} cannot be shared by {world} workers. Use at most {recipe.batch}, or a larger batch."
        )
    return range(rank * recipe.batch // world, (rank + 1) * recipe.batch // world)


def threads() -> int:
    """How many threads read bricks, and how many cut crops: one a core."""
    return min(os.cpu_count() or 1, MOST_THREADS)


class Cutter:
    """Cuts the batches of a job, any of them at any time; holds the bricks that were used last."""

    def __init__(self, job: TrainingJob) -> None:
        self.job = job
        self.order = order_of(job)
        self._sources = [opened(sources, job.recipe.normalisation) for sources in job.scans()]
        self._shape = cutting.CropShape.of(job.recipe)
        self._readers = ThreadPoolExecutor(threads(), "perfuse-reader")
        self._bricks: OrderedDict[Place, Future[Brick]] = OrderedDict()
        self._lock = Lock()
        self._memory = Memory()

    def __enter__(self) -> "Cutter":
        return self

    def __exit__(self, *error: object) -> None:
        self._readers.shutdown(cancel_futures=True)

    def places(self, step: int, wanted: range) -> list[Place]:
        """The bricks that positions of a step are cut of."""
        return list(dict.fromkeys(self.order.place(step, position) for position in wanted))

    def read(self, place: Place) -> "Future[Brick]":
        """A brick that is held, or is being read from now on; those that were used longest ago make room for it."""
        with self._lock:
            if place not in self._bricks:
                self._make_room(self.bytes_of(place))
                self._bricks[place] = self._readers.submit(read_brick, self._sources[place.source], place, self._memory)
            self._bricks.move_to_end(place)
            return self._bricks[place]

    def _make_room(self, wanted: int) -> None:
        held = sum(map(self.bytes_of, self._bricks))
        while self._bricks and held + wanted > BRICK_BYTES:
            place, _ = self._bricks.popitem(last=False)
            held -= self.bytes_of(place)

    def bytes_of(self, place: Place) -> int:
        """Memory of a brick."""
        return place.box.size * self._sources[place.source].voxel_bytes()

    def look_ahead(self, step: int, wanted: range) -> None:
        """Begin to read what the steps of the next group need, as far as there is room beside what this one needs.

        Raises PlanError as `check`.
        """
        needed = self.check(step, wanted)
        now = self.places(step, wanted)
        later = min(step + GROUP_STEPS, self.job.recipe.batches - 1)
        for place in dict.fromkeys([*now, *self.places(later, wanted)]):
            needed += 0 if place in now else self.bytes_of(place)
            if needed <= BRICK_BYTES:
                self.read(place)

    def check(self, step: int, wanted: range) -> int:
        """Memory of the bricks of a step; PlanError when they do not fit."""
        now = self.places(step, wanted)
        needed = sum(map(self.bytes_of, now))
        if needed > BRICK_BYTES:
            raise PlanError(
                f"The {len(now)} bricks of a step take {needed >> 20} MiB, and {BRICK_BYTES >> 20} MiB may be held. "
                "Choose a smaller crop (--set crop=…), or more workers."
            )
        return needed

    def batch(self, step: int, wanted: range) -> Crops:
        """The crops at some positions of a step, in their order; see `perfuse.sampling.cut`."""
        bricks = {place: self.read(place) for place in self.places(step, wanted)}
        image, target, known = self._shape.empty(len(wanted))
        recipe = self.job.recipe
        for number, position in enumerate(wanted):
            brick = bricks[self.order.place(step, position)].result()
            source = self._sources[brick.place.source]
            scale = cutting.scaling(source.low, source.high, recipe.normalisation)
            window = self.order.window(step, position, brick)
            cutting.cut(brick, window, self._shape, scale, (image[number], target[number], known[number]))
        return {
            "step": np.asarray(step),
            "position": np.asarray(wanted),
            "image": image,
            "target": target,
            "known": known,
        }


def feed(job: TrainingJob, rank: int = 0, world: int = 1, first_step: int = 0) -> Iterator[Crops]:
    """A rank's batches from `first_step` to the end, in order, cut by threads while the caller works on those before.

    Holds at most BRICK_BYTES of bricks and BATCH_BYTES of batches; a batch is as `perfuse.sampling.cut` makes it.
    """
    wanted = positions(job.recipe, rank, world)
    ahead = batches_ahead(job.recipe, len(wanted))
    ready: deque[Future[Crops]] = deque()
    with Cutter(job) as cutter, ThreadPoolExecutor(threads(), "perfuse-cutter") as pool:
        try:
            for step in range(first_step, job.recipe.batches):
                cutter.look_ahead(step, wanted)
                ready.append(pool.submit(cutter.batch, step, wanted))
                if len(ready) > ahead:
                    yield ready.popleft().result()
            while ready:
                yield ready.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def batch_bytes(recipe: Recipe, crops: int) -> int:
    """Memory of a batch: image, target and known, float32."""
    return sum(part.nbytes for part in cutting.CropShape.of(recipe).empty(crops))


def batches_ahead(recipe: Recipe, crops: int) -> int:
    """How many batches are kept ready besides those that are being cut."""
    return int(np.clip(BATCH_BYTES // batch_bytes(recipe, crops) - threads(), 1, MOST_AHEAD))
