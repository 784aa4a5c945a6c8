""".venv/bin/python bench/campaigns.py [CAMPAIGN …] [--seeds 0,1,2] [--steps N] [--set …]: a round of pseudo-labels helps, or not.

Smoke campaigns, end to end, on phantoms of five donors: dense, sparse, unlabelled, validation, test. Each is the geometry of a
phantom at twice its size: the finest vessels are two to four voxels thick, as people can mark them. Of the sparse organ 35 % of
the vessel voxels are hidden, in blocks of 16³. Printed are surface dice on the test organ after each round, over the model
that learnt from the dense organ alone, in pairs by seed (mean ± standard deviation); and of the labels that were added to the
sparse organ, precision and the share found of what was hidden, voxel by voxel and within one voxel. `sennet_3rd` and seed 0 when
nothing else is said. Takes some 25 minutes of one core a seed and campaign; Ctrl-C, and the same command goes on.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from scipy import ndimage

from perfuse.catalog import Scan

ROOT = Path(__file__).parents[1]
WORK = Path(os.environ.get("PERFUSE_WORKDIR", ROOT / "perfuse-work")) / "campaigns"
HALF = "32,80,80"
BLOCK, LEFT = 16, 0.65
DENSE, SPARSE, UNLABELLED, VALIDATION, TEST = ORGANS = ("a-dense", "b-sparse", "c-unlabelled", "d-validation", "e-test")
FIRST_SEED = 21
AT = {"all that is taught:": 1, "p ≥ ½:": 128}
"""From which value of 255 on a soft label is taken for a vessel."""


def perfuse(*words: str) -> str:
    print("$ perfuse", *words, file=sys.stderr, flush=True)
    environment = os.environ | {"PERFUSE_WORKDIR": str(WORK)}
    command = [sys.executable, "-m", "perfuse.cli", *words]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout


def scan_url(specimen: str) -> str:
    return str(WORK / "scans" / f"{specimen}.ome.zarr")


def make_organs() -> None:
    for seed, specimen in enumerate(ORGANS, FIRST_SEED):
        half, slices = WORK / "slices" / f"{specimen}-half", WORK / "slices" / specimen
        perfuse("phantom", str(half), "--shape", HALF, "--seed", str(seed))
        write_mask(ndimage.zoom(read_mask(half / "labels").astype(np.float32), 2, order=1) >= 0.5, half / "twice")
        perfuse(
            "phantom", str(slices), "--from-mask", str(half / "twice"), "--voxel-size-um", "50", "--seed", str(seed)
        )
        labels = ["--labels", str(slices / "labels")] if specimen in (DENSE, VALIDATION, TEST) else []
        about = ["--voxel-size-um", "50", "--specimen", specimen, "--organ", "phantom"]
        perfuse("ingest", str(slices / "images"), scan_url(specimen), *about, *labels)
    part = WORK / "slices" / f"{SPARSE}-part"
    write_mask(partly(truth()), part)
    perfuse("labels", "add", scan_url(SPARSE), str(part), "--name", "human", "--coverage", str(LEFT))


def truth() -> Any:
    """All vessels of the sparse organ, bool[z, y, x]."""
    return read_mask(WORK / "slices" / SPARSE / "labels")


def read_mask(folder: Path) -> Any:
    return np.stack([tifffile.imread(f) > 0 for f in sorted(folder.glob("*.tif"))])


def write_mask(mask: Any, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for number, plane in enumerate(mask):
        tifffile.imwrite(folder / f"{number:04d}.tif", plane.astype(np.uint8) * np.uint8(255))


def partly(mask: Any) -> Any:
    """Blocks are emptied in random order until no more than `LEFT` of the vessels are left."""
    left = mask.copy()
    blocks = np.stack(np.meshgrid(*(np.arange(0, n, BLOCK) for n in mask.shape), indexing="ij"), -1).reshape(-1, 3)
    for z, y, x in np.random.default_rng(0).permutation(blocks):
        if left.sum() <= LEFT * mask.sum():
            break
        left[z : z + BLOCK, y : y + BLOCK, x : x + BLOCK] = False
    return left


def added(stage: dict[str, Any]) -> str | None:
    """How right the labels are that a stage added to the sparse organ, and what they found of the hidden; None for another."""
    info = stage["labels"].get(scan_url(SPARSE))
    if info is None:
        return None
    scan, whole = Scan.open(scan_url(SPARSE)), truth()
    marked, taught = np.asarray(scan.label("human")[:]) > 0, np.asarray(scan.label(info["name"])[:])
    hidden = whole & ~marked
    return "; ".join(f"{name} {_shares((taught >= at) & ~marked, whole, hidden)}" for name, at in AT.items())


def _shares(new: Any, whole: Any, hidden: Any) -> str:
    exact = np.count_nonzero(new & whole)
    shares = (
        exact / max(np.count_nonzero(new), 1),
        np.count_nonzero(new & near(whole)) / max(np.count_nonzero(new), 1),
        exact / np.count_nonzero(hidden),
        np.count_nonzero(near(new) & hidden) / np.count_nonzero(hidden),
    )
    return "precision {:.3f} ({:.3f} within a voxel), found {:.3f} ({:.3f})".format(*shares)


def near(mask: Any) -> Any:
    return ndimage.binary_dilation(mask, np.ones((3, 3, 3)))


def run(campaign: str, seeds: list[int], settings: list[str], steps: int) -> None:
    scores: dict[str, list[float]] = {}
    length = [f"recipe.steps={steps}", f"recipe.validate_every={steps}"]
    for seed in seeds:
        words = [w for s in [f"test={TEST}", f"recipe.seed={seed}", *length, *settings] for w in ("--set", s)]
        made = json.loads(
            perfuse("campaign", campaign, "--data", str(WORK / "scans"), "--smoke", "--local", "--json", *words)
        )
        for stage in made["stages"]:
            if stage["kind"] == "evaluate":
                scores.setdefault(stage["stage"], []).append(stage["scores"][0]["surface_dice"])
            elif stage["kind"] == "pseudolabel" and (found := added(stage)):
                print(f"{campaign}, seed {seed}, {stage['stage']}: {found}", flush=True)
    base = np.array(next(iter(scores.values())))
    for stage, values in scores.items():
        gain = np.array(values) - base
        deviation = gain.std(ddof=1) if len(seeds) > 1 else float("nan")
        shown = ", ".join(f"{v:.4f}" for v in values)
        print(f"{campaign}, {stage}: surface dice {shown}; over the first {gain.mean():+.4f} ± {deviation:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("campaigns", nargs="*", default=["sennet_3rd"])
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--steps", type=int, default=600, help="Of each training; --smoke alone takes 240.")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    given = parser.parse_args()
    make_organs()
    for campaign in given.campaigns:
        run(campaign, [int(seed) for seed in given.seeds.split(",")], given.settings, given.steps)


if __name__ == "__main__":
    main()
