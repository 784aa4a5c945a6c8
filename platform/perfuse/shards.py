"""One shard of a volume as it is stored: what Zarr's `sharding_indexed` codec specifies, made and written in one go.

A shard holds the compressed chunks of a box one after the other, then an index: offset and size of each chunk, and a
checksum. Making it here instead of by zarr-python saves a second reading of what was written for its digest, and a shard is
replaced whole or not at all: readers and killed writers never meet a torn one. Any Zarr library reads it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import google_crc32c
import numcodecs.blosc
import numpy as np
import numpy.typing as npt
import zarr
from blake3 import blake3
from numcodecs import Blosc
from zarr.codecs import BloscCodec, ShardingCodec
from zarr.storage import LocalStore

from perfuse import storage
from perfuse.geometry import Box, Index3, blocks, index3

Voxels = npt.NDArray[Any]

DIGEST_BYTES = 32
_ABSENT = np.iinfo(np.uint64).max
"""Offset and size of a chunk that is not stored, because all its voxels are 0."""
SHUFFLES = {"noshuffle": Blosc.NOSHUFFLE, "shuffle": Blosc.SHUFFLE, "bitshuffle": Blosc.BITSHUFFLE}
"""As Zarr and as the codec name them."""

numcodecs.blosc.use_threads = False  # more threads than one give other bytes each time; chunks run in parallel instead


def digest(*parts: bytes) -> bytes:
    """BLAKE3 of stored bytes, 32 bytes; of nothing for a shard that is not stored because all its voxels are 0."""
    total = blake3()
    for part in parts:
        total.update(part)
    return total.digest()


@dataclass(frozen=True)
class ShardFormat:
    """How the shards of an array are made."""

    url: str
    """Of the array."""
    shape_zyx: Index3
    chunk_zyx: Index3
    shard_zyx: Index3
    dtype: np.dtype[Any]
    codec: Blosc

    @classmethod
    def of(cls, array: zarr.Array[Any]) -> "ShardFormat":
        """The format of an array that `volumes.create_array` made."""
        (sharding,) = array.metadata.codecs  # type: ignore[union-attr]
        assert isinstance(sharding, ShardingCodec)
        blosc = next(c for c in sharding.codecs if isinstance(c, BloscCodec))
        codec = Blosc(blosc.cname.value, blosc.clevel, SHUFFLES[blosc.shuffle.value], blosc.blocksize)
        shard = index3(array.shards or array.chunks)
        return cls(url_of(array), index3(array.shape), index3(array.chunks), shard, np.dtype(array.dtype), codec)

    def key(self, box: Box) -> str:
        """The stored object of the shard that begins where `box` begins, relative to the array."""
        return "c/" + "/".join(str(a // n) for a, n in zip(box.start, self.shard_zyx, strict=True))

    def shards(self, box: Box) -> list[Box]:
        """The shards that make up `box`, which begins and ends at shards' borders, in C order."""
        return [b.shifted(box.start) for b in blocks(box.shape, self.shard_zyx)]

    def write(self, box: Box, voxels: Voxels) -> bytes:
        """Encode and store one shard; see both."""
        return self.store(box, self.encode(voxels))

    def store(self, box: Box, parts: list[bytes]) -> bytes:
        """Store an encoded shard, in place of any that is there; returns the digest of its bytes."""
        url = storage.join(self.url, self.key(box))
        if parts:
            storage.write_parts(url, parts)
        else:
            storage.remove_file(url)
        return digest(*parts)

    def stored_digest(self, box: Box) -> bytes:
        """Digest of the bytes of a shard as it is stored now."""
        try:
            return digest(storage.read_bytes(storage.join(self.url, self.key(box))))
        except FileNotFoundError:
            return digest()

    def read(self, box: Box) -> Voxels:
        """The voxels of one whole shard, [z, y, x] of its box. Raises what the codec raises where it is damaged."""
        voxels = np.zeros(box.shape, self.dtype)
        try:
            stored = storage.read_bytes(storage.join(self.url, self.key(box)))
        except FileNotFoundError:
            return voxels
        grid = [s // c for s, c in zip(self.shard_zyx, self.chunk_zyx, strict=True)]
        index = _index(stored[-16 * prod(grid) - 4 :], grid)
        chunk = np.empty(self.chunk_zyx, self.dtype)
        for part in blocks(box.shape, self.chunk_zyx):
            offset, size = map(int, index[tuple(a // c for a, c in zip(part.start, self.chunk_zyx, strict=True))])
            if offset != _ABSENT:
                self.codec.decode(stored[offset : offset + size], chunk)
                voxels[part.slices] = chunk[tuple(slice(n) for n in part.shape)]
        return voxels

    def read_box(self, box: Box, out: Voxels | None = None) -> Voxels:
        """The voxels of any box inside the volume, [z, y, x]; into `out`, which is 0 before. Only chunks that meet it are read.

        Raises what the codec raises where a chunk is damaged.
        """
        voxels = np.zeros(box.shape, self.dtype) if out is None else out
        chunk = np.empty(self.chunk_zyx, self.dtype)
        wanted = list(self._stored(box))
        for (part, *_), stored in zip(wanted, storage.read_ranges([place for _, place in wanted]), strict=True):
            if stored is None:
                raise ValueError("a shard went away while it was read")
            self.codec.decode(stored, chunk)
            common = part.intersect(box)
            voxels[common.relative_to(box.start).slices] = chunk[common.relative_to(part.start).slices]
        return voxels

    def _stored(self, box: Box) -> Iterator[tuple[Box, tuple[str, int, int]]]:
        """The chunks that meet a box and are stored, and where: URL of the shard, first byte, last + 1. All else is 0."""
        grid = [s // c for s, c in zip(self.shard_zyx, self.chunk_zyx, strict=True)]
        shards = list(_meeting(box, self.shard_zyx, self.shape_zyx))
        urls = [storage.join(self.url, self.key(shard)) for shard in shards]
        tails = storage.read_ranges([(url, -16 * prod(grid) - 4, 0) for url in urls])
        for shard, url, tail in zip(shards, urls, tails, strict=True):
            if tail is None:
                continue
            index = _index(tail, grid)
            for part in _meeting(box.intersect(shard), self.chunk_zyx, self.shape_zyx):
                inside = part.relative_to(shard.start).start
                offset, size = map(int, index[tuple(a // c for a, c in zip(inside, self.chunk_zyx, strict=True))])
                if offset != _ABSENT:
                    yield part, (url, offset, offset + size)

    def encode(self, voxels: Voxels) -> list[bytes]:
        """The bytes of a shard, in parts; none when all voxels are 0.

        voxels: [z, y, x] of the shard's box, cut off at the volume's end.
        """
        grid = [s // c for s, c in zip(self.shard_zyx, self.chunk_zyx, strict=True)]
        index = np.full((*grid, 2), _ABSENT, "<u8")
        parts: list[bytes] = []
        offset = 0
        for box in blocks(index3(voxels.shape), self.chunk_zyx):
            chunk = self._chunk(voxels[box.slices])
            if chunk is not None:
                place = tuple(a // c for a, c in zip(box.start, self.chunk_zyx, strict=True))
                index[place] = offset, len(chunk)
                parts.append(chunk)
                offset += len(chunk)
        if not parts:
            return []
        table = index.tobytes()
        return [*parts, table + google_crc32c.value(table).to_bytes(4, "little")]

    def _chunk(self, voxels: Voxels) -> bytes | None:
        if voxels.flat[0] == 0 and not voxels.any():
            return None
        if voxels.shape == self.chunk_zyx:
            chunk = np.ascontiguousarray(voxels, self.dtype)
        else:
            chunk = np.zeros(self.chunk_zyx, self.dtype)
            chunk[tuple(slice(n) for n in voxels.shape)] = voxels
        return bytes(self.codec.encode(chunk))


def _meeting(box: Box, size: Index3, shape: Index3) -> Iterator[Box]:
    """The blocks of a volume's regular grid that meet a box, in C order; cut off at the volume's end."""
    first = index3([a // n * n for a, n in zip(box.start, size, strict=True)])
    for block in blocks(index3([b - a for a, b in zip(first, box.stop, strict=True)]), size):
        start = block.shifted(first).start
        yield Box(start, index3([min(a + n, m) for a, n, m in zip(start, size, shape, strict=True)]))


def _index(tail: bytes, grid: list[int]) -> npt.NDArray[np.uint64]:
    """Offset and size of each chunk, from the last bytes of a shard; ValueError where their checksum is another."""
    table = tail[:-4]
    if len(table) != 16 * prod(grid) or google_crc32c.value(table).to_bytes(4, "little") != tail[-4:]:
        raise ValueError("the index of the shard is damaged")
    return np.frombuffer(table, "<u8").reshape(*grid, 2)


def url_of(array: zarr.Array[Any]) -> str:
    """Where an array lies."""
    place, store = array.store_path, array.store_path.store
    if isinstance(store, LocalStore):
        return str(store.root / place.path)
    return storage.join(store.fs.unstrip_protocol(store.path), place.path)  # type: ignore[attr-defined]
