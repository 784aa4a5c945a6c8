import json
import math
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from typer.testing import CliRunner

from perfuse.catalog import Scan
from perfuse.cli import build
from perfuse.errors import ScanError
from perfuse.geometry import Box, blocks
from perfuse.labels import LabelWriter
from perfuse.postprocessing import BACKGROUND, Cleaning, _cleaned, postprocess
from perfuse.topology import topology
from perfuse.validity import LabelBox
from perfuse.volumes import merkle

SHAPE = (70, 530, 66)
"""Four shards of labels, which are 64 × 512 × 512 at most."""
FAR = {6: 1, 18: 2, 26: 3}


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    """Blobs and shells of all sizes, across all borders of shards."""
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 2)
    ripples = np.sin(40 * smooth) + 0.3 * np.random.default_rng(1).normal(size=SHAPE)
    return np.clip(120 + 70 * ripples, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def scan(tmp_path_factory, make_scan, values) -> Scan:
    return make_scan(tmp_path_factory.mktemp("scan"), "s", np.zeros(SHAPE, np.uint16), {"soft": values}, kind="soft")


def whole(values: np.ndarray, cleaning: Cleaning) -> np.ndarray:
    """The same in memory, by scipy."""
    near = ndimage.generate_binary_structure(3, FAR[cleaning.connectivity])
    low, high = cleaning.hysteresis or (cleaning.threshold, cleaning.threshold)
    labels, count = ndimage.label(values >= np.ceil(255 * low), near)
    size = np.bincount(labels.ravel(), minlength=count + 1)
    stay = np.unique(labels[values >= np.ceil(255 * high)])
    stay = stay[(stay > 0) & (size[stay] >= cleaning.min_voxels)]
    if cleaning.keep_largest:
        stay = stay[np.argsort(-size[stay], kind="stable")][: cleaning.keep_largest]
    mask = np.isin(labels, stay)
    if cleaning.fill_holes:
        back = ndimage.generate_binary_structure(3, FAR[BACKGROUND[cleaning.connectivity]])
        return ndimage.binary_fill_holes(mask, back)
    return mask


@pytest.mark.parametrize(
    "cleaning",
    [
        Cleaning(threshold=0.6),
        Cleaning(threshold=0.6, min_voxels=20, connectivity=6),
        Cleaning(threshold=0.65, keep_largest=3, connectivity=18),
        Cleaning(hysteresis=(0.6, 0.95), min_voxels=5),
        Cleaning(threshold=0.5, connectivity=6, fill_holes=True),
        Cleaning(hysteresis=(0.45, 0.9), keep_largest=2, fill_holes=True),
    ],
    ids=str,
)
def test_what_stays_is_what_stays_of_the_whole_volume(scan, values, cleaning):
    postprocess(scan.url, "soft", "clean", cleaning)
    expected = whole(values, cleaning)
    stored = np.asarray(Scan.open(scan.url).label("clean")[:])
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(stored, expected * 255)


def test_topology_is_that_of_the_whole_volume(scan, values):
    from skimage.measure import euler_number

    mask = values >= np.ceil(255 * 0.6)
    found = topology(scan.url, "soft", 0.6, listed=40)
    labels, components = ndimage.label(mask, np.ones((3, 3, 3)))
    _, count = ndimage.label(np.pad(~mask, 1, constant_values=True))
    b0, b1, b2 = found.betti
    assert b0 == found.components == components
    assert b2 == count - 1
    assert found.euler == euler_number(np.pad(mask, 1), connectivity=3) == b0 - b1 + b2
    size = np.bincount(labels.ravel())[1:]
    assert (found.voxels, found.largest) == (mask.sum(), size.max())
    first = np.unique(labels.ravel(), return_index=True)[1][-components:]
    largest = sorted(zip(-size, first, strict=True))[:40]
    assert len({n for n, _ in largest}) < 40, "some are equally large"
    assert [(c.voxels, np.ravel_multi_index(c.first_zyx, SHAPE)) for c in found.listed] == [
        (-n, at) for n, at in largest
    ]
    assert found.listed[0].mm3 == pytest.approx(size.max() * 0.05**3)


def test_topology_reads_each_voxel_once(scan, monkeypatch):
    read, whole_label = np.zeros(SHAPE, int), Scan.read_label

    def counted(self, name, box):
        read[box.slices] += 1
        return whole_label(self, name, box)

    monkeypatch.setattr(Scan, "read_label", counted)
    topology(scan.url, "soft", 0.6)
    assert (read == 1).all()


def test_done_is_not_done_again(scan):
    first = postprocess(scan.url, "soft", "again", Cleaning(threshold=0.6))
    marks = np.asarray(Scan.open(scan.url).group["labels/again/0"][:2])
    assert postprocess(scan.url, "soft", "again", Cleaning(hysteresis=None, threshold=0.6)) == first
    assert postprocess(scan.url, "soft", "again", Cleaning(threshold=0.7)).key != first.key
    assert not np.array_equal(marks, Scan.open(scan.url).group["labels/again/0"][:2])


def test_a_label_that_was_given_is_not_replaced(tmp_path, make_scan, values):
    scan = make_scan(tmp_path, "s", np.zeros(SHAPE, np.uint16), {"human": values, "other": values})
    for output in ("human", "other"):
        with pytest.raises(ScanError):
            postprocess(scan.url, "human", output, Cleaning())


def test_the_verbs(scan, values):
    words = ["postprocess", scan.url, "--labels", "soft", "--output", "verb", "--hysteresis", "0.6,0.95"]
    shown = CliRunner().invoke(build(), [*words, "--min-um3", str(5 * 50.0**3), "--json"], catch_exceptions=False)
    assert shown.exit_code == 0
    expected = whole(values, Cleaning(hysteresis=(0.6, 0.95), min_voxels=5))
    np.testing.assert_array_equal(Scan.open(scan.url).label("verb")[:], expected * 255)
    shown = CliRunner().invoke(build(), ["topology", scan.url, "--labels", "verb", "--json"], catch_exceptions=False)
    assert json.loads(shown.stdout)["voxels"] == expected.sum()


@pytest.mark.parametrize("wrong", ["0.6", "0.9,0.2", "a,b", "0.1,0.2,0.3", "nan,0.5"])
def test_bad_thresholds_are_refused(scan, wrong):
    words = ["postprocess", scan.url, "--labels", "soft", "--output", "verb", "--hysteresis", wrong]
    with pytest.raises(ScanError, match=r"^(--)?hysteresis"):
        CliRunner().invoke(build(), words, catch_exceptions=False)


def test_a_size_without_end_is_refused(scan):
    words = ["postprocess", scan.url, "--labels", "soft", "--output", "verb", "--min-um3", "inf"]
    shown = CliRunner().invoke(build(), words)
    assert (shown.exit_code, "inf is no finite number" in shown.stderr) == (2, True)


def test_what_is_left_of_a_label_of_people_verifies_and_keeps_its_boxes(tmp_path, make_scan, values):
    box = LabelBox(
        version=1, start=(0, 0, 0), stop=(40, 530, 66), kind="sparse", coverage=0.5, marked=0, added=0, removed=0
    )
    scan = make_scan(tmp_path, "s", np.zeros(SHAPE, np.uint16), {"human": values}, boxes=(box,), kind="sparse")
    info = postprocess(scan.url, "human", "few", Cleaning(threshold=0.6, min_voxels=5))
    assert info.boxes == (box,)
    assert info.digest != Scan.open(scan.url).label_info("human").digest
    marks = np.asarray(Scan.open(scan.url).group["perfuse/labels/few"][:])
    assert info.digest == info.digest_over(merkle(row.tobytes() for row in marks)), "what verify asks for"


def test_the_verb_takes_all_that_a_cleaning_says(scan, values):
    wanted = Cleaning(threshold=0.55, connectivity=6, min_voxels=4, keep_largest=7, fill_holes=True)
    words = ["--threshold", "0.55", "--connectivity", "6", "--min-voxels", "4", "--keep-largest", "7", "--fill-holes"]
    CliRunner().invoke(
        build(), ["postprocess", scan.url, "--labels", "soft", "--output", "all", *words], catch_exceptions=False
    )
    np.testing.assert_array_equal(Scan.open(scan.url).label("all")[:], whole(values, wanted) * 255)


KILLED = """
import os, signal, sys
from perfuse.labels import LabelWriter
from perfuse.postprocessing import Cleaning, postprocess

write, begun = LabelWriter.write, []

def counted(self, task, block):
    begun.append(task)
    if len(begun) > 2:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, task, block)

LabelWriter.write = counted
postprocess(sys.argv[1], "soft", "killed", Cleaning.model_validate_json(sys.argv[2]))
"""


def test_killed_it_goes_on_with_what_is_missing(scan, values, monkeypatch):
    cleaning = Cleaning(threshold=0.6, min_voxels=20, fill_holes=True)
    words = [sys.executable, "-c", KILLED, scan.url, cleaning.model_dump_json()]
    assert subprocess.run(words, capture_output=True).returncode == -signal.SIGKILL
    assert "killed" not in Scan.open(scan.url).labels()
    done = np.asarray(Scan.open(scan.url).group["perfuse/labels/killed"][:]).any(1)
    missing = np.flatnonzero(~done).tolist()
    assert 0 < len(missing) < len(done)
    written, write = [], LabelWriter.write
    monkeypatch.setattr(LabelWriter, "write", lambda *given: (written.append(given[1]), write(*given)))
    info = postprocess(scan.url, "soft", "killed", cleaning)
    assert sorted(written) == missing
    np.testing.assert_array_equal(Scan.open(scan.url).label("killed")[:], whole(values, cleaning) * 255)
    assert postprocess(scan.url, "soft", "unharmed", cleaning).digest == info.digest


class Stored:
    """As much of a scan as cleaning asks for."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape_zyx = values, values.shape

    def read_label(self, _: str, box: Box) -> np.ndarray:
        return self.values[box.slices]


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(*[st.integers(1, 11)] * 3),
    st.tuples(*[st.integers(1, 6)] * 3),
    st.sampled_from([6, 18, 26]),
    st.one_of(st.none(), st.just((0.45, 0.8))),
    st.integers(1, 6),
    st.one_of(st.none(), st.integers(1, 3)),
    st.booleans(),
    st.integers(0, 999),
)
def test_block_by_block_is_the_whole(shape, block, connectivity, hysteresis, least, largest, fill, seed):
    rng = np.random.default_rng(seed)
    values = (255 * rng.random(shape) ** rng.choice([0.5, 1, 2])).astype(np.uint8)
    cleaning = Cleaning(
        threshold=None if hysteresis else 0.5,
        hysteresis=hysteresis,
        connectivity=connectivity,
        min_voxels=least,
        keep_largest=largest,
        fill_holes=fill,
    )
    at = tuple(math.ceil(255 * p) for p in (hysteresis or (0.5, 0.5)))
    boxes = list(blocks(shape, block))
    clean = _cleaned(Stored(values), "soft", at, cleaning, boxes)
    expected = whole(values, cleaning)
    for box in boxes:
        np.testing.assert_array_equal(clean(box), expected[box.slices])
