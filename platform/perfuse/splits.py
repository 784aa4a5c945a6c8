"""Splits by donor: which scans train, which select, which nothing may see."""

from collections.abc import Collection, Sequence

from pydantic import BaseModel, ConfigDict

from perfuse.catalog import Scan
from perfuse.errors import RecipeError
from perfuse.geometry import Box, Index3, index3

Classes = Collection[Sequence[str]]


class Split(BaseModel):
    """Which scans train, which select, which stay unseen; no donor stands on two sides."""

    model_config = ConfigDict(arbitrary_types_allowed=True, frozen=True)
    train: tuple[Scan, ...]
    validation: tuple[Scan, ...]
    holdout: tuple[Scan, ...]


def split_by_donor(
    scans: Sequence[Scan],
    *,
    classes: Classes,
    train: Sequence[str] = (),
    validation: Sequence[str] | None = (),
    holdout: Sequence[str] = (),
    fold: tuple[int, int | None] | None = None,
) -> Split:
    """Divide scans by specimen or id, never dividing a donor.

    classes: of each the labels in order of preference; a scan is labelled when it has one of any class, densely when it has
    dense ones of all.
    train: specimens or ids of single scans; empty means every labelled scan that is not held out.
    validation: specimens or ids; empty means one densely labelled donor, the last in order of specimen; None means nobody selects.
    holdout: specimens or ids that training and selection must not see, with all else of their donors.
    fold: number and count, see `folds`; the donors of that fold validate, by their dense labels.
    Raises RecipeError when a name is unknown or its scans unlabelled, a donor would stand on two sides, or a side is empty.
    """
    known = [s for s in scans if _is_labelled(s, classes)]
    _check_named([*train, *(validation or ())], known, classes)
    held = named(scans, holdout)
    free = labelled(scans, classes=classes, holdout=holdout)
    if validation is None:
        chosen = []
    elif fold:
        chosen = _of_fold(free, classes, fold)
    else:
        chosen = named(known, validation) or _choose_validation(free, classes, train)
    donors = {s.info.donor for s in chosen}
    rest = named(known, train) or [s for s in free if s.info.donor not in donors]
    _check_disjoint(rest, chosen, held)
    if not rest or (not chosen and validation is not None):
        raise RecipeError(
            f"Training needs labelled scans of at least two donors (one to train on, one densely labelled to select by); "
            f"found {len({s.info.donor for s in free})} donors with a label named {' or '.join(_names(classes))}"
            f"{' besides the held out ' + ', '.join(holdout) if holdout else ''}. Add labels (`perfuse labels add`), or "
            "say whose organs these are when you ingest them (--donor)."
        )
    return Split(train=tuple(rest), validation=tuple(chosen), holdout=tuple(held))


def labelled(
    scans: Sequence[Scan], *, classes: Classes, train: Sequence[str] = (), holdout: Sequence[str] = ()
) -> list[Scan]:
    """The scans that have one label of any class, without donors of those held out; of these the specimens or ids `train`, if named.

    Raises RecipeError when a name is unknown, or its scans unlabelled or held out.
    """
    known = [s for s in scans if _is_labelled(s, classes)]
    _check_named(holdout, scans, ())
    held = {s.info.donor for s in named(scans, holdout)}
    free = [s for s in known if s.info.donor not in held]
    _check_named(train, free, classes)
    return named(free, train) if train else free


def folds(scans: Sequence[Scan], count: int | None) -> list[tuple[str, ...]]:
    """Donors in folds of about equal size, those of the same organs spread over all folds.

    count: of the folds; None: one for each donor, so that each is left out once. Raises RecipeError when there are fewer donors.
    """
    organs: dict[str, set[str]] = {}
    for scan in scans:
        organs.setdefault(scan.info.donor, set()).add(scan.info.organ)
    donors = sorted(organs, key=lambda donor: (sorted(organs[donor]), donor))
    count = len(donors) if count is None else count
    if not 1 < count <= len(donors):
        raise RecipeError(
            f"{count} folds need as many densely labelled donors, and at least two; there are {len(donors)}: "
            f"{', '.join(donors) or 'none'}. Choose fewer folds, e.g. --set fold=1/{max(len(donors), 2)}"
        )
    return [tuple(donors[k::count]) for k in range(count)]


