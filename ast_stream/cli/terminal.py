"""The live view in a terminal: level and score bars, in 80 columns."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from ast_stream.labels import printable
from ast_stream.units import SILENCE_DBFS

LABEL_COLUMNS = 34
QUIETEST_SHOWN_DBFS = -80.0
CLIPPING_DBFS = -3.0


class _Console(Console):
    """Shows text that comes from outside as it is: neither markup nor escapes in it act."""

    def __init__(self, *, stderr: bool, width: int | None = None) -> None:
        super().__init__(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yield what is shown; colours are no part of its text yet."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(printable(segment.text, keep="\n"), segment.style)


def console(*, stderr: bool = True, piped_width: int | None = None) -> Console:
    """Return the console for people: standard error, so that standard output stays data.

    Args:
        stderr: False for what is a command's result.
        piped_width: columns where the output is no terminal; None: as the environment says.
    """
    made = _Console(stderr=stderr)
    is_piped = piped_width is not None and not made.is_terminal
    return _Console(stderr=stderr, width=piped_width) if is_piped else made


class PacedLines:
    """Lines about progress on standard error where no bar can be drawn: one in some seconds."""

    def __init__(self, every_s: float = 10.0) -> None:
        self._every_s = every_s
        self._shown_s = time.monotonic()

    def show(self, text: str) -> None:
        """Print the line, unless the last one is new."""
        now_s = time.monotonic()
        if now_s - self._shown_s >= self._every_s:
            self._shown_s = now_s
            print(printable(text), file=sys.stderr, flush=True)


class ProgressView(Progress):
    """Progress on standard error: a bar on a terminal, elsewhere a line every ten seconds.

    Standard output is left alone. Rich would take over both: what is printed meanwhile would be
    wrapped, and go to the terminal instead of the file it was redirected to.

    Args:
        columns: default: description, bar, percentage, elapsed and remaining time.
        transient: the bar disappears when it is done.
    """

    def __init__(self, *columns: ProgressColumn, transient: bool = True) -> None:
        columns = columns or (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TimeRemainingColumn(elapsed_when_finished=not transient),
        )
        self._lines = PacedLines()
        for column in columns:
            if isinstance(column, TextColumn):
                column.markup = False  # names of files and classes are none
        super().__init__(
            *columns,
            console=console(),
            transient=transient,
            redirect_stdout=False,
            disable=not sys.stderr.isatty() or os.environ.get("TERM") == "dumb",
        )

    def proceed(self, task: TaskID, amount: float, description: str, verb: str) -> None:
        """Advance a task by an amount of its total.

        Args:
            description: what is being done now.
            verb: what has been done to the part that is finished, e.g. "measured".
        """
        if self.disable and self.tasks[task].description != description:
            print(printable(description), file=sys.stderr)
        self.update(task, description=description, advance=amount)
        if self.disable:
            self._lines.show(f"{min(100.0, self.tasks[task].percentage):.0f} % {verb}")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the terminal to standard output for a moment, if that is one too."""
        if self.disable or not sys.stdout.isatty():
            yield
            return
        self.stop()
        try:
            yield
        finally:
            self.start()


class StatusLine:
    """One line about what is being done now, redrawn in place."""

    def __init__(self, console: Console, *, is_shown: bool) -> None:
        self._spinner = Spinner("dots")
        self._live = Live(
            self._spinner, console=console, transient=True, redirect_stdout=False,
            refresh_per_second=12.5,
        )  # fmt: skip
        self._is_shown = is_shown

    def __enter__(self) -> StatusLine:
        if self._is_shown:
            self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._live.stop()

    def update(self, text: str) -> None:
        self._spinner.update(text=Text(text))


def level_text(level_dbfs: float | None) -> str:
    if level_dbfs is None:
        return "no audio"
    return "digital silence" if level_dbfs <= SILENCE_DBFS else f"{level_dbfs:.1f} dBFS"


def level_bar(level_dbfs: float | None) -> RenderableType:
    """Return a bar from -80 to 0 dBFS with the figure behind it."""
    shown = QUIETEST_SHOWN_DBFS if level_dbfs is None else max(QUIETEST_SHOWN_DBFS, level_dbfs)
    style = "red" if shown > CLIPPING_DBFS else "green"
    value = shown - QUIETEST_SHOWN_DBFS
    return _bars([("level", value, level_text(level_dbfs), style)], -QUIETEST_SHOWN_DBFS)


def score_bars(scores: Sequence[tuple[str, float, float]]) -> RenderableType:
    """Return one bar for each (label, score, onset threshold); bold where above the threshold."""
    return _bars(
        [
            (label, score, f"{score:.2f}", "bold magenta" if score >= threshold else "cyan")
            for label, score, threshold in scores
        ],
        1.0,
    )


def _bars(rows: Sequence[tuple[str, float, str, str]], total: float) -> RenderableType:
    """Return rows of label, bar and figure; each row is (label, value, figure, style)."""
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(width=LABEL_COLUMNS, no_wrap=True, overflow="ellipsis")
    table.add_column(ratio=1)
    table.add_column(width=16, no_wrap=True)
    for label, value, figure, style in rows:
        bar = ProgressBar(total=total, completed=value, complete_style=style, finished_style=style)
        table.add_row(Text(label), bar, Text(figure, style=style))
    return table


def plain_table(*headings: str, right: Collection[str] = ()) -> Table:
    """Return a table without lines, whose text is folded and not cut where room is short.

    Args:
        right: headings of the columns that hold figures.
    """
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        justify: JustifyMethod = "right" if heading in right else "left"
        table.add_column(heading, justify=justify, overflow="fold")
    return table
