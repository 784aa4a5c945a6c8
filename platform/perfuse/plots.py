"""Plots of a training: its metrics over the steps, and its scores over the thresholds; as PNG."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from perfuse.metrics.curve import Curve
from perfuse.pictures import png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

VALIDATION = ("val_surface_dice", "val_dice", "val_threshold")
"""How scores begin; those of a class end in its name."""
History = Mapping[str, Mapping[int, float]]
"""Metrics by name, then by step."""


def over_steps(history: History) -> bytes:
    """Losses, validation scores, learning rate, and speed with the share of time that data was waited for."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.5), layout="constrained")
    (losses, scores), (rates, speeds) = figure.subplots(2, 2)
    _lines(losses, history, sorted(n for n in history if n.endswith("loss")), "loss")
    _lines(scores, history, [n for n in sorted(history) if n.startswith(VALIDATION)], "validation")
    scores.set_ylim(0, 1)
    _lines(rates, history, ["learning_rate"], "learning rate")
    _lines(speeds, history, ["crops_per_s"], "crops per second")
    waiting = speeds.twinx()
    waiting.plot(*_points(history, "wait_share"), color="tab:red", linewidth=1)
    waiting.set_ylim(0, 1)
    waiting.set_ylabel("share of time waiting for data", color="tab:red", fontsize=8)
    return png(figure)


def over_thresholds(curve: Curve, title: str = "validation scans, whole") -> bytes:
    """Dice and surface dice over all thresholds, with the plateau and its point nearest to a half, which is chosen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes, at = figure.subplots(), curve.thresholds / 255
    axes.axvspan(curve.plateau.low, curve.plateau.high, color="tab:green", alpha=0.15, label="plateau")
    axes.axvline(curve.chosen / 255, color="tab:green", linewidth=1, label="chosen")
    axes.plot(at, curve.surface_dice, label="surface dice")
    axes.plot(at, curve.dice, label="Dice")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="threshold")
    _dress(axes, title)
    return png(figure)


def _lines(axes: "Axes", history: History, names: list[str], title: str) -> None:
    for name in names:
        if name in history:
            marker = "o" if len(history[name]) == 1 else None
            axes.plot(*_points(history, name), label=name.replace("_", " "), linewidth=1.2, marker=marker)
    axes.set_xlabel("step", fontsize=8)
    _dress(axes, title)


def _points(history: History, name: str) -> tuple[Any, Any]:
    told = history.get(name, {})
    return list(told), list(told.values())


def _dress(axes: "Axes", title: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
