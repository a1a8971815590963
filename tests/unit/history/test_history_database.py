from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import date
from itertools import pairwise
from pathlib import Path

import pytest
from damage import STRANGE_FILES, forbid_below, make_strange
from history_samples import SECOND, alert_message, clip, event, gap, published, verdict, whole_event
from sample_messages import T0_NS, health

from ast_stream.errors import StartupError, UsageError
from ast_stream.history.database import History, HistoryError
from ast_stream.history.days import hours, starts_of_days
from ast_stream.history.records import AlertQuery, EventQuery
from ast_stream.messages.event import FeedMessage
from ast_stream.runtime.files import RemovedError

HOUR = 3600 * SECOND


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    with History(tmp_path / "history.sqlite", wall_s=lambda: T0_NS / 1e9) as history:
        yield history


def test_event_is_one_row_from_begin_to_end(history: History) -> None:
    assert history.add_message(event("x", "begin", labels={"room": "hall"}, scored_ns=T0_NS))
    begun = history.event("x")
    assert begun is not None
    assert (begun.state, begun.is_open, begun.duration_s) == ("begin", True, None)
    history.add_message(event("x", "end", at_ns=T0_NS + 4 * SECOND, peak=0.95))
    (ended,) = history.events(EventQuery())
    assert (ended.state, ended.duration_s, ended.reason) == ("end", 2.0, "quiet")
    assert (ended.peak, ended.mean, ended.labels) == (0.95, 0.5, {"room": "hall"})
    # where the latency went is in the begin
    assert (ended.scored_ns, ended.published_ns) == (T0_NS, T0_NS + SECOND)
    assert ended.updated_ns == T0_NS + 4 * SECOND


def test_messages_in_any_order_and_number_make_the_same_rows(tmp_path: Path) -> None:
    messages = [
        event("x", "begin", at_sample=16_000, peak=0.8),
        event("x", "update", at_sample=32_000, at_ns=T0_NS + 20 * SECOND, peak=0.9, score=0.7),
        event("x", "end", at_sample=48_000, at_ns=T0_NS + 30 * SECOND, peak=0.9, score=0.1),
    ]
    found = set()
    for number, order in enumerate(itertools.permutations(messages)):
        with History(tmp_path / f"{number}.sqlite") as history:
            history.add_messages([*order, *order[:2]])
            (record,) = history.events(EventQuery())
            found.add(repr(record))
    assert len(found) == 1
    assert record.state == "end"
    assert record.published_ns == T0_NS + SECOND


def test_update_raises_the_peak_at_once_and_the_rest_every_ten_seconds(history: History) -> None:
    def state() -> tuple[float, int]:
        record = history.event("x")
        assert record is not None
        assert record.score == 0.7  # of its begin
        return record.peak, (record.updated_ns - T0_NS) // SECOND

    history.add_message(event("x", "begin", score=0.7, peak=0.8))
    history.add_message(event("x", "update", at_ns=T0_NS + 2 * SECOND, score=0.6, peak=0.8))
    assert state() == (0.8, 1)
    history.add_message(event("x", "update", at_ns=T0_NS + 3 * SECOND, score=0.9, peak=0.9))
    assert state() == (0.9, 3)
    history.add_message(event("x", "update", at_ns=T0_NS + 13 * SECOND, score=0.5, peak=0.9))
    assert state() == (0.9, 13)


def test_workers_with_streams_of_their_own_share_a_history(history: History) -> None:
    for boot, stream in (("b1", "porch"), ("b2", "yard")):
        messages = whole_event(f"of-{stream}", T0_NS, boot=boot, stream=stream)
        history.add_messages(messages, {stream: (boot, 2)})
    assert [record.stream for record in history.events(EventQuery())] == ["yard", "porch"]
    assert history.positions() == {"porch": ("b1", 2), "yard": ("b2", 2)}


def test_gaps_have_the_time_of_their_samples_or_of_their_message(history: History) -> None:
    history.add_messages([gap(0, time_ns=T0_NS - 5 * SECOND), gap(16_000), gap(0)])
    known, unknown = history.gaps()
    assert (known.start_ns, known.is_time_known) == (T0_NS - 5 * SECOND, True)
    assert (unknown.start_ns, unknown.is_time_known) == (T0_NS, False)
    assert known.stop_ns == T0_NS - 4 * SECOND
    assert history.gaps(streams=["yard"]) == []
    assert history.gaps(since_ns=T0_NS) == [unknown]


