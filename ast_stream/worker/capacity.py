"""Capacity of a box: windows due each second against windows that its model can score."""

from __future__ import annotations

from collections.abc import Iterator

from ast_stream.settings.schema import Settings
from ast_stream.units import counted

# of the time; the rest is for features, decisions and sockets, and to catch up after a restart
USABLE_RATIO = 0.7
WORKER_START_S = 15.0  # from a kill until the first window is scored, on a busy box


def describe_load(settings: Settings, ms_per_window: float) -> str:
    """Return how many windows are due and how many streams the box can hold, in a line.

    A worker of a pool has no streams of its own, and so none are due.
    """
    hop_s = settings.model.hop_s
    n_streams = len(settings.streams)
    due = f"{n_streams / hop_s:g} windows/s are due for {counted(n_streams, 'stream')}, "
    held = int(USABLE_RATIO * 1000 / ms_per_window * hop_s)
    return (
        f"{ms_per_window:.1f} ms a window here: {due if n_streams else ''}"
        f"{1000 / ms_per_window:.0f} can be scored; "
        f"about {counted(held, 'stream')} fit at a hop of {hop_s:g} s"
    )


def load_warnings(settings: Settings, ms_per_window: float, window_s: float) -> Iterator[str]:
    """Yield what will not work as configured: overload and rings that are too short.

    Args:
        ms_per_window: measured on this machine, of all streams together.
        window_s: of the model in use.
    """
    hop_s = settings.model.hop_s
    n_streams = len(settings.streams)
    busy_ratio = n_streams / hop_s * ms_per_window / 1000
    if busy_ratio > USABLE_RATIO:
        fitting_hop_s = n_streams * ms_per_window / 1000 / USABLE_RATIO
        yield (
            f"model.hop_s: the model would be busy for {busy_ratio:.0%} of the time: windows "
            f"would be left out (health: degraded); a hop of {fitting_hop_s:.2g} s fits"
        )
    # a new worker also needs the window before its first one, and then catches up
    needed_s = window_s + WORKER_START_S
    for stream in settings.streams:
        if stream.ring_s < needed_s:
            yield (
                f"streams.{stream.name}.ring_s: {stream.ring_s:g} s do not bridge the restart of "
                f"the worker ({WORKER_START_S:g} s on a busy box) with a window of {window_s:g} s "
                f"before it: {needed_s:.0f} s do"
            )
