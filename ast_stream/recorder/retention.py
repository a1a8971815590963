"""Decides which clips are deleted to make room: fair between classes, the best of each last."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True)
class StoredClip:
    """A clip on the disk.

    Attributes:
        path: relative to the folder of clips, as text.
        class_: slug; empty if its sheet cannot be read.
        peak: highest score of its event.
        start_ns: when its first sample was captured or, without a sheet, when it was written.
        size_bytes: including its sheet.
        is_waiting: it is not decided yet that it is kept.
        until_ns: when it is deleted, if it is waiting.
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

    @property
    def stream(self) -> str:
        """The stream of its event; empty if its path has none."""
        parts = PurePosixPath(self.path).parts
        return parts[-3] if len(parts) >= 3 else ""


def too_old(clips: Iterable[StoredClip], before_ns: int) -> list[StoredClip]:
    """Return the clips from before a time."""
    return [clip for clip in clips if clip.start_ns < before_ns]


def make_room(clips: Iterable[StoredClip], n_bytes: int, keep_best: int) -> Iterator[StoredClip]:
    """Yield clips to delete, until `n_bytes` are freed.

    Each is from the class that takes the most space: the oldest that is not among its best, as
    long as any class has such a clip; then the worst of the best.

    Args:
        keep_best: number of events of each class with the highest peaks, whose clips go last.
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
        name = max(queues, key=lambda queue: (sizes[queue], queue))
        clip = queues[name].pop()
        sizes[name] -= clip.size_bytes
        n_bytes -= clip.size_bytes
        yield clip


def _common_and_best(
    clips: list[StoredClip], keep_best: int
) -> tuple[list[StoredClip], list[StoredClip]]:
    """Return the clips of one class that do not belong to its best events, the oldest last, and
    those that do, the worst last.
    """
    ranks: dict[str, tuple[float, int]] = {}  # among equal peaks, newer events rank higher
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
