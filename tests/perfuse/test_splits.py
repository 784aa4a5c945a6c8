"""Folds by donor, stratified by organ; a split inside a scan whose two sides never meet in a crop."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfuse.catalog import LabelInfo, Scan, ScanInfo
from perfuse.errors import RecipeError
from perfuse.geometry import Box
from perfuse.recipes import load_recipe
from perfuse.sampling import Cutter
from perfuse.scoring import tune
from perfuse.splits import divide, folds, split_by_donor
from perfuse.training import TrainingJob, checkpoints, plan_job
from perfuse.training.validation import middle


class Known(Scan):
    """A scan of which only donor, organ and kind of label are known."""

    def __init__(self, specimen: str, donor: str, organ: str, kind: str = "dense", name: str | None = None) -> None:
        self.url, self.kind = name or specimen, kind
        self.info = ScanInfo.model_construct(id=self.url, specimen=specimen, donor=donor, organ=organ)

    def labels(self) -> dict[str, LabelInfo]:
        return {"human": LabelInfo.model_construct(name="human", kind=self.kind)}


ORGANS = st.lists(st.sampled_from(["kidney", "spleen", "brain"]), min_size=2, max_size=20)


@given(ORGANS, st.data())
def test_folds_spread_every_organ_and_hold_every_donor_once(organs: list[str], data: st.DataObject) -> None:
    scans: list[Scan] = [Known(f"s{k}", f"d{k}", organ) for k, organ in enumerate(organs)]
    count = data.draw(st.integers(2, len(scans)))
    found = folds(data.draw(st.permutations(scans)), count)
    assert sorted(donor for fold in found for donor in fold) == sorted(s.info.donor for s in scans)
    assert max(map(len, found)) - min(map(len, found)) <= 1
    organ_of = {s.info.donor: s.info.organ for s in scans}
    for organ in set(organs):
        shares = [Counter(organ_of[donor] for donor in fold)[organ] for fold in found]
        assert max(shares) - min(shares) <= 1


@given(ORGANS)
def test_each_donor_validates_in_one_fold(organs: list[str]) -> None:
    scans: list[Scan] = [Known(f"s{k}", f"d{k}", organ) for k, organ in enumerate(organs)]
    seen = []
    for number in range(1, len(scans) + 1):
        split = split_by_donor(scans, classes=[["human"]], fold=(number, None))
        (left_out,) = split.validation
        assert {s.info.specimen for s in split.train} == {s.info.specimen for s in scans} - {left_out.info.specimen}
        seen.append(left_out.info.specimen)
    assert sorted(seen) == sorted(s.info.specimen for s in scans)


def test_sparse_scans_never_validate_nor_train_beside_their_donor() -> None:
    scans: list[Scan] = [
        Known("a", "anna", "kidney"),
        Known("b", "ben", "kidney"),
        Known("c", "ben", "spleen", "sparse"),
    ]
    scans.append(Known("d", "dora", "kidney", "sparse"))
    split = split_by_donor(scans, classes=[["human"]], fold=(2, 2))
    assert [s.info.specimen for s in split.validation] == ["b"]
    assert [s.info.specimen for s in split.train] == ["a", "d"], "c is of the donor that validates"
    with pytest.raises(RecipeError, match=r"3 folds need as many densely labelled donors.*there are 2: anna, ben"):
        split_by_donor(scans, classes=[["human"]], fold=(1, 3))
    with pytest.raises(RecipeError, match="no fold 3 of 2"):
        split_by_donor(scans, classes=[["human"]], fold=(3, None))


def test_a_scan_is_chosen_alone_by_its_id_and_its_donor_stays_on_its_side() -> None:
    scans: list[Scan] = [Known("k1", "anna", "kidney", name=name) for name in ("k1_whole", "k1_part")]
    scans += [Known("k2", "ben", "kidney"), Known("k3", "cleo", "kidney", name="k2")]

    def sides(**names: list[str]) -> list[list[str]]:
        split = split_by_donor(scans, classes=[["human"]], **names)
        return [[s.info.specimen + "/" + s.info.id for s in side] for side in (split.train, split.validation)]

    whole, part, named_alike = "k1/k1_whole", "k1/k1_part", "k2/k2"
    assert sides(train=["k1"], validation=["k2"]) == [[whole, part], [named_alike]], "a specimen goes before an id"
    assert sides(train=["k1_whole"], validation=["k2"]) == [[whole], [named_alike]]
    assert sides(train=["k1_whole"]) == [[whole], ["k3/k2"]]
    assert sides(validation=["k1_part"]) == [[named_alike, "k3/k2"], [part]]
    with pytest.raises(RecipeError, match=r"Donor 'anna' .*two sides"):
        sides(train=["k1_whole"], validation=["k1_part"])
    with pytest.raises(RecipeError, match=r"'k9' .*There are: k1 \(scans k1_whole, k1_part\); k2; k3 \(scans k2\)"):
        sides(train=["k9"])


@given(st.tuples(*[st.integers(1, 400)] * 3), st.floats(0.05, 0.95), st.integers(1, 60))
def test_the_two_sides_of_a_scan_keep_their_gap(shape: tuple[int, int, int], share: float, gap: int) -> None:
    try:
        train, validation = divide(shape, share, gap)
    except RecipeError:
        assert max(shape) * min(share, 1 - share) < 2 * gap + 1
        return
    axis = int(np.argmax(shape))
    assert validation.start[axis] - train.stop[axis] == gap
    assert validation.stop == shape
    assert train.start == (0, 0, 0)
    assert train.intersect(validation).empty


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_scan: Any, tubes: Any) -> Path:
    folder = tmp_path_factory.mktemp("within")
    image, mask = tubes(0, (40, 150, 60))
    make_scan(folder, "a", image, {"human": mask})
    image, mask = tubes(1, (40, 60, 60))
    make_scan(folder, "b", image, {"human": mask}, kind="sparse", coverage=0.5)
    return folder


def planned(folder: Path, *extra: str) -> TrainingJob:
    values = ["crop=32", "batch=8", "steps=12", "within=0.3", *extra]
    return plan_job(load_recipe("quickstart", values), str(folder), str(folder / "runs"))


@pytest.mark.parametrize("extra", [["sampling.scale=0.8,1.2"], ["sampling.order=grid"], ["sampling.oblique=1"]])
def test_no_training_crop_comes_near_what_validates(folder: Path, extra: list[str]) -> None:
    job = planned(folder, *extra)
    (divided, sparse), (held,) = job.train, job.validation
    assert (divided.specimen, sparse.specimen, held.specimen) == ("a", "b", "a")
    assert sparse.box is None
    assert divided.box
    assert held.box
    assert held.box[0][1] - divided.box[1][1] >= 32
    with Cutter(job) as cutter:
        for step in range(12):
            batch = cutter.batch(step, range(8))
            assert batch["known"].max() == 1
            for place in cutter.places(step, range(8)):
                if place.source == 0 and place.turn is None:
                    assert place.box.stop[1] <= divided.box[1][1]
    assert middle(held.extent((40, 150, 60))).start[1] >= held.box[0][1]


def test_a_part_chooses_only_where_no_label_and_no_start_may_know_it(
    folder: Path, tmp_path: Path, make_scan: Any, tubes: Any
) -> None:
    for donor in "ab":
        state = {
            "step": 4,
            "best_step": 4,
            "judged": True,
            "course": {"position": 4},
            "donors": {donor: f"human of {donor}"},
        }
        checkpoints.save(str(folder / "runs" / f"of-{donor}"), state)
    assert planned(folder, "init_from=of-b").initial
    with pytest.raises(
        RecipeError, match=r"'a' is to choose.* may wholly be in .*initial weights ← of-a@4 ← human of a"
    ):
        planned(folder, "init_from=of-a")
    image, mask = tubes(0, (40, 150, 60))
    make_scan(tmp_path, "a", image, {"human": mask})
    make_scan(tmp_path, "u", image, {"human": mask}, kind="soft", lineage={"donors": {"a": "models:/m/1 ← human of a"}})
    assert planned(tmp_path, "train=a")
    with pytest.raises(
        RecipeError, match="may wholly be in what it is trained on: human of u ← models:/m/1 ← human of a"
    ):
        planned(tmp_path)


def test_a_threshold_is_chosen_only_by_what_is_inside(tmp_path: Path, make_scan: Any) -> None:
    truth = np.zeros((20, 40, 20), np.uint8)
    truth[5:15, :, 5:15] = 255
    soft = np.where(truth > 0, 200, 0).astype(np.uint8)
    soft[:, :20] = np.where(truth[:, :20] > 0, 0, 255)
    scan = make_scan(tmp_path, "a", np.zeros((20, 40, 20), np.uint16), {"human": truth, "soft": soft})
    curve = tune([scan], "soft", "human", [Box((0, 20, 0), (20, 40, 20))])
    assert curve.dice[curve.best - 1] == 1
    assert tune([scan], "soft", "human").dice.max() < 0.6


def test_only_one_can_say_what_validates() -> None:
    with pytest.raises(RecipeError, match="fold, within and validation only one"):
        load_recipe("quickstart", ["fold=1/2", "validation=v"])
    with pytest.raises(RecipeError, match="fold"):
        load_recipe("quickstart", ["fold=0/2"])
