"""Splits by donor: which scans train, which select, which nothing may see."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from perfuse.catalog import Scan
from perfuse.errors import RecipeError


class Split(BaseModel):
    """Which scans train, which select, which stay unseen; no donor stands on two sides."""

    model_config = ConfigDict(arbitrary_types_allowed=True, frozen=True)
    train: tuple[Scan, ...]
    validation: tuple[Scan, ...]
    holdout: tuple[Scan, ...]


def split_by_donor(
    scans: Sequence[Scan],
    *,
    labels: Sequence[str],
    train: Sequence[str] = (),
    validation: Sequence[str] | None = (),
    holdout: Sequence[str] = (),
) -> Split:
    """Divide scans by specimen, never dividing a donor.

    labels: names in order of preference; a scan is labelled when it has one of them.
    train: specimens; empty means every labelled scan that is not held out.
    validation: specimens; empty means one dense labelled donor, the last in order of specimen; None means nobody selects.
    holdout: specimens that training and selection must not see, with all else of their donors.
    Raises RecipeError when a specimen is unknown or unlabelled, a donor would stand on two sides, or a side is empty.
    """
    labelled = [s for s in scans if set(labels) & set(s.labels())]
    _check_named([*train, *(validation or ())], labelled, labels)
    _check_named(holdout, scans, ())
    held = [s for s in scans if s.info.specimen in holdout]
    held_donors = {s.info.donor for s in held}
    free = [s for s in labelled if s.info.donor not in held_donors]
    chosen = [s for s in labelled if s.info.specimen in (validation or ())]
    if not chosen and validation is not None:
        chosen = _choose_validation(free, labels, train)
    donors = {s.info.donor for s in chosen}
    rest = [s for s in labelled if s.info.specimen in train] or [s for s in free if s.info.donor not in donors]
    _check_disjoint(rest, chosen, held)
    if not rest or (not chosen and validation is not None):
        raise RecipeError(
            f"Training needs labelled scans of at least two donors (one to train on, one densely labelled to select by); "
            f"found {len({s.info.donor for s in free})} donors with a label named {' or '.join(labels)}"
            f"{' besides the held out ' + ', '.join(holdout) if holdout else ''}. Add labels (`perfuse labels add`), or "
            "say whose organs these are when you ingest them (--donor)."
        )
    return Split(train=tuple(rest), validation=tuple(chosen), holdout=tuple(held))


def _check_named(names: Sequence[str], scans: Sequence[Scan], labels: Sequence[str]) -> None:
    there = sorted({s.info.specimen for s in scans})
    for name in names:
        if name not in there:
            which = f"with one of the labels {', '.join(labels)}" if labels else "here"
            raise RecipeError(f"No specimen {name!r} {which}. There are: {', '.join(there) or 'none'}.")


def _choose_validation(free: Sequence[Scan], labels: Sequence[str], train: Sequence[str]) -> list[Scan]:
    training = {s.info.donor for s in free if s.info.specimen in train}
    dense = [s for s in free if s.info.donor not in training and _is_dense(s, labels)]
    if not dense:
        return []
    donor = max(dense, key=lambda s: s.info.specimen).info.donor
    return [s for s in dense if s.info.donor == donor]


def _is_dense(scan: Scan, labels: Sequence[str]) -> bool:
    infos = scan.labels()
    return any(name in infos and infos[name].kind == "dense" for name in labels)


def _check_disjoint(*sides: Sequence[Scan]) -> None:
    seen: dict[str, int] = {}
    for number, side in enumerate(sides):
        for scan in side:
            if seen.setdefault(scan.info.donor, number) != number:
                raise RecipeError(
                    f"Donor {scan.info.donor!r} (specimen {scan.info.specimen!r}) would stand on two sides of "
                    "the split. Splits are by donor: put all specimens of a donor on one side."
                )
