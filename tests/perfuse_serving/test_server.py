"""`perfuse serve`, a real Ray Serve over HTTP, from a registered bundle to Ctrl-C."""

import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
import tifffile

from perfuse.bundle import Bundle
from perfuse.errors import PerfuseError
from perfuse_serving.images import MAX_BYTES
from perfuse_serving.model import Model
from perfuse_serving.server import check_port

NOISE = np.random.default_rng(1).integers(0, 40_000, (6, 70, 80), np.uint16)


@dataclass(frozen=True)
class Server:
    client: httpx.Client
    process: subprocess.Popen[str]
    expected: Model


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve(*words: str) -> list[str]:
    return [sys.executable, "-m", "perfuse.cli", "serve", *words]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> dict[str, str]:
    """An embedded MLflow in which the bundle is champion, and the environment that names it."""
    from perfuse.registry import register, set_champion
    from perfuse.tracking import Run

    env = {"PERFUSE_WORKDIR": str(tmp_path_factory.mktemp("work"))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERFUSE_WORKDIR", env["PERFUSE_WORKDIR"])
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        run = Run.start("served")
        register(bundle, "noise", run.id)
        set_champion("noise", "1")
        run.finish()
    return {**os.environ, **env}


@pytest.fixture(scope="module")
def server(registry: dict[str, str], bundle: Bundle) -> Iterator[Server]:
    port = free_port()
    words = serve("--model", "models:/noise@champion", "--port", str(port))
    with (
        subprocess.Popen(words, env=registry, stderr=subprocess.PIPE, text=True, start_new_session=True) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        try:
            wait_until_it_answers(client, process)
            yield Server(client, process, Model(bundle))
        finally:
            if process.poll() is None:
                process.kill()


def wait_until_it_answers(client: httpx.Client, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if client.get("/healthz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.3)
    process.kill()
    pytest.fail(f"the server does not answer: {process.communicate()[1]}")


def npy(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def tiff(array: Any) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, array, photometric="minisblack")
    return out.getvalue()


def test_model_tells_what_answers(server: Server, bundle: Bundle) -> None:
    about = server.client.get("/model").raise_for_status().json()
    assert (about["uri"], about["version"]) == ("models:/noise/1", "1")
    assert about["digest"] == bundle.digest()
    assert about["contract"]["decision"] == {"threshold": 125}


@pytest.mark.parametrize(
    "voxels", [NOISE, NOISE[2], (NOISE[2] >> 8).astype(np.uint8)], ids=["volume", "slice", "8 bit"]
)
def test_a_file_comes_back_as_a_mask_of_the_same_kind_and_shape(server: Server, voxels: Any) -> None:
    expected = server.expected.segment(voxels, "mask")
    as_npy = server.client.post("/segment", content=npy(voxels)).raise_for_status()
    np.testing.assert_array_equal(np.load(io.BytesIO(as_npy.content)), expected)
    as_tiff = server.client.post("/segment", content=tiff(voxels)).raise_for_status()
    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(as_tiff.content)), expected)
    assert as_tiff.headers["content-type"] == "image/tiff"
    assert as_tiff.headers["x-perfuse-model"] == "models:/noise/1"
    assert as_tiff.headers["x-perfuse-threshold"] == "125"


def test_a_form_and_a_body_get_the_same_answer(server: Server) -> None:
    query = {"output": "probability", "voxel_size_um": "50", "low": 100, "high": 30_000}
    files = {"file": ("slice.tif", tiff(NOISE[0]))}
    form = server.client.post("/segment", params=query, files=files).raise_for_status()
    body = server.client.post("/segment", params=query, content=tiff(NOISE[0])).raise_for_status()
    assert form.content == body.content
    expected = server.expected.segment(NOISE[0], "probability", window=(100, 30_000))
    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(form.content)), expected)


WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "no body": ({}, {}, 415),
    "no image": ({}, {"content": b"hello"}, 415),
    "floats": ({}, {"content": npy(NOISE[0].astype(np.float32))}, 422),
    "truncated": ({}, {"content": tiff(NOISE[0])[:-100]}, 400),
    "form without file": ({}, {"files": {"note": (None, "hello")}}, 400),
    "two files": ({}, {"files": {"a": npy(NOISE[0]), "b": npy(NOISE[0])}}, 400),
    "unknown output": ({"output": "contours"}, {"content": npy(NOISE[0])}, 422),
    "unknown class": ({"class": "vessel"}, {"content": npy(NOISE[0])}, 422),
    "forbidden voxel size": ({"voxel_size_um": "500"}, {"content": npy(NOISE[0])}, 422),
    "low alone": ({"low": 5}, {"content": npy(NOISE[0])}, 422),
    "low is no number": ({"low": "dark", "high": 7}, {"content": npy(NOISE[0])}, 422),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_gets_a_4xx_with_a_sentence(server: Server, name: str) -> None:
    query, content, status = WRONG[name]
    answer = server.client.post("/segment", params=query, **content)
    assert answer.status_code == status, answer.text
    assert answer.json()["detail"].endswith(".")


def test_a_body_that_is_too_large_is_refused(server: Server) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(MAX_BYTES // 2**20 + 2):
            yield bytes(2**20)

    answer = server.client.post("/segment", content=endless())
    assert answer.status_code == 413
    assert "perfuse predict" in answer.json()["detail"]


def test_ctrl_c_ends_it_and_leaves_nothing(server: Server) -> None:
    server.process.send_signal(signal.SIGINT)
    _, said = server.process.communicate(timeout=30)
    assert server.process.returncode == 0, said
    assert "Traceback" not in said
    check_port("127.0.0.1", server.client.base_url.port or 0)


def test_a_busy_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PerfuseError, match=f"Cannot listen on 127.0.0.1:{port}: Address already in use"):
            check_port("127.0.0.1", port)


def test_a_model_that_does_not_exist_is_named(registry: dict[str, str]) -> None:
    words = serve("--model", "models:/nothing@champion", "--port", str(free_port()))
    ended = subprocess.run(words, env=registry, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    assert "no model 'nothing'" in ended.stderr
    assert "Traceback" not in ended.stderr
