"""Soft pseudo-labels: what a bundle sees where people have not marked, beside what they have."""

from collections.abc import Callable

from perfuse.bundle import Bundle
from perfuse.catalog import ORGAN, LabelInfo, Scan
from perfuse.errors import ScanError

Predict = Callable[..., LabelInfo]
"""`predict_local` or the Ray runner: (scan_url, bundle, output, *, keep) → LabelInfo."""


def human_label(scan: Scan) -> str | None:
    """The label of a scan that people gave: `human`, else the first one that no model made and that is no organ mask; None without."""
    given = [info.name for info in scan.labels().values() if info.model is None and info.name != ORGAN]
    return "human" if "human" in given else next(iter(given), None)


def pseudolabel(scan_url: str, bundle: Bundle, output: str, predict: Predict) -> LabelInfo:
    """Write the soft prediction of a bundle as a label to train on; voxels that people marked stay vessel.

    Never binarised: p = value / 255. Raises ScanError when `output` is the name of a label that people gave.
    """
    scan = Scan.open(scan_url)
    kept = human_label(scan)
    if kept == output:
        raise ScanError(f"Label {output!r} of {scan_url} was given by people. Write pseudo-labels under another name.")
    return predict(scan_url, bundle, output, keep=kept)
