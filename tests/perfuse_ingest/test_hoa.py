"""The Human Organ Atlas: what is listed, where it lies, and what is never taken from its records."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import zarr
from typer.testing import CliRunner

from perfuse.catalog import Scan
from perfuse.cli import build
from perfuse.errors import SourceError
from perfuse.geometry import Box
from perfuse.verify import verify
from perfuse_ingest import hoa
from perfuse_ingest.sources import open_source

pytestmark = pytest.mark.skipif(find_spec("hoa_tools") is None, reason="hoa-tools is not installed (perfuse[hoa])")
SPLEEN = "LADAF-2020-27_spleen_complete-organ_25.08um_bm05"
LUNG = "A186_lung_right_complete-organ_24.132um_bm18"
PRIVATE = {
    *("age", "sex", "weight", "height", "cause_of_death", "medical_history", "diabetes", "hypertension", "smoker"),
    *("post_mortem_interval_hours", "proposal", "scan", "fixation_method"),
}


def records() -> list[dict[str, Any]]:
    spec = find_spec("hoa_tools")
    assert spec is not None
    assert spec.origin is not None
    return [json.loads(f.read_text()) for f in Path(spec.origin).parent.glob("data/metadata/metadata/*.json")]


def listed(*organs: str) -> Any:
    ran = CliRunner().invoke(build(), ["hoa", "ls", "--json", *(word for o in organs for word in ("--organ", o))])
    assert ran.exit_code == 0, ran.output
    return json.loads(ran.stdout)["datasets"]


def test_lists_the_whole_catalogue() -> None:
    assert {d["name"] for d in listed()} == {r["name"] for r in records()}
    assert {d["format"] for d in listed()} == {"N5", "OME-Zarr"}
    kidneys_and_spleens = listed("kidney", "Spleen")
    assert {d["organ"] for d in kidneys_and_spleens} == {"kidney", "spleen"}
    (spleen,) = [d for d in kidneys_and_spleens if d["name"] == SPLEEN]
    assert (spleen["donor"], spleen["kind"], spleen["voxel_size_um"]) == ("LADAF-2020-27", "complete organ", 25.08)
    assert spleen["size_gb"] == pytest.approx(2919 * 2151 * 1900 * 2 / 1e9, abs=0.001)
    kinds = {r["name"]: r["dataset_type"] for r in records()}
    assert {kinds[d["name"]] for d in listed() if d["kind"] == "VOI"} == {"zoom"}


def test_the_table_shows_whole_names() -> None:
    ran = CliRunner().invoke(build(), ["hoa", "ls", "--organ", "spleen"])
    assert ran.exit_code == 0
    for word in (SPLEEN, "complete organ", "25.08", "N5", "23.9"):
        assert word in ran.stdout


def every_output() -> str:
    shown = CliRunner().invoke(build(), ["hoa", "ls"]).stdout
    resolved = [asdict(hoa.resolve(f"hoa:{d.name}")) for d in hoa.find()]
    return json.dumps([listed(), resolved, [asdict(d) for d in hoa.find()], shown])


def keys_of(value: Any) -> set[str]:
    if isinstance(value, dict):
        return {*value, *(k for v in value.values() for k in keys_of(v))}
    return {k for v in value for k in keys_of(v)} if isinstance(value, list) else set()


def test_nothing_of_a_donor_but_the_id_is_taken() -> None:
    output = every_output()
    assert not keys_of(json.loads(output)) & PRIVATE
    for record in records():
        donor = record["donor"]
        told = [donor.get("cause_of_death"), donor.get("medical_history"), record["proposal"]["title"]]
        for words in filter(None, told):
            assert words not in output
            assert json.dumps(words)[1:-1] not in output
        parsed = hoa._parsed(json.dumps(record))
        assert parsed["donor"] == {"id": donor["id"]}, "no age, sex or history survives the parser"
        assert not keys_of(parsed) & PRIVATE


def test_a_planted_secret_never_gets_through() -> None:
    """Numbers and letters (an age, a sex) also stand in sizes and names; so secrets that stand nowhere else are planted."""
    for record in records()[:5]:
        donor = {key: f"secret-{key}" for key in record["donor"] if key != "id"}
        record = {**record, "donor": {**donor, "id": record["donor"]["id"], "new_field": "secret-new"}}
        record["sample"] = {**record["sample"], "post_mortem_interval_hours": "secret-hours"}
        assert "secret" not in repr(hoa._dataset(hoa._parsed(json.dumps(record))))


def test_the_library_that_reads_them_whole_is_not_imported() -> None:
    code = "import sys; from perfuse_ingest import hoa; hoa.find(); sys.exit('hoa_tools.dataset' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0


def test_resolves_to_the_atlas_own_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(hoa.ROOT_VARIABLE, raising=False)
    found = hoa.resolve(f"hoa:{SPLEEN}", level=1)
    path = "LADAF-2020-27/spleen/25.08um_complete-organ_bm05"
    assert found.url == f"gs://ucl-hip-ct-35a68e99feaae8932b1d44da0358940b/{path}"
    assert (found.level, found.voxel_size_um) == (1, (50.16, 50.16, 50.16))
    assert (found.donor, found.specimen, found.organ) == ("LADAF-2020-27", "LADAF-2020-27_spleen", "spleen")
    assert found.lineage["doi"] == "10.15151/ESRF-DC-572244468"
    assert "Claire Walsh" in str(found.lineage["citation"])
    left = hoa.resolve("hoa:LADAF-2020-27_kidney_left_complete-organ_25.08um_bm05")
    assert left.specimen == "LADAF-2020-27_kidney_left"


def write_as_hoa_n5(folder: Path, voxels: np.ndarray[Any, Any], levels: int) -> None:
    """Exactly as the atlas publishes its N5 volumes."""
    factors = [[2**k] * 3 for k in range(levels)]
    group = {"axes": ["x", "y", "z"], "downsamplingFactors": factors, "multiScale": True}
    for k in range(levels):
        level = voxels[:: 2**k, :: 2**k, :: 2**k]
        compression = {"blocksize": 0, "clevel": 9, "cname": "zstd", "shuffle": 2, "type": "blosc"}
        metadata = {"axes": ["x", "y", "z"], "blockSize": [16] * 3, "compression": compression}
        metadata |= {"dataType": "uint16", "dimensions": level.shape[::-1]}
        kvstore = {"driver": "file", "path": f"{folder}/s{k}/"}
        spec = {"driver": "n5", "kvstore": kvstore, "metadata": metadata, "create": True}
        tensorstore.open(spec).result()[...] = level.T
    about = {**group, "resolution": [25.08] * 3, "units": ["um"] * 3}
    (folder / "attributes.json").write_text(json.dumps(about))


def write_as_hoa_zarr(folder: Path, voxels: np.ndarray[Any, Any], levels: int) -> None:
    """Exactly as the atlas publishes its OME-Zarr volumes: 0.4, x, y, z, the translation before the scale."""
    group = zarr.open_group(folder, mode="w", zarr_format=2)
    datasets = []
    for k in range(levels):
        level = voxels[:: 2**k, :: 2**k, :: 2**k].T
        separator = {"name": "v2", "separator": "/"}
        group.create_array(str(k), data=np.ascontiguousarray(level), chunks=(16,) * 3, chunk_key_encoding=separator)  # type: ignore[arg-type]
        scale, shift = 24.132 * 2**k, 24.132 * (2**k - 1) / 2
        steps = [{"type": "translation", "translation": [shift] * 3}, {"type": "scale", "scale": [scale] * 3}]
        datasets.append({"path": str(k), "coordinateTransformations": steps})
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "xyz"]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]


@pytest.mark.parametrize("name", [SPLEEN, LUNG])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_copy_of_the_atlas_is_read_at_any_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, level: int
) -> None:
    voxels = np.random.default_rng(0).integers(0, 60000, (40, 50, 60)).astype(np.uint16)
    write_as_hoa_n5(tmp_path / "LADAF-2020-27/spleen/25.08um_complete-organ_bm05", voxels, 3)
    write_as_hoa_zarr(tmp_path / "A186/lung-right/24.132um_complete-organ_bm18.ome.zarr", voxels, 3)
    monkeypatch.setenv(hoa.ROOT_VARIABLE, str(tmp_path))
    found = hoa.resolve(f"hoa:{name}", level=level)
    with open_source(found.url, level=found.level) as source, ThreadPoolExecutor(2) as pool:
        wanted = voxels[:: 2**level, :: 2**level, :: 2**level]
        np.testing.assert_array_equal(source.read(Box.whole(wanted.shape), pool)[0], wanted)
        assert source.voxel_size_um == pytest.approx(found.voxel_size_um), "catalogue and volume agree"
    with pytest.raises(SourceError, match="no level 3"):
        open_source(hoa.resolve(f"hoa:{name}", level=3).url, level=3)


def test_ingests_from_a_copy_of_the_atlas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    voxels = np.random.default_rng(0).integers(1, 60000, (40, 50, 60)).astype(np.uint16)
    write_as_hoa_n5(tmp_path / "LADAF-2020-27/spleen/25.08um_complete-organ_bm05", voxels, 2)
    monkeypatch.setenv(hoa.ROOT_VARIABLE, str(tmp_path))
    url = str(tmp_path / "spleen.ome.zarr")
    ran = CliRunner().invoke(build(), ["ingest", f"hoa:{SPLEEN}", url, "--level", "1"], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    scan = Scan.open(url)
    np.testing.assert_array_equal(scan.image[:], voxels[::2, ::2, ::2])
    info = scan.info
    assert (info.donor, info.specimen, info.organ) == ("LADAF-2020-27", "LADAF-2020-27_spleen", "spleen")
    assert info.voxel_size_um == (50.16, 50.16, 50.16)
    assert info.lineage["doi"] == "10.15151/ESRF-DC-572244468"
    assert verify(url, with_source=True).faults == []
    voxels[8, 0, 0] ^= 1
    shutil.rmtree(tmp_path / "LADAF-2020-27/spleen/25.08um_complete-organ_bm05")
    write_as_hoa_n5(tmp_path / "LADAF-2020-27/spleen/25.08um_complete-organ_bm05", voxels, 2)
    assert [f.split(" of ")[0] for f in verify(url, with_source=True).faults] == ["plane 4"]


def test_unknown_names_and_organs_teach() -> None:
    with pytest.raises(SourceError, match=rf"no dataset 'LADAF-2020-27_spleen'\. Near it are .*{SPLEEN}"):
        hoa.resolve("hoa:LADAF-2020-27_spleen")
    with pytest.raises(SourceError, match="`perfuse hoa ls` lists all"):
        hoa.resolve("hoa:%%%")
    with pytest.raises(SourceError, match=r"no organ 'gills'\. It has .*kidney.*spleen"):
        hoa.find(["gills"])
    with pytest.raises(SourceError, match="has no level -1"):
        hoa.resolve(f"hoa:{SPLEEN}", level=-1)
