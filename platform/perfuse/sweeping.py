"""Models by resolution by threshold: what an ensemble is worth, where no network is asked twice.

Each model's logits are kept beside the scan, per axis and resolution; every combination of them is fused from what is kept, and its
scores at all 255 thresholds counted. This is the table by which 3rd place of SenNet + HOA 2023 chose.
"""

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import numpy as np
import numpy.typing as npt
from rich.filesize import decimal

from perfuse import scoring, storage
from perfuse.bundle import Bundle, Ensemble, Model
from perfuse.catalog import Scan
from perfuse.console import say
from perfuse.contract import Blend, Fusion
from perfuse.errors import ContractError, PlanError
from perfuse.geometry import Box
from perfuse.inference.logits import fuse
from perfuse.inference.members import Sight
from perfuse.inference.options import fused_otherwise, seen_otherwise, settings_of
from perfuse.inference.prediction import Prediction
from perfuse.inference.whole import Runner
from perfuse.metrics import Curve, CurveCounts
from perfuse.stacking import Sample, fitted, fitted_mixture, sampled

ALL_OF = 6
"""Seers up to which every combination is looked at; of more: combinations of models by combinations of resolutions, and all but each."""
AT_ONCE = 8
"""Combinations that are counted in a pass: each of them holds blocks of its own."""
ALL_OF_KIND = 4
"""Models, or resolutions, up to which these are every combination; of more: each alone, all but each, and all."""
OUTPUT = "sweep"
Choice = tuple[int, ...]
"""Numbers of seers."""


@dataclass(frozen=True)
class Seer:
    """A model that sees the scans in one of the resolutions."""

    bundle: Bundle
    """As it sees them."""
    settings: tuple[str, ...]
    """key=value over what the model's contract says."""
    model: int
    resolution: int


@dataclass(frozen=True)
class Sweep:
    """What is compared: models, each seen in several resolutions, and how several of them answer as one."""

    model: Model
    views: tuple[str, ...] = ()
    """Settings as of `seen_otherwise`, in all resolutions."""
    resolutions: tuple[tuple[str, ...], ...] = ((),)
    """Settings of each; none: what the contracts say."""
    average: Blend | None = None
    temperatures: tuple[float, ...] = ()
    """One for each model; empty: 1."""
    fit: bool = False
    """Also with weights that are fitted to the scans, see `fitted`: of all models in each resolution, and of all seers."""

    @cached_property
    def seers(self) -> list[Seer]:
        """Model by model; a resolution that is the same to a model as another is left out of it."""
        found: dict[tuple[int, str], Seer] = {}
        for number, bundle in enumerate(self.model.members):
            own = settings_of(self.views, number, len(self.model.members))
            for at, resolution in enumerate(self.resolutions):
                settings = (*own, *resolution)
                (seen,) = seen_otherwise(bundle, settings).members
                found.setdefault((number, seen.forward_digest()), Seer(seen, settings, number, at))
        return list(found.values())

    @property
    def ensemble(self) -> Ensemble:
        """All seers. ContractError for temperatures that are not one for each model, or for a single seer that is to be averaged."""
        models, several = len(self.model.members), len(self.seers) > 1
        if self.temperatures and len(self.temperatures) != models:
            raise ContractError(f"{len(self.temperatures)} temperatures for {models} models: give one for each.")
        if not several and (self.fit or self.average or self.temperatures):
            raise ContractError(
                "One model, seen in one resolution, has no weights to fit and nothing to be averaged with: name several, "
                "or another resolution."
            )
        everyone = Ensemble(tuple(seer.bundle for seer in self.seers), self.model.threshold)
        return replace(everyone, fusion=self.fusion(tuple(range(len(self.seers)))))

    def fusion(self, choice: Choice, weights: Sequence[float] = ()) -> Fusion:
        """How some seers answer as one: what `predict` makes of the same options."""
        if len(choice) == 1:
            return Fusion()
        seers = [self.seers[k] for k in choice]
        temperatures = [self.temperatures[seer.model] for seer in seers] if self.temperatures else []
        together = Ensemble(tuple(seer.bundle for seer in seers), self.model.threshold)
        fused = fused_otherwise(together, self.average, weights, temperatures)
        return fused.fusion if isinstance(fused, Ensemble) else Fusion()

    @property
    def choices(self) -> list[Choice]:
        """The combinations that are looked at."""
        return combined([(seer.model, seer.resolution) for seer in self.seers])

    @property
    def to_fit(self) -> list[Choice]:
        """Those that are looked at with fitted weights, too."""
        if not self.fit:
            return []
        alike = [[k for k, s in enumerate(self.seers) if s.resolution == r] for r in range(len(self.resolutions))]
        return list(dict.fromkeys(tuple(c) for c in [*alike, list(range(len(self.seers)))] if len(c) > 1))


