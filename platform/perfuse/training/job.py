"""A training job: recipe, scans and a folder that is named by the digest of both."""

import math
from collections.abc import Mapping, Sequence

from pydantic import Field

from perfuse import storage
from perfuse.bundle import Bundle
from perfuse.catalog import Scan
from perfuse.contract import Contract, Forward, Frozen
from perfuse.errors import RecipeError
from perfuse.finding import find_scans, preferred_label
from perfuse.geometry import Box, Index3
from perfuse.models import with_source
from perfuse.recipes import Recipe
from perfuse.recipes.checking import check_judge, check_pixels, check_planes, pixels
from perfuse.splits import divide, labelled, split_by_donor
from perfuse.training import checkpoints
from perfuse.training.initial import pinned

PLACES = {"url", "ancestry"}
"""Of a source: where it lies and what its label is called by; its digests say what it is."""


class Source(Frozen):
    """A scan with the label that is used of it."""

    url: str
    specimen: str
    donor: str
    label: str
    class_name: str = Field("", exclude_if=lambda name: not name)
    """Whose label it is, where the recipe has several classes; a scan is a source once for each class that it has a label of."""
    ancestry: tuple[tuple[str, str], ...] = ()
    """Other donors whose data are in the label, each with the way that they took: `LabelInfo.donors`."""
    scan_digest: str
    label_digest: str
    organ: tuple[str, ...] = ()
    """`Scan.organ_identity`: normalisation and sampling follow from it."""
    box: tuple[Index3, Index3] | None = None
    """The only part that is seen, first voxel and one after the last; None: all."""

    def extent(self, shape_zyx: Index3) -> Box:
        """The box of the scan, of this shape, that is seen."""
        return Box(*self.box) if self.box else Box.whole(shape_zyx)


class TrainingJob(Frozen):
    """All that workers need to know; JSON-able."""

    recipe: Recipe
    train: tuple[Source, ...] = Field(min_length=1)
    validation: tuple[Source, ...]
    """Choose the checkpoint; where there are none the last is kept."""
    initial: tuple[tuple[str, str], ...] = ()
    """Donors whose data are in the weights that it starts from, each with the way that they took."""
    folder: str
    """URL of the folder for checkpoints; its name is the key."""
    key: str
    """Digest of recipe, voxels and labels: the same key is never trained twice."""
    pixel_um: tuple[float, float]
    """The finest and the coarsest pixel that is trained on."""

    def __hash__(self) -> int:
        return hash(self.key)

    def scans(self) -> list[tuple[Source | None, ...]]:
        """Of each training scan its sources: one for each class, None where it has no label of that class."""
        classes = self.recipe.segmenter.class_names
        found: dict[str, dict[str, Source]] = {}
        for source in self.train:
            found.setdefault(source.url, {})[source.class_name] = source
        return [tuple(sources.get(name) for name in classes) for sources in found.values()]

    def donors(self) -> dict[str, str]:
        """All donors whose data the training learns from, each with the way that they took, from the end to the beginning."""
        own = {s.donor: f"{s.label} of {s.specimen}" for s in self.train}
        return own | self.inherited() | own

    def inherited(self) -> dict[str, str]:
        """Those of `donors` that it has from elsewhere: by the labels, or by the weights that it starts from."""
        found: dict[str, str] = {}
        for source in self.train:
            for donor, path in source.ancestry:
                found.setdefault(donor, f"{source.label} of {source.specimen} ← {path}")
        for donor, path in self.initial:
            found.setdefault(donor, f"initial weights ← {path}")
        return found

    def forward(self) -> Forward:
        """The forward contract that a network trained by this job gets."""
        return self.recipe.forward(self.recipe.allowed(self.pixel_um))


def plan_job(
    recipe: Recipe,
    data_url: str,
    storage_url: str,
    *,
    selects: bool = True,
    taken: Mapping[str, str] | None = None,
) -> TrainingJob:
    """Choose scans by donor and give the job its key; reads metadata only.

    selects: some donors choose the checkpoint, and are kept out of what is learnt from. False: none does.
    taken: by URL the label to take of a scan, of those that the recipe lists; of others the first that the scan holds.
    Raises RecipeError when the split is impossible, or a donor that selects, though only by part of a scan, is in the
    ancestry of a label or of the initial weights; ScanError when there are no scans.
    """
    scans = find_scans(data_url)
    train, validation = (
        _within(recipe, scans) if recipe.within and selects else _by_donor(recipe, scans, taken or {}, selects=selects)
    )
    _check_classes(recipe, train=train, validation=validation)
    by_url = {scan.url: scan for scan in scans}
    for source in train:
        check_planes(recipe, source.specimen, by_url[source.url].shape_zyx)
        check_pixels(recipe, source.specimen, by_url[source.url].info.voxel_size_um)
    pixel_um = pixels(recipe, (by_url[source.url].info.voxel_size_um for source in train))
    for scan in (by_url[source.url] for source in validation):
        check_judge(recipe, pixel_um, scan.info.id, scan.info.voxel_size_um)
    recipe = _pinned(recipe, storage_url)
    key = storage.digest_json(
        {
            "recipe": recipe.model_dump(mode="json"),
            "train": [s.model_dump(mode="json", exclude=PLACES) for s in train],
            "validation": [s.model_dump(mode="json", exclude=PLACES) for s in validation],
        }
    )
    job = TrainingJob(
        recipe=recipe,
        train=train,
        validation=validation,
        initial=tuple(_initial(recipe, storage_url).items()),
        folder=storage.join(storage_url, key[:16]),
        key=key,
        pixel_um=pixel_um,
    )
    _check_unseen(job)
    return job


