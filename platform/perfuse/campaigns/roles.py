"""Who plays which part, as far as nobody says: by the kind and coverage of the labels that people gave."""

from collections.abc import Sequence

from perfuse.campaigns.schema import Names, Roles
from perfuse.catalog import LabelInfo, Scan
from perfuse.errors import CampaignError
from perfuse.pseudolabels import human_label
from perfuse.splits import listed, named


def choose(scans: Sequence[Scan], stated: Roles) -> Roles:
    """The parts of all specimens. What `stated` names stays; its empty parts are filled, besides test, which is only stated.

    stated: specimens, or ids of single scans. dense: labels that state background, in a box at least. sparse: by declared
    coverage, the highest first. unlabelled: the organ that the dense ones are of first. validation: the last dense donor by
    name, where another is left to learn from. No donor of validation or test plays another part. Raises CampaignError for names
    that are not there.
    """
    _check_there(scans, stated)
    given = {s.info.specimen: _given(s) for s in scans}
    taken = {s.info.specimen for s in named(scans, [name for part in stated.model_dump().values() for name in part])}
    free = [s for s in scans if s.info.specimen not in taken]
    judges = {*stated.validation, *stated.test}
    free = _without_donors_of(judges, scans, free)
    validation = stated.validation or _last_dense_donor(free, stated.dense, given)
    free = _without_donors_of({*judges, *validation}, scans, free)
    dense = stated.dense or tuple(s.info.specimen for s in free if _states_background(s, given[s.info.specimen]))
    return Roles(
        dense=dense,
        sparse=stated.sparse or _by_coverage(free, given),
        unlabelled=stated.unlabelled or _by_organ(free, scans, dense, given),
        validation=validation,
        test=stated.test,
    )


def _check_there(scans: Sequence[Scan], stated: Roles) -> None:
    for part, names in stated.model_dump().items():
        for name in names:
            if not named(scans, [name]):
                raise CampaignError(f"{part}: there is no specimen or scan {name!r}. There are: {listed(scans)}.")


def _given(scan: Scan) -> LabelInfo | None:
    name = human_label(scan)
    return scan.label_info(name) if name is not None else None


def _states_background(scan: Scan, info: LabelInfo | None) -> bool:
    return info is not None and any(box.kind == "dense" for box in scan.label_boxes(info.name))


def _without_donors_of(names: set[str], scans: Sequence[Scan], free: list[Scan]) -> list[Scan]:
    donors = {s.info.donor for s in named(scans, [*names])}
    return [s for s in free if s.info.donor not in donors]


def _last_dense_donor(free: list[Scan], dense: Names, given: dict[str, LabelInfo | None]) -> Names:
    able = [s for s in free if (info := given[s.info.specimen]) is not None and info.kind == "dense"]
    if not able or (not dense and len({s.info.donor for s in able}) == 1):
        return ()
    donor = max(able, key=lambda s: s.info.specimen).info.donor
    return tuple(sorted(s.info.specimen for s in able if s.info.donor == donor))


def _by_coverage(free: list[Scan], given: dict[str, LabelInfo | None]) -> Names:
    found = [
        (-info.coverage, s.info.specimen) for s in free if (info := given[s.info.specimen]) and info.kind == "sparse"
    ]
    return tuple(name for _, name in sorted(found))


def _by_organ(free: list[Scan], scans: Sequence[Scan], dense: Names, given: dict[str, LabelInfo | None]) -> Names:
    known = {s.info.organ for s in named(scans, dense)}
    bare = [s for s in free if given[s.info.specimen] is None]
    return tuple(s.info.specimen for s in sorted(bare, key=lambda s: (s.info.organ not in known, s.info.specimen)))
