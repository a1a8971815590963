"""The curves of a training as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ast_stream.errors import UsageError
from ast_stream.training.state import Metrics

NOT_PLOTTED = ("step",)


def plot_curves(reports: Sequence[Metrics], path: Path) -> None:
    """Write a PNG with one panel per metric over the steps; does nothing without reports.

    Raises:
        UsageError: matplotlib (the extra `train`) is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("curves need matplotlib: pip install 'ast-stream[train]'") from error
    names = [name for name in dict.fromkeys(key for one in reports for key in one)]
    names = [name for name in names if name not in NOT_PLOTTED]
    if not names:
        return
    figure = Figure(figsize=(7, 2.2 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), squeeze=False)[:, 0]
    for panel, name in zip(panels, names, strict=True):
        points = [(one["step"], one[name]) for one in reports if name in one]
        panel.plot(*zip(*points, strict=True), marker="." if len(points) < 50 else None)
        panel.set_ylabel(name)
        panel.grid(alpha=0.3)
    panels[-1].set_xlabel("step")
    figure.savefig(path, dpi=100)
