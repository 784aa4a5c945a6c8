"""From a scan and a model to the prediction that is wanted of them: checks, keys, and whether it is there already."""

from collections import Counter

from perfuse import storage, volumes
from perfuse.bundle import Bundle, Model
from perfuse.catalog import LabelInfo, Scan
from perfuse.contract import Fusion, of_class
from perfuse.errors import ContractError, PlanError
from perfuse.geometry import Box
from perfuse.inference.choosing import Choice, choose, foresee, remembered, settled
from perfuse.inference.grid import Grid
from perfuse.inference.members import Member
from perfuse.inference.planning import ENOUGH, batches, thickest
from perfuse.inference.prediction import Prediction
from perfuse.inference.region import Region
from perfuse.inference.scratch import thickness
from perfuse.labels import check_output
from perfuse.memory import available_bytes
from perfuse.models import best_device


def prepare(
    scan_url: str,
    model: Model,
    output: str,
    *,
    roi: Box | None = None,
    memory_bytes: int | None = None,
    plan: bool = False,
) -> Prediction:
    """Check scan against contract, choose device, backend and the thickness of slabs, and give the work its key.

    roi: the voxels of the scan that are predicted; None: all. memory_bytes: what an actor may use besides the network; None:
    what one process has `at_hand`. plan: nothing will be run, so that backends are glimpsed at instead of being measured and
    remembered. Raises ContractError for a voxel size that the contract forbids or a member named twice, ScanError for a
    missing scan or an output that cannot be written, PlanError when no slab fits in memory or the region lies outside.
    """
    scan = Scan.open(scan_url)
    for name in model.class_names:
        check_output(scan, of_class(output, name))
    for bundle in model.members:
        bundle.contract.forward.check_voxel_size(scan.info.voxel_size_um, scan.info.id)
    check_roi(scan, roi)
    memory = at_hand() if memory_bytes is None else memory_bytes
    device = best_device()
    enough = ENOUGH if device == "cpu" and not storage.is_remote(scan.url) else None
    slabs = [thickest(scan, bundle.contract.forward, memory, enough=enough) for bundle in model.members]
    if len({bundle.forward_digest() for bundle in model.members}) < len(model.members):
        raise ContractError(f"{model.uri}: a member is named twice. Name each model once.")

    alike: Counter[str] = Counter()
    """Batches of all members that share logits, and so the choice."""
    for bundle, slab in zip(model.members, slabs, strict=True):
        forward = bundle.contract.forward
        alike[bundle.seen_digest()] += batches(Region.of(Grid.of(scan, forward), forward, roi), forward, slab)
    members = []
    for bundle in model.members:
        choice, count = remembered(scan, bundle, device), alike[bundle.seen_digest()]
        if choice is None and plan:
            choice = foresee(scan, bundle, model.threshold, device)
        begun = choice is not None and thickness(scan.group, _member(scan, bundle, choice, device, roi).scratch)
        if choice is None or not (plan or begun or settled(choice, bundle, device, count)):
            choice = choose(scan, bundle, model.threshold, device, count)
        member = _member(scan, bundle, choice, device, roi)
        there = thickness(scan.group, member.scratch)
        members.append(
            member.model_copy(update={"slab": thickest(scan, bundle.contract.forward, memory, there, enough)})
        )
    thin = {m.scratch: min(other.slab for other in members if other.scratch == m.scratch) for m in members}
    members = [member.model_copy(update={"slab": thin[member.scratch]}) for member in members]
    keys = [member.key for member in members]
    fusion = model.fusion
    return Prediction(
        scan_url=scan.url,
        output=output,
        key=storage.digest_json(sorted(keys) if fusion == Fusion() else [keys, fusion.model_dump(mode="json")]),
        members=tuple(members),
        device=device,
        fusion=fusion,
        roi=None if roi is None else (roi.start, roi.stop),
    )


def at_hand(processes: int = 1) -> int:
    """Bytes that each of some processes on this machine may use besides the network: they share half of what is free."""
    return available_bytes() // 2 // processes


def _member(scan: Scan, bundle: Bundle, choice: Choice, device: str, roi: Box | None) -> Member:
    voxels = [scan.info.digest, *scan.organ_identity, *([] if roi is None else [roi.start, roi.stop])]
    return Member(
        key=storage.digest_json([*voxels, bundle.forward_digest(), choice.backend, device]),
        seen_key=storage.digest_json([*voxels, bundle.seen_digest(), choice.backend, device]),
        forward=bundle.contract.forward,
        choice=choice,
    )


def check_roi(scan: Scan, roi: Box | None) -> None:
    """PlanError for a region of a scan that is empty or lies outside."""
    if roi is not None and (roi.empty or roi.intersect(Box.whole(scan.shape_zyx)) != roi):
        raise PlanError(
            f"The region {roi.start} to {roi.stop} (z, y, x) must hold a voxel and lie inside the scan, which has "
            f"{' × '.join(map(str, scan.shape_zyx))}."
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
