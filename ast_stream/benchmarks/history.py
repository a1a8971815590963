"""A year of a busy box in the history: its size, what a message costs, and how long answers take.

Events of 30 classes on 8 streams, 2 000 a day in all, of which one in twenty has a clip and one in
a hundred a verdict; 20 alerts and 10 gaps a day. All go in as messages of the feed; the answers are
read as the page reads them, through another connection, from a file that the machine has in memory.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ast_stream.benchmarks.report import Spread, TableColumn, seconds_in_turn
from ast_stream.history.database import History
from ast_stream.history.days import Zone, hours, starts_of_days
from ast_stream.history.records import (
    AlertQuery,
    ClipRecord,
    EventQuery,
    Verdict,
    VerdictRecord,
)
from ast_stream.labels import slug, stable_id
from ast_stream.machine_clock import Moment
from ast_stream.messages.alert import Alert
from ast_stream.messages.event import Content, EventMessage, FeedMessage, GapMessage, Stamp
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE

START_NS = 1_800_000_000 * NS_PER_SECOND
DAY_NS = 86_400 * NS_PER_SECOND
N_CLASSES, N_STREAMS = 30, 8
EVENTS_A_DAY, ALERTS_A_DAY, GAPS_A_DAY = 2000, 20, 10
_CLIP_EVERY, _VERDICT_EVERY = 20, 100
_LONGEST_S = 20.0
_EPOCH_DAYS = 7  # after which each stream is captured anew
_MODEL = f"sha256:{'0' * 64}"

COLUMNS = (
    TableColumn("question", "{question}", is_figure=False),
    TableColumn("rows", "{rows}"),
    TableColumn("ms", "{ms:.1f}"),
    TableColumn("min", "{low_ms:.1f}"),
    TableColumn("max", "{high_ms:.1f}"),
)


@dataclass(frozen=True)
class Answer:
    """How long one question took: median over the rounds, the fastest and the slowest."""

    question: str
    rows: int
    ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True)
class HistoryTiming:
    """What a history of so many days costs.

    Attributes:
        mib: of the database file, when it is closed.
        bytes_an_event: of it, with everything else that is in it.
        message_us: to write one message, of a batch of a thousand.
    """

    days: int
    events: int
    mib: float
    bytes_an_event: float
    message_us: float
    answers: list[Answer]


def measure_history(
    folder: Path, days: int, rounds: int, on_day: Callable[[], None] = lambda: None
) -> HistoryTiming:
    """Write a history of so many days into a folder, and ask it.

    Args:
        on_day: called after each day that is written.
    """
    path = folder / "history.sqlite"
    n_messages, seconds = 0, 0.0
    with History(path) as history:
        for day in range(days):
            messages = list(_messages_of(day))
            began_s = time.perf_counter()
            for at in range(0, len(messages), 1000):
                history.add_messages(messages[at : at + 1000], {"worker": ("b", at)})
            seconds += time.perf_counter() - began_s
            n_messages += len(messages)
            _add_clips_and_verdicts(history, day)
            on_day()
    n_events = days * EVENTS_A_DAY
    n_bytes = path.stat().st_size
    with History.open_read_only(path) as history:
        questions = _questions(history, days)
        taken = seconds_in_turn([ask for _, ask in questions], rounds)
        answers = []
        for (question, ask), times in zip(questions, taken, strict=True):
            spread = Spread.of([1000 * duration for duration in times])
            found = ask()
            rows = len(found) if isinstance(found, list) else int(found is not None)
            answers.append(Answer(question, rows, spread.median, spread.low, spread.high))
    return HistoryTiming(
        days, n_events, n_bytes / 2**20, n_bytes / n_events, 1e6 * seconds / n_messages, answers
    )


def _questions(history: History, days: int) -> list[tuple[str, Callable[[], object]]]:
    end_ns = START_NS + days * DAY_NS
    middle_ns = START_NS + days // 2 * DAY_NS
    month_ns = max(START_NS, end_ns - 30 * DAY_NS)
    some_id = stable_id("event", str(days // 2), "7")
    in_middle = EventQuery(since_ns=middle_ns, until_ns=middle_ns + DAY_NS, limit=5000)
    zone = Zone.here()
    days_here = starts_of_days(zone.date_of(START_NS), zone.date_of(end_ns - 1))
    days_elsewhere = range(month_ns + DAY_NS // 3, end_ns, DAY_NS)
    return [
        ("one event", lambda: history.event(some_id)),
        ("newest 100", lambda: history.events(EventQuery())),
        ("newest 100 of a class", lambda: history.events(EventQuery(classes=("class_7",)))),
        (
            "newest 100 of 3 classes on a stream",
            lambda: history.events(
                EventQuery(classes=("class_7", "class_8", "class_9"), streams=("stream-1",))
            ),
        ),
        ("100 from half way on", lambda: history.events(EventQuery(after=(middle_ns, "")))),
        (
            "newest 100 with a clip and no verdict",
            lambda: history.events(EventQuery(has_clip=True, has_verdict=False)),
        ),
        ("newest 100 found wrong", lambda: history.events(EventQuery(verdicts=("wrong",)))),
        ("all events of a day", lambda: history.events(in_middle)),
        ("by hour, a month", lambda: history.counts(hours(month_ns, end_ns))),
        ("by day, all days", lambda: history.counts(days_here, by_stream=False)),
        ("by day and stream, all days", lambda: history.counts(days_here)),
        ("by day of another place, a month", lambda: history.counts(days_elsewhere)),
        ("alerts of a month", lambda: history.alerts(AlertQuery(since_ns=month_ns, limit=1000))),
        ("gaps of a month", lambda: history.gaps(month_ns, end_ns)),
    ]


def _messages_of(day: int) -> Iterator[FeedMessage]:
    rng = random.Random(day)
    seq = 0

    def published(content: Content, at_ns: int) -> FeedMessage:
        nonlocal seq
        seq += 1
        return FeedMessage.of(content, Stamp(f"day{day}", seq, Moment(at_ns, at_ns), seq - 1))

    for number in range(EVENTS_A_DAY):
        for event in _event(rng, day, number):
            yield published(event, event.captured_ns + NS_PER_SECOND // 4)
    for number in range(ALERTS_A_DAY):
        yield published(_alert(day, number), _time_ns(day, number, ALERTS_A_DAY))
    for number in range(GAPS_A_DAY):
        time_ns = _time_ns(day, number, GAPS_A_DAY)
        stream = f"stream-{number % N_STREAMS}"
        yield published(
            GapMessage(
                stream=stream, epoch=_epoch(stream, day), start_sample=_sample(time_ns),
                samples=SAMPLE_RATE, duration_s=1.0, reason="overflow", time_ns=time_ns,
            ),
            time_ns,
        )  # fmt: skip


def _event(rng: random.Random, day: int, number: int) -> Iterator[EventMessage]:
    """Yield begin and end of an event."""
    index = int(N_CLASSES * rng.random() ** 2)  # some classes are heard far more than others
    stream = f"stream-{rng.randrange(N_STREAMS)}"
    onset_ns = _time_ns(day, number, EVENTS_A_DAY)
    length_ns = round(rng.uniform(0.2, _LONGEST_S) * NS_PER_SECOND)
    score = rng.uniform(0.5, 1.0)
    begin = EventMessage(
        id=stable_id("event", str(day), str(number)), type="begin", stream=stream,
        labels={"room": stream}, class_=slug(f"Class {index}"), label=f"Class {index}",
        index=index, score=score, peak=score, onset_ns=onset_ns, uncertainty_s=0.16,
        onset_sample=_sample(onset_ns), at_sample=_sample(onset_ns) + 8000,
        epoch=_epoch(stream, day), captured_ns=onset_ns + NS_PER_SECOND // 2,
        scored_ns=onset_ns + NS_PER_SECOND // 2, model=_MODEL,
    )  # fmt: skip
    yield begin
    yield begin.model_copy(
        update={
            "type": "end",
            "mean": score * 0.8,
            "offset_ns": onset_ns + length_ns,
            "offset_sample": _sample(onset_ns + length_ns),
            "at_sample": _sample(onset_ns + length_ns) + 16_000,
            "captured_ns": onset_ns + length_ns + NS_PER_SECOND,
            "reason": "quiet",
        }
    )


def _alert(day: int, number: int) -> Alert:
    at_ns = _time_ns(day, number, ALERTS_A_DAY)
    stream = f"stream-{number % N_STREAMS}"
    return Alert(
        id=stable_id("alert", str(day), str(number)), fingerprint=stable_id("print", str(number)),
        rule=f"rule_{number % 5}", state="resolved", severity="high", group={"stream": stream},
        labels={"stream": stream, "severity": "high"},
        annotations={"summary": f"Class {number} on {stream}"}, started_ns=at_ns, fired_ns=at_ns,
        resolved_ns=at_ns + 60 * NS_PER_SECOND,
        events=(stable_id("event", str(day), str(number)),), reason="quiet",
    )  # fmt: skip


def _add_clips_and_verdicts(history: History, day: int) -> None:
    for number in range(0, EVENTS_A_DAY, _CLIP_EVERY):
        event_id = stable_id("event", str(day), str(number))
        time_ns = _time_ns(day, number, EVENTS_A_DAY)
        path = f"stream-1/day-{day}/{time_ns}_{event_id}.flac"
        history.add_clip(
            ClipRecord(event_id, 0, path, "stream-1", "", 0, 128_000, time_ns, "flac", 150_000)
        )
    for number in range(0, EVENTS_A_DAY, _VERDICT_EVERY):
        event_id = stable_id("event", str(day), str(number))
        verdict: Verdict = "wrong" if number % (3 * _VERDICT_EVERY) == 0 else "right"
        time_ns = _time_ns(day, number, EVENTS_A_DAY)
        history.add_verdict(VerdictRecord(event_id, verdict, None, "anna", time_ns))


def _time_ns(day: int, number: int, a_day: int) -> int:
    return START_NS + day * DAY_NS + number * DAY_NS // a_day // 1000 * 1000


def _epoch(stream: str, day: int) -> str:
    return stable_id(stream, str(day // _EPOCH_DAYS)) + "00000000"


def _sample(time_ns: int) -> int:
    return (time_ns - START_NS) * SAMPLE_RATE // NS_PER_SECOND
