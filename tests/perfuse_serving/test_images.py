"""What comes in goes out the same; everything else is refused before it is decoded."""

import io
import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from perfuse_serving.images import MAX_VOXELS, Kind, RequestError, decode, encode

VOXELS = hnp.arrays(
    dtype=st.sampled_from([np.dtype("u1"), np.dtype("<u2")]),
    shape=hnp.array_shapes(min_dims=2, max_dims=3, min_side=2, max_side=9),
)


def npy(array: npt.NDArray[Any], **options: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array, **options)
    return out.getvalue()


def tiff(array: npt.NDArray[Any], **options: Any) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, array, **options)
    return out.getvalue()


@given(voxels=VOXELS, kind=st.sampled_from(["tiff", "npy"]))
def test_what_is_encoded_is_decoded(voxels: npt.NDArray[Any], kind: Kind) -> None:
    image = decode(encode(voxels, kind))
    assert image.kind == kind
    assert image.voxels.dtype == voxels.dtype
    np.testing.assert_array_equal(image.voxels, voxels)


@given(voxels=VOXELS)
def test_byte_order_and_memory_order_do_not_matter(voxels: npt.NDArray[Any]) -> None:
    swapped = voxels.astype(voxels.dtype.newbyteorder(">"))
    for data in (npy(np.asfortranarray(swapped)), tiff(swapped, byteorder=">", photometric="minisblack")):
        image = decode(data)
        assert image.voxels.dtype.isnative
        np.testing.assert_array_equal(image.voxels, voxels)


SLICE = np.arange(64, dtype=np.uint16).reshape(8, 8)
REFUSED = {
    "empty": (b"", 415),
    "no image": (b"hello", 415),
    "floats": (npy(SLICE.astype(np.float32)), 422),
    "signed": (tiff(SLICE.astype(np.int16)), 422),
    "one axis": (npy(SLICE[0]), 422),
    "four axes": (npy(SLICE.reshape(2, 2, 4, 4)), 422),
    "no voxel": (npy(SLICE[:0]), 422),
    "colour": (tiff(np.zeros((8, 8, 3), np.uint8), photometric="rgb"), 422),
    "pickled": (npy(np.array([[{}]], object), allow_pickle=True), 422),
    "NPY with a torn header": (npy(SLICE)[:10] + b"{'descr': (" + npy(SLICE)[21:], 400),
    "truncated NPY": (npy(SLICE)[:-3], 400),
    "NPY with more": (npy(SLICE) + b"more", 400),
    "NPY header alone": (npy(SLICE)[:40], 400),
    "NPY of the future": (b"\x93NUMPY\x09\x00" + npy(SLICE)[8:], 400),
    "truncated TIFF": (tiff(SLICE)[:-40], 400),
    "TIFF header alone": (b"II*\0", 400),
    "too many voxels": (npy(SLICE).replace(b"(8, 8)", b"(%d, 1)" % (MAX_VOXELS + 1)), 413),
}


@pytest.mark.parametrize("name", REFUSED)
def test_anything_else_is_refused_in_one_sentence(name: str) -> None:
    data, status = REFUSED[name]
    with pytest.raises(RequestError) as refusal:
        decode(data)
    assert refusal.value.status == status
    assert refusal.value.sentence.endswith(".")
    assert "\n" not in refusal.value.sentence


def test_a_small_file_that_claims_much_memory_is_refused_without_taking_it() -> None:
    many = io.BytesIO()
    with tifffile.TiffWriter(many) as writer:
        writer.write(np.broadcast_to(np.zeros((1, 4096, 4096), np.uint8), (8, 4096, 4096)), compression="zlib")
    assert len(many.getvalue()) < 2**20
    tracemalloc.start()
    try:
        with pytest.raises(RequestError, match="voxels; at most") as refusal:
            decode(many.getvalue())
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    assert refusal.value.status == 413
