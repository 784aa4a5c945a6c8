"""Training crops as a pure function: crop = f(seed, step, position in the global batch). A step here is one batch.

A *brick* is a box of a scan that is read once and gives many crops. Which bricks and crops a step sees follows from the recipe's
order alone (`random_order`, `grid_order`), whoever cuts them: the crops of a step are the same for any number of workers,
and a run goes on at any step. `rows` and `cut` are for those who carry descriptors to where crops are cut;
`feed` cuts them here, with threads.
"""

from collections.abc import Iterator
from functools import lru_cache

from perfuse.sampling.feeding import Crops, Cutter, feed, positions
from perfuse.sampling.random_order import GROUP_STEPS
from perfuse.training.job import TrainingJob

__all__ = ["Crops", "Cutter", "Row", "cut", "feed", "positions", "rows"]

Row = dict[str, int]


def rows(job: TrainingJob, rank: int, world: int, first_step: int) -> Iterator[Row]:
    """Descriptors of what a rank feeds itself with, one per group of steps, from `first_step` to the end.

    Raises RecipeError when there are more workers than crops in a batch.
    """
    positions(job.recipe, rank, world)
    step = first_step
    while step < job.recipe.batches:
        stop = min((step // GROUP_STEPS + 1) * GROUP_STEPS, job.recipe.batches)
        yield {"first_step": step, "stop_step": stop, "rank": rank, "world": world}
        step = stop


def cut(job: TrainingJob, row: Row) -> Iterator[Crops]:
    """Read the bricks of a row and cut its crops: one dict a step. Bricks are held for the next row of this process.

    step: int64; position: int64[b], in the global batch; image: float32[b, planes, h, w], normalised; target:
    float32[b, classes · segmented planes, h, w], class by class, 0 … 1; known: float32 as target, 0 or 1.
    """
    cutter = _cutter(job)
    wanted = positions(job.recipe, row["rank"], row["world"])
    for step in range(row["first_step"], row["stop_step"]):
        yield cutter.batch(step, wanted)


@lru_cache(maxsize=1)
def _cutter(job: TrainingJob) -> Cutter:
    return Cutter(job)
