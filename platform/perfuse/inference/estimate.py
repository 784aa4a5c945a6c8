"""What a prediction would take, with the time that it would run here. Nothing is written."""

from perfuse.bundle import Model
from perfuse.catalog import Scan
from perfuse.geometry import Box
from perfuse.inference.planning import PredictionPlan, batches_of, plan
from perfuse.inference.prediction import Prediction
from perfuse.inference.preparing import prepare


class Estimate(PredictionPlan):
    """A plan with times, measured on this machine in a few seconds."""

    slabs_left: int
    """That nobody has done before."""
    device: str
    backends: tuple[str, ...]
    """Of the members, in their order: what was chosen for the scan before, else what is usual; long jobs may find a faster one."""
    network_seconds: float
    """Of all networks over the slabs that are left, by all workers: beside them the rest of the work is hidden."""
    largest_difference: float
    """Of a probability, from that of the network as it was trained; see `Choice`."""
    swapped: float
    """Share of voxels on the other side of the threshold, of the member with the most."""


def estimate(
    scan: Scan,
    model: Model,
    output: str,
    roi: Box | None = None,
    *,
    memory_bytes: int | None = None,
    workers: int = 1,
    pace: float = 1.0,
) -> Estimate:
    """Count the work and what is left of it, and time a batch of each member.

    workers: processes that share the slabs, each at so many times the `pace` of this one. The rest, and what it raises, is as
    in `prepare`; PerfuseError for a network that does not answer.
    """
    prediction = prepare(scan.url, model, output, roi=roi, memory_bytes=memory_bytes, plan=True)
    choices = [member.choice for member in prediction.members]
    seeing = [(member, axes) for member, axes in zip(prediction.members, prediction.seeing, strict=True) if axes]
    forwards = [m.forward.changed(axes=tuple("zyx"[a] for a in axes), axis_weights=()) for m, axes in seeing]
    left = prediction.slabs_left()
    return Estimate(
        **plan(scan, *forwards, roi=roi, slab_planes=[m.slab for m, _ in seeing]).model_dump(),
        slabs_left=len(left),
        device=prediction.device,
        backends=tuple(choice.backend for choice in choices),
        network_seconds=_seconds(prediction, left) / (pace * max(1, min(workers, len(left)))),
        largest_difference=max(choice.largest_difference for choice in choices),
        swapped=max(choice.swapped for choice in choices),
    )


def _seconds(prediction: Prediction, rows: list[dict[str, int]]) -> float:
    """Of one process like this one."""
    scan, seconds = Scan.open(prediction.scan_url), 0.0
    regions = [prediction.region(scan, member) for member in prediction.members]
    for row in rows:
        member, region = prediction.members[row["member"]], regions[row["member"]]
        batches = batches_of(region, member.forward, row["axis"], (row["start"], row["stop"]))
        seconds += batches * member.choice.seconds[member.choice.backend].batch
    return seconds
