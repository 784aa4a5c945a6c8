"""`perfuse recipe …`, as a user types it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from perfuse.cli import build
from perfuse.errors import RecipeError
from perfuse.recipes import RECIPES, load_recipe


def recipe(*words: str) -> Any:
    return typer.main.get_command(build()).main(["recipe", *words], prog_name="perfuse", standalone_mode=False)


def test_ls_lists_all_with_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    recipe("ls", "--json")
    listed = {r["name"]: r for r in json.loads(capsys.readouterr().out)["recipes"]}
    assert set(listed) == set(RECIPES)
    assert listed["sennet_13th"]["sees"] == "256², 4 planes, mosaic, along z, y, x"
    assert listed["sennet_5th"]["work"] == "120,000 × 16"


def test_what_show_prints_is_the_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe("show", "sennet_3rd", "--set", "losses.0.smooth=2", "--smoke")
    (tmp_path / "my.yaml").write_text(capsys.readouterr().out)
    assert load_recipe(str(tmp_path / "my.yaml")) == load_recipe("sennet_3rd", ["losses.0.smooth=2"], smoke=True)


def test_diff_tells_both_values(capsys: pytest.CaptureFixture[str]) -> None:
    recipe("diff", "sennet_5th_maxvit", "sennet_5th_simple", "--json")
    assert json.loads(capsys.readouterr().out) == {
        "name": {"a": "sennet_5th_maxvit", "b": "sennet_5th_simple"},
        "axes": {"a": ["z", "y", "x"], "b": ["z"]},
    }
    recipe("diff", "sennet_3rd", "sennet_3rd_maxvit")
    said = capsys.readouterr().out
    assert "tu-maxvit_large_tf_512" in said
    assert "se_resnext101_32x4d" in said


def test_check_counts_weights_without_loading_any(capsys: pytest.CaptureFixture[str]) -> None:
    decoder = "network.decoder_channels=none"
    found = recipe("check", "quickstart", "--set", "network.encoder=resnet34", "--set", decoder, "--json")
    assert json.loads(capsys.readouterr().out) == found
    import segmentation_models_pytorch as smp

    network = smp.Unet("resnet34", encoder_weights=None, in_channels=3)
    assert found["weights"] == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["network.encoder=resnet81"], "resnet18"),
        (["network.architecture=unett"], "unet"),
        (["network.encoder=tu-maxvit_tiny_tf_512", "network.decoder_channels=none", "crop=160"], "can see: 512"),
    ],
)
def test_a_network_that_cannot_be_is_refused_with_what_could(settings: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        recipe("check", "quickstart", *(word for s in settings for word in ("--set", s)))


def test_a_refusal_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("base: sennet_3rd\nlosses: [{kind: dice, weigth: 2}]\n")
    words = [sys.executable, "-m", "perfuse.cli", "recipe", "check", "my.yaml"]
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 2
    assert ended.stderr.startswith(
        "Error: Recipe my.yaml: Unknown key 'losses.0.weigth'. Did you mean losses.0.weight?"
    )
    assert len(ended.stderr.splitlines()) == 1
