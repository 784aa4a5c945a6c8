"""The same slices from a web server, an object store and a disk; and what is said when a server cannot give them."""

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import tifffile

from perfuse.errors import PerfuseError, ServerError, SourceError
from perfuse.geometry import Box
from perfuse_ingest.sources import open_source

Volume = np.ndarray[Any, Any]
SHAPE = (12, 150, 200)
WHOLE = Box.whole(SHAPE)


class Plain(SimpleHTTPRequestHandler):
    """As `python -m http.server`: an index page, and no byte ranges."""

    sent = 0

    def log_message(self, *_: object) -> None:
        pass


class Ranged(Plain):
    """As the web servers that publish data."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file() or "Range" not in self.headers:
            return super().do_GET()
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        data = path.read_bytes()[int(first) : int(last) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(data) - 1}/{path.stat().st_size}")
        self.end_headers()
        self.wfile.write(data)
        Ranged.sent += len(data)
        return None


class Silent(Plain):
    """A server that shows no folders."""

    def list_directory(self, path: Any) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<html>Nothing to see</html>")


@contextmanager
def serving(folder: Path, handler: type[Plain]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def volume(noise: Callable[..., Volume]) -> Volume:
    return noise(SHAPE)


@pytest.fixture
def published(tmp_path: Path, stack_folder: Callable[..., Path], volume: Volume) -> Path:
    folder = stack_folder(tmp_path / "images", volume, name="slice {}.tif")
    (folder / "SOURCE.txt").write_text("from the beamline")
    (folder / "older").mkdir()
    tifffile.imwrite(tmp_path / "stack.tif", volume, photometric="minisblack", compression="lzw", metadata=None)
    for name, method in (("stored.zip", 0), ("deflated.zip", ZIP_DEFLATED)):
        with ZipFile(tmp_path / name, "w", method) as archive:
            for file in folder.glob("*.tif"):
                archive.write(file, f"images/{file.name}")
    return tmp_path


def assert_holds(url: str, volume: Volume, alone: str) -> None:
    with open_source(url) as source, ThreadPoolExecutor(3) as pool:
        voxels, digests = source.read(WHOLE, pool)
        np.testing.assert_array_equal(voxels, volume)
        local = open_source(alone)
        assert digests == local.digests(0, SHAPE[0], pool)
        assert (source.names, source.identity, source.passed_over) == (local.names, local.identity, local.passed_over)
        assert not source.cuts_rows


@pytest.mark.parametrize("server", [Plain, Ranged])
def test_a_folder_on_a_web_server(published: Path, volume: Volume, server: type[Plain]) -> None:
    with serving(published, server) as url:
        assert_holds(f"{url}/images/", volume, str(published / "images"))
        (published / "images" / "slice 4.tif").unlink()
        with pytest.raises(SourceError, match="slice number 4 is missing"):
            open_source(f"{url}/images")


def test_archives_and_pages_on_a_web_server_are_read_by_ranges(published: Path, volume: Volume) -> None:
    with serving(published, Ranged) as url:
        for name in ("stack.tif", "stored.zip", "deflated.zip", "stored.zip::images"):
            assert_holds(f"{url}/{name}", volume, str(published / name))
        with open_source(f"{url}/stack.tif") as source, ThreadPoolExecutor(1) as pool:
            Ranged.sent = 0
            source.read(Box((3, 0, 0), (4, 150, 200)), pool)
        assert Ranged.sent < (published / "stack.tif").stat().st_size


def test_a_web_server_without_ranges_is_told_so(published: Path) -> None:
    with serving(published, Plain) as url:
        for name in ("stack.tif", "stored.zip"):
            with pytest.raises(SourceError, match=rf"{name} cannot be read by parts .*Download it first"):
                open_source(f"{url}/{name}")


def test_a_web_server_that_shows_no_folder(published: Path) -> None:
    with (
        serving(published, Silent) as url,
        pytest.raises(SourceError, match="images lists no files: a web server shows"),
    ):
        open_source(f"{url}/images")


def test_what_is_absent_and_who_is_away(published: Path) -> None:
    with serving(published, Plain) as url:
        for name in ("none", "none.tif", "none.zip"):
            with pytest.raises(SourceError, match=rf"{name} does not exist"):
                open_source(f"{url}/{name}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name in ("images", "stack.tif", "stored.zip"):
        with pytest.raises(ServerError, match=rf"Cannot reach the store of http://127.0.0.1:{port}/{name}"):
            open_source(f"http://127.0.0.1:{port}/{name}")


def test_secrets_of_a_url_are_not_shown(published: Path, volume: Volume) -> None:
    with serving(published, Ranged) as url:
        assert_holds(f"{url}/stored.zip?signature=secret", volume, str(published / "stored.zip"))
        (published / "torn.zip").write_bytes((published / "stored.zip").read_bytes()[:-30])
        with pytest.raises(SourceError, match=r"torn\.zip is no readable zip") as torn:
            open_source(f"{url}/torn.zip?signature=secret")
    assert "secret" not in str(torn.value)


def test_a_store_that_is_unknown_is_named() -> None:
    with pytest.raises(PerfuseError, match=r"cannot be opened"):
        open_source("nowhere://bucket/slices")
