"""From a scan and a model to the prediction that is wanted of them: checks, keys, and whether it is there already."""

from perfuse import storage, volumes
from perfuse.bundle import Bundle, Model
from perfuse.catalog import LabelInfo, Scan
from perfuse.contract import Fusion, of_class
from perfuse.errors import ContractError, PlanError
from perfuse.geometry import Box
from perfuse.inference.choosing import choose
from perfuse.inference.members import Member
from perfuse.inference.planning import PredictionPlan, batches, plan
from perfuse.inference.prediction import Prediction
from perfuse.labels import check_output
from perfuse.models import best_device


def prepare(
    scan_url: str, model: Model, output: str, *, roi: Box | None = None, memory_bytes: int | None = None
) -> Prediction:
    """Check scan against contract, choose device and backend, and give the work its key.

    roi: the voxels of the scan that are predicted; None: all. memory_bytes: what an actor may use, for PlanError.
    Raises ContractError for a voxel size that the contract forbids or a member named twice, ScanError for a missing scan or
    an output that cannot be written, PlanError when a slab does not fit in memory or the region lies outside.
    """
    scan = Scan.open(scan_url)
    for name in model.class_names:
        check_output(scan, of_class(output, name))
    forwards = [member.contract.forward for member in model.members]
    for forward in forwards:
        forward.check_voxel_size(scan.info.voxel_size_um, scan.info.id)
    check_roi(scan, roi)
    _check_fits(plan(scan, *forwards, roi=roi), memory_bytes)
    device = best_device()
    if len({bundle.forward_digest() for bundle in model.members}) < len(model.members):
        raise ContractError(f"{model.uri}: a member is named twice. Name each model once.")
    members = tuple(_member(scan, model, bundle, device, roi) for bundle in model.members)
    keys = [member.key for member in members]
    fusion = model.fusion
    return Prediction(
        scan_url=scan.url,
        output=output,
        key=storage.digest_json(sorted(keys) if fusion == Fusion() else [keys, fusion.model_dump(mode="json")]),
        members=members,
        device=device,
        fusion=fusion,
        roi=None if roi is None else (roi.start, roi.stop),
    )


def _member(scan: Scan, model: Model, bundle: Bundle, device: str, roi: Box | None) -> Member:
    forward = bundle.contract.forward
    choice = choose(scan, bundle, model.threshold, device, batches(scan, forward, roi))
    voxels = [scan.info.digest, *scan.organ_identity, *([] if roi is None else [roi.start, roi.stop])]
    return Member(
        key=storage.digest_json([*voxels, bundle.forward_digest(), choice.backend, device]),
        seen_key=storage.digest_json([*voxels, bundle.seen_digest(), choice.backend, device]),
        forward=forward,
        choice=choice,
    )


def check_roi(scan: Scan, roi: Box | None) -> None:
    """PlanError for a region of a scan that is empty or lies outside."""
    if roi is not None and (roi.empty or roi.intersect(Box.whole(scan.shape_zyx)) != roi):
        raise PlanError(
            f"The region {roi.start} to {roi.stop} (z, y, x) must hold a voxel and lie inside the scan, which has "
            f"{' × '.join(map(str, scan.shape_zyx))}."
        )


def _check_fits(wanted: PredictionPlan, memory_bytes: int | None) -> None:
    if memory_bytes is not None and wanted.peak_bytes > memory_bytes:
        raise PlanError(
            f"A slab needs {wanted.peak_bytes / 2**30:.1f} GiB of memory; an actor may use {memory_bytes / 2**30:.1f} GiB. "
            "Use fewer actors or a machine with more memory."
        )


def already_done(prediction: Prediction, model: Model) -> tuple[LabelInfo, ...] | None:
    """The finished labels, if they have this very key; their thresholds are brought up to date, which reruns no network."""
    scan = Scan.open(prediction.scan_url)
    there = scan.labels()
    infos = [there[name] for name in prediction.outputs if name in there and there[name].key == prediction.key]
    if len(infos) < len(prediction.outputs):
        return None
    for number, info in enumerate(infos):
        made_by = prediction.made_by(model, number)
        if info.model != made_by:
            infos[number] = info.model_copy(update={"model": made_by})
            label = volumes.open_group(storage.join(scan.url, "labels", info.name), "r+")
            label.attrs["perfuse"] = infos[number].model_dump(mode="json")
    return tuple(infos)
