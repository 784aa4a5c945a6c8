"""Two classes from one network: all vessels, and the large ones; from labels to scores, by the verbs."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from scipy.ndimage import binary_opening

from perfuse.catalog import Scan
from perfuse.registry import load_bundle, scores_of

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = "labels={vessel: [human], large: [human-large]}"


@pytest.fixture
def two(scans: Path, tmp_path: Path, verb: Any) -> Path:
    """The phantoms a, b and c, of which b has no label of large vessels."""
    shutil.copytree(scans, tmp_path / "scans")
    for specimen in ("a", "c"):
        url = tmp_path / "scans" / f"{specimen}.ome.zarr"
        large = binary_opening(np.asarray(Scan.open(str(url)).label("human")[:]) > 0, np.ones((3, 3, 3)))
        assert 0 < large.mean() < 0.9
        folder = tmp_path / f"large-{specimen}"
        folder.mkdir()
        for number, plane in enumerate(large):
            tifffile.imwrite(folder / f"{number:04d}.tif", plane.astype(np.uint8) * 255)
        verb("labels", "add", url, folder, "--name", "human-large")
    return tmp_path / "scans"


def test_two_classes_from_training_to_scores(
    two: Path, verb: Any, workdir: Path, tiny_settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "quickstart", "--data", two, "--name", "both", *tiny_settings, "--set", CLASSES, "--local"]
    uri = verb(*words)
    bundle = load_bundle(uri)
    assert bundle.class_names == ("large", "vessel")
    assert set(bundle.threshold) == {"large", "vessel"}
    assert [(s["specimen"], s["class_name"]) for s in bundle.lineage["train"]] == [
        ("a", "large"),
        ("a", "vessel"),
        ("b", "vessel"),
    ]
    assert {(s.truth, s.kind) for s in scores_of("both", "1").values()} == {
        ("human-large", "validation"),
        ("human", "validation"),
    }
    said = capsys.readouterr().err
    assert "surface dice of large" in said
    report = (Path(bundle.lineage["key"] and workdir) / "runs" / bundle.lineage["key"][:16] / "report.html").read_text()
    assert "Thresholds of large" in report
    assert "Thresholds of vessel" in report

    scan = two / "b.ome.zarr"
    both = verb("predict", scan, "--model", uri, "--output", "soft", "--local", "--json")
    assert [info["name"] for info in both["labels"]] == ["soft-large", "soft-vessel"]
    assert json.loads(capsys.readouterr().out) == both
    for name in bundle.class_names:
        assert Scan.open(str(scan)).label_info(f"soft-{name}").model.threshold == bundle.threshold[name]
    scores = verb("evaluate", scan, "--prediction", "soft-vessel", "--truth", "human")
    assert scores["threshold"] == bundle.threshold["vessel"] / 255
    assert scores["recall"] > 0
    curve = verb("tune", two / "c.ome.zarr", "--prediction", "both-selection-large", "--truth", "human-large")
    assert curve["chosen"]["threshold"] == bundle.threshold["large"] / 255

    verb("pseudolabel", scan, "--model", uri, "--output", "round1", "--local")
    taught = [info for name, info in Scan.open(str(scan)).labels().items() if name.startswith("round1-")]
    kept = {info.name: info.lineage["kept"] for info in taught if "kept" in info.lineage}
    assert kept["round1-large"] is None
    assert kept["round1-vessel"]["label"] == "human"
