"""A training job: recipe, scans and a folder that is named by the digest of both."""

from pydantic import Field

from perfuse import storage
from perfuse.bundle import Bundle
from perfuse.catalog import Scan
from perfuse.contract import Contract, Forward, Frozen
from perfuse.errors import RecipeError
from perfuse.finding import find_scans, preferred_label
from perfuse.models import with_source
from perfuse.recipes import Recipe
from perfuse.recipes.checking import check_planes
from perfuse.splits import split_by_donor
from perfuse.training import checkpoints
from perfuse.training.initial import pinned


class Source(Frozen):
    """A scan with the label that is used of it."""

    url: str
    specimen: str
    label: str
    scan_digest: str
    label_digest: str
    organ: tuple[str, ...] = ()
    """`Scan.organ_identity`: normalisation and sampling follow from it."""


class TrainingJob(Frozen):
    """All that workers need to know; JSON-able."""

    recipe: Recipe
    train: tuple[Source, ...] = Field(min_length=1)
    validation: tuple[Source, ...] = Field(min_length=1)
    folder: str
    """URL of the folder for checkpoints; its name is the key."""
    key: str
    """Digest of recipe, voxels and labels: the same key is never trained twice."""
    pixel_um: tuple[float, float]
    """The finest and the coarsest pixel that is trained on."""

    def forward(self) -> Forward:
        """The forward contract that a network trained by this job gets."""
        recipe = self.recipe
        low, high = self.pixel_um
        return Forward(
            network=recipe.network,
            normalisation=recipe.normalisation,
            voxel_size_um=(low / recipe.voxel_size_range, high * recipe.voxel_size_range),
            axes=recipe.axes,
            tile=recipe.tile,
            overlap=recipe.overlap,
        )


def plan_job(recipe: Recipe, data_url: str, storage_url: str) -> TrainingJob:
    """Choose scans by donor and give the job its key; reads metadata only.

    Raises RecipeError when the split is impossible, ScanError when there are no scans.
    """
    split = split_by_donor(
        find_scans(data_url),
        labels=recipe.labels,
        train=recipe.train,
        validation=recipe.validation,
        holdout=recipe.holdout,
    )
    for scan in split.train:
        check_planes(recipe, scan.info.specimen, scan.shape_zyx)
    train = tuple(_source(s, recipe.labels) for s in split.train)
    validation = tuple(_source(s, recipe.labels) for s in split.validation)
    for source, scan in zip(validation, split.validation, strict=True):
        if scan.labels()[source.label].kind != "dense":
            raise RecipeError(
                f"Validation needs dense labels; {source.label!r} of {source.specimen} is "
                f"{scan.labels()[source.label].kind}. Choose another specimen by --set validation=…"
            )
    recipe = _pinned(recipe, storage_url)
    key = storage.digest_json(
        {
            "recipe": recipe.model_dump(mode="json"),
            "train": [s.model_dump(mode="json", exclude={"url"}) for s in train],
            "validation": [s.model_dump(mode="json", exclude={"url"}) for s in validation],
        }
    )
    pixels = [s for scan in split.train for axis in recipe.axes for s in _pixels(scan, axis)]
    return TrainingJob(
        recipe=recipe,
        train=train,
        validation=validation,
        folder=storage.join(storage_url, key[:16]),
        key=key,
        pixel_um=(min(pixels), max(pixels)),
    )


def _pinned(recipe: Recipe, storage_url: str) -> Recipe:
    """The recipe with what it names written down as what it names today: a network's source, weights to start from."""
    start = recipe.init_from and pinned(recipe.init_from, storage_url)
    return recipe.model_copy(update={"network": with_source(recipe.network), "init_from": start})


def _source(scan: Scan, labels: tuple[str, ...]) -> Source:
    name = preferred_label(scan, labels)
    info = scan.label_info(name)
    return Source(
        url=scan.url,
        specimen=scan.info.specimen,
        label=name,
        scan_digest=scan.info.digest,
        label_digest=info.digest,
        organ=tuple(scan.organ_identity),
    )


def _pixels(scan: Scan, axis: str) -> list[float]:
    return [s for a, s in zip("zyx", scan.info.voxel_size_um, strict=True) if a != axis]


def is_finished(job: TrainingJob) -> bool:
    """True when all steps of a job have been taken."""
    return checkpoints.latest_step(job.folder) >= job.recipe.steps


def finished_bundle(job: TrainingJob) -> Bundle:
    """The bundle of a finished job: the best averaged weights, the contract, and where they come from."""
    state = checkpoints.load(job.folder)
    if state is None or state["step"] < job.recipe.steps:
        raise RecipeError(f"The training in {job.folder} is not finished. Run the same `perfuse train` again.")
    lineage = {
        "key": job.key,
        "recipe": job.recipe.model_dump(mode="json"),
        "train": [s.model_dump(mode="json") for s in job.train],
        "validation": [s.model_dump(mode="json") for s in job.validation],
        "best_step": state["best_step"],
        "origin": state["origin"],
    }
    return Bundle(Contract(forward=job.forward()), state["best"], lineage)