def _of_fold(free: Sequence[Scan], classes: Classes, fold: tuple[int, int | None]) -> list[Scan]:
    dense = [scan for scan in free if _is_dense(scan, classes)]
    found = folds(dense, fold[1])
    if fold[0] > len(found):
        raise RecipeError(f"There is no fold {fold[0]} of {len(found)}. Choose 1 to {len(found)}.")
    return [scan for scan in dense if scan.info.donor in found[fold[0] - 1]]


def divide(shape_zyx: Index3, share: float, gap: int) -> tuple[Box, Box]:
    """A scan in two along its longest axis: what trains, and after a gap the share that validates.

    gap: voxels between the two. Raises RecipeError when less than the gap is left of one of them.
    """
    axis = max(range(3), key=lambda a: shape_zyx[a])
    length = shape_zyx[axis]
    cut = round(length * (1 - share))
    if min(cut - gap, length - cut) < gap:
        raise RecipeError(
            f"A scan of {' × '.join(map(str, shape_zyx))} voxels (z, y, x) cannot be divided: {length} voxels hold no "
            f"two parts and a gap of at least {gap} voxels (a crop with its panel) each. Choose smaller crops, or validate by a donor."
        )
    stop, start = list(shape_zyx), [0, 0, 0]
    stop[axis], start[axis] = cut - gap, cut
    return Box((0, 0, 0), index3(stop)), Box(index3(start), shape_zyx)


def names_of(chosen: Sequence[Scan], scans: Sequence[Scan]) -> tuple[str, ...]:
    """The names by which these are `named` of all scans: a specimen's, where all of its scans are meant, else ids."""
    ids = {scan.info.id for scan in chosen}
    parted = {scan.info.specimen for scan in scans if scan.info.id not in ids}
    return tuple(dict.fromkeys(s.info.id if s.info.specimen in parted else s.info.specimen for s in chosen))


def named(scans: Sequence[Scan], names: Sequence[str]) -> list[Scan]:
    """All scans of the specimens named, and those whose id is; a name that is both means the specimen."""
    specimens = {s.info.specimen for s in scans}
    return [s for s in scans if s.info.specimen in names or (s.info.id in names and s.info.id not in specimens)]


def _check_named(names: Sequence[str], scans: Sequence[Scan], classes: Classes) -> None:
    for name in names:
        if not named(scans, [name]):
            which = f"with one of the labels {', '.join(_names(classes))}" if classes else "here"
            raise RecipeError(f"No specimen or scan {name!r} {which}. There are: {listed(scans)}.")


def listed(scans: Sequence[Scan]) -> str:
    """Specimens for people, each with its scans where they are called otherwise."""
    ids: dict[str, list[str]] = {}
    for scan in scans:
        ids.setdefault(scan.info.specimen, []).append(scan.info.id)
    return "; ".join(s if ids[s] == [s] else f"{s} (scans {', '.join(ids[s])})" for s in sorted(ids)) or "none"


def _choose_validation(free: Sequence[Scan], classes: Classes, train: Sequence[str]) -> list[Scan]:
    training = {s.info.donor for s in named(free, train)}
    dense = [s for s in free if s.info.donor not in training and _is_dense(s, classes)]
    if not dense:
        return []
    donor = max(dense, key=lambda s: s.info.specimen).info.donor
    return [s for s in dense if s.info.donor == donor]


def _names(classes: Classes) -> list[str]:
    return list(dict.fromkeys(name for labels in classes for name in labels))


def _is_labelled(scan: Scan, classes: Classes) -> bool:
    return bool(set(_names(classes)) & set(scan.labels()))


def _is_dense(scan: Scan, classes: Classes) -> bool:
    infos = scan.labels()
    return all(any(name in infos and infos[name].kind == "dense" for name in labels) for labels in classes)


def _check_disjoint(*sides: Sequence[Scan]) -> None:
    seen: dict[str, int] = {}
    for number, side in enumerate(sides):
        for scan in side:
            if seen.setdefault(scan.info.donor, number) != number:
                raise RecipeError(
                    f"Donor {scan.info.donor!r} (specimen {scan.info.specimen!r}) would stand on two sides of "
                    "the split. Splits are by donor: put all specimens of a donor on one side."
                )
