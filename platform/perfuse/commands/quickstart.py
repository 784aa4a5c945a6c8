"""`perfuse quickstart`: the main job, verb by verb, on phantoms: each line it runs is one that a user could type."""

import os
import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from perfuse.console import results, say

SHAPE = "128,224,224"
"""Planes along any axis are covered by whole tiles of the recipe."""
MODEL = "quickstart"


@dataclass(frozen=True)
class Organ:
    """A phantom and the part that it plays."""

    specimen: str
    seed: int
    labelled: bool


LABELLED = Organ("phantom-labelled", 11, labelled=True)
UNLABELLED = Organ("phantom-unlabelled", 12, labelled=False)
VALIDATION = Organ("phantom-validation", 13, labelled=True)
TEST = Organ("phantom-test", 14, labelled=True)


@dataclass
class Stages:
    """Runs verbs in this process, shows them, and keeps the seconds of each stage."""

    app: typer.Typer
    seconds: dict[str, float] = field(default_factory=dict)

    def __call__(self, stage: str, *words: str) -> Any:
        """Run one verb; returns what its function returns."""
        say(f"\n$ perfuse {shlex.join(words)}")
        begin = time.perf_counter()
        answer = typer.main.get_command(self.app).main(list(words), prog_name="perfuse", standalone_mode=False)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begin
        return answer


def register(app: typer.Typer) -> None:
    """Add the verb `quickstart`."""

    @app.command()
    def quickstart(
        workdir: Annotated[Path, typer.Option(envvar="PERFUSE_WORKDIR", help="Where everything goes.")] = Path(
            "perfuse-work"
        ),
    ) -> None:
        """The whole main job on four phantom organs, on this machine: 2 to 7 minutes on two cores.

        Run it again and nothing is redone.

        Example: perfuse quickstart --workdir perfuse-work
        """
        _embedded(workdir)
        stages = Stages(app)
        scans = workdir / "scans"
        for organ in (LABELLED, UNLABELLED, VALIDATION, TEST):
            _make(stages, organ, workdir)
        first = _train(stages, "train, round 1", scans, labels="human", train=[LABELLED])
        stages("pseudo-labels", "pseudolabel", _url(scans, UNLABELLED), "--model", first, "--output", "round1")
        second = _train(stages, "train, round 2", scans, labels="human,round1", train=[LABELLED, UNLABELLED])
        stages("predict", "predict", _url(scans, TEST), "--model", second, "--output", "prediction")
        scores = stages("score", "evaluate", _url(scans, TEST), "--prediction", "prediction", "--truth", "human")
        selection = ("--prediction", f"{MODEL}-selection", "--truth", "human")
        curve = stages("score", "tune", _url(scans, VALIDATION), *selection)
        stages("promote", "promote", MODEL, second.rsplit("/", 1)[-1])
        picture = _picture(stages, scans, workdir, scores)
        _report_scores(scores, curve, second)
        _report_times(stages)
        _report_places(workdir, picture)


def _embedded(workdir: Path) -> None:
    os.environ["PERFUSE_WORKDIR"] = str(workdir.absolute())
    for elsewhere in ("PERFUSE_STORAGE", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        os.environ.pop(elsewhere, None)


def _url(scans: Path, organ: Organ) -> str:
    return str(scans / f"{organ.specimen}.ome.zarr")


def _make(stages: Stages, organ: Organ, workdir: Path) -> None:
    slices = workdir / "slices" / organ.specimen
    stages("phantoms", "phantom", str(slices), "--shape", SHAPE, "--seed", str(organ.seed))
    labels = ["--labels", str(slices / "labels")] if organ.labelled else []
    about = ["--voxel-size-um", "50", "--specimen", organ.specimen, "--organ", "phantom"]
    stages("ingest", "ingest", str(slices / "images"), _url(workdir / "scans", organ), *about, *labels)


def _train(stages: Stages, stage: str, scans: Path, *, labels: str, train: list[Organ]) -> str:
    settings = {
        "labels": labels,
        "train": ",".join(o.specimen for o in train),
        "validation": VALIDATION.specimen,
        "holdout": TEST.specimen,
    }
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    uri: str = stages(stage, "train", "quickstart", "--data", str(scans), "--name", MODEL, *sets)
    return uri


def _picture(stages: Stages, scans: Path, workdir: Path, scores: dict[str, Any]) -> Path:
    from perfuse.catalog import Scan
    from perfuse.pictures import three_axes

    path = workdir / "quickstart.png"
    begin = time.perf_counter()
    threshold = round(scores["threshold"] * 255)
    path.write_bytes(three_axes(Scan.open(_url(scans, TEST)), "prediction", "human", threshold))
    stages.seconds["picture"] = time.perf_counter() - begin
    return path


def _report_scores(scores: dict[str, Any], curve: dict[str, Any], model: str) -> None:
    from rich.table import Table

    table = Table(title="The test organ, which nothing had seen")
    for heading in ("", "Dice", "surface dice"):
        table.add_column(heading, justify="right" if heading else "left")
    baseline = scores["baseline"]
    table.add_row(f"perfuse, {model}", f"{scores['dice']:.3f}", f"{scores['surface_dice']:.3f}")
    table.add_row(f"classical, {baseline['method']}", f"{baseline['dice']:.3f}", f"{baseline['surface_dice']:.3f}")
    results.print(table)
    plateau = curve["plateau"]
    results.print(
        f"threshold {scores['threshold']:.3f}, chosen on the validation organ; plateau {plateau['low']:.3f} to "
        f"{plateau['high']:.3f} (surface dice within 0.01 of the best)"
    )


def _report_times(stages: Stages) -> None:
    from rich.table import Table

    table = Table(title="Where the time went")
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    for stage, seconds in stages.seconds.items():
        table.add_row(stage, f"{seconds:.1f}")
    table.add_section()
    table.add_row("all", f"{sum(stages.seconds.values()):.1f}")
    results.print(table)


def _report_places(workdir: Path, picture: Path) -> None:
    root = workdir.absolute()
    made = {
        "picture": picture.absolute(),
        "scans": root / "scans",
        "prediction": root / "scans" / f"{TEST.specimen}.ome.zarr" / "labels" / "prediction",
        "MLflow": root / "mlflow.db",
        "checkpoints": root / "runs",
    }
    results.print("\nMade:")
    for what, path in made.items():
        results.print(f"  {what:<12}{path}", soft_wrap=True)
    here = f"PERFUSE_WORKDIR={shlex.quote(str(workdir))} .venv/bin/perfuse"
    results.print("\nNext, try:")
    for words in (
        f"scan show {_url(workdir / 'scans', TEST)}",
        f"history {MODEL}",
        f"serve --model models:/{MODEL}@champion",
    ):
        results.print(f"  {here} {words}", soft_wrap=True)
