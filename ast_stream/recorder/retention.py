"""Which clips make room for others: fairly between classes, and the best of each last. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class StoredClip:
    """A clip on the disk.

    Attributes:
        path: relative to the folder of the clips, as text.
        class_: slug; empty where its sheet cannot be read.
        peak: highest score of its event.
        start_ns: when its first sample was captured; of one without a sheet, when it was written.
        size_bytes: with its sheet.
        is_waiting: nobody has decided yet that it is kept.
        until_ns: of one that waits: when it is deleted.
    """

    path: str
    event_id: str
    part: int
    is_last: bool
    class_: str
    peak: float
    start_ns: int
    start_sample: int
    stop_sample: int
    size_bytes: int
    is_waiting: bool = False
    until_ns: int = 0


def too_old(clips: Iterable[StoredClip], before_ns: int) -> list[StoredClip]:
    """Return the clips from before a time."""
    return [clip for clip in clips if clip.start_ns < before_ns]


def make_room(clips: Iterable[StoredClip], n_bytes: int, keep_best: int) -> Iterator[StoredClip]:
    """Yield clips to delete until they had so many bytes.

    Each time it is one of the class that takes the most: the oldest that is not among its best,
    while any class has such a clip; then the worst of the best.

    Args:
        keep_best: events of each class with the highest peaks, whose clips go last.
    """
    by_class: dict[str, list[StoredClip]] = defaultdict(list)
    for clip in clips:
        by_class[clip.class_].append(clip)
    sizes = Counter({name: sum(clip.size_bytes for clip in own) for name, own in by_class.items()})
    common, best = {}, {}
    for name, own in by_class.items():
        common[name], best[name] = _common_and_best(own, keep_best)
    while n_bytes > 0:
        queues = {name: own for name, own in common.items() if own} or {
            name: own for name, own in best.items() if own
        }
        if not queues:
            return
        name = max(queues, key=lambda one: (sizes[one], one))
        clip = queues[name].pop()
        sizes[name] -= clip.size_bytes
        n_bytes -= clip.size_bytes
        yield clip


def _common_and_best(
    clips: list[StoredClip], keep_best: int
) -> tuple[list[StoredClip], list[StoredClip]]:
    """Return the clips of one class that are not of its best events, the oldest last, and those
    that are, the worst last.
    """
    ranks: dict[str, tuple[float, int]] = {}  # of events as good as each other the newest counts
    for clip in clips:
        if not clip.is_waiting:
            rank = clip.peak, clip.start_ns
            ranks[clip.event_id] = max(rank, ranks.get(clip.event_id, rank))
    ranked = sorted(ranks, key=lambda event_id: ranks[event_id], reverse=True)
    chosen = set(ranked[:keep_best])
    best = [clip for clip in clips if not clip.is_waiting and clip.event_id in chosen]
    common = [clip for clip in clips if clip.is_waiting or clip.event_id not in chosen]
    common.sort(key=lambda clip: clip.start_ns, reverse=True)
    best.sort(key=lambda clip: (-clip.peak, -clip.start_ns))
    return common, best
