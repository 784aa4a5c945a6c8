"""A whole prediction, in this process, or with other processes for its parts."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from perfuse.bundle import Model
from perfuse.catalog import LabelInfo
from perfuse.console import progress, say
from perfuse.geometry import Box
from perfuse.inference import attempts
from perfuse.inference.prediction import Prediction, Worker
from perfuse.inference.preparing import already_done, prepare
from perfuse.locks import writing
from perfuse.parallel import in_order


def fill(prediction: Prediction, model: Model) -> None:
    """Make the members' logits that are not there yet."""
    import torch

    worker = Worker(prediction, model, torch.get_num_threads())
    rows = attempts.patiently(prediction.scan_url, prediction.slabs_to_do)
    with progress(f"predict {prediction.output}, slabs", len(rows)) as advance:
        for _ in attempts.all_of(worker, rows):
            advance()


def fuse(prediction: Prediction) -> None:
    """Make probabilities of the members' logits, where they are not made yet."""
    rows = attempts.patiently(prediction.scan_url, prediction.shards_to_do)
    with progress(f"fuse {prediction.output}, shards", len(rows)) as advance:
        for _ in in_order(partial(attempts.fuse, prediction), rows):
            advance()


@dataclass(frozen=True)
class Runner:
    """Who does the parts of a prediction: this process, or others that say so."""

    prepare: Callable[..., Prediction] = prepare
    """As `preparing.prepare`, on a machine like those that compute."""
    fill: Callable[[Prediction, Model], None] = fill
    fuse: Callable[[Prediction], None] = fuse


def predict(
    scan_url: str,
    model: Model,
    output: str,
    *,
    roi: Box | None = None,
    keep_scratch: bool = False,
    runner: Runner = Runner(),
) -> tuple[LabelInfo, ...]:
    """Predict a scan into a soft label for each class: `output`, or `output`-CLASS where there are several.

    Done work is not repeated: neither a finished label nor a finished slab. roi: the voxels of the scan that are predicted.
    keep_scratch: the members' logits stay beside the scan, for other fusions of them. The voxels do not depend on the runner.
    """
    prediction = runner.prepare(scan_url, model, output, roi=roi)
    with writing(scan_url, f"label-{output}"):
        done = already_done(prediction, model)
        if done is not None:
            if keep_scratch and prediction.slabs_unmarked():
                say(
                    f"The label {output} is done already, and the models' logits are not beside the scan. To have them, give "
                    "--keep-scratch with another --output: the networks are asked again."
                )
            return done
        with prediction.held():
            runner.fill(prediction, model)
            runner.fuse(prediction)
            return attempts.patiently(scan_url, lambda: prediction.finish(model, keep_scratch=keep_scratch))
