"""What people see of a training: pace, pictures, plots and the page."""

import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image as images

from perfuse.metrics import CurveCounts, curve_counts
from perfuse.pictures import FALSE, HIT, MISSED, one_slice
from perfuse.recipes import load_recipe
from perfuse.report import page
from perfuse.scoring import evaluate
from perfuse.training import TrainingJob, plan_job
from perfuse.training.pace import Pace


def test_the_pace_counts_waiting_and_learning_and_nothing_else(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr("perfuse.training.pace.perf_counter", lambda: now[0])

    def passes(seconds: float) -> None:
        now[0] += seconds

    def slow() -> object:
        for number in range(4):
            passes(0.02)
            yield number

    pace = Pace(crops=8)
    for _ in pace.batches(slow()):
        passes(0.06)
        pace.step()
        passes(0.1)  # as a validation
    speed = pace.speed()
    assert speed["wait_share"] == pytest.approx(0.25)
    assert speed["steps_per_s"] == pytest.approx(1 / 0.08)
    assert speed["crops_per_s"] == pytest.approx(8 / 0.08)
    assert pace.speed() == {"steps_per_s": 0, "crops_per_s": 0, "wait_share": 0}


def test_the_error_panel_has_the_colour_of_each_error() -> None:
    truth = np.zeros((40, 40), bool)
    truth[:20] = True
    soft = np.zeros((40, 40), np.uint8)
    soft[:, :20] = 200
    shown = images.imread(io.BytesIO(one_slice(np.zeros((40, 40)), truth, soft, threshold=201)))[..., :3]
    assert not has(shown, HIT)
    shown = images.imread(io.BytesIO(one_slice(np.zeros((40, 40)), truth, soft, threshold=200)))[..., :3]
    panel = shown[:, shown.shape[1] * 3 // 4 :]
    quarters = [np.argwhere(at(panel, colour)).mean(axis=0) for colour in (HIT, MISSED, FALSE)]
    (hit, missed, false) = quarters
    assert hit[0] == pytest.approx(missed[0], abs=2)
    assert hit[1] < missed[1]
    assert hit[1] == pytest.approx(false[1], abs=2)
    assert hit[0] < false[0]


def at(picture: np.ndarray, colour: tuple[float, float, float]) -> np.ndarray:
    return np.asarray(np.abs(picture - colour).max(axis=2) < 0.01)


def has(picture: np.ndarray, colour: tuple[float, float, float]) -> bool:
    return bool(at(picture, colour).any())


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, make_scan: Callable, tubes: Callable) -> TrainingJob:
    folder = tmp_path_factory.mktemp("scans")
    for seed, specimen in enumerate(("a", "v")):
        image, mask = tubes(seed, (32, 48, 40))
        make_scan(folder, specimen, image, {"human": mask, "soft": mask // 2})
    return plan_job(load_recipe("quickstart", ["crop=32", "validation=v"]), str(folder), str(folder / "runs"))


class Page(HTMLParser):
    """Sources of pictures, addresses of anything else, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.pictures: list[str] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in {"src", "href"}:
                (self.pictures if tag == "img" else self.addresses).append(str(value))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_says_all_and_needs_nothing_else(job: TrainingJob, tmp_path: Path) -> None:
    from perfuse.catalog import Scan

    scan = Scan.open(job.validation[0].url)
    soft = np.pad(np.asarray(scan.label("soft")[:]), 1)
    truth = np.pad(np.asarray(scan.label("human")[:]) >= 128, 1)
    curve = (curve_counts(truth, soft) + CurveCounts()).curve()
    score = evaluate(scan, "soft", "human", curve.chosen)
    picture = one_slice(np.zeros((8, 8)), truth[1, 1:9, 1:9], soft[1, 1:9, 1:9], 128)
    history = {"loss": {1: 0.7, 10: 0.2}, "val_dice": {10: 0.5}, "wait_share": {10: 0.1}, "crops_per_s": {10: 8.0}}
    html = page(job, "models:/a<i>b/1", history, {"v<script>": picture}, {"": curve}, [score])
    shown = Page(html)
    assert len(shown.pictures) == 3
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in shown.pictures)
    assert not shown.addresses
    assert not shown.tags & {"script", "link", "iframe", "i"}
    assert not re.findall(r"https?://", html)
    assert "models:/a<i>b/1" in shown.text
    assert "v<script>" in shown.text
    assert "default-src 'none'; img-src data:" in html
    for wanted in (job.key, job.train[0].scan_digest, job.train[0].label_digest, job.validation[0].label_digest):
        assert wanted in shown.text
    assert f"{score.surface_dice:.4f}" in shown.text
    assert f"plateau of {curve.plateau.width:.3f}" in shown.text
    assert "decoder_channels:" in shown.text
