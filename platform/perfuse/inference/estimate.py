"""What a prediction would take, with the time that it would run here. Nothing is written."""

from perfuse.bundle import Model
from perfuse.catalog import Scan
from perfuse.geometry import Box
from perfuse.inference.choosing import foreseen
from perfuse.inference.planning import PredictionPlan, batches, plan
from perfuse.inference.preparing import check_roi
from perfuse.models import best_device


class Estimate(PredictionPlan):
    """A plan with times, measured on this machine in a few seconds."""

    device: str
    backends: tuple[str, ...]
    """Of the members, in their order: what was chosen for the scan before, else what is usual; long jobs may find a faster one."""
    network_seconds: float
    """Of all networks, on one such device: beside them the rest of the work is hidden."""
    largest_difference: float
    """Of a probability, from that of the network as it was trained; see `Choice`."""
    swapped: float
    """Share of voxels on the other side of the threshold, of the member with the most."""


def estimate(scan: Scan, model: Model, roi: Box | None = None) -> Estimate:
    """Count the work, and time a batch of each member.

    roi: in voxels of the scan. Raises ContractError for a scan that the contract forbids, PerfuseError for a network that does not answer.
    """
    device = best_device()
    check_roi(scan, roi)
    forwards = [member.contract.forward for member in model.members]
    for forward in forwards:
        forward.check_voxel_size(scan.info.voxel_size_um, scan.info.id)
    choices = [foreseen(scan, member, model.threshold, device) for member in model.members]
    seconds = [
        choice.seconds[choice.backend].batch * batches(scan, forward, roi)
        for choice, forward in zip(choices, forwards, strict=True)
    ]
    return Estimate(
        **plan(scan, *forwards, roi=roi).model_dump(),
        device=device,
        backends=tuple(choice.backend for choice in choices),
        network_seconds=sum(seconds),
        largest_difference=max(choice.largest_difference for choice in choices),
        swapped=max(choice.swapped for choice in choices),
    )
