"""One page about a training: self-contained HTML, which opens anywhere and asks nobody for anything."""

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import chain

from perfuse import storage
from perfuse.contract import said
from perfuse.metrics.curve import Curve
from perfuse.plots import History, over_steps, over_thresholds
from perfuse.recipes import to_yaml
from perfuse.scoring import Evaluation
from perfuse.training import TrainingJob

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid #ccc } img { max-width: 100% }
table { border-collapse: collapse } th, td { padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: top }
td { overflow-wrap: anywhere } figure { margin: 1rem 0 }
th { border-bottom: 1px solid #999 } td.n { font-variant-numeric: tabular-nums; text-align: right }
code, pre { font: 13px/1.45 ui-monospace, monospace } pre { background: #f5f5f5; padding: 1rem; overflow-x: auto }
"""


def page(
    job: TrainingJob,
    model: str,
    history: History,
    pictures: Mapping[str, bytes],
    curves: Mapping[str, Curve] | None = None,
    scores: Sequence[Evaluation] = (),
) -> str:
    """The report of a training.

    model: its URI in the registry; while it goes on, its name there. history: metrics by name and step. pictures: PNG of each
    validation scan. curves: by class, over all thresholds, of all validation scans together; empty where none selects, None
    while the training goes on. scores: of each scan, at the chosen threshold.
    """
    parts = [
        f"<h1>{escape(model)}</h1>",
        f"<p>{escape(_said(job, max(chain(*history.values())), curves))}</p>",
        *(_selection(curves, scores) if curves else []),
        _section("Training", _image(over_steps(history), "losses, scores, learning rate and speed over steps")),
        _section("Last validation", *(_figure(name, picture) for name, picture in sorted(pictures.items()))),
        _section("Data", _data(job)),
        _section("Recipe", f"<pre>{escape(to_yaml(job.recipe))}</pre>"),
    ]
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(model)}</title><style>{STYLE}</style>"
    )
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _selection(curves: Mapping[str, Curve], scores: Sequence[Evaluation]) -> list[str]:
    plots = [
        _section(
            f"Thresholds of {name}" if name else "Thresholds",
            _image(over_thresholds(curve), "scores over thresholds"),
            _plateau(curve),
        )
        for name, curve in curves.items()
    ]
    return [_section("Scores on the validation scans", _scores(scores)), *plots]


def _said(job: TrainingJob, steps: int, curves: Mapping[str, Curve] | None) -> str:
    recipe = job.recipe
    if curves is None:
        state = f"not finished, of {recipe.steps:,} steps" + " at most" * (recipe.converged is not None)
    elif curves:
        chosen = {name: curve.chosen for name, curve in curves.items()}
        state = said(chosen.get("", chosen))
    else:
        state = "threshold inherited, for no scan selects"
    return f"Recipe {recipe.name}, {steps:,} steps of {recipe.batch * recipe.accumulate} crops; {state}; training key {job.key}."


def _scores(scores: Iterable[Evaluation]) -> str:
    headings = ("scan", "truth", "threshold", "surface dice", "Dice", "precision", "recall", "classical surface dice")
    rows = [
        (
            s.scan,
            s.truth,
            *(
                f"{v:.4f}"
                for v in (s.threshold, s.surface_dice, s.dice, s.precision, s.recall, s.baseline.surface_dice)
            ),
        )
        for s in scores
    ]
    return _table(headings, rows)


def _plateau(curve: Curve) -> str:
    best, plateau = curve.best, curve.plateau
    return (
        f"<p>Best at {best / 255:.3f}, with surface dice {curve.surface_dice[best - 1]:.4f}; within 0.01 of it from "
        f"{plateau.low:.3f} to {plateau.high:.3f}, a plateau of {plateau.width:.3f}; chosen is its point nearest to a "
        f"half, {curve.chosen / 255:.3f}.</p>"
    )


def _data(job: TrainingJob) -> str:
    headings = ("part", "specimen", "label", "digest of the scan", "digest of the label", "where")
    rows = [
        (part, s.specimen, s.label, s.scan_digest, s.label_digest, storage.public(s.url))
        for part, sources in (("train", job.train), ("validation", job.validation))
        for s in sources
    ]
    return _table(headings, rows)


def _section(title: str, *parts: str) -> str:
    return f"<h2>{escape(title)}</h2>\n" + "\n".join(parts)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in headings)
    body = "\n".join(f"<tr>{''.join(_cell(v) for v in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>\n{body}</table>"


def _cell(value: str) -> str:
    number = value.replace(".", "").isdigit() or value == "nan"
    return f"<td{' class=n' * number}>{escape(value)}</td>"


def _figure(name: str, picture: bytes) -> str:
    return f"<figure><figcaption>{escape(name)}</figcaption>{_image(picture, name)}</figure>"


def _image(picture: bytes, about: str) -> str:
    return f'<img alt="{escape(about)}" src="data:image/png;base64,{b64encode(picture).decode()}">'