@dataclass(frozen=True)
class Row:
    """One way to answer, and what it scores."""

    seers: tuple[Seer, ...]
    weights: tuple[float, ...]
    """Fitted ones, in thousandths; empty: all count alike."""
    fusion: Fusion
    curve: Curve

    @property
    def arguments(self) -> list[str]:
        """Options by which `predict` answers so."""
        alike = [setting for setting in self.seers[0].settings if all(setting in s.settings for s in self.seers)]
        words = [word for seer in self.seers for word in ("--model", seer.bundle.uri)]
        words += [word for setting in alike for word in ("--set", setting)]
        for number, seer in enumerate(self.seers, 1):
            words += [word for s in seer.settings if s not in alike for word in ("--set", f"{number}:{s}")]
        words += [] if self.fusion.average is None else ["--average", self.fusion.average]
        words += [word for weight in self.weights for word in ("--weight", f"{weight:g}")]
        return words + [word for t in self.fusion.temperatures for word in ("--temperature", f"{t!r}")]


def sweep(scans: Sequence[Scan], wanted: Sweep, truth: str, runner: Runner, class_number: int = 0) -> list[Row]:
    """Scores of the combinations, the counts of all scans added.

    Raises ScanError for truth that is missing or not dense, ContractError for what cannot be averaged, PlanError where the
    logits find no room.
    """
    ensemble = wanted.ensemble
    for scan in scans:
        scoring.check_dense(scan, truth)
    with ExitStack() as held:
        predictions = [runner.prepare(scan.url, ensemble, OUTPUT) for scan in scans]
        for prediction in predictions:
            held.enter_context(prediction.held())
        check_room([(scan.url, _missing(prediction)) for scan, prediction in zip(scans, predictions, strict=True)])
        for prediction in predictions:
            runner.fill(prediction, ensemble)
            for member in prediction.members:
                member.keep(prediction.scan_url)
            prediction.tell_scales(ensemble)
        samples = [sampled(*both, truth, class_number) for both in zip(scans, predictions, strict=True) if wanted.fit]
        ways = [(choice, ()) for choice in wanted.choices] + [
            (choice, _weights(predictions[0], wanted, choice, samples)) for choice in wanted.to_fit
        ]
        fusions = [(choice, wanted.fusion(choice, weights)) for choice, weights in ways]
        counted: list[CurveCounts] = []
        for first in range(0, len(fusions), AT_ONCE):
            counted += _counted(scans, predictions, truth, fusions[first : first + AT_ONCE], class_number)
    return [
        Row(tuple(wanted.seers[k] for k in choice), weights, fusion, counts.curve())
        for (choice, weights), (_, fusion), counts in zip(ways, fusions, counted, strict=True)
    ]


def _missing(prediction: Prediction) -> int:
    seen = zip(prediction.sight().scratches, prediction.seeing, strict=True)
    return sum(along[axis].missing_bytes() for along, axes in seen for axis in axes)


