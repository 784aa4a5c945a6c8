"""Weights of an ensemble's members, fitted to what was marked by people: on a sample of voxels, by what each member saw there."""

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from perfuse.catalog import Scan
from perfuse.counting import counted_mask, truth_mask
from perfuse.errors import ContractError
from perfuse.geometry import Box
from perfuse.inference.logits import ONE
from perfuse.inference.prediction import Prediction
from perfuse.passes import cut, over_blocks

SAMPLED = 200_000
"""Voxels of a scan, at most about, to which weights are fitted."""
MOST_STEPS, STILL = 1000, 1e-6
"""Steps of expectation and maximisation, and the change of a weight below which they end."""
Values = npt.NDArray[np.float64]
Marked = npt.NDArray[np.bool_]
Sample = tuple[Values, Marked]
"""Logits [voxels, members], and which voxels are vessel."""


def sampled(scan: Scan, prediction: Prediction, truth: str, class_number: int) -> Sample:
    """Logits [voxels, members] and truth of voxels drawn at random among those that count, the same in every call."""
    share, sight = min(1.0, SAMPLED / Box.whole(scan.shape_zyx).size), prediction.sight()

    def draw(box: Box) -> Sample:
        rng = np.random.default_rng(box.start)
        chosen = (rng.random(box.shape, np.float32) < share) & counted_mask(scan, (truth,), box)
        parts = [seen.as_("logit") for seen in sight.of(box, class_number)]
        logits = [part.total[chosen] / (part.weight * ONE) for part in parts]
        return np.stack(logits, axis=1), truth_mask(scan, truth, box)[chosen]

    drawn = list(over_blocks(cut(scan.shape_zyx), f"sample {scan.info.id}", draw))
    return np.concatenate([x for x, _ in drawn]), np.concatenate([y for _, y in drawn])


def fitted(logits: Values, marked: Marked) -> Values:
    """Weights of the members, none below 0, of a sum of 1, by which the mean of their logits says most of the truth.

    logits: [voxels, members]. The weights minimise the binary cross-entropy of σ(Σ wₖ · logitₖ + c), which is convex: logistic
    stacking (Wolpert 1992; non-negative as Breiman 1996 advises). The scale of w and c are dropped, for a threshold is chosen
    anyway.
    """
    members = logits.shape[1]
    inputs = np.column_stack([logits, np.ones(len(logits))])

    def loss(values: Values) -> tuple[float, Values]:
        at = inputs @ values
        wrong = 1 / (1 + np.exp(-at)) - marked
        return float(np.mean(np.logaddexp(0, at) - marked * at)), inputs.T @ wrong / len(at)

    begin, bounds = np.array([1 / members] * members + [0.0]), [(0, None)] * members + [(None, None)]
    found = minimize(loss, begin, jac=True, method="L-BFGS-B", bounds=bounds).x[:-1]
    if not found.sum():
        raise ContractError("No weights above 0 say anything of the truth: the members' logits do not rise with it.")
    return np.asarray(found / found.sum())


def fitted_mixture(logits: Values, marked: Marked) -> Values:
    """Weights, none below 0, of a sum of 1, by which the mean of the members' probabilities makes the truth likeliest.

    By expectation and maximisation (Dempster, Laird and Rubin 1977), which finds the one optimum, for the problem is convex.
    """
    likely = 1 / (1 + np.exp(np.where(marked[:, None], -logits, logits)))
    weights = np.full(logits.shape[1], 1 / logits.shape[1])
    for _ in range(MOST_STEPS):
        shares = likely * weights
        before, weights = weights, np.mean(shares / shares.sum(1, keepdims=True), 0)
        if np.abs(weights - before).max() < STILL:
            break
    return weights
