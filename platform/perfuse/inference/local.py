"""A prediction in this process, without Ray."""

from perfuse.bundle import Model
from perfuse.catalog import LabelInfo
from perfuse.console import progress
from perfuse.geometry import Box
from perfuse.inference import attempts
from perfuse.inference.prediction import Prediction, Worker
from perfuse.inference.preparing import already_done, prepare
from perfuse.locks import writing
from perfuse.parallel import in_order


def predict_local(
    scan_url: str, model: Model, output: str, *, roi: Box | None = None, keep_scratch: bool = False
) -> tuple[LabelInfo, ...]:
    """Predict a scan into a soft label for each class: `output`, or `output`-CLASS where there are several.

    Done work is not repeated: neither a finished label nor a finished slab. roi: the voxels of the scan that are predicted.
    keep_scratch: the members' logits stay beside the scan, for other fusions of them.
    """
    prediction = prepare(scan_url, model, output, roi=roi)
    with writing(scan_url, f"label-{output}"):
        done = already_done(prediction, model)
        if done is not None:
            return done
        fill_local(prediction, model)
        rows = prediction.shards_to_do()
        with progress(f"fuse {output}, shards", len(rows)) as advance:
            for _ in in_order(prediction.run_fuse, rows):
                advance()
        return prediction.finish(model, keep_scratch=keep_scratch)


def fill_local(prediction: Prediction, model: Model) -> None:
    """Make the members' logits that are not there yet."""
    import torch

    worker = Worker(prediction, model, torch.get_num_threads())
    rows = prediction.slabs_to_do()
    with progress(f"predict {prediction.output}, slabs", len(rows)) as advance:
        for _ in attempts.all_of(worker, rows):
            advance()