def check_room(needed: Sequence[tuple[str, int]]) -> None:
    """Say how much the logits beside each of some scans take, at most; PlanError where that is more than their disk has room for.

    What a remote store has room for is not known.
    """
    disks: dict[int, list[tuple[str, int]]] = {}
    for url, size in needed:
        if size:
            say(f"{url}: {decimal(size)} of logits are to be written, at most")
        if not storage.is_remote(url):
            disks.setdefault(storage.local_path(url).stat().st_dev, []).append((url, size))
    for of_disk in disks.values():
        wanted, free = sum(size for _, size in of_disk), free_bytes(of_disk[0][0])
        if free is not None and wanted > free:
            raise PlanError(
                f"The models' logits take {decimal(wanted)} beside {', '.join(url for url, _ in of_disk)}; {decimal(free)} "
                "are free there. Name fewer models, resolutions or scans, or make room: `perfuse scan clean` removes logits."
            )


def free_bytes(scan_url: str) -> int | None:
    """What the disk that holds a scan has room for; None: it is a remote store, which does not say."""
    return None if storage.is_remote(scan_url) else shutil.disk_usage(storage.local_path(scan_url)).free


def combined(seers: Sequence[tuple[int, int]]) -> list[Choice]:
    """The combinations that are looked at, small ones first; see `ALL_OF`. seers: the numbers of each one's model and resolution."""
    everyone = range(len(seers))
    if len(seers) <= ALL_OF:
        return [choice for size in everyone for choice in combinations(everyone, size + 1)]
    models, resolutions = (_some(1 + max(numbers)) for numbers in zip(*seers, strict=True))
    crossed = {
        tuple(k for k, (model, resolution) in enumerate(seers) if model in of and resolution in at)
        for of in models
        for at in resolutions
    }
    wanted = {*crossed, *((k,) for k in everyone), *combinations(everyone, len(seers) - 1)} - {()}
    return sorted(wanted, key=lambda choice: (len(choice), choice))


def _some(count: int) -> list[Choice]:
    sizes = range(1, count + 1) if count <= ALL_OF_KIND else (1, count - 1, count)
    return [choice for size in sizes for choice in combinations(range(count), size)]


def _of(prediction: Prediction, choice: Choice) -> Prediction:
    """The same of some of its members."""
    return prediction.changed(members=tuple(prediction.members[k] for k in choice))


def _counted(
    scans: Sequence[Scan],
    predictions: Sequence[Prediction],
    truth: str,
    fusions: Sequence[tuple[Choice, Fusion]],
    class_number: int,
) -> list[CurveCounts]:
    total = [CurveCounts()] * len(fusions)
    needed = tuple(sorted({k for choice, _ in fusions for k in choice}))
    for scan, prediction in zip(scans, predictions, strict=True):
        sight = _of(prediction, needed).sight()
        ways = [(choice, _of(prediction, choice).answers(fusion)) for choice, fusion in fusions]

        def values(
            box: Box, sight: Sight = sight, ways: Sequence[tuple[Choice, Fusion]] = ways
        ) -> tuple[npt.NDArray[np.uint8], ...]:
            seen = dict(zip(needed, sight.of(box, class_number), strict=True))
            return tuple(fuse([seen[k] for k in choice], fusion) for choice, fusion in ways)

        counts = scoring.curves(scan, (truth,), len(fusions), values)
        total = [a + b for a, b in zip(total, counts, strict=True)]
    return total


def _weights(prediction: Prediction, wanted: Sweep, choice: Choice, samples: Sequence[Sample]) -> tuple[float, ...]:
    fusion = _of(prediction, choice).answers(wanted.fusion(choice))
    logits = np.concatenate([x[:, choice] for x, _ in samples]) / (fusion.temperatures or 1)
    marked = np.concatenate([y for _, y in samples])
    found = fitted(logits, marked) if fusion.average == "logit" else fitted_mixture(logits, marked)
    return tuple(round(float(weight), 3) for weight in found)