def test_alert_is_as_it_was_published_last(history: History) -> None:
    resolved = alert_message(3, state="resolved", resolved_ns=T0_NS + SECOND, reason="quiet")
    firing = alert_message(2, events=("id2", "id1"))
    history.add_messages([firing, resolved, firing])
    (found,) = history.alerts(AlertQuery(event_id="id1"))
    assert (found.state, found.reason, found.resolved_ns) == ("resolved", "quiet", T0_NS + SECOND)
    assert history.alerts(AlertQuery(states=("firing",))) == []
    history.add_message(alert_message(1, boot="a2", id="a9", rule="cat", events=("id2", "id7")))
    (other,) = history.alerts(AlertQuery(rules=("cat",)))
    assert other.events == ("id2", "id7")
    assert other.group == {"stream": "porch"}


def test_pages_of_every_query_are_those_of_all_events_filtered(history: History) -> None:
    messages: list[FeedMessage] = []
    for number in range(60):
        messages += whole_event(
            f"e{number:02}",
            T0_NS + number // 3 * SECOND,  # three begin at once
            stream=("porch", "yard")[number % 2],
            label=("Bark", "Siren", "Baby cry, infant cry")[number % 5 % 3],
            peak=(number % 10) / 10,
        )
    history.add_messages(messages)
    for number in range(0, 60, 7):
        history.add_verdict(verdict(f"e{number:02}", ("right", "wrong")[number % 2]))
        history.add_clip(clip(f"e{number + 1:02}"))
    everything = history.events(EventQuery(newest_first=False, limit=100))
    assert len(everything) == 60
    for query in (
        EventQuery(),
        EventQuery(newest_first=False),
        EventQuery(streams=("yard",)),
        EventQuery(streams=("yard", "porch"), min_score=0.5),
        EventQuery(classes=("bark", "baby_cry_infant_cry")),
        EventQuery(classes=("siren",), streams=("porch",), newest_first=False),
        EventQuery(since_ns=T0_NS + 3 * SECOND, until_ns=T0_NS + 9 * SECOND),
        EventQuery(has_clip=True),
        EventQuery(has_clip=False, classes=("bark",)),
        EventQuery(has_verdict=True),
        EventQuery(has_verdict=False, streams=("porch",)),
        EventQuery(verdicts=("wrong",)),
        EventQuery(has_clip=True, has_verdict=False, classes=("siren",)),
    ):
        expected = [
            record
            for record in everything
            if (not query.streams or record.stream in query.streams)
            and (not query.classes or record.class_ in query.classes)
            and record.onset_ns >= (query.since_ns or 0)
            and record.onset_ns < (query.until_ns or 2**62)
            and record.peak >= (query.min_score or 0)
            and query.has_clip in (None, record.has_clip)
            and query.has_verdict in (None, record.verdict is not None)
            and (not query.verdicts or record.verdict in query.verdicts)
        ]
        if query.newest_first:
            expected.reverse()
        assert expected, query
        found, page = [], replace(query, limit=7)
        while records := history.events(page):
            found += records
            page = replace(page, after=records[-1].key)
        assert found == expected, query
        assert list(history.all_events(query)) == expected


def test_newest_verdict_counts_and_earlier_ones_are_kept(history: History) -> None:
    history.add_messages(whole_event("id1", T0_NS))
    history.add_verdict(verdict(verdict="wrong"))
    history.add_verdict(verdict(verdict="other", label="Siren", note="on the radio"))
    record = history.event("id1")
    assert record is not None
    assert record.verdict == "other"
    assert [one.verdict for one in history.verdicts("id1")] == ["wrong", "other"]
    assert history.verdicts()[-1] == verdict(verdict="other", label="Siren", note="on the radio")


def test_verdict_that_cannot_be_is_refused_with_a_sentence(history: History) -> None:
    with pytest.raises(UsageError, match="expected the id of an event, got 'nobody'"):
        history.add_verdict(verdict("nobody"))
    with pytest.raises(UsageError, match="expected a label with 'other' only, got none"):
        history.add_verdict(verdict(verdict="other"))
    with pytest.raises(UsageError, match="got 'Siren'"):
        history.add_verdict(verdict(label="Siren"))
    assert history.verdicts() == []


