""".venv/bin/python bench/vesselnn.py [SPECIMEN …]: two-photon vessels, one stack left out at a time, against Otsu and Frangi.

Every line it runs is one that a user could type. Each stack counts as a donor of its own: the studies name no animal that
two of the stacks share, and the stacks of a study differ in animal model, resolution or treatment. All are taken as
5 × 1 × 1 µm, as published for the set. `plaqueVessels` is under-annotated: its label is sparse, what it does not mark is unknown.
Otsu's threshold is the scan's own. Frangi's filter is given the threshold that the hidden truth likes best, once for Dice and
once for surface dice: no unsupervised choice of it can do better.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from perfuse.catalog import Scan
from perfuse.metrics import curve_counts

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


def frangi_oracle(scan: Scan) -> tuple[float, float]:
    """The best Dice and the best surface dice over all thresholds of Frangi's filter, plane by plane."""
    from skimage.filters import frangi

    image, truth = np.asarray(scan.image[:]), np.asarray(scan.label("human")[:]) >= 128
    planes = np.clip(image / np.percentile(image, 99.9), 0, 1)
    vesselness = np.stack([frangi(plane, sigmas=SIGMAS, black_ridges=False) for plane in planes])
    edges = np.quantile(vesselness, np.arange(1, 256) / 256)
    curve = curve_counts(np.pad(truth, 1), np.pad(np.searchsorted(edges, vesselness).astype(np.uint8), 1)).curve()
    return float(np.nanmax(curve.dice)), float(np.nanmax(curve.surface_dice))


def leave_out(specimen: str) -> bool:
    """Train without a stack, predict it, and print its scores; True when the network wins on both."""
    name = f"vesselnn-without-{specimen}"
    begin = time.perf_counter()
    shared = ("--data", str(WORK / "scans"), "--name", name, "--set", f"holdout={specimen}")
    model = json.loads(perfuse("train", "vesselnn", *shared, "--local", "--json"))["model"]
    seconds = time.perf_counter() - begin
    perfuse("predict", scan_url(specimen), "--model", model, "--output", name, "--local")
    scores = json.loads(perfuse("evaluate", scan_url(specimen), "--prediction", name, "--truth", "human", "--json"))
    otsu, frangi = scores["baseline"], frangi_oracle(Scan.open(scan_url(specimen)))
    print(f"\n{specimen}, left out; training {seconds:.0f} s")
    print(f"  {'':<34}{'Dice':>8}{'surface dice':>14}")
    network = (scores["dice"], scores["surface_dice"])
    rivals = {
        f"Otsu ({otsu['method']})": (otsu["dice"], otsu["surface_dice"]),
        "Frangi, threshold by the truth": frangi,
    }
    for who, (dice, surface) in {f"network, threshold {scores['threshold']:.3f}": network, **rivals}.items():
        print(f"  {who:<34}{dice:>8.3f}{surface:>14.3f}")
    best = [max(column) for column in zip(*rivals.values(), strict=True)]
    print(f"  ratio to the better of both       {network[0] / best[0]:>8.2f}{network[1] / best[1]:>14.2f}", flush=True)
    return all(mine > theirs for mine, theirs in zip(network, best, strict=True))


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
