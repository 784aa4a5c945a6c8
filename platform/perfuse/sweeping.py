"""Members by voxel size by threshold: what an ensemble is worth, where no network is asked twice.

Each member's logits are kept beside the scan, per axis and voxel size; every combination of members is fused from them, and its
scores at all 255 thresholds counted, in one pass over the scan. This is the table by which 3rd place of SenNet + HOA 2023 chose.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from perfuse import scoring
from perfuse.bundle import Model
from perfuse.catalog import Scan
from perfuse.contract import Fusion
from perfuse.counting import counted_mask, truth_mask
from perfuse.errors import ContractError
from perfuse.geometry import Box
from perfuse.inference.logits import ONE, fuse
from perfuse.inference.members import Sight
from perfuse.inference.options import seen_otherwise
from perfuse.inference.prediction import Prediction
from perfuse.inference.whole import Runner
from perfuse.metrics import Curve, CurveCounts
from perfuse.passes import cut, over_blocks

ALL_OF = 4
"""Members up to which every combination is looked at; of more, each alone, all but each, and all."""
SAMPLED = 200_000
"""Voxels of a scan, at most about, to which weights are fitted."""
OUTPUT = "sweep"


@dataclass(frozen=True)
class Row:
    """One way to answer, and what it scores."""

    members: tuple[str, ...]
    """URIs."""
    weights: tuple[float, ...]
    """Fitted ones, of a sum of 1; empty: members count alike."""
    resample_um: float | None
    """Voxels on which the networks saw the scans; None: the scans' own."""
    curve: Curve


def sweep(
    scans: Sequence[Scan],
    model: Model,
    truth: str,
    runner: Runner,
    *,
    resample_um: Sequence[float | None] = (None,),
    fit: bool = False,
    class_number: int = 0,
) -> list[Row]:
    """Scores of the combinations of a model's members at each voxel size, the counts of all scans added.

    fit: also of all members with weights that are fitted to these scans (see `fitted`).
    Raises ScanError for truth that is missing or not dense, ContractError for weights of a single member.
    """
    if fit and len(model.members) == 1:
        raise ContractError("One model has no weights to fit: name several.")
    for scan in scans:
        scoring.check_dense(scan, truth)
    uris = [bundle.uri for bundle in model.members]
    rows = []
    for um in resample_um:
        seen = model if um is None else seen_otherwise(model, [f"resample_um={um}"])
        with ExitStack() as held:
            predictions = [_filled(scan, seen, runner, held) for scan in scans]
            choices = [(choice, Fusion()) for choice in combined(len(uris))]
            weights: tuple[float, ...] = ()
            if fit:
                weights = fitted(list(zip(scans, predictions, strict=True)), truth, class_number)
                thousandths = tuple(round(1000 * weight) for weight in weights)
                choices.append((tuple(range(len(uris))), Fusion(weights=thousandths)))
            counted = _counted(scans, predictions, truth, choices, class_number)
        for (choice, fusion), counts in zip(choices, counted, strict=True):
            members = tuple(uris[k] for k in choice)
            rows.append(Row(members, weights if fusion.weights else (), um, counts.curve()))
    return rows


def _filled(scan: Scan, model: Model, runner: Runner, held: ExitStack) -> Prediction:
    """The members' logits of a scan, which nobody else touches until `held` is closed, and which stay after it."""
    prediction = runner.prepare(scan.url, model, OUTPUT)
    held.enter_context(prediction.held())
    runner.fill(prediction, model)
    for member in prediction.members:
        member.keep(scan.url)
    return prediction


def combined(members: int) -> list[tuple[int, ...]]:
    """The combinations that are looked at, small ones first; see `ALL_OF`."""
    sizes = range(1, members + 1) if members <= ALL_OF else (1, members - 1, members)
    return [choice for size in sizes for choice in combinations(range(members), size)]


def _counted(
    scans: Sequence[Scan],
    predictions: Sequence[Prediction],
    truth: str,
    choices: Sequence[tuple[tuple[int, ...], Fusion]],
    class_number: int,
) -> list[CurveCounts]:
    total = [CurveCounts()] * len(choices)
    for scan, prediction in zip(scans, predictions, strict=True):
        sight = prediction.sight()
        ways = [(choice, prediction.answers(fusion)) for choice, fusion in choices]

        def values(
            box: Box, sight: Sight = sight, ways: Sequence[tuple[tuple[int, ...], Fusion]] = ways
        ) -> tuple[npt.NDArray[np.uint8], ...]:
            seen = list(sight.of(box, class_number))
            return tuple(fuse([seen[k] for k in choice], fusion) for choice, fusion in ways)

        counts = scoring.curves(scan, (truth,), len(choices), values)
        total = [a + b for a, b in zip(total, counts, strict=True)]
    return total


def fitted(predictions: Sequence[tuple[Scan, Prediction]], truth: str, class_number: int = 0) -> tuple[float, ...]:
    """Weights of the members, none below 0, of a sum of 1, by which the mean of their logits says most of the truth.

    They minimise the binary cross-entropy of σ(Σ wₖ · logitₖ + c) over a sample of the voxels that count, which is convex:
    logistic stacking (Wolpert 1992; non-negative as Breiman 1996 advises). The scale of w and c are dropped, for a threshold is
    chosen anyway.
    """
    samples = [_sampled(scan, prediction, truth, class_number) for scan, prediction in predictions]
    logits, marked = np.concatenate([x for x, _ in samples]), np.concatenate([y for _, y in samples])

    members = logits.shape[1]
    inputs = np.column_stack([logits, np.ones(len(logits))])

    def loss(values: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        at = inputs @ values
        wrong = 1 / (1 + np.exp(-at)) - marked
        return float(np.mean(np.logaddexp(0, at) - marked * at)), inputs.T @ wrong / len(at)

    begin, bounds = np.array([1 / members] * members + [0.0]), [(0, None)] * members + [(None, None)]
    found = minimize(loss, begin, jac=True, method="L-BFGS-B", bounds=bounds).x[:-1]
    if not found.sum():
        raise ContractError("No weights above 0 say anything of the truth: the members' logits do not rise with it.")
    return tuple(float(weight) for weight in found / found.sum())


def _sampled(
    scan: Scan, prediction: Prediction, truth: str, class_number: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Logits [voxels, members] and truth of voxels drawn at random among those that count, the same in every call."""
    share, sight = min(1.0, SAMPLED / Box.whole(scan.shape_zyx).size), prediction.sight()

    def draw(box: Box) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        rng = np.random.default_rng(box.start)
        chosen = (rng.random(box.shape, np.float32) < share) & counted_mask(scan, (truth,), box)
        parts = [seen.as_("logit") for seen in sight.of(box, class_number)]
        logits = [part.total[chosen] / (part.weight * ONE) for part in parts]
        return np.stack(logits, axis=1), truth_mask(scan, truth, box)[chosen]

    drawn = list(over_blocks(cut(scan.shape_zyx), f"sample {scan.info.id}", draw))
    return np.concatenate([x for x, _ in drawn]), np.concatenate([y for _, y in drawn])
