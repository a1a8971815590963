"""What people see in a terminal while sound comes in: level and score bars, in 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ast_stream.units import SILENCE_DBFS

MAX_COLUMNS = 100
LABEL_COLUMNS = 34
QUIETEST_SHOWN_DBFS = -80.0
CLIPPING_DBFS = -3.0


def console() -> Console:
    """Return the console for people: standard error, so that standard output stays data."""
    return Console(stderr=True, highlight=False)


def level_text(level_dbfs: float | None) -> str:
    """Return a level as people read it."""
    if level_dbfs is None:
        return "no audio"
    return "digital silence" if level_dbfs <= SILENCE_DBFS else f"{level_dbfs:.1f} dBFS"


def level_bar(level_dbfs: float | None) -> RenderableType:
    """Return a bar from -80 to 0 dBFS with the figure behind it."""
    shown = QUIETEST_SHOWN_DBFS if level_dbfs is None else max(QUIETEST_SHOWN_DBFS, level_dbfs)
    style = "red" if shown > CLIPPING_DBFS else "green"
    return bar_table([("level", shown - QUIETEST_SHOWN_DBFS, level_text(level_dbfs), style)], 80.0)


def score_bars(
    scores: Sequence[tuple[str, float, float]], *, threshold_known: bool = True
) -> RenderableType:
    """Return one bar for each (label, score, onset threshold); bold where above the threshold."""
    rows = [
        (
            label,
            score,
            f"{score:.2f}",
            "bold magenta" if threshold_known and score >= threshold else "cyan",
        )
        for label, score, threshold in scores
    ]
    return bar_table(rows, 1.0)


def bar_table(rows: Sequence[tuple[str, float, str, str]], total: float) -> RenderableType:
    """Return rows of label, bar and figure; each row is (label, value, figure, style)."""
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(width=LABEL_COLUMNS, no_wrap=True, overflow="ellipsis")
    table.add_column(ratio=1)
    table.add_column(width=16, no_wrap=True)
    for label, value, figure, style in rows:
        bar = ProgressBar(total=total, completed=value, complete_style=style, finished_style=style)
        table.add_row(Text(label), bar, Text(figure, style=style))
    return table


def stacked(*parts: RenderableType) -> RenderableType:
    """Return the parts below each other."""
    return Group(*parts)
