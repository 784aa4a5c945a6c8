""".venv/bin/python bench/vesselnn.py [SPECIMEN …]: two-photon vessels, one stack left out at a time, against Otsu and Frangi.

Every line it runs is one that a user could type. Each stack counts as a donor of its own: the studies name no animal that
two of the stacks share, and the stacks of a study differ in animal model, resolution or treatment. All are taken as
5 × 1 × 1 µm, as published for the set. `plaqueVessels` is under-annotated: its label is sparse, what it does not mark is unknown.
Otsu's threshold is the scan's own. Frangi's filter gets its threshold as the network does, from the validation stack. A last row says
what Frangi's would reach if the hidden truth told it the threshold. The recipe's few settings (knee, gamma,
rate, steps) were chosen by trials on these very stacks, and Frangi's scales too: both rows are a little too good.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from perfuse.catalog import Scan
from perfuse.finding import find_scans
from perfuse.metrics import curve_counts
from perfuse.metrics.curve import Curve

Score = tuple[float, float]
"""Dice and surface dice."""

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("PERFUSE_TEST_DATA", ROOT.parent / "shared" / "data")) / "vesselnn"
WORK = Path(os.environ.get("PERFUSE_WORKDIR", ROOT / "perfuse-work")) / "vesselnn"
COVERAGE = {"poon2015_plaqueVessels": 0.6}
HOLDOUTS = ("burgess2014-lowerRes-hiSNR", "santos2015-lowContrastVessels")
SIGMAS = (2, 4, 8, 16)
"""Vessel radii for Frangi's filter, in pixels: of the sets tried, the one that scores best."""


def perfuse(*words: str) -> str:
    print("$ perfuse", *words, file=sys.stderr, flush=True)
    command = [str(Path(sys.executable).with_name("perfuse")), *words]
    environment = os.environ | {"PERFUSE_WORKDIR": str(WORK)}
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout


def ingest() -> None:
    for image in sorted((DATA / "images").glob("*.tif")):
        stem = image.name.removesuffix("_BM4D_denoised.tif")
        (labels,) = (DATA / "labels").glob(f"{stem}_*.tif")
        about = ["--voxel-size-um", "5,1,1", "--specimen", stem.replace("_", "-"), "--organ", "brain"]
        truth = ["--labels", str(labels), "--coverage", str(COVERAGE.get(stem, 1.0))]
        perfuse("ingest", str(image), scan_url(stem.replace("_", "-")), *about, *truth)


def scan_url(specimen: str) -> str:
    return str(WORK / "scans" / f"{specimen}.ome.zarr")


def vesselness(scan: Scan) -> Any:
    """Frangi's filter, plane by plane, of intensities from 0 to the 99.9th percentile."""
    from skimage.filters import frangi

    image = np.asarray(scan.image[:])
    planes = np.clip(image / np.percentile(image, 99.9), 0, 1)
    return np.stack([frangi(plane, sigmas=SIGMAS, black_ridges=False) for plane in planes])


def frangi(specimen: str, selection: str) -> tuple[Score, Score]:
    """Dice and surface dice at the threshold that is best on `selection`, and the best there are for the truth itself."""
    chosen_on, scored = (Scan.open(scan_url(name)) for name in (selection, specimen))
    reference, values = vesselness(chosen_on), vesselness(scored)
    edges = np.quantile(reference, np.arange(1, 256) / 256)
    at = curve(chosen_on, np.searchsorted(edges, reference)).best - 1
    there = curve(scored, np.searchsorted(edges, values))
    fair = (float(there.dice[at]), float(there.surface_dice[at]))
    own = np.quantile(values, np.arange(1, 256) / 256)
    oracle = curve(scored, np.searchsorted(own, values))
    return fair, (float(np.nanmax(oracle.dice)), float(np.nanmax(oracle.surface_dice)))


def curve(scan: Scan, levels: Any) -> Curve:
    truth = np.asarray(scan.label("human")[:]) >= 128
    return curve_counts(np.pad(truth, 1), np.pad(levels.astype(np.uint8), 1)).curve()


def leave_out(specimen: str) -> bool:
    """Train without a stack, predict it, and print its scores; True when the network wins on both."""
    name = f"vesselnn-without-{specimen}"
    begin = time.perf_counter()
    shared = ("--data", str(WORK / "scans"), "--name", name, "--set", f"holdout={specimen}")
    model = json.loads(perfuse("train", "vesselnn", *shared, "--local", "--json"))["model"]
    perfuse("predict", scan_url(specimen), "--model", model, "--output", name, "--local")
    scores = json.loads(perfuse("evaluate", scan_url(specimen), "--prediction", name, "--truth", "human", "--json"))
    seconds = time.perf_counter() - begin
    (selection,) = (s.info.specimen for s in find_scans(str(WORK / "scans")) if f"{name}-selection" in s.labels())
    otsu, (fair, oracle) = scores["baseline"], frangi(specimen, selection)
    network = (scores["dice"], scores["surface_dice"])
    rows = {
        f"network, threshold {scores['threshold']:.3f} by {selection}": network,
        f"Otsu ({otsu['method']}), its own threshold": (otsu["dice"], otsu["surface_dice"]),
        f"Frangi, threshold by {selection}": fair,
        "Frangi, threshold by the hidden truth": oracle,
    }
    print(f"\n{specimen}, left out; {seconds:.0f} s to train, predict and score")
    print(f"  {'':<62}{'Dice':>8}{'surface dice':>14}")
    for who, (dice, surface) in rows.items():
        print(f"  {who:<62}{dice:>8.3f}{surface:>14.3f}")
    best = [max(otsu[key], theirs) for key, theirs in zip(("dice", "surface_dice"), fair, strict=True)]
    ratio = [mine / theirs for mine, theirs in zip(network, best, strict=True)]
    print(f"  {'ratio to the better of Otsu and Frangi':<62}{ratio[0]:>8.2f}{ratio[1]:>14.2f}", flush=True)
    return bool(min(ratio) > 1)


def main() -> None:
    if not DATA.is_dir():
        sys.exit(f"{DATA} is absent: set PERFUSE_TEST_DATA to the folder that holds vesselnn/.")
    if shutil.which("perfuse", path=str(Path(sys.executable).parent)) is None:
        sys.exit("perfuse is not installed beside this Python: run make setup, then .venv/bin/python bench/vesselnn.py")
    ingest()
    won = [leave_out(specimen) for specimen in sys.argv[1:] or HOLDOUTS]
    sys.exit(0 if all(won) else "The network did not win on both scores everywhere.")


if __name__ == "__main__":
    main()
