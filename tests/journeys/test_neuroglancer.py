"""A scan in Neuroglancer, in a real browser: every voxel that is looked at has the grey that it should have."""

import functools
import http.server
import io
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from matplotlib import image as images

from perfuse_ingest.ingest import ingest

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.journey,
    pytest.mark.skipif(
        CHROMIUM is None and "PERFUSE_REQUIRE_SERVERS" not in os.environ, reason="needs Debian's package chromium"
    ),
    pytest.mark.filterwarnings("default"),
]
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--use-gl=angle", "--use-angle=swiftshader"]
FLAGS += ["--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
SHADER = "#uicontrol invlerp normalized(range=[0,1000])\nvoid main(){emitGrayscale(normalized());}"


class Files(http.server.SimpleHTTPRequestHandler):
    """A folder with byte ranges, for any page to read: what sharded Zarr needs of a web server."""

    def end_headers(self) -> None:
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Access-Control-Expose-Headers", "*")
        super().end_headers()

    def do_GET(self) -> None:
        path, asked = Path(self.translate_path(self.path)), self.headers.get("Range")
        if asked is None or not path.is_file():
            super().do_GET()
            return
        size = path.stat().st_size
        begin, end = asked.removeprefix("bytes=").split("-")
        start = int(begin) if begin else size - int(end)
        stop = min(int(end) + 1, size) if begin and end else size
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        with path.open("rb") as file:
            file.seek(start)
            self.wfile.write(file.read(stop - start))

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def picture(page: Any) -> np.ndarray[Any, Any]:
    """[rows, columns] of grey, 0 … 255."""
    shot = images.imread(io.BytesIO(page.screenshot()))
    return np.asarray(np.rint(shot[..., :3].mean(axis=2) * 255), int)


def test_the_voxels_are_seen_where_they_are(tmp_path: Path, served: str) -> None:
    import neuroglancer
    from playwright import sync_api as playwright

    volume = np.zeros((70, 128, 192), np.uint16)
    quarters = {(32, 48): 200, (32, 144): 400, (96, 48): 600, (96, 144): 1000}
    for (y, x), value in quarters.items():
        volume[:, y - 32 : y + 32, x - 48 : x + 48] = value
    volume[:35] = 0
    url = str(tmp_path / "k.ome.zarr")
    tifffile.imwrite(tmp_path / "k.tif", volume, photometric="minisblack", metadata=None)
    about = {"voxel_size_um": (50, 50, 50), "specimen": "k", "organ": "kidney"}
    ingest(str(tmp_path / "k.tif"), url, mask=False, **about)  # type: ignore[arg-type]
    neuroglancer.set_server_bind_address("127.0.0.1")
    viewer = neuroglancer.Viewer()
    with viewer.txn() as state:
        state.layers["image"] = neuroglancer.ImageLayer(source=f"{served}/k.ome.zarr/|zarr3:", shader=SHADER)
        state.dimensions = neuroglancer.CoordinateSpace(names=["x", "y", "z"], units="um", scales=[50] * 3)
        state.layout = "xy"
        state.show_axis_lines = state.show_scale_bar = state.show_default_annotations = False
    try:
        with playwright.sync_playwright() as play:
            browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            page = browser.new_page(viewport={"width": 500, "height": 500})
            page.goto(viewer.get_viewer_url())
            wanted = {(y - 64, x - 96): round(value * 255 / 1000) for (y, x), value in quarters.items()}
            seen = wait_for(page, wanted)
            page.screenshot(path=str(tmp_path / "neuroglancer.png"))
            browser.close()
    finally:
        neuroglancer.stop()
    assert seen == wanted, "the middle slice, 35, is the first that is not black"


def wait_for(page: Any, wanted: dict[tuple[int, int], int]) -> dict[tuple[int, int], int]:
    """Greys at places relative to the middle of the view, which begins 50 pixels below the top of the page."""
    deadline, seen = time.monotonic() + 60, {}
    while seen != wanted and time.monotonic() < deadline:
        time.sleep(1)
        grey = picture(page)
        seen = {(y, x): int(grey[(500 + 48) // 2 + y, 250 + x]) for y, x in wanted}
    return seen
