"""A prediction in this process, without Ray."""

from perfuse.bundle import Model
from perfuse.catalog import LabelInfo
from perfuse.console import progress
from perfuse.inference.prediction import Worker, already_done, prepare
from perfuse.locks import writing
from perfuse.parallel import in_order


def predict_local(scan_url: str, model: Model, output: str) -> tuple[LabelInfo, ...]:
    """Predict a scan into a soft label for each class: `output`, or `output`-CLASS where there are several.

    Done work is not repeated: neither a finished label nor a finished slab.
    """
    import torch

    prediction = prepare(scan_url, model, output)
    with writing(scan_url, f"label-{output}"):
        done = already_done(prediction, model)
        if done is not None:
            return done
        worker = Worker(prediction, model, torch.get_num_threads())
        rows = prediction.slabs_to_do()
        with progress("slabs", len(rows)) as advance:
            for _ in worker.run(rows):
                advance()
        for _ in in_order(prediction.run_fuse, prediction.shards_to_do()):
            pass
        return prediction.finish(model)
