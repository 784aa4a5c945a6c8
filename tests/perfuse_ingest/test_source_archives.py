"""Archives give what the folder gives that was packed, and refuse what no folder of slices would hold."""

import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from perfuse.errors import SliceError, SourceError
from perfuse.geometry import Box
from perfuse_ingest.sources import open_source

Volume = np.ndarray[Any, Any]
StackFolder = Callable[..., Path]
SHAPE = (12, 40, 50)
WHOLE = Box.whole(SHAPE)


@pytest.fixture
def folder(tmp_path: Path, stack_folder: StackFolder, noise: Callable[..., Volume]) -> Path:
    made = stack_folder(tmp_path / "images", noise(SHAPE), name="k{}.tif")
    (made / "README.md").write_text("from the beamline")
    return made


def zipped(folder: Path, method: int = zipfile.ZIP_STORED, inside: str = "a/b/") -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("notes.txt", "about the scan")
        for file in sorted(folder.iterdir()):
            member = zipfile.ZipInfo.from_file(file, f"{inside}{file.name}")
            member.compress_type, member.extra = method, b"\x99\x99\x04\x00more"
            archive.writestr(member, file.read_bytes())
    return path


def tarred(folder: Path, inside: str = "a/b/") -> Path:
    path = folder.with_suffix(".tar")
    with tarfile.open(path, "w") as archive:
        archive.add(folder, inside)
    return path


def deflated(folder: Path) -> Path:
    return zipped(folder, zipfile.ZIP_DEFLATED)


@pytest.mark.parametrize("pack", [zipped, deflated, tarred])
@pytest.mark.parametrize("where", ["disk", "memory"])
def test_an_archive_is_its_folder(folder: Path, pack: Callable[[Path], Path], where: str) -> None:
    path, alone = str(pack(folder)), open_source(str(folder))
    if where == "memory":
        import fsspec

        path = f"memory://{folder.parent.name}/{Path(path).name}"
        fsspec.filesystem("memory").pipe_file(path, pack(folder).read_bytes())
    source = open_source(path)
    assert (source.names, source.dtype, source.shape_zyx) == (alone.names, alone.dtype, SHAPE)
    assert (source.identity, source.passed_over) == (alone.identity, ("README.md",))
    with ThreadPoolExecutor(3) as pool:
        for mine, theirs in zip(source.read(WHOLE, pool), alone.read(WHOLE, pool), strict=True):
            np.testing.assert_array_equal(mine, theirs)  # type: ignore[arg-type]
        box = Box((3, 11, 4), (7, 13, 30))
        assert source.cuts_rows is (where == "disk" and pack is not deflated)
        if source.cuts_rows:
            np.testing.assert_array_equal(source.rows(box, pool), alone.rows(box, pool))
        assert source.digests(2, 9, pool) == alone.digests(2, 9, pool)


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_one_multi_page_file_in_an_archive(
    tmp_path: Path, noise: Callable[..., Volume], pack: Callable[[Path], Path]
) -> None:
    (tmp_path / "s").mkdir()
    tifffile.imwrite(tmp_path / "s" / "stack.tif", noise(SHAPE), photometric="minisblack", compression="lzw")
    archive = str(pack(tmp_path / "s"))
    with ThreadPoolExecutor(2) as pool:
        for url in (archive, f"{archive}::a/b", f"{archive}::a/b/stack.tif"):
            np.testing.assert_array_equal(open_source(url).read(WHOLE, pool)[0], noise(SHAPE))
    with pytest.raises(SliceError, match=r"!a/b/stack.tif has 12 pages and is compressed by the archive"):
        open_source(str(deflated(tmp_path / "s")))


def test_jpeg_2000_in_an_archive(tmp_path: Path, noise: Callable[..., Volume]) -> None:
    import imagecodecs

    (tmp_path / "s").mkdir()
    for k, plane in enumerate(noise(SHAPE)):
        (tmp_path / "s" / f"{k:03}.jp2").write_bytes(imagecodecs.jpeg2k_encode(plane, level=0))
    with ThreadPoolExecutor(2) as pool:
        for pack in (zipped, deflated, tarred):
            np.testing.assert_array_equal(open_source(str(pack(tmp_path / "s"))).read(WHOLE, pool)[0], noise(SHAPE))


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_of_several_folders_one_is_picked(folder: Path, kind: str) -> None:
    path = folder.parent / f"both.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as z:
            for file in folder.iterdir():
                z.write(file, f"left/{file.name}")
                z.write(file, f"right/x/{file.name}")
    else:
        with tarfile.open(path, "w") as t:
            t.add(folder, "left")
            t.add(folder, "right/x")
    with pytest.raises(SourceError, match=r"images in several folders: left, right/x. Pick one, as .*::left"):
        open_source(str(path))
    assert open_source(f"{path}::right/x").identity == open_source(str(folder)).identity
    with pytest.raises(SourceError, match=rf"both.{kind}::middle holds no TIFF"):
        open_source(f"{path}::middle")


def test_a_bad_member_is_named(folder: Path) -> None:
    data = (folder / "k5.tif").read_bytes()
    (folder / "k5.tif").write_bytes(data[:-10])
    for pack, ending in ((zipped, "zip"), (deflated, "zip"), (tarred, "tar")):
        with pytest.raises(SliceError, match=rf"Slice 5 \(.*images.{ending}!a/b/k5.tif\) is truncated"):
            open_source(str(pack(folder)))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_torn_archive_is_never_a_shorter_stack(folder: Path, pack: Callable[[Path], Path], share: float) -> None:
    path = pack(folder)
    os.truncate(path, int(path.stat().st_size * share) if pack is zipped else _before_the_end(path, share))
    with pytest.raises(SourceError, match=path.name):
        open_source(str(path))


