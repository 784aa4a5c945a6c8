"""From slices to a scan by the command line, on a disk and on a real object store."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

pytestmark = pytest.mark.journey


def perfuse(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "perfuse.cli", *words], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "Unclosed" not in done.stderr
    return done


def as_json(*words: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(perfuse(*words, "--json").stdout)
    return value


def test_a_phantom_becomes_a_scan(tmp_path: Path) -> None:
    slices, scans = tmp_path / "slices", tmp_path / "scans"
    perfuse("phantom", str(slices), "--shape", "80,48,56", "--seed", "3")
    url = str(scans / "p1.ome.zarr")
    about = ["--voxel-size-um", "50,25,25", "--specimen", "p1", "--organ", "phantom", "--donor", "anna"]
    command = ["ingest", str(slices / "images"), url, *about, "--labels", str(slices / "labels")]
    perfuse(*command)
    assert "complete already" in perfuse(*command).stderr
    shown = as_json("scan", "show", url)
    image = np.stack([tifffile.imread(p) for p in sorted((slices / "images").glob("*.tif"))])
    truth = np.stack([tifffile.imread(p) for p in sorted((slices / "labels").glob("*.tif"))])
    assert {key: shown[key] for key in ("id", "specimen", "donor", "organ", "shape_zyx", "dtype", "voxel_size_um")} == {
        "id": "p1",
        "specimen": "p1",
        "donor": "anna",
        "organ": "phantom",
        "shape_zyx": [80, 48, 56],
        "dtype": "uint16",
        "voxel_size_um": [50, 25, 25],
    }
    assert shown["levels"] == 2
    assert shown["intensity"]["max"] == image.max()
    assert shown["lineage"]["slices"] == 80
    human, organ = shown["labels"]
    assert (organ["name"], organ["kind"]) == ("organ", "dense")
    assert (human["name"], human["kind"], human["coverage"]) == ("human", "dense", 1.0)
    assert human["foreground"] == pytest.approx((truth > 0).mean())
    assert [s["id"] for s in as_json("scan", "ls", str(scans))["scans"]] == ["p1"]
    assert as_json("scan", "verify", url)["faults"] == []
    for words in (["scan", "show", url], ["scan", "ls", str(scans)]):
        assert "p1" in perfuse(*words).stdout


def test_labels_of_a_part_are_added_later_and_damage_is_named(tmp_path: Path) -> None:
    slices, url = tmp_path / "slices", str(tmp_path / "p1.ome.zarr")
    perfuse("phantom", str(slices), "--shape", "40,48,56")
    perfuse("ingest", str(slices / "images"), url, "--voxel-size-um", "50", "--specimen", "p1", "--organ", "phantom")
    part = tmp_path / "part.tif"
    tifffile.imwrite(part, np.eye(20, dtype=np.uint8)[None].repeat(4, 0) * 255, photometric="minisblack")
    perfuse("labels", "add", url, str(part), "--name", "part", "--at", "30,8,9", "--coverage", "0.85")
    _, label = as_json("scan", "show", url)["labels"]
    assert (label["kind"], label["coverage"], label["box"]) == ("sparse", 0.85, [[30, 8, 9], [34, 28, 29]])
    shard = Path(url) / "0/c/0/0/0"
    shard.write_bytes(shard.read_bytes()[:-1])
    failed = perfuse("scan", "verify", url, code=2)
    assert "0/c/0/0/0" in failed.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ingest", "{0}", "{0}/a.ome.zarr", "--voxel-size-um", "0"], "A voxel size is one number or Z,Y,X"),
        (["ingest", "{0}/none", "{0}/a.ome.zarr", "--voxel-size-um", "50"], "none does not exist"),
        (["ingest", "{0}", "{0}/a.ome.zarr", "--voxel-size-um", "50"], "holds no TIFF slices"),
        (["ingest", "s3://nowhere/slices", "{0}/a.ome.zarr", "--voxel-size-um", "50"], "Cannot reach the store"),
    ],
)
def test_bad_input_ends_with_one_message(
    tmp_path: Path, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "unknown")
    command = [w.format(tmp_path) for w in words]
    failed = perfuse(*command, "--specimen", "a", "--organ", "kidney", code=2)
    assert message in failed.stderr
    assert failed.stdout == ""
    assert not (tmp_path / "a.ome.zarr").exists()


def test_from_and_to_an_object_store(tmp_path: Path, s3_url: str) -> None:
    from perfuse import storage
    from perfuse.catalog import Scan
    from perfuse.errors import ScanError
    from perfuse_ingest.export import export

    slices = tmp_path / "slices"
    perfuse("phantom", str(slices), "--shape", "140,48,56", "--seed", "5")
    files = storage.filesystem(s3_url)
    for kind in ("images", "labels"):
        files.put(str(slices / kind), f"{s3_url}/slices/{kind}", recursive=True)
    url = f"{s3_url}/scans/p1.ome.zarr"
    about = ["--voxel-size-um", "50", "--specimen", "p1", "--organ", "phantom"]
    command = ["ingest", f"{s3_url}/slices/images", url, *about, "--labels", f"{s3_url}/slices/labels"]
    running = subprocess.Popen([sys.executable, "-m", "perfuse.cli", *command], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not files.exists(f"{url}/perfuse/done/0/c/0/0") and time.monotonic() < deadline:
        time.sleep(0.05)
    running.kill()
    running.wait()
    lock = f"{s3_url}/scans/.p1.ome.zarr.scan.lock"
    if files.exists(lock):  # the dead one's lease would be taken over in a minute
        files.rm(lock)
    perfuse(*command)
    scan = Scan.open(url)
    image = np.stack([tifffile.imread(p) for p in sorted((slices / "images").glob("*.tif"))])
    truth = np.stack([tifffile.imread(p) for p in sorted((slices / "labels").glob("*.tif"))])
    np.testing.assert_array_equal(scan.image[:], image)
    np.testing.assert_array_equal(scan.label("human")[:], truth)
    assert as_json("scan", "verify", url)["faults"] == []
    for name in ("human.nii", "slices/"):
        export(scan, "human", f"{s3_url}/out/{name}")
        files.get(f"{s3_url}/out/{name}", f"{tmp_path}/out/{name}", recursive=True)
    volume = np.frombuffer((tmp_path / "out/human.nii").read_bytes(), np.uint8, offset=352)
    np.testing.assert_array_equal(volume.reshape(truth.shape), truth > 0)
    stored = [tifffile.imread(p) for p in sorted((tmp_path / "out/slices").iterdir())]
    np.testing.assert_array_equal(stored, truth)
    with pytest.raises(ScanError, match="slices is not empty"):
        export(scan, "human", f"{s3_url}/out/slices/")
    listed = as_json("scan", "ls", f"{s3_url}/scans")["scans"]
    assert [s["id"] for s in listed] == ["p1"]
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in json.dumps(listed)
    local = str(tmp_path / "p1.ome.zarr")
    from perfuse_ingest.ingest import ingest

    info = ingest(str(slices / "images"), local, voxel_size_um=(50, 50, 50), specimen="p1", organ="phantom")
    assert info.digest == scan.info.digest, "the same bytes on a disk and in a store"


def test_a_lease_keeps_others_out(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from perfuse import locks, storage
    from perfuse.errors import BusyError

    url, lock = f"{s3_url}/a.ome.zarr", f"{s3_url}/.a.ome.zarr.scan.lock"
    with locks.writing(url):
        with pytest.raises(BusyError, match="is writing"), locks.writing(url):
            pass
        with locks.writing(url, "label-human"):
            pass
    assert not storage.exists(lock)
    storage.write_json(lock, {"owner": "a-dead-one", "renewed": time.time() - 2 * locks.LEASE_S})
    monkeypatch.setattr(locks, "SETTLE_S", 0.1)
    with locks.writing(url):
        assert storage.read_json(lock)["owner"] != "a-dead-one"
    monkeypatch.setattr(locks, "LEASE_S", 0.4)
    with pytest.raises(BusyError, match="was lost to another process"), locks.writing(url):  # noqa: PT012
        storage.write_json(lock, {"owner": "a-thief", "renewed": time.time() + 60})
        time.sleep(0.5)
    assert storage.read_json(lock)["owner"] == "a-thief", "the lease of another is not removed"
