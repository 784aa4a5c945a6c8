"""Stacks of slices to measure with, on a RAM disk: 1303 × 912 uint16, with the texture and noise of real HiP-CT slices."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

SHAPE = (1303, 912)
DISTINCT = 512
FORMATS = ("tiff", "lzw", "jp2")


def folder(kind: str, count: int) -> Path:
    """The folder of a stack, made when it is not there. Beyond DISTINCT slices, links to the first ones save the RAM disk."""
    out = Path(os.environ.get("PERFUSE_BENCH", "/dev/shm/perfuse-bench")) / f"{kind}-{count}"
    if not (out / "whole").exists():
        (out / "slices").mkdir(parents=True, exist_ok=True)
        if count > DISTINCT:
            first = sorted(folder(kind, DISTINCT).iterdir())
            for k in range(count):
                link = out / f"slices/{k:05d}{first[0].suffix}"
                link.unlink(missing_ok=True)
                link.hardlink_to(first[k % DISTINCT])
        else:
            real = base()
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(lambda k: _write(out, kind, k, drifting(real, k)), range(count)))
        (out / "whole").touch()
    return out / "slices"


def base() -> np.ndarray:
    """Three consecutive real slices where they are there, else structure of the same spectrum."""
    data = Path(os.environ.get("PERFUSE_TEST_DATA", Path(__file__).parents[2] / "shared" / "data")) / "hipct_kidney"
    if data.is_dir():
        return np.stack([tifffile.imread(p) for p in sorted(data.glob("*.tif"))])
    from scipy import ndimage

    rng = np.random.default_rng(0)
    fields = [ndimage.gaussian_filter(rng.normal(size=(3, *SHAPE)), s) for s in (2, 6, 20)]
    return (25000 + sum(1500 * f / f.std() for f in fields) + rng.normal(0, 250, (3, *SHAPE))).astype(np.uint16)


def drifting(real: np.ndarray, k: int) -> np.ndarray:
    """The real slices to and fro, drifting, with a little fresh noise so that no two are equal."""
    at = k % 4
    plane = np.roll(real[at if at < 3 else 1], (k // 4, k // 2), axis=(0, 1)).astype(np.int32)
    return np.clip(plane + np.random.default_rng(k).normal(0, 60, SHAPE), 0, 65535).astype(np.uint16)


def _write(out: Path, kind: str, k: int, plane: np.ndarray) -> None:
    if kind == "jp2":
        (out / f"slices/{k:05d}.jp2").write_bytes(imagecodecs.jpeg2k_encode(plane, level=0, reversible=True))
    else:
        how = {"compression": "lzw"} if kind == "lzw" else {}
        tifffile.imwrite(out / f"slices/{k:05d}.tif", plane, photometric="minisblack", metadata=None, **how)
