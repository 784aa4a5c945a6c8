"""Trainings that each leave one donor out, to score a last one that learns from everything."""

import re
from collections.abc import Callable, Collection, Sequence

from perfuse.campaigns.schema import Train
from perfuse.catalog import Scan
from perfuse.errors import CampaignError
from perfuse.pseudolabels import human_label
from perfuse.splits import names_of

Donors = Callable[[str, Scan], Collection[str] | None]
"""The donors whose data are in a label of a scan, by the label's name; None where the scan has no such label."""


def leaving_out_each(
    stage: Train, scans: Sequence[Scan], there: Sequence[Scan], in_label: Donors, in_start: Collection[str]
) -> list[Train]:
    """The same training once for each donor whom people labelled densely, without this donor, who then scores it.

    Without means: without the donor's scans, without labels that a model wrote which has seen the donor (a scan then gives the next
    label that it holds, or nothing), and from the encoder's weights where the stage starts from weights that have seen the donor.
    scans: those that the stage learns from, of all that are there. in_start: the donors in the weights that it starts from.
    Raises CampaignError when there is no such donor, or nothing is left without one.
    """
    donors = dict.fromkeys(scan.info.donor for scan in scans if _is_dense(scan))
    if not donors:
        raise CampaignError(
            f"Stage {stage.name}: siblings: each needs donors whom people labelled densely, and it learns from none. "
            "Add labels (`perfuse labels add`), or name earlier trainings: siblings: [STAGE, …]"
        )
    return [_without(donor, stage, scans, there, in_label, in_start) for donor in donors]


def _without(
    donor: str,
    stage: Train,
    scans: Sequence[Scan],
    there: Sequence[Scan],
    in_label: Donors,
    in_start: Collection[str],
) -> Train:
    rest = [scan for scan in scans if scan.info.donor != donor]
    labels = tuple(name for name in stage.labels if not any(donor in (in_label(name, scan) or ()) for scan in rest))
    left = [scan for scan in rest if any(in_label(name, scan) is not None for name in labels)]
    if not left:
        raise CampaignError(
            f"Stage {stage.name}: siblings: each: without donor {donor!r}, and without labels of models that have seen this "
            "donor, nothing is left to learn from. Add densely labelled donors, or name earlier trainings: siblings: [STAGE, …]"
        )
    return stage.model_copy(
        update={
            "name": f"{stage.name}-without-{re.sub('[^A-Za-z0-9_-]', '-', donor)}",
            "scans": names_of(left, there),
            "labels": labels,
            "init_from": None if donor in in_start else stage.init_from,
            "siblings": (),
            "scored_by": names_of([s for s in scans if s.info.donor == donor and _is_dense(s)], there),
        }
    )


def _is_dense(scan: Scan) -> bool:
    name = human_label(scan)
    return name is not None and scan.label_info(name).kind == "dense"
