"""A rank's crops, cut by Ray Data where there is room. Cutters are processes without PyTorch, which takes seconds to import."""

from collections.abc import Iterator
from typing import Any

from perfuse import sampling
from perfuse.training import TrainingJob
from perfuse_jobs.session import quieten

CUTTERS, CUTTER_CPUS = 2, 0.5
MOST_BLOCKS = 1024


def batches(job: TrainingJob, rank: int, world: int, first_step: int) -> Iterator[dict[str, Any]]:
    """A rank's batches, in order, from its own Ray Data pipeline: descriptors of groups of steps in, steps out.

    Where the scans fit in half the memory of the rank's GPU they stay there, and nothing else cuts.
    """
    from perfuse.sampling.resident import feed_resident, fits

    if fits(job):
        yield from feed_resident(job, "cuda", rank, world, first_step)
        return
    import ray.data
    from ray.data import TaskPoolStrategy

    quieten()
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # a block a step, so that a step is on its way as soon as it is cut
    rows = list(sampling.rows(job, rank, world, first_step))
    if not rows:
        return
    steps = ray.data.from_items(rows, override_num_blocks=min(len(rows), MOST_BLOCKS)).map_batches(
        _cut,
        fn_kwargs={"job": job.model_dump_json()},
        batch_size=1,
        num_cpus=CUTTER_CPUS,
        compute=TaskPoolStrategy(size=CUTTERS),
    )
    for batch in steps.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=2):
        yield {name: values[0] for name, values in batch.items()}


def _cut(row: dict[str, Any], job: str) -> Iterator[dict[str, Any]]:
    import numpy as np

    parsed = TrainingJob.model_validate_json(job)
    for crops in sampling.cut(parsed, {name: int(values[0]) for name, values in row.items()}):
        yield {name: np.asarray(values)[None] for name, values in crops.items()}
