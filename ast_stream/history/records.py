"""Records of the history, one for each kind of row, and the queries for them.

Times are integer nanoseconds since 1970 UTC, positions are sample indices at 16 kHz in an epoch,
and scores are in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

from ast_stream.messages.alert import AlertState, Severity
from ast_stream.messages.event import EventType
from ast_stream.units import NS_PER_SECOND, samples_to_ns

Verdict = Literal["right", "wrong", "other", "unsure"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

Key: TypeAlias = tuple[int, str]
"""Onset in ns and id of an event: its place in the order of events."""


@dataclass(frozen=True)
class EventRecord:
    """One event, as far as it is known.

    Attributes:
        class_: slug of the label, as in topics.
        state: the newest message about it; `end` when it is over.
        score: of the window that decided the begin; if the `begin` was missed, the score of the
            first message received.
        peak: highest score so far.
        mean: mean score while it lasted; None until it has ended.
        onset_ns, offset_ns: start and end of the sound; the end is None until it is known.
        epoch: run of the capture process; None in events written by hand.
        captured_ns, scored_ns, published_ns: of its `begin`: when the last sample of the deciding
            window was captured, when it was scored, when the message was published. None if the
            `begin` was missed.
        updated_ns: when the newest message was published.
        reason: why it ended; None until then.
        labels: of the stream.
        verdict: the newest verdict; None: it was not judged.
        has_clip: whether there is a clip of it.
    """

    id: str
    stream: str
    class_: str
    label: str
    index: int | None
    state: EventType
    score: float
    peak: float
    mean: float | None
    onset_ns: int
    offset_ns: int | None
    onset_sample: int | None
    offset_sample: int | None
    at_sample: int | None
    uncertainty_s: float | None
    duration_reliable: bool
    reason: str | None
    watcher_score: float | None
    verifier_score: float | None
    captured_ns: int | None
    scored_ns: int | None
    published_ns: int | None
    updated_ns: int
    epoch: str | None
    model: str | None
    labels: dict[str, str]
    verdict: Verdict | None = None
    has_clip: bool = False

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self.state != "end"

    @property
    def duration_s(self) -> float | None:
        """Seconds from onset to offset, None until the end is known."""
        return None if self.offset_ns is None else (self.offset_ns - self.onset_ns) / NS_PER_SECOND

    @property
    def key(self) -> Key:
        """Its place in the order of events, after which the next page begins."""
        return self.onset_ns, self.id


@dataclass(frozen=True)
class GapRecord:
    """Audio that is lost for good.

    Attributes:
        start_ns: when the first lost sample was captured or, if that is not known, when the gap
            was published.
        is_time_known: it is the time of capture.
    """

    stream: str
    epoch: str
    start_sample: int
    samples: int
    start_ns: int
    is_time_known: bool
    reason: str

    @property
    def stop_ns(self) -> int:
        """When the first sample after it was captured."""
        return self.start_ns + samples_to_ns(self.samples)


@dataclass(frozen=True)
class AlertRecord:
    """One alert, as last published.

    Attributes:
        started_ns: when the sound began that caused it.
        events: ids of the events that caused it, oldest first.
        updated_ns: when it was last published.
        reason: why it ended; None until then.
        best: with a `same_sound` rule, the event that heard the sound best; otherwise None.
    """

    id: str
    fingerprint: str
    rule: str
    state: AlertState
    severity: Severity
    group: dict[str, str]
    labels: dict[str, str]
    annotations: dict[str, str]
    started_ns: int
    fired_ns: int | None
    resolved_ns: int | None
    events: tuple[str, ...]
    suppressed: int
    reason: str | None
    updated_ns: int
    best: str | None = None


@dataclass(frozen=True)
class ClipRecord:
    """The clip of an event, or of a part of a long one; overlapping events may share a file.

    Attributes:
        part: number of the part of a long event, from 0.
        path: relative to the folder of clips; empty: there is no clip, and `note` says why.
        start_sample, stop_sample: the range of samples, with pre-roll and post-roll.
        start_ns: when its first sample was captured.
        note: a remark, such as missing pre-roll; may be empty.
    """

    event_id: str
    part: int
    path: str
    stream: str
    epoch: str
    start_sample: int
    stop_sample: int
    start_ns: int
    format: str
    size_bytes: int
    note: str = ""


@dataclass(frozen=True)
class VerdictRecord:
    """A person's verdict on an event; the newest one counts.

    Attributes:
        label: the correct label, for the verdict `other`; otherwise None.
        by: name of the person.
    """

    event_id: str
    verdict: Verdict
    label: str | None
    by: str
    time_ns: int
    note: str = ""


@dataclass(frozen=True)
class EventQuery:
    """A query of events; fields that are empty or None do not restrict.

    Attributes:
        classes: slugs.
        since_ns, until_ns: range of the onset, half-open.
        min_score: minimum of the peak.
        verdicts: the newest verdict is one of these.
        newest_first: order; otherwise oldest first.
        after: key of the last event of the previous page; None: the first page.
        limit: events per page.
    """

    streams: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    since_ns: int | None = None
    until_ns: int | None = None
    min_score: float | None = None
    has_clip: bool | None = None
    has_verdict: bool | None = None
    verdicts: tuple[Verdict, ...] = ()
    newest_first: bool = True
    after: Key | None = None
    limit: int = 100


@dataclass(frozen=True)
class AlertQuery:
    """A query of alerts; fields that are empty or None do not restrict.

    Attributes:
        since_ns, until_ns: range of `started_ns`, half-open.
        event_id: one of the events that caused it.
        newest_first: order; otherwise oldest first.
        after: start in ns and id of the last alert of the previous page.
        limit: alerts per page.
    """

    rules: tuple[str, ...] = ()
    states: tuple[AlertState, ...] = ()
    since_ns: int | None = None
    until_ns: int | None = None
    event_id: str | None = None
    newest_first: bool = True
    after: Key | None = None
    limit: int = 100


class EventCount(NamedTuple):
    """The number of events of a class that began in a time span, such as an hour or a day.

    Attributes:
        start_ns: start of the span.
        stream: on which they began; empty: on any stream.
    """

    start_ns: int
    stream: str
    class_: str
    n_events: int


@dataclass
class Figures:
    """Counters of messages for the history or the score log.

    Attributes:
        written: messages written.
        malformed: messages that were skipped because of their format.
        write_errors: failed attempts to write.
        dropped: messages lost because too many waited for the disk.
        waiting: messages that wait for the disk.
        repeated: duplicates, if they are counted.
    """

    written: int = 0
    malformed: int = 0
    write_errors: int = 0
    dropped: int = 0
    waiting: int = 0
    repeated: int = 0
