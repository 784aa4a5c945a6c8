"""A rank's crops, cut by Ray Data where there is room. Cutters are processes without PyTorch, which takes seconds to import."""

from collections.abc import Iterator
from typing import Any

from perfuse import sampling
from perfuse.training import TrainingJob
from perfuse_jobs.session import quieten

CUTTER_CPUS = 0.5
"""Logical; what a cutter reads ahead takes more."""
CPUS_OF_A_CUTTER = 2
FEWEST_CUTTERS, MOST_CUTTERS = 2, 8
"""Of each rank; each holds bricks of its own."""
MOST_BLOCKS = 1024
NODE_LABEL = "ray.io/node-id"
"""That Ray gives to every node."""


def batches(job: TrainingJob, rank: int, world: int, first_step: int) -> Iterator[dict[str, Any]]:
    """A rank's batches, in order, from its own Ray Data pipeline: descriptors of groups of steps in, steps out.

    Where the scans fit in half the memory of the rank's GPU they stay there, and nothing else cuts. Nodes with GPUs are spared
    where there are others.
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
    cutters, labels = _room(world)
    steps = ray.data.from_items(rows, override_num_blocks=min(len(rows), MOST_BLOCKS)).map_batches(
        _cut,
        fn_kwargs={"job": job.model_dump_json()},
        batch_size=1,
        num_cpus=CUTTER_CPUS,
        compute=TaskPoolStrategy(size=cutters),
        label_selector=labels,
    )
    for batch in steps.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=2):
        yield {name: values[0] for name, values in batch.items()}


def _room(world: int) -> tuple[int, dict[str, str]]:
    """How many cutters each rank has, and the labels of the nodes where they run: those without GPUs, if there are both kinds."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    with_gpus = [node["NodeID"] for node in nodes if node["Resources"].get("GPU")]
    spared = with_gpus if len(with_gpus) < len(nodes) else []
    cpus = sum(node["Resources"]["CPU"] for node in nodes if node["NodeID"] not in spared)
    cutters = min(max(FEWEST_CUTTERS, int(cpus / CPUS_OF_A_CUTTER / world)), MOST_CUTTERS)
    return cutters, {NODE_LABEL: f"!in({','.join(spared)})"} if spared else {}


def _cut(row: dict[str, Any], job: str) -> Iterator[dict[str, Any]]:
    import numpy as np

    parsed = TrainingJob.model_validate_json(job)
    for crops in sampling.cut(parsed, {name: int(values[0]) for name, values in row.items()}):
        yield {name: np.asarray(values)[None] for name, values in crops.items()}