def _initial(recipe: Recipe, storage_url: str) -> dict[str, str]:
    """Donors whose data are in the weights that the recipe starts from: a model's, or those of a training RUN@STEP."""
    start = recipe.init_from
    if start is None:
        return {}
    if start.startswith(("models:/", "runs:/")):
        from perfuse.registry import donors_of

        return donors_of(start)
    state = checkpoints.load(storage.join(storage_url, start.partition("@")[0]))
    if state is None:
        raise RecipeError(f"init_from = {start}: there is no such training under {storage_url}.")
    return {donor: f"{start} ← {path}" for donor, path in state["donors"].items()}


def _check_unseen(job: TrainingJob) -> None:
    for source in job.validation:
        seen = job.donors() if source.box is None else job.inherited()
        if source.donor in seen:
            surely = "is" if source.box is None else "may wholly be"
            raise RecipeError(
                f"Donor {source.donor!r} is to choose the checkpoint, and {surely} in what it is trained on: {seen[source.donor]}. "
                "Choose another validation donor (--set validation=…), or labels and initial weights that were made without this one."
            )


def _pinned(recipe: Recipe, storage_url: str) -> Recipe:
    """The recipe with what it names written down as what it names today: a network's source, weights to start from."""
    start = recipe.init_from and pinned(recipe.init_from, storage_url)
    return recipe.model_copy(update={"network": with_source(recipe.network), "init_from": start})


def _by_donor(
    recipe: Recipe, scans: Sequence[Scan], taken: Mapping[str, str], *, selects: bool
) -> tuple[tuple[Source, ...], tuple[Source, ...]]:
    number, _, count = (recipe.fold or "").partition("/")
    split = split_by_donor(
        scans,
        classes=recipe.classes.values(),
        train=recipe.train,
        validation=recipe.validation if selects else None,
        holdout=recipe.holdout,
        fold=(int(number), None if count == "all" else int(count)) if recipe.fold else None,
    )
    validation = tuple(source for scan in split.validation for source in _sources(scan, recipe, taken))
    for source in validation:
        kind = Scan.open(source.url).label_info(source.label).kind
        if kind != "dense":
            raise RecipeError(
                f"Validation needs dense labels; {source.label!r} of {source.specimen} is "
                f"{kind}. Choose another specimen by --set validation=…"
            )
    return tuple(source for scan in split.train for source in _sources(scan, recipe, taken)), validation


def _within(recipe: Recipe, scans: Sequence[Scan]) -> tuple[tuple[Source, ...], tuple[Source, ...]]:
    """The labelled scans that train, and those parts of the dense ones that validate."""
    reach = recipe.crop + (recipe.network.planes - 1) * recipe.network.plane_stride
    train: list[Source] = []
    validation: list[Source] = []
    for scan in labelled(scans, classes=recipe.classes.values(), train=recipe.train, holdout=recipe.holdout):
        sources = _sources(scan, recipe, {})
        if any(scan.label_info(source.label).kind != "dense" for source in sources):
            train += sources
            continue
        gap = math.ceil(reach * recipe.sampling.factors(scan.info.voxel_size_um)[1])
        for side, box in zip((train, validation), divide(scan.shape_zyx, recipe.within or 0, gap), strict=True):
            side += [source.model_copy(update={"box": (box.start, box.stop)}) for source in sources]
    if not validation:
        raise RecipeError(
            f"within = {recipe.within:g} needs a densely labelled scan, and there is none. Add labels (`perfuse labels add`)."
        )
    return tuple(train), tuple(validation)


def _sources(scan: Scan, recipe: Recipe, taken: Mapping[str, str]) -> list[Source]:
    """The scan with its label of each class that it has one of."""
    named = [taken[scan.url]] if scan.url in taken else None
    there = {name: labels for name, labels in recipe.classes.items() if not scan.labels().keys().isdisjoint(labels)}
    infos = {name: scan.label_info(preferred_label(scan, named or labels)) for name, labels in there.items()}
    return [
        Source(
            url=scan.url,
            specimen=scan.info.specimen,
            donor=scan.info.donor,
            ancestry=tuple(info.donors.items()),
            label=info.name,
            class_name=name,
            scan_digest=scan.info.digest,
            label_digest=info.digest,
            organ=tuple(scan.organ_identity),
        )
        for name, info in infos.items()
    ]


def _check_classes(recipe: Recipe, **sides: Sequence[Source]) -> None:
    """RecipeError when no scan of a side has a label of some class."""
    for name, labels in recipe.classes.items():
        for side, sources in sides.items():
            if sources and name not in {source.class_name for source in sources}:
                raise RecipeError(
                    f"Class {name!r}: no scan for {side} has one of its labels {', '.join(labels)}. Add one (`perfuse labels "
                    f"add`), or name scans that have one: --set {side}=…"
                )


def is_finished(job: TrainingJob) -> bool:
    """True when a job is at the end of its schedule."""
    return checkpoints.has_reached(job.folder, job.recipe.steps)


def finished_bundle(job: TrainingJob) -> Bundle:
    """The bundle of a finished job: the best averaged weights, the contract, and where they come from."""
    state = checkpoints.load(job.folder)
    if state is None or not is_finished(job):
        raise RecipeError(f"The training in {job.folder} is not finished. Run the same `perfuse train` again.")
    lineage = {
        "key": job.key,
        "recipe": job.recipe.model_dump(mode="json"),
        "train": [s.model_dump(mode="json") for s in job.train],
        "validation": [s.model_dump(mode="json") for s in job.validation],
        "donors": job.donors(),
        "steps": state["step"],
        "best_step": state["best_step"],
        "origin": state["origin"],
    }
    return Bundle(Contract(forward=job.forward()), state["best"], lineage)
