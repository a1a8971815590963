"""The spans of a stream added up: all time between two moments, each sample once."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

from ast_stream.coverage.spans import HEARD, KINDS, REMOVED, Kind, Span
from ast_stream.units import NS_PER_SECOND, format_time, samples_to_ns, samples_to_seconds

# what is younger may still come out of a ring, or be in a file that cannot be seen
UNDECIDED_NS = 600 * NS_PER_SECOND
NOT_RECORDED = "not_recorded"  # reason of missing time that no record speaks of

_SAMPLE_NS = samples_to_ns(1)


@dataclass(frozen=True)
class Stretch:
    """Time of one kind.

    Attributes:
        time_ns: wall time of its first sample.
        samples: its length at 16 kHz.
        reason: why it is missing or lost; None for others.
        epoch, start_sample: whose samples they are; None between two epochs.
    """

    kind: Kind
    time_ns: int
    samples: int
    reason: str | None = None
    epoch: str | None = None
    start_sample: int | None = None

    @property
    def stop_ns(self) -> int:
        """Wall time just after its last sample."""
        return self.time_ns + samples_to_ns(self.samples)

    def between(self, since_ns: int, until_ns: int) -> Stretch | None:
        """Return the part between two moments, to the nearest sample; None if there is none."""
        first = max(0, _samples(since_ns - self.time_ns))
        last = min(self.samples, _samples(until_ns - self.time_ns))
        if first >= last:
            return None
        start = None if self.start_sample is None else self.start_sample + first
        time_ns = self.time_ns + samples_to_ns(first)
        return Stretch(self.kind, time_ns, last - first, self.reason, self.epoch, start)

    def to_json(self) -> dict[str, Any]:
        """Return the stretch as JSON values; what is None is left out."""
        values = {
            "kind": self.kind,
            "time": format_time(self.time_ns),
            "samples": self.samples,
            "seconds": samples_to_seconds(self.samples),
            "epoch": self.epoch,
            "start": self.start_sample,
            "reason": self.reason,
        }
        return {key: value for key, value in values.items() if value is not None}


class Taken:
    """What is accounted for, in time or samples: ranges that are disjoint and in order."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []

    @classmethod
    def by(cls, spans: Sequence[Span]) -> Self:
        """Return the time of spans; none where it only goes forward, for nothing can overlap."""
        taken = cls()
        if any(span.stop_ns - after.time_ns > _SAMPLE_NS for span, after in pairwise(spans)):
            for span in spans:
                taken.take(span.time_ns, span.stop_ns)
        return taken

    def take(self, start_ns: int, stop_ns: int) -> list[tuple[int, int]]:
        """Take a range; return the parts of it that were free."""
        first = bisect.bisect_right(self._stops, start_ns)
        last = bisect.bisect_left(self._starts, stop_ns)
        starts, stops = self._starts[first:last], self._stops[first:last]  # of what overlaps
        parts = zip([start_ns, *stops], [*starts, stop_ns], strict=True)
        self._starts[first:last] = [min([start_ns, *starts])]
        self._stops[first:last] = [max([stop_ns, *stops])]
        return [(begin_ns, end_ns) for begin_ns, end_ns in parts if begin_ns < end_ns]


Others = Callable[[Span, Span | None], Sequence[str]]
"""Returns the workers that may have had a stream between two records; None: until now."""


def timeline(
    spans: Sequence[Span], until_ns: int | None = None, others: Others = lambda *_: ()
) -> list[Stretch]:
    """Return the spans of one stream with the time between them, which is missing.

    Within an epoch consecutive samples follow each other, whatever the wall clock says meanwhile:
    it was set, or corrected for the rate of the device, and no time is missing. Nor is time of
    which there is a record elsewhere, or that is missing already: clocks leap ahead and back.

    Args:
        until_ns: time after the last span is missing up to here; None: it is not counted.
        others: whose records were not read; where there are any, the time is theirs.
    """
    found: list[Stretch] = []
    before: Span | None = None
    taken = Taken.by(spans)
    for span in spans:
        if before is not None and not _follows(span, before):
            found += _unrecorded(before, span.time_ns, taken, others(before, span))
        found.append(
            Stretch(
                span.kind, span.time_ns, span.samples, span.reason, span.epoch, span.start_sample
            )
        )
        before = span
    if before is not None and until_ns is not None:
        found += _unrecorded(before, until_ns, taken, others(before, None))
    return found