def test_event_has_a_clip_until_its_last_part_is_removed(history: History) -> None:
    history.add_clip(clip("id1", 0))  # the recorder may be sooner than the feed
    history.add_messages([*whole_event("id1", T0_NS), *whole_event("id2", T0_NS)])
    history.add_clip(clip("id1", 1))
    history.add_clip(clip("id2", 0, path="porch/2023-11-14/id1_1.flac"))  # shares the file

    def with_clips() -> list[str]:
        return [record.id for record in history.events(EventQuery(has_clip=True))]

    assert with_clips() == ["id2", "id1"]
    assert history.clips("id1") == [clip("id1", 0), clip("id1", 1)]
    assert history.remove_clips(["porch/2023-11-14/id1_1.flac"]) == 2
    assert with_clips() == ["id1"]
    assert [(one.path, of and of.id) for one, of in history.all_clips()] == [
        ("porch/2023-11-14/id1_0.flac", "id1")
    ]
    assert history.remove_clips(["porch/2023-11-14/id1_0.flac"]) == 1
    assert with_clips() == []


def test_counts_are_by_spans_of_any_length(history: History) -> None:
    midnight = T0_NS // (24 * HOUR) * 24 * HOUR
    onsets = [midnight - 1000, midnight, midnight + HOUR - 1000, midnight + HOUR]
    for number, onset_ns in enumerate(onsets):
        history.add_messages(whole_event(f"e{number}", onset_ns))
    found = history.counts(hours(midnight, midnight + 24 * HOUR))
    assert found == [(midnight, "porch", "bark", 2), (midnight + HOUR, "porch", "bark", 1)]
    one = history.counts([midnight - HOUR, midnight + HOUR], ["porch"], ["bark"])
    assert one == [(midnight - HOUR, "porch", "bark", 3)]
    bounds = [midnight - 47 * HOUR // 2, midnight + HOUR // 2, midnight + 49 * HOUR // 2]
    assert [n for *_, n in history.counts(bounds)] == [2, 2]
    assert history.counts(bounds[:1]) == history.counts([]) == []
    assert history.names() == (["porch"], ["bark"])


PLACES = {
    "UTC": "UTC0",
    "Berlin": "CET-1CEST,M3.5.0,M10.5.0/3",
    "Santiago": "<-04>4<-03>,M9.1.6/24,M4.1.6/24",  # some days have no midnight
    "Kolkata": "IST-5:30",
    "Lord Howe": "<+1030>-10:30<+11>-11,M10.1.0,M4.1.0",  # half an hour
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_counts_are_those_of_the_events_wherever_the_box_is(
    tmp_path: Path, at_place: Callable[[str], None], place: str
) -> None:
    at_place(place)
    first, last = date(2025, 8, 1), date(2026, 5, 1)  # clocks are set there and back
    bounds = starts_of_days(first, last)
    with History(tmp_path / "history.sqlite", wall_s=lambda: bounds[-1] / SECOND) as history:
        for number in range(1300):
            onset_ns = bounds[0] + number * 5 * HOUR + 7 * SECOND
            content = event(
                f"e{number}", onset_ns=onset_ns, stream=f"s{number % 3}", label=f"C {number % 4}"
            )
            history.add_message(content)
        # the clock was set before the end of one: its onset is on another day now
        history.add_message(event("moved", onset_ns=bounds[3] - 1))
        history.add_message(event("moved", "end", onset_ns=bounds[3]))
        history.add_verdict(verdict("moved"))
        assert not history.prune(2**40, max_age_s=(bounds[-1] - bounds[40]) / SECOND)
        lengths = {(after - start) // SECOND for start, after in pairwise(bounds)}
        assert (len(lengths) == 3) == ("," in place)
        for spans in (bounds, bounds[::7], bounds[1::2]):
            looked_up = history.counts(spans)
            # no day begins a nanosecond later, so all events are counted
            counted = history.counts([spans[0] + 1, *spans[1:]])
            assert [tuple(one)[1:] for one in looked_up] == [tuple(one)[1:] for one in counted]
            assert 1000 < sum(one.n_events for one in looked_up) < 1302
            some = [one for one in looked_up if (one.stream, one.class_) == ("s1", "c_2")]
            assert history.counts(spans, ["s1"], ["c_2"]) == some
            of_class: Counter[tuple[int, str]] = Counter()
            for one in looked_up:
                of_class[one.start_ns, one.class_] += one.n_events
            together = history.counts(spans, by_stream=False)
            assert {(one.start_ns, one.class_): one.n_events for one in together} == of_class
    at_place("JST-9")  # where the box is taken
    with History(tmp_path / "history.sqlite") as history:
        there = starts_of_days(first, last)
        assert there != bounds
        for spans in (there, bounds):
            looked_up = history.counts(spans, by_stream=False)
            counted = history.counts([spans[0] + 1, *spans[1:]], by_stream=False)
            assert [tuple(one)[1:] for one in looked_up] == [tuple(one)[1:] for one in counted]


@pytest.mark.parametrize("lost", ["", ".lock"])
def test_a_history_that_is_replaced_while_it_is_in_use_is_noticed(
    history: History, lost: str
) -> None:
    history.add_message(event("x"))
    history.expect_in_place()
    file = history.path.with_name(history.path.name + lost)
    file.rename(file.with_name("away"))
    file.write_bytes(file.with_name("away").read_bytes())
    with pytest.raises(RemovedError, match="the history"):
        history.expect_in_place()


@pytest.fixture
def at_place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Yield what takes this machine to another time zone."""

    def go(place: str) -> None:
        monkeypatch.setenv("TZ", place)
        time.tzset()

    yield go
    monkeypatch.undo()
    time.tzset()


def test_other_messages_are_passed_over_and_malformed_ones_counted(history: History) -> None:
    broken = event("broken")
    broken.body["onset"] = "yesterday"
    too_large = event("large", index=2**70)
    assert history.add_messages([published(health()), broken, too_large, event("whole")])
    assert [record.id for record in history.events(EventQuery())] == ["whole"]
    assert (history.figures.malformed, history.figures.written) == (2, 1)


def test_reader_beside_a_writer_sees_what_is_committed_and_cannot_write(history: History) -> None:
    history.add_messages(whole_event("id1", T0_NS))
    with History.open_read_only(history.path) as reader:
        assert [record.id for record in reader.events(EventQuery())] == ["id1"]
        history.add_messages(whole_event("id2", T0_NS))
        assert len(reader.events(EventQuery())) == 2
        with pytest.raises(HistoryError, match="readonly"):
            reader.add_verdict(verdict())
    with History.open_beside(history.path) as beside:
        beside.add_verdict(verdict())
    record = history.event("id1")
    assert record is not None
    assert record.verdict == "right"


def test_history_has_one_owner(history: History) -> None:
    with pytest.raises(StartupError, match="is in use by another process"):
        History(history.path)


def test_reader_of_what_is_not_there_gets_a_sentence(tmp_path: Path) -> None:
    for opens in (History.open_read_only, History.open_beside):
        with pytest.raises(StartupError, match="there is no"):
            opens(tmp_path / "history.sqlite")
    (tmp_path / "text.sqlite").write_text("a shopping list" * 100)
    for opens in (History.open_read_only, History.open_beside):
        with pytest.raises(StartupError, match="not a database"):
            opens(tmp_path / "text.sqlite")


def test_reader_who_may_not_look_into_the_folder_gets_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "history.sqlite"
    forbid_below(tmp_path, monkeypatch)
    for opens in (History.open_read_only, History.open_beside):
        with pytest.raises(
            StartupError, match=f"cannot open the history {path}: Permission denied"
        ):
            opens(path)


def _keep_adding(path: Path) -> None:
    history = History(path)
    for number in itertools.count():
        message = event(f"e{number}", onset_ns=T0_NS + 1000 * number)
        history.add_messages([message], {"worker": ("b1", number)})


def test_kill_loses_nothing_that_was_committed(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    writer = multiprocessing.get_context("fork").Process(target=_keep_adding, args=(path,))
    writer.start()
    n_seen = 0
    while n_seen < 20:
        if path.exists():
            with closing(sqlite3.connect(path)) as db:
                try:
                    (n_seen,) = db.execute("SELECT count(*) FROM events").fetchone()
                except sqlite3.OperationalError:  # its tables are being made
                    n_seen = 0
        time.sleep(0.01)
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    with History(path) as history:
        n_events = sum(1 for _ in history.all_events(EventQuery()))
        assert n_events >= n_seen
        assert history.positions() == {"worker": ("b1", n_events - 1)}  # both or neither


def test_what_a_full_disk_refuses_waits_and_is_written_later(history: History) -> None:
    history.add_message(event("before"))
    with closing(sqlite3.connect(history.path)) as db:
        (n_pages,) = db.execute("PRAGMA page_count").fetchone()
    history._db.execute(f"PRAGMA max_page_count = {n_pages}")
    n = 200
    messages = [event(f"e{number}", label="x" * 200) for number in range(n)]
    assert not history.add_messages(messages, {"worker": ("b1", 9)})
    assert not history.add_message(event("later"))
    assert (history.figures.write_errors, history.figures.waiting) == (2, n + 1)
    assert "full" in (history.outage.text or "")
    assert history.positions() == {}
    assert [record.id for record in history.events(EventQuery())] == ["before"]
    history._db.execute("PRAGMA max_page_count = 1000000")
    assert history.retry()
    assert sum(1 for _ in history.all_events(EventQuery())) == n + 2
    assert history.positions() == {"worker": ("b1", 9)}


def test_what_waits_is_bounded_and_what_is_lost_counted(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ast_stream.history.database.MAX_WAITING", 5)
    history._db.execute("PRAGMA query_only = ON")
    history.add_messages([event(f"e{number}") for number in range(8)])
    assert (history.figures.dropped, history.figures.waiting) == (3, 5)
    history._db.execute("PRAGMA query_only = OFF")
    assert history.retry()
    assert [record.id for record in history.events(EventQuery(newest_first=False))] == [
        "e3", "e4", "e5", "e6", "e7",
    ]  # fmt: skip


def test_what_is_too_old_goes_with_its_verdicts(history: History) -> None:
    for number in range(3):
        onset_ns = T0_NS - number * 24 * HOUR
        history.add_messages([*whole_event(f"e{number}", onset_ns), gap(number, time_ns=onset_ns)])
        history.add_message(alert_message(id=f"a{number}", started_ns=onset_ns, events=["e1"]))
        history.add_verdict(verdict(f"e{number}"))
    assert not history.prune(2**40, max_age_s=36 * 3600)
    assert [record.id for record in history.events(EventQuery())] == ["e0", "e1"]
    assert [one.event_id for one in history.verdicts()] == ["e0", "e1"]
    assert len(history.gaps()) == len(history.alerts(AlertQuery())) == 2


def test_file_shrinks_to_its_bytes_and_the_newest_stay(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = 4000
    for start in range(0, n, 1000):
        history.add_messages(
            [
                event(f"e{number:05}", onset_ns=T0_NS + 1000 * number)
                for number in range(start, start + 1000)
            ]
        )
    before = history.used_bytes()
    monkeypatch.setattr("ast_stream.history.database.WAL_BYTES", 0)
    limit = before // 2
    while history.prune(limit):
        pass
    kept = [record.id for record in history.all_events(EventQuery(newest_first=False))]
    assert kept == [f"e{number:05}" for number in range(n - len(kept), n)]
    assert n * 0.35 < len(kept) < n * 0.65
    assert history.used_bytes() <= limit
    with closing(sqlite3.connect(history.path)) as db:
        assert db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    assert history.path.stat().st_size < 0.7 * before


@pytest.mark.parametrize("kind", STRANGE_FILES)
def test_strange_file_in_its_place_does_not_prevent_a_start(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "history.sqlite"
    make_strange(path, kind)
    with History(path) as history:
        assert history.add_message(event("x"))
        assert history.event("x") is not None


def test_history_of_a_later_version_is_kept_aside(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    with History(path) as history:
        history.add_message(event("x"))
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    for opens in (History.open_read_only, History.open_beside):
        with pytest.raises(StartupError, match="is of version 99, where this ast-stream has 3"):
            opens(path)
    with History(path) as history:
        assert history.add_message(event("y"))
    assert path.with_name("history.sqlite.damaged-1").exists()


def old_history(path: Path) -> None:
    """Make a history as its first version was, with an event and an alert."""
    with History(path) as history:
        history.add_message(event("x"))
        history.add_message(alert_message(id="a1", events=("x",)))
    with closing(sqlite3.connect(path)) as db:
        db.execute("DROP VIEW all_events")
        db.execute("ALTER TABLE events DROP COLUMN verifier_score")
        db.execute("ALTER TABLE alerts DROP COLUMN best")
        db.execute("DROP TRIGGER events_move_day")
        for name in ("days", "zone", "hours"):
            db.execute(f"DROP TABLE {name}")
        db.execute("CREATE TABLE hours (hour, stream, class, n_events)")
        db.execute("CREATE VIEW all_events AS SELECT id FROM events")
        db.execute("PRAGMA user_version = 1")


def test_a_history_of_the_first_version_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    old_history(path)
    for opens in (History.open_read_only, History.open_beside):
        with pytest.raises(StartupError, match="is brought up to date when the recorder starts"):
            opens(path)
    with History(path) as history:
        (known,) = history.alerts(AlertQuery(event_id="x"))
        assert known.best is None
        found = history.event("x")
        assert found is not None
        assert found.verifier_score is None
        history.add_message(event("y", verifier_score=0.75))
        history.add_message(alert_message(2, id="a2", events=("x", "y"), best="y"))
        (newest,) = history.alerts(AlertQuery(event_id="y"))
        assert newest.best == "y"
        assert sum(one.n_events for one in history.counts(hours(0, 2 * T0_NS))) == 2
    with closing(sqlite3.connect(path)) as db:
        rows = db.execute("SELECT id, verifier_score FROM all_events ORDER BY id").fetchall()
    assert rows == [("x", None), ("y", 0.75)]
    assert not list(tmp_path.glob("*.damaged-*"))


def test_a_damaged_history_of_the_first_version_loses_no_event(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    old_history(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("DROP TABLE clips")  # so that it is not what it was made as
        db.commit()
    with History(path) as history:
        assert history.event("x") is not None
    assert path.with_name("history.sqlite.damaged-1").exists()


def test_what_can_be_read_of_a_damaged_history_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    with History(path) as history:
        for start in range(0, 2000, 500):
            history.add_messages(
                [event(f"e{n:05}", onset_ns=T0_NS + 1000 * n) for n in range(start, start + 500)]
            )
        history.add_verdict(verdict("e00007"))
    whole = path.read_bytes()
    for seed in range(3):
        damaged = tmp_path / f"damaged-{seed}" / "history.sqlite"
        damaged.parent.mkdir()
        pages = len(whole) // 4096
        page = pages * (seed + 1) // 4
        damaged.write_bytes(whole[: page * 4096] + bytes(4096) + whole[(page + 1) * 4096 :])
        with History(damaged) as history:
            n_events = sum(1 for _ in history.all_events(EventQuery()))
            assert 0 < n_events <= 2000
            assert history.add_message(event("new"))
        assert damaged.with_name("history.sqlite.damaged-1").exists()


def test_damage_found_while_it_runs_is_set_aside_at_once(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    with History(path) as history:
        history.add_messages([event(f"e{n:05}", onset_ns=T0_NS + 1000 * n) for n in range(2000)])
        history._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        with path.open("r+b") as file:
            file.seek(5 * 4096)
            file.write(os.urandom(path.stat().st_size - 5 * 4096))
        history._db.execute("PRAGMA cache_size = 0")
        history._db.execute("PRAGMA shrink_memory")
        assert not history.add_messages(
            [event(f"n{n}", onset_ns=T0_NS + 1000 * n) for n in range(50)]
        )
        assert history.retry()
        assert history.event("n49") is not None
    assert path.with_name("history.sqlite.damaged-1").exists()


PAGE = (Path(__file__).parents[3] / "docs/reference/history.md").read_text()


def test_page_names_every_column_of_every_table(history: History) -> None:
    with closing(sqlite3.connect(history.path)) as db:
        tables = db.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        ).fetchall()
        columns = {
            (table, column)
            for (table,) in tables
            for (column,) in db.execute("SELECT name FROM pragma_table_info(?)", (table,))
        }
    sections = {
        name: text for text in PAGE.split("\n### ")[1:] for name in _named(text.split("\n")[0])
    }
    assert set(sections) == {table for table, _ in columns}
    missing = [
        (table, column) for table, column in columns if column not in _named(sections[table])
    ]
    assert missing == []


def test_questions_of_the_page_are_answered(history: History) -> None:
    now_ns = int(time.time()) * SECOND
    history.add_messages(
        [*whole_event("id1", now_ns), alert_message(rule="smoke_alarm", events=("id1",))]
    )
    history.add_verdict(verdict("id1"))
    history.add_clip(clip("id1"))
    questions = [part.split("```")[0] for part in PAGE.split("```sql\n")[1:]]
    assert len(questions) >= 5
    with closing(sqlite3.connect(history.path)) as db:
        for question in questions:
            assert len(db.execute(question).fetchall()) == 1, question


def _named(text: str) -> list[str]:
    """Return what stands between backticks."""
    return text.split("`")[1::2]
