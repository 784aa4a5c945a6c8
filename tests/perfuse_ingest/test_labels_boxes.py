"""A label keeps a list of boxes: the last one over a voxel says what is known there; replacing one leaves all else alone."""

import inspect
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore

from perfuse import labels as writing
from perfuse import storage, volumes
from perfuse.catalog import LabelInfo, ModelRef, Scan
from perfuse.errors import ScanError, ShapeMismatchError, SourceError
from perfuse.geometry import Box, Index3
from perfuse.pseudolabels import human_label
from perfuse.verify import verify
from perfuse_ingest.ingest import ingest
from perfuse_ingest.labels import add_labels

Volume = np.ndarray[Any, Any]
SHAPE = (70, 66, 90)
WHOLE = Box.whole(SHAPE)
PART = Box((30, 0, 0), (68, 66, 90))
MODEL = ModelRef(uri="models:/m/1", forward_digest="f", bundle_digest="b", threshold=100, backend="eager-fp32")
TAUGHT = {"d": "models:/m/1 ← human of d"}
Bytes = Callable[[Path], dict[str, str]]


def random_mask(seed: int, shape: Index3 = SHAPE, share: float = 0.1) -> Volume:
    return np.random.default_rng(seed).random(shape) < share


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan without labels, made once."""
    import tifffile

    folder = tmp_path_factory.mktemp("bare")
    (folder / "slices").mkdir()
    for k, plane in enumerate(np.random.default_rng(0).integers(0, 500, SHAPE).astype(np.uint16)):
        tifffile.imwrite(folder / f"slices/{466 + k:04d}.tif", plane, photometric="minisblack")
    url = folder / "k1.ome.zarr"
    ingest(str(folder / "slices"), str(url), voxel_size_um=(50, 50, 50), specimen="k1", organ="kidney", mask=False)
    return url


@pytest.fixture
def scan_url(bare: Path, tmp_path: Path) -> str:
    shutil.copytree(bare, tmp_path / "k1.ome.zarr")
    return str(tmp_path / "k1.ome.zarr")


def save(folder: Path, mask: Volume) -> str:
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_suffix(".zarr")
    zarr.create_array(path, data=np.asarray(mask, np.uint8))
    return str(path)


@pytest.fixture
def add(tmp_path: Path, scan_url: str) -> Callable[..., LabelInfo]:
    """add(mask, box=…, coverage=…, author=…): give a mask to the label `human`."""

    def give(mask: Volume, box: Box = WHOLE, name: str = "human", **about: Any) -> LabelInfo:
        source = tmp_path / "masks" / storage.digest_bytes(mask.tobytes())[:12]
        url = str(source.with_suffix(".zarr")) if source.with_suffix(".zarr").exists() else save(source, mask)
        at = None if box == WHOLE else box.start
        return add_labels(scan_url, url, name=name, at_zyx=at, **about)

    return give


Add = Callable[..., LabelInfo]


def pyramid(scan: Scan, level0: Volume) -> list[Volume]:
    levels = [level0]
    for level in volumes.pyramid_levels(SHAPE, scan.info.voxel_size_um)[1:]:
        levels.append(volumes.halve(levels[-1], level.factor_zyx, "max"))
    return levels


def test_a_dense_slab_inside_a_sparse_whole(scan_url: str, add: Add) -> None:
    sparse, dense = random_mask(1, share=0.05), random_mask(2, PART.shape)
    add(sparse, coverage=0.85)
    info = add(dense, PART, author="Ada")
    wanted = sparse.copy()
    wanted[PART.slices] = dense
    scan = Scan.open(scan_url)
    np.testing.assert_array_equal(scan.label("human")[:], wanted * np.uint8(255))
    known = sparse.copy()
    known[PART.slices] = True
    np.testing.assert_array_equal(scan.read_known("human", WHOLE), known)
    assert scan.read_given("human", WHOLE).all()
    assert (info.kind, info.box) == ("sparse", None)
    outside = int(sparse.sum() - sparse[PART.slices].sum())
    assert info.coverage == pytest.approx((outside + dense.sum()) / (outside / 0.85 + dense.sum()))
    assert scan.label_info("human") == info


def test_a_corrected_box_is_a_new_version_and_leaves_all_else_alone(scan_url: str, add: Add) -> None:
    first = add(random_mask(1))
    corner = Box((3, 60, 1), (67, 66, 65))
    fixed = random_mask(5, corner.shape, 0.3)
    old = np.asarray(Scan.open(scan_url).label("human")[:])
    info = add(fixed, corner, author="Ben")
    wanted = old.copy()
    wanted[corner.slices] = fixed * np.uint8(255)
    scan = Scan.open(scan_url)
    for k, level in enumerate(pyramid(scan, wanted)):
        np.testing.assert_array_equal(scan.group[f"labels/human/{k}"][:], level)  # type: ignore[index]
    one, two = info.boxes
    assert (one.version, two.version) == (1, 2)
    assert (one.author, two.author, two.start, two.stop) == (None, "Ben", corner.start, corner.stop)
    before = old[corner.slices] > 0
    assert (two.added, two.removed) == (int((fixed & ~before).sum()), int((before & ~fixed).sum()))
    assert (two.marked, one.added) == (int(fixed.sum()), int((old > 0).sum()))
    assert info.foreground == (wanted > 0).sum() / wanted.size
    assert (info.kind, info.coverage, info.box) == ("dense", 1.0, None)
    assert info.digest != first.digest
    assert verify(scan_url).faults == []


def test_many_boxes_over_one_another_count_as_the_array_does(scan_url: str, add: Add) -> None:
    rng, model, last = np.random.default_rng(7), np.zeros(SHAPE, np.bool_), np.full(SHAPE, -1)
    digests = set()
    for number in range(7):
        start = [int(rng.integers(0, n - 2)) for n in SHAPE]
        stop = [int(rng.integers(a + 1, n + 1)) for a, n in zip(start, SHAPE, strict=True)]
        box = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
        mask = random_mask(number, box.shape, 0.5)
        mask[0, 0, 0] = True
        info = add(mask, box, coverage=(1.0, 0.5, 0.25)[number % 3])
        model[box.slices], last[box.slices] = mask, number
        scan = Scan.open(scan_url)
        np.testing.assert_array_equal(scan.label("human")[:], model * np.uint8(255))
        kinds = np.array(["dense", "sparse", "sparse"] * 3 + ["none"])[last]
        np.testing.assert_array_equal(
            scan.read_known("human", WHOLE), (kinds == "dense") | ((kinds == "sparse") & model)
        )
        assert [b.marked for b in info.boxes] == [int(model[last == n].sum()) for n in range(number + 1)]
        assert info.foreground == model.sum() / model.size
        assert info.kind == ("sparse" if (kinds == "sparse").any() else "dense")
        digests.add(info.digest)
    assert len(digests) == 7
    assert verify(scan_url).faults == []


def test_what_is_known_is_part_of_the_digest(scan_url: str, add: Add) -> None:
    """The same voxels, now known to be all: another truth."""
    mask = random_mask(1)
    add(mask, coverage=0.5)
    before = Scan.open(scan_url).label_info("human")
    info = add(mask[PART.slices], PART)
    assert (info.boxes[-1].added, info.boxes[-1].removed) == (0, 0)
    assert info.digest != before.digest
    group = zarr.open_group(scan_url + "/labels/human", mode="r+")
    forged = info.model_dump(mode="json")
    forged["boxes"][0]["coverage"] = 0.9
    group.attrs["perfuse"] = forged
    assert verify(scan_url).faults == ["perfuse/labels/human: its root is not the digest in the summary"]


def test_the_same_box_again_is_nothing_to_do(scan_url: str, add: Add, tmp_path: Path, stored_bytes: Bytes) -> None:
    whole, part = random_mask(1), random_mask(2, PART.shape)
    add(whole)
    add(part, PART)
    stored = stored_bytes(Path(scan_url))
    assert add(part, PART) == add(whole) == Scan.open(scan_url).label_info("human")
    assert stored_bytes(Path(scan_url)) == stored
    assert len(add(part, PART, author="Ada").boxes) == 3
    with pytest.raises(ScanError, match=r"has a label 'human' already.*not overwritten.*--at"):
        add(~whole)


def test_what_is_refused_changes_nothing(scan_url: str, add: Add, tmp_path: Path, stored_bytes: Bytes) -> None:
    add(random_mask(1))
    stored = stored_bytes(Path(scan_url))
    three = random_mask(2, PART.shape).astype(np.uint8)
    three[-1, 3, 3] = 7
    with pytest.raises(SourceError, match="is empty: no voxel is marked"):
        add(np.zeros(PART.shape, np.uint8), PART)
    assert stored_bytes(Path(scan_url)) == stored
    with pytest.raises(SourceError, match="7"):
        add(three, PART)
    with pytest.raises(ShapeMismatchError, match="beyond"):
        add(random_mask(2, PART.shape), Box((40, 0, 0), (1, 1, 1)))
    scratch = ("perfuse/scratch",)
    assert {k: v for k, v in stored_bytes(Path(scan_url)).items() if not k.startswith(scratch)} == stored
    good = add(random_mask(2, PART.shape), PART)
    assert good.boxes[-1].version == 2
    assert not list((Path(scan_url) / "perfuse/scratch").rglob("*")), "the scratch of what was refused is gone too"


class Crash(Exception):
    """Stands for a kill."""


WRITES = (
    (volumes, "write_shards"),
    (volumes.DoneMarks, "mark"),
    (storage, "write_bytes"),
    (storage, "remove_tree"),
    (LocalStore, "set"),
    (LocalStore, "delete"),
)


@contextmanager
def crashing(patch: pytest.MonkeyPatch, at: int, *, after: bool) -> Iterator[list[str]]:
    """Raises Crash at the write of this number, or just after it; gives the names of the writes."""
    calls: list[str] = []

    def begun(name: str) -> int:
        calls.append(name)
        stop(len(calls) - 1, not after)
        return len(calls) - 1

    def stop(number: int, now: bool) -> None:
        if number == at and now:
            raise Crash

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **how: Any) -> Any:
            number = begun(name)
            result = function(*args, **how)
            stop(number, after)
            return result

        async def call_later(*args: Any, **how: Any) -> Any:
            number = begun(name)
            await function(*args, **how)
            stop(number, after)

        return call_later if inspect.iscoroutinefunction(function) else call

    with patch.context() as inner:
        for owner, name in WRITES:
            inner.setattr(owner, name, counted(name, getattr(owner, name)))
        yield calls


@pytest.mark.parametrize("after", [False, True])
def test_stopped_at_any_write_the_same_call_gives_the_same_bytes(
    scan_url: str, add: Add, monkeypatch: pytest.MonkeyPatch, stored_bytes: Bytes, after: bool
) -> None:
    whole, part = random_mask(1), random_mask(2, PART.shape)
    first = add(whole, coverage=0.85)
    kept = Path(scan_url).with_name("kept")
    shutil.copytree(scan_url, kept)
    wanted_info = add(part, PART, author="Ada")
    wanted = stored_bytes(Path(scan_url))

    def again() -> None:
        shutil.rmtree(scan_url)
        shutil.copytree(kept, scan_url)

    again()
    with crashing(monkeypatch, -1, after=False) as writes:
        add(part, PART, author="Ada")
    seen = set()
    assert len(writes) >= 20
    for at in range(len(writes)):
        again()
        with crashing(monkeypatch, at, after=after), pytest.raises(Crash):
            add(part, PART, author="Ada")
        left = Scan.open(scan_url).labels()
        seen.add(len(left))
        if left and left["human"] != wanted_info:
            assert left == {"human": first}
            np.testing.assert_array_equal(Scan.open(scan_url).label("human")[:], whole * np.uint8(255))
        assert add(part, PART, author="Ada") == wanted_info, (at, writes[at])
        assert stored_bytes(Path(scan_url)) == wanted, (at, writes[at])
    assert seen == {0, 1}, "while shards are being put in place, there is no complete label"


def test_another_call_ends_what_was_interrupted(scan_url: str, add: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, part = random_mask(1), random_mask(2, PART.shape)
    add(whole)
    with monkeypatch.context() as patch:
        patch.setattr("perfuse.volumes.fill_coarser", lambda *_: (_ for _ in ()).throw(Crash()))
        with pytest.raises(Crash):
            add(part, PART, author="Ada")
    scan = Scan.open(scan_url)
    with pytest.raises(ScanError, match=r"no label 'human'.*is unfinished: `perfuse labels add` goes on"):
        scan.label_info("human")
    with pytest.raises(ScanError, match="given by a person"):
        writing.check_output(scan, "human")
    with pytest.raises(ScanError, match="given by a person"):
        writing.writer_for(scan, "human", "of a model")
    small = Box((0, 0, 0), (2, 3, 4))
    info = add(np.ones(small.shape, np.uint8), small)
    assert [(b.version, b.author) for b in info.boxes] == [(1, None), (2, "Ada"), (3, None)]
    wanted = whole.copy()
    wanted[PART.slices] = part
    wanted[small.slices] = True
    np.testing.assert_array_equal(Scan.open(scan_url).label("human")[:], wanted * np.uint8(255))
    assert verify(scan_url).faults == []


def write_soft(scan: Scan, name: str, values: Volume) -> LabelInfo:
    writer = writing.writer_for(scan, name, name)
    for task in writer.todo():
        writer.write(task, values[writer.tasks[task].slices])
    return writer.finish(
        lambda share, digest: LabelInfo(
            name=name, kind="soft", foreground=share, digest=digest, key=name, model=MODEL, lineage={"donors": TAUGHT}
        )
    )


def test_a_corrected_prediction_belongs_to_people(scan_url: str, add: Add) -> None:
    scan = Scan.open(scan_url)
    soft = np.random.default_rng(3).integers(0, 256, SHAPE).astype(np.uint8)
    write_soft(scan, "vessels", soft)
    writing.check_output(scan, "vessels")
    assert human_label(scan) is None
    info = add(random_mask(2, PART.shape), PART, name="vessels", author="Ada")
    assert (info.kind, info.model) == ("soft", None)
    assert [b.kind for b in info.boxes] == ["soft", "dense"]
    assert info.boxes[0].lineage["model"] == "models:/m/1"
    assert info.donors == TAUGHT, "what the model learnt from is still in it"
    np.testing.assert_array_equal(scan.label("vessels")[:30], soft[:30])
    assert info.foreground == (np.asarray(scan.label("vessels")[:]) >= 128).mean()
    assert human_label(scan) == "vessels"
    with pytest.raises(ScanError, match="given by a person"):
        writing.check_output(scan, "vessels")
    with pytest.raises(ScanError, match="given by a person"):
        write_soft(scan, "vessels", soft)
