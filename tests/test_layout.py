"""The rooms stand where design and README say, and nothing shadows the standard library."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ["platform/perfuse", "ingest/perfuse_ingest", "jobs/perfuse_jobs", "serving/perfuse_serving"]


def tracked() -> list[str]:
    return subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_is_one_typed_package(room: str) -> None:
    assert (ROOT / room / "__init__.py").is_file()
    assert (ROOT / room / "py.typed").is_file()
    assert not (ROOT / room).parent.joinpath("__init__.py").exists(), "a source root is no package"


def test_platform_of_the_standard_library_is_not_shadowed() -> None:
    import platform

    assert platform.python_implementation() == "CPython"
    assert not (ROOT / "platform" / "__init__.py").exists()


def test_test_folders_hold_no_init() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_files_stay_small() -> None:
    long = {
        f: n
        for f in tracked()
        if f.startswith(tuple(ROOMS)) and f.endswith(".py") and (n := len((ROOT / f).read_text().splitlines())) > 300
    }
    assert not long, f"split these: {long}"


def test_readme_shows_every_room() -> None:
    readme = (ROOT / "README.md").read_text()
    for room in [*ROOMS, "infra/", "tests/", "docs/", "bench/"]:
        assert room in readme


def test_constraints_name_no_index() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text
    assert "--" not in text
