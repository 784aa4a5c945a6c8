"""What an ingest will take, from its plan and a few slices that are read and compressed on trial; writes nothing."""

import time
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod

from numcodecs import Blosc

from perfuse.geometry import Box, Index3, blocks, index3
from perfuse.shards import SHUFFLES
from perfuse.volumes import Layout, Level, shard_shape
from perfuse_ingest.job import Job
from perfuse_ingest.sources.source import Voxels

TRIAL_SLICES = 8
TRIAL_CHUNKS = 64


@dataclass(frozen=True)
class Estimate:
    """Sizes in bytes. What rests on the trial is an estimate: output_bytes and seconds."""

    scan: str
    shape_zyx: Index3
    dtype: str
    voxel_size_um: list[float]
    levels: int
    input_bytes: int
    """At most: as many slices as there are, each as large as the largest."""
    voxel_bytes: int
    """Of level 0, not compressed."""
    output_bytes: int
    objects: int
    """Files, or objects in a store."""
    tasks: int
    in_bands: bool
    peak_bytes: int
    scratch_bytes: int
    seconds: float


def estimate(job: Job) -> Estimate:
    """Read and compress a few slices from the middle, and multiply."""
    source, plan = job.source, job.plan
    with ThreadPoolExecutor(plan.threads) as pool:
        begun = time.perf_counter()
        voxels = _trial(job, pool)
        reading = (time.perf_counter() - begun) / voxels.size
    cuts = list(blocks(index3(voxels.shape), (len(voxels), plan.layout.chunk, plan.layout.chunk)))
    chosen = [voxels[cut.slices] for cut in cuts[:: max(1, len(cuts) // TRIAL_CHUNKS)]]
    begun = time.perf_counter()
    codec = _codec(plan.layout)
    compressed = sum(len(codec.encode(part.copy())) for part in chosen)
    raw = sum(part.nbytes for part in chosen)
    compressing = (time.perf_counter() - begun) / raw
    total = sum(prod(level.shape_zyx) for level in job.levels) * source.dtype.itemsize
    return Estimate(
        scan=job.url,
        shape_zyx=source.shape_zyx,
        dtype=str(source.dtype),
        voxel_size_um=list(job.about["voxel_size_um"]),
        levels=len(job.levels),
        input_bytes=source.largest_bytes * len(source.names) * source.passes,
        voxel_bytes=prod(source.shape_zyx) * source.dtype.itemsize,
        output_bytes=int(total * compressed / raw),
        objects=sum(_shards(level, plan.layout) for level in job.levels),
        tasks=sum(-(-level.shape_zyx[0] // plan.layout.chunk) for level in job.levels),
        in_bands=plan.in_bands,
        peak_bytes=plan.peak_bytes,
        scratch_bytes=plan.scratch_bytes,
        seconds=prod(source.shape_zyx) * reading * source.passes + total * compressing / plan.threads,
    )


def _trial(job: Job, pool: Executor) -> Voxels:
    """Voxels from the middle: some slices, or a band of rows where slices do not fit in memory whole."""
    source, (depth, rows, columns) = job.source, job.source.shape_zyx
    if job.plan.in_bands and source.cuts_rows:
        high = shard_shape(source.shape_zyx, job.plan.layout)[1]
        first = rows // 2 // high * high
        return source.rows(Box((0, first, 0), (min(depth, TRIAL_SLICES), min(rows, first + high), columns)), pool)
    count = 1 if job.plan.in_bands else min(depth, TRIAL_SLICES)
    first = (depth - count) // 2
    return source.read(Box((first, 0, 0), (first + count, rows, columns)), pool)[0]


def _codec(layout: Layout) -> Blosc:
    return Blosc(layout.codec, layout.clevel, SHUFFLES[layout.shuffle])


def _shards(level: Level, layout: Layout) -> int:
    shard = shard_shape(level.shape_zyx, layout)
    return prod(-(-n // s) for n, s in zip(level.shape_zyx, shard, strict=True))
