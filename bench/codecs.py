""".venv/bin/python bench/codecs.py: size and speed of codecs on chunks of real slices, one thread, medians of five.

Real slices come from PERFUSE_TEST_DATA; without them, structure of the same spectrum (see slices.py). A chunk of three slices holds
nothing twice; one of 64 is made of slices that drift and carry fresh noise.
"""

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
from numcodecs import Blosc
from slices import base, drifting

import perfuse.shards  # noqa: F401 - which keeps Blosc to one thread

CODECS = [("zstd", 3, Blosc.SHUFFLE), ("zstd", 3, Blosc.BITSHUFFLE), ("zstd", 1, Blosc.BITSHUFFLE)]
CODECS += [("lz4", 5, Blosc.BITSHUFFLE), ("lz4", 9, Blosc.BITSHUFFLE)]
RUNS = 5


def rate(work: Callable[[], object], size: int) -> float:
    taken = []
    for _ in range(RUNS):
        begun = time.thread_time()
        work()
        taken.append(time.thread_time() - begun)
    return size / 1e6 / median(taken)


def main() -> None:
    real = base()
    stack = np.stack([drifting(real, k) for k in range(128)])
    cuts = {"3 × 128 × 128": real[:, 400:528, 300:428], "64³": stack[:64, 400:464, 300:364]}
    cuts["128³"] = stack[:, 400:528, 300:428]
    print(f"{'chunk':<16}{'codec':<20}{'ratio':>7}{'compress':>11}{'decompress':>12}   MB/s")
    for name, part in cuts.items():
        chunk = np.ascontiguousarray(part)
        for cname, level, shuffle in CODECS:
            codec = Blosc(cname, level, shuffle)
            stored = codec.encode(chunk)
            into, out = (
                rate(partial(codec.encode, chunk), chunk.nbytes),
                rate(partial(codec.decode, stored), chunk.nbytes),
            )
            words = f"{cname} {level} {'bitshuffle' if shuffle == Blosc.BITSHUFFLE else 'shuffle'}"
            print(f"{name:<16}{words:<20}{chunk.nbytes / len(stored):>7.3f}{into:>11.0f}{out:>12.0f}")


if __name__ == "__main__":
    main()
