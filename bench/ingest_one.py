"""One run of one contender, in a process of its own: prints wall and CPU seconds, without those of importing.

.venv/bin/python bench/ingest_one.py CONTENDER FOLDER OUT same|own
same: Blosc zstd level 3 with byte shuffle, chunks of 128³, for all; own: each one's own default.
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

THREADS = 2
EDGE = 128
UM = 50.0
Work = Callable[[], object]


def read(path: Path) -> np.ndarray:
    import imagecodecs
    import tifffile

    if path.suffix == ".jp2":
        return imagecodecs.jpeg2k_decode(path.read_bytes(), numthreads=1)
    return tifffile.imread(path, maxworkers=1)


def volume(paths: list[Path], thickness: int):
    """The stack as a Dask array, a block of slices a chunk."""
    import dask.array as da
    from dask import delayed

    plane = read(paths[0])
    blocks = [paths[k : k + thickness] for k in range(0, len(paths), thickness)]
    return da.concatenate(
        [
            da.from_delayed(delayed(lambda b: np.stack([read(p) for p in b]))(b), (len(b), *plane.shape), plane.dtype)
            for b in blocks
        ]
    )


def floor(paths: list[Path], out: str, same: bool) -> Work:
    """Decodes all slices and compresses all levels on two threads, and does nothing else: the coarser levels are given."""
    return _floor(paths, same, lambda *_: None)


def stored_floor(paths: list[Path], out: str, same: bool) -> Work:
    """The floor, and writes what it compressed, a file a layer of chunks."""
    Path(out).mkdir(parents=True)
    return _floor(paths, same, lambda name, compressed: (Path(out) / name).write_bytes(b"".join(compressed)))


def _floor(paths: list[Path], same: bool, store: Callable[[str, list[bytes]], object]) -> Work:
    import numcodecs.blosc
    from numcodecs import Blosc

    from perfuse import volumes

    numcodecs.blosc.use_threads = False
    edge = EDGE if same else volumes.LAYOUT.chunk
    codec = Blosc("zstd", 3, Blosc.SHUFFLE if same else Blosc.BITSHUFFLE)
    read(paths[0])
    whole = np.stack(list(ThreadPoolExecutor(THREADS).map(read, paths)))
    coarse = []
    for level in volumes.pyramid_levels(whole.shape, (UM, UM, UM))[1:]:
        whole = volumes.halve(whole, level.factor_zyx, "mean")
        coarse.append(whole)
    del whole

    def compress(name: str, voxels: np.ndarray) -> None:
        for z in range(0, voxels.shape[0], edge):
            layer = []
            for y in range(0, voxels.shape[1], edge):
                for x in range(0, voxels.shape[2], edge):
                    part = voxels[z : z + edge, y : y + edge, x : x + edge]
                    chunk = np.zeros((edge,) * 3, part.dtype)
                    chunk[tuple(slice(n) for n in part.shape)] = part
                    layer.append(codec.encode(chunk))
            store(f"{name}-{z}", layer)

    def slab(first: int) -> None:
        compress(f"0-{first}", np.stack([read(p) for p in paths[first : first + edge]]))

    def work() -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(slab, range(0, len(paths), edge)))
            list(pool.map(compress, map(str, range(1, len(coarse) + 1)), coarse))

    return work


def perfuse(paths: list[Path], out: str, same: bool) -> Work:
    """`perfuse ingest` without its organ mask and picture, which no other makes."""
    import perfuse_ingest.schedulers  # noqa: F401
    from perfuse.volumes import LAYOUT, Layout
    from perfuse_ingest import ingest as module
    from perfuse_ingest.ingest import ingest

    module.refresh = lambda url: url

    layout = Layout("zstd", 3, "shuffle", EDGE, (1, 4, 4)) if same else LAYOUT
    about = {"voxel_size_um": (UM, UM, UM), "specimen": "k", "organ": "kidney", "mask": False}
    with tempfile.TemporaryDirectory() as small:  # loads what is compiled, which counts as importing
        (Path(small) / "slices").mkdir()
        for path in paths[:2]:
            (Path(small) / "slices" / path.name).symlink_to(path)
        ingest(f"{small}/slices", f"{small}/k.ome.zarr", layout=layout, **about)
    return lambda: ingest(str(paths[0].parent), out, layout=layout, **about)


def ome_zarr(paths: list[Path], out: str, same: bool) -> Work:
    import dask
    from ome_zarr.writer import write_image
    from zarr.codecs import BloscCodec

    codec = BloscCodec(cname="zstd", clevel=3, shuffle="shuffle", typesize=2)
    options = {"compressors": [codec], "chunks": (EDGE,) * 3} if same else {"chunks": (EDGE,) * 3}
    factors = [dict.fromkeys("zyx", 2**k) for k in range(1, 5)]
    pool = ThreadPoolExecutor(THREADS)

    def work() -> None:
        with dask.config.set(scheduler="threads", pool=pool):
            data = volume(paths, EDGE).rechunk((EDGE,) * 3)
            write_image(data, out, factors, axes="zyx", storage_options=options)

    return work


def ngff_zarr(paths: list[Path], out: str, same: bool) -> Work:
    import dask
    import ngff_zarr as ngff

    codec = {"compressors": [ngff.codec_from_name("blosc:zstd", 3)]} if same else {}
    pool = ThreadPoolExecutor(THREADS)

    def work() -> None:
        with dask.config.set(scheduler="threads", pool=pool):
            image = ngff.to_ngff_image(volume(paths, EDGE), dims=["z", "y", "x"], scale=dict.fromkeys("zyx", UM))
            method = ngff.Methods.DASK_BIN_SHRINK if hasattr(ngff.Methods, "DASK_BIN_SHRINK") else None
            scales = ngff.to_multiscales(image, [2, 4, 8, 16], chunks=EDGE, method=method, cache=False)
            ngff.to_ngff_zarr(out, scales, version="0.5", **codec)

    return work


def stack_to_chunk(paths: list[Path], out: str, same: bool) -> Work:
    from dask.array import stack
    from joblib.externals.loky import get_reusable_executor
    from pydantic_zarr.v3 import ArraySpec, NamedConfig
    from stack_to_chunk import MultiScaleGroup

    rows, columns = read(paths[0]).shape
    blosc = {"cname": "zstd", "clevel": 3, "shuffle": "shuffle", "typesize": 2, "blocksize": 0}
    codecs = [{"name": "bytes", "configuration": {"endian": "little"}}]
    codecs += [{"name": "blosc", "configuration": blosc}]

    def work() -> None:
        from dask import delayed
        from dask.array import from_delayed

        data = stack([from_delayed(delayed(read)(p).T, (columns, rows), "uint16") for p in paths], axis=2)
        spec = ArraySpec(
            attributes={},
            shape=data.shape,
            data_type="uint16",
            chunk_grid=NamedConfig(name="regular", configuration={"chunk_shape": (EDGE,) * 3}),
            chunk_key_encoding=NamedConfig(name="default", configuration={"separator": "/"}),
            fill_value=0,
            codecs=codecs,
            dimension_names=("x", "y", "z"),
        )
        group = MultiScaleGroup(
            Path(out), name="k", spatial_unit="micrometer", voxel_size=(UM, UM, UM), array_spec=spec
        )
        group.add_full_res_data(data, n_processes=THREADS)
        for level in range(1, 5):
            group.add_downsample_level(level, n_processes=THREADS)
        get_reusable_executor().shutdown(wait=True)  # whose CPU seconds count once they have ended

    return work


CONTENDERS = {f.__name__: f for f in (floor, stored_floor, perfuse, ome_zarr, ngff_zarr, stack_to_chunk)}


def cpu_seconds() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def main() -> None:
    name, folder, out, codec = sys.argv[1:]
    paths = sorted(Path(folder).iterdir())
    work = CONTENDERS[name](paths, out, codec == "same")
    begun, used = time.perf_counter(), cpu_seconds()
    work()
    print(json.dumps({"wall": time.perf_counter() - begun, "cpu": cpu_seconds() - used}))


if __name__ == "__main__":
    main()