@dataclass(frozen=True)
class Coverage:
    """What became of the time of one stream.

    Attributes:
        stretches: in order, without time between them.
        ends_with_record: the time behind its last record is not counted, though it is long ago:
            the ledger does not say whether the source ended or nobody listened any more.
    """

    stream: str
    stretches: tuple[Stretch, ...]
    ends_with_record: bool = False

    @classmethod
    def of(
        cls,
        stream: str,
        spans: Sequence[Span],
        now_ns: int,
        *,
        is_expected: bool,
        since_ns: int | None = None,
        until_ns: int | None = None,
        others: Others = lambda *_: (),
    ) -> Coverage:
        """Return the coverage of a stream between two moments.

        Args:
            is_expected: it should be listened to until now: that it is not is missing time, too.
            since_ns: None, or earlier than the first record: from that on.
            until_ns: None: until now if it is expected, else to the last record. Time behind the
                last record is missing once it is older than `UNDECIDED_NS`.
            others: see `timeline`.
        """
        stop_ns = now_ns if until_ns is None else min(until_ns, now_ns)
        last_ns = spans[-1].stop_ns if spans else stop_ns
        is_off = bool(spans) and spans[-1].begins_off
        is_old = is_off or now_ns - last_ns > UNDECIDED_NS
        is_counted_on = is_off or is_expected or until_ns is not None
        is_away = bool(spans) and not is_off and bool(others(spans[-1], None))
        is_to_end = is_away or (is_old and is_counted_on)
        stretches = timeline(spans, stop_ns if is_to_end else None, others)
        begin_ns = 0 if since_ns is None else since_ns
        end_ns = max(last_ns, stop_ns) if until_ns is None else until_ns
        parts = (stretch.between(begin_ns, end_ns) for stretch in stretches)
        kept = tuple(part for part in parts if part is not None)
        return cls(stream, kept, is_old and not is_counted_on and not is_away)

    @property
    def samples(self) -> dict[Kind, int]:
        """Samples of each kind."""
        counts: Counter[Kind] = Counter()
        for stretch in self.stretches:
            counts[stretch.kind] += stretch.samples
        return {kind: counts[kind] for kind in KINDS}

    @property
    def total(self) -> int:
        """Samples of all kinds, of the time in which the stream is to be listened to."""
        return sum(self.samples.values())

    @property
    def off(self) -> int:
        """Samples of the time in which it is not: it was removed from the configuration."""
        return sum(stretch.samples for stretch in self.stretches if stretch.kind == "off")

    @property
    def elsewhere(self) -> int:
        """Samples of the time that is at workers whose ledgers were not read."""
        return sum(stretch.samples for stretch in self.stretches if stretch.kind == "elsewhere")

    @property
    def heard(self) -> float | None:
        """Part of the time that was not lost: listened, gated or degraded; None: no time at all."""
        samples = self.samples
        return sum(samples[kind] for kind in HEARD) / self.total if self.total else None

    @property
    def reasons(self) -> dict[str, dict[str, int]]:
        """Samples by kind and reason, of the kinds that have one."""
        found: dict[str, dict[str, int]] = {}
        for stretch in self.stretches:
            if stretch.reason is not None:
                of_kind = found.setdefault(stretch.kind, {})
                of_kind[stretch.reason] = of_kind.get(stretch.reason, 0) + stretch.samples
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the coverage as JSON values."""
        samples: dict[str, int] = dict(self.samples.items())
        samples |= {"total": self.total, "off": self.off, "elsewhere": self.elsewhere}
        first, last = self.stretches[:1], self.stretches[-1:]
        return {
            "stream": self.stream,
            "from": format_time(first[0].time_ns) if first else None,
            "to": format_time(last[0].stop_ns) if last else None,
            "ends_with_record": self.ends_with_record,
            "samples": samples,
            "seconds": {kind: samples_to_seconds(count) for kind, count in samples.items()},
            "heard": self.heard,
            "reasons": self.reasons,
            "spans": [stretch.to_json() for stretch in self.stretches],
        }


def _follows(span: Span, before: Span) -> bool:
    return span.epoch == before.epoch and span.start_sample == before.stop_sample


def _unrecorded(before: Span, until_ns: int, taken: Taken, others: Sequence[str]) -> list[Stretch]:
    """Return the time between a span and what follows it, where nothing speaks of it yet."""
    if _samples(until_ns - before.stop_ns) <= 0:
        return []
    kind: Kind = "off" if before.begins_off else "missing"
    reason = REMOVED if before.begins_off else NOT_RECORDED
    if others and not before.begins_off:
        kind, reason = "elsewhere", ", ".join(others)
    return [
        Stretch(kind, start_ns, absent, reason)
        for start_ns, stop_ns in taken.take(before.stop_ns, until_ns)
        if (absent := _samples(stop_ns - start_ns)) > 0
    ]


def _samples(duration_ns: int) -> int:
    return round(duration_ns / _SAMPLE_NS)