def _before_the_end(path: Path, share: float) -> int:
    """A tar ends in many zeros, two blocks of which are its end."""
    return int(len(path.read_bytes().rstrip(b"\0")) * share)


def test_a_tar_that_ends_between_two_members_is_torn(folder: Path) -> None:
    path = tarred(folder)
    with tarfile.open(path) as archive:
        os.truncate(path, archive.getmembers()[-1].offset)
    with pytest.raises(SourceError, match="damaged or truncated at byte"):
        open_source(str(path))


@pytest.mark.parametrize("pack", [zipped, deflated])
def test_a_flipped_byte_in_a_zip_is_found(folder: Path, pack: Callable[[Path], Path]) -> None:
    path = pack(folder)
    source = open_source(str(path))
    stored = source.slices[7].stored  # type: ignore[attr-defined]
    data = bytearray(path.read_bytes())
    data[stored.start + (stored.deflated or stored.size) - 9] ^= 4
    path.write_bytes(data)
    with ThreadPoolExecutor(2) as pool, pytest.raises(SliceError, match=r"Slice 7 \(.*images.zip!a/b/k7.tif\)"):
        source.read(WHOLE, pool)


@pytest.mark.parametrize("name", ["../k0.tif", "a/../../k0.tif", "/etc/k0.tif", "C:/k0.tif", "..\\k0.tif"])
def test_names_that_point_outside_are_refused(folder: Path, name: str) -> None:
    with zipfile.ZipFile(folder / "z.zip", "w") as z:
        z.writestr(name, (folder / "k0.tif").read_bytes())
    with tarfile.open(folder / "t.tar", "w") as t:
        info = tarfile.TarInfo(name)
        info.size = 3
        t.addfile(info, io.BytesIO(b"abc"))
    for archive in ("z.zip", "t.tar"):
        with pytest.raises(SourceError, match="points outside of the archive"):
            open_source(str(folder / archive))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(folder: Path, kind: bytes) -> None:
    path = folder.parent / "t.tar"
    with tarfile.open(path, "w") as t:
        info = tarfile.TarInfo("k1.tif")
        info.type, info.linkname = kind, "/etc/passwd"
        t.addfile(info)
    with pytest.raises(SourceError, match=r"t.tar!k1.tif is a link or device"):
        open_source(str(path))


@pytest.mark.parametrize("ending", ["tar.gz", "tgz", "tar.bz2", "tar.xz"])
def test_a_compressed_tar_is_refused_with_what_to_do(folder: Path, ending: str) -> None:
    path = folder.parent / f"t.{ending}"
    with tarfile.open(path, f"w:{ending.replace('tgz', 'gz').removeprefix('tar.')}") as t:  # type: ignore[call-overload]
        t.add(folder, "s")
    with pytest.raises(SourceError, match=r"is a compressed tar.*plain .tar .*or make it a .zip"):
        open_source(str(path))


def spoilt(path: Path, offset: int, value: bytes) -> None:
    """Overwrite a field of the first image's entry in the directory of a zip archive."""
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(b"a/b/k0.tif"))
    data[at + offset : at + offset + len(value)] = value
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("offset", "value", "why"),
    [
        (8, b"\x01\x00", r"k0.tif is encrypted"),
        (10, b"\x0e\x00", r"k0.tif is compressed by method 14; allowed are stored and deflated"),
        (24, b"\x00\x00\x00\xf0", r"k0.tif states 4,026,531,840 bytes, compressed to [\d,]+: at most"),
        (20, b"\xff\xff\x00\x00", r"k0.tif overlaps what follows"),
    ],
)
def test_members_that_deceive_are_refused(folder: Path, offset: int, value: bytes, why: str) -> None:
    path = deflated(folder)
    spoilt(path, offset, value)
    with pytest.raises(SourceError, match=rf"images.zip!a/b/{why}"):
        open_source(str(path))


def test_a_member_that_is_smaller_than_it_states_is_named(folder: Path) -> None:
    path, size = deflated(folder), (folder / "k0.tif").stat().st_size
    spoilt(path, 24, (size + 100).to_bytes(4, "little"))
    with pytest.raises(SliceError, match=r"Slice 0 \(.*k0.tif\) .* it holds [\d,]+ bytes, where [\d,]+ were stored"):
        open_source(str(path))


def test_twice_the_same_member_is_refused(folder: Path) -> None:
    with zipfile.ZipFile(folder / "z.zip", "w") as z:
        z.write(folder / "k0.tif", "k0.tif")
        with pytest.warns(UserWarning, match="Duplicate"):
            z.write(folder / "k0.tif", "k0.tif")
    with pytest.raises(SourceError, match=r"z\.zip!k0\.tif is there twice"):
        open_source(str(folder / "z.zip"))


def test_what_is_no_archive_is_named(tmp_path: Path) -> None:
    for name in ("a.zip", "a.tar"):
        (tmp_path / name).write_bytes(b"no archive")
        with pytest.raises(SourceError, match=rf"{name} is no readable {name[2:]} archive"):
            open_source(str(tmp_path / name))
