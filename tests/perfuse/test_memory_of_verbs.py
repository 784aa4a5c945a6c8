"""Verbs that read whole labels need no more memory of a volume eight times as deep."""

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

SLAB = (64, 96, 96)
SLABS = (8, 64)
"""The fewest keep all threads busy, and all that wait for them."""
VERBS = {
    "postprocess": "postprocess {scan} --labels soft --output {number} --threshold 0.5 --min-voxels 5 --fill-holes",
    "topology": "topology {scan} --labels soft --threshold 0.5 --json",
    "cldice": "evaluate {scan} --prediction soft --truth human --threshold 0.5 --cldice --json",
    **{name: f"export {{scan}} {{folder}}/{{number}}.{name} --labels soft" for name in ("csv", "ply", "png")},
}
PROGRAM = """
import json, sys
from pathlib import Path
from perfuse import centrelines
from perfuse.cli import build

def status(name):
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024

centrelines.TILE, centrelines.OVERLAP = (64, 64, 64), 8
app, peaks = build(), {}
for name, (warm, words) in json.loads(sys.argv[1]).items():
    app(warm.split(), standalone_mode=False)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    app(words.split(), standalone_mode=False)
    peaks[name] = status("VmHWM") - before
Path(sys.argv[2]).write_text(json.dumps(peaks))
"""
STEADY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
"""Memory that is free goes back to the system at once."""


@pytest.fixture(scope="module")
def peaks(tmp_path_factory: pytest.TempPathFactory, make_scan: Any) -> list[dict[str, int]]:
    """Bytes above those that a process had before each verb, on few slabs and on many, all alike.

    Each verb is done before on few: what compiling takes is not counted.
    """
    image = np.random.default_rng(1).integers(0, 256, SLAB).astype(np.uint8)
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=SLAB), 2, mode="wrap")
    labels = {
        n: (smooth > at * smooth.std()).astype(np.uint8) * np.uint8(255) for n, at in (("human", 1.5), ("soft", 1.7))
    }
    folder, urls = tmp_path_factory.mktemp("scans"), []
    for slabs in SLABS:
        whole = {name: np.tile(slab, (slabs, 1, 1)) for name, slab in labels.items()}
        urls.append(make_scan(folder, f"s{slabs}", np.tile(image, (slabs, 1, 1)), whole).url)

    def measured(number: int) -> dict[str, int]:
        out = folder / "peaks.json"
        warm, words = (
            {name: verb.format(scan=url, folder=folder, number=f"{what}{number}") for name, verb in VERBS.items()}
            for url, what in ((urls[0], "warm"), (urls[number], "out"))
        )
        asked = json.dumps({name: (warm[name], words[name]) for name in VERBS})
        subprocess.run(
            [sys.executable, "-c", PROGRAM, asked, str(out)],
            check=True,
            stdout=subprocess.DEVNULL,
            env=os.environ | STEADY,
        )
        return dict(json.loads(out.read_text()))

    return [measured(0), measured(1)]


@pytest.mark.parametrize("verb", VERBS)
def test_a_volume_eight_times_as_deep_needs_no_more_memory(peaks: list[dict[str, int]], verb: str) -> None:
    """As said again of the first volume; a byte for every other voxel that the second has more of would be too much."""
    small, large = (of[verb] for of in peaks)
    more = (SLABS[1] - SLABS[0]) * int(np.prod(SLAB))
    assert large - small < more / 2, (
        f"{small / 1e6:.1f} MB, then {large / 1e6:.1f}, for {more / 1e6:.1f} million voxels more"
    )
