from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from alert_samples import alert
from clocks import FakeSeconds
from sample_messages import EPOCH, STREAM, T0_NS, event_message, gap_message, health, worker_status

from ast_stream.alerts.alert_rows import AlertRows
from ast_stream.errors import WireError
from ast_stream.feed import FeedMessage, Missed
from ast_stream.history.database import FILE, History
from ast_stream.history.records import ClipRecord
from ast_stream.machine_clock import Moment
from ast_stream.messages.alert import Alert
from ast_stream.messages.audio import AudioBlock
from ast_stream.messages.event import Content, Position, Stamp
from ast_stream.messages.query import AudioAnswer, AudioQuery, Query, refuse_query
from ast_stream.recorder.fetcher import IDLE_S, AudioFetcher
from ast_stream.recorder.folder import ClipFolder
from ast_stream.recorder.loop import ClipChoice, Recorder
from ast_stream.recorder.plan import Plan
from ast_stream.recorder.policy import Policies
from ast_stream.settings.recorder import ClipPolicy
from ast_stream.settings.retention import ClipRetention, HistoryRetention
from ast_stream.units import SAMPLE_RATE as S

SOUND = np.random.default_rng(3).integers(-20_000, 20_000, 90 * S).astype(np.int16)


class Worker:
    """What a worker holds of one stream, and what it says of it."""

    def __init__(self, held_s: float = 60.0, begins_s: float = 0.0) -> None:
        self.begin = self.end = round(begins_s * S)
        self.held = round(held_s * S)
        self.epoch = EPOCH
        self.asked: list[tuple[int, int]] = []
        self.refusal: str | None = None
        self.is_there = True

    def ask(self, query: Query, timeout_s: float) -> list[bytes] | None:
        assert isinstance(query, AudioQuery)
        if not self.is_there:
            return None
        if self.refusal is not None or query.epoch != self.epoch:
            return refuse_query(self.refusal or "audio: expected the present epoch")
        start, stop = int(query.start), int(query.stop)
        assert stop - start <= 10 * S
        first = min(max(start, self.end - self.held, self.begin), self.end)
        last = max(first, min(stop, self.end))
        self.asked.append((first, last))
        block = AudioBlock(STREAM, EPOCH, first, Moment(T0_NS, 1), SOUND[first:last])
        return AudioAnswer(block, "b1").encode()


class Feed:
    """Messages that a test puts on a feed."""

    def __init__(self, position: Position | None = None) -> None:
        self.position = position
        self.is_publisher_there = True
        self.waiting: list[FeedMessage] = []
        self._seq = 0

    def put(self, *contents: Content) -> None:
        for content in contents:
            self._seq += 1
            stamp = Stamp("b1", self._seq, Moment(T0_NS, 1), previous=self._seq - 1)
            self.waiting.append(FeedMessage.of(content, stamp))

    def receive(self, timeout_s: float | None = None) -> FeedMessage | Missed | None:
        if not self.waiting:
            return None
        message = self.waiting.pop(0)
        self.position = message.position
        return message


class Outbox(AlertRows):
    """Alerts that a test puts into an outbox."""

    def __init__(self, alerts: Sequence[Alert]) -> None:
        super().__init__(Path("nowhere"))
        self._waiting = [
            FeedMessage.of(one, Stamp("outbox", number, Moment(T0_NS, 0)))
            for number, one in enumerate(alerts, 1)
        ]

    def read(self) -> list[FeedMessage]:
        found, self._waiting = self._waiting, []
        self.after += len(found)
        return found


class Scene:
    """A recorder on a worker and a feed of a test."""

    def __init__(self, folder: Path, history: History, *policies: dict[str, Any]) -> None:
        self.worker, self.clock = Worker(), FakeSeconds(0.0)
        self.feed = Feed()
        self.folder, self.history = folder, history
        chosen = [ClipPolicy.model_validate(one) for one in policies or ({},)]
        self.recorder = self.begin(chosen)

    def begin(self, policies: Sequence[ClipPolicy]) -> Recorder:
        clips = ClipFolder(
            self.folder, self.history, ClipRetention(min_free_mib=0), 600.0, free=lambda _: 10**12
        )
        plan = Plan(Policies(policies), 30 * S, 2 * S)
        fetcher = AudioFetcher(lambda stream: self.worker, now_s=self.clock)
        choice = ClipChoice("flac", has_alerts=False)
        limits = HistoryRetention()
        return Recorder(
            self.feed, self.history, plan, fetcher, clips, choice, limits, now_s=self.clock
        )

    def alert(self, *alerts: Alert) -> None:
        """Have the outbox hold alerts."""
        self.recorder._alerts = Outbox(alerts)
        self.turn()

    def play(self, until_s: float, *contents: Content) -> None:
        """Let the worker hear sound up to a second, and publish something then."""
        while self.worker.end < round(until_s * S):
            self.worker.end = min(self.worker.end + S // 2, round(until_s * S))
            self.turn()
        self.feed.put(*contents)
        self.turn()

    def turn(self, seconds: float = 0.5) -> None:
        self.clock.now_s += seconds
        self.recorder.step()

    def clips(self, event_id: str = "id1") -> list[ClipRecord]:
        return self.history.clips(event_id)

    def check(self, clip: ClipRecord) -> None:
        found, _ = soundfile.read(self.folder / clip.path, dtype="int16")
        np.testing.assert_array_equal(found, SOUND[clip.start_sample : clip.stop_sample])


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with History(tmp_path / "history" / FILE) as history:
        yield Scene(tmp_path / "clips", history)


def begin(onset_s: float, id: str = "id1", **fields: Any) -> Content:
    return event_message(id, "begin", onset_sample=round(onset_s * S), **fields)


def end(onset_s: float, offset_s: float, id: str = "id1", **fields: Any) -> Content:
    samples = {"onset_sample": round(onset_s * S), "offset_sample": round(offset_s * S)}
    return event_message(id, "end", **samples, **fields)


def test_events_that_overlap_share_what_is_fetched(scene: Scene) -> None:
    scene.play(12, begin(10, "a"))
    scene.play(14, begin(8, "b"))
    scene.play(22, end(10, 16, "a"), end(8, 18, "b"))
    scene.turn()
    (one,), (other,) = scene.clips("a"), scene.clips("b")
    assert (one.start_sample, one.stop_sample) == (7 * S, 19 * S)
    assert (other.start_sample, other.stop_sample) == (5 * S, 21 * S)
    scene.check(one)
    scene.check(other)
    spans = sorted(span for span in scene.worker.asked if span[0] < span[1])
    assert sum(stop - start for start, stop in spans) <= 17.5 * S  # each second once


def test_the_beginning_of_a_clip_is_waited_for_if_the_worker_is_busy(scene: Scene) -> None:
    scene.play(22, begin(10, "a"))
    scene.worker.is_there = False  # no answer in time
    scene.feed.put(end(8, 16, "b"))
    for _ in range(10):
        scene.turn(1.0)
    assert scene.clips("b") == []
    scene.worker.is_there = True
    for _ in range(6):
        scene.turn(1.0)
    (clip,) = scene.clips("b")
    assert (clip.start_sample, clip.stop_sample, clip.note) == (5 * S, 19 * S, "")
    scene.check(clip)


def test_what_the_worker_no_longer_holds_is_silence_that_is_said(scene: Scene) -> None:
    scene.worker.held = 10 * S
    scene.play(20, begin(10))
    scene.play(22, end(10, 18))
    scene.turn()
    (clip,) = scene.clips()
    assert clip.note == "3 s are silence: no longer held by the worker"
    found, _ = soundfile.read(scene.folder / clip.path, dtype="int16")
    assert not found[: 3 * S].any()
    np.testing.assert_array_equal(found[3 * S :], SOUND[10 * S : clip.stop_sample])


def test_an_event_of_which_nothing_is_held_has_a_reason_in_place_of_a_clip(scene: Scene) -> None:
    scene.worker.held = 5 * S
    scene.play(40, end(10, 18))
    scene.turn()
    (clip,) = scene.clips()
    assert (clip.path, clip.note) == ("", "no longer held by the worker")
    assert scene.recorder.unkept == 1


def test_a_gap_on_the_feed_is_marked_in_clips_that_begin_before_it(scene: Scene) -> None:
    scene.play(8, gap_message(5 * S, samples=S))
    scene.play(10, begin(7))
    scene.play(15, end(7, 9))
    scene.turn()
    (clip,) = scene.clips()
    assert clip.note == "1 s are silence: overflow"


def test_audio_that_is_refused_is_waited_for_and_then_said(scene: Scene) -> None:
    scene.worker.refusal = "audio: not allowed: the client lacks the right 'audio'"
    scene.play(20, end(10, 12))
    scene.turn()
    assert scene.clips() == []
    for _ in range(round(IDLE_S) + 1):
        scene.turn(1.0)
    (clip,) = scene.clips()
    assert "lacks the right 'audio'" in clip.note


def test_an_event_whose_capture_began_anew_is_cut_where_its_audio_ends(scene: Scene) -> None:
    scene.play(15, begin(10), health(epoch=EPOCH))
    scene.worker.epoch = "bbbbbbbb"
    scene.play(16, end(10, 14, reason="gap"), health(epoch="bbbbbbbb"))
    scene.turn(1.0)
    scene.turn(1.0)
    (clip,) = scene.clips()
    assert (clip.start_sample, clip.stop_sample) == (7 * S, 15 * S)
    assert clip.note == "2 s at the end are missing: the capture process has begun anew"
    scene.check(clip)


def test_a_worker_that_is_away_is_waited_for(scene: Scene) -> None:
    scene.play(12, begin(10))
    scene.worker.is_there = False
    scene.feed.put(end(10, 14))
    for _ in range(60):
        scene.turn(1.0)
    assert scene.clips() == []
    scene.worker.is_there = True
    scene.play(20)
    for _ in range(4):
        scene.turn(1.0)
    (clip,) = scene.clips()
    assert (clip.note, clip.stop_sample) == ("", 17 * S)
    scene.check(clip)


def test_a_clip_goes_on_with_the_worker_that_takes_the_stream_over(scene: Scene) -> None:
    scene.play(13, begin(10))
    scene.feed.put(end(10, 12))
    scene.worker.is_there = False  # killed: 2 s of the post-roll have yet to come
    for _ in range(round(IDLE_S) + 2):
        scene.turn(1.0)
    scene.worker = Worker(begins_s=4)
    scene.worker.refusal = "audio: expected a stream with sound (none yet), got 'porch'"
    for _ in range(3):
        scene.turn(1.0)
    scene.worker.refusal = None
    while scene.worker.end < 15 * S:  # first it catches up with what the other one has given
        scene.worker.end += S // 2
        scene.turn(1.0)
    (clip,) = scene.clips()
    assert (clip.start_sample, clip.stop_sample, clip.note) == (7 * S, 15 * S, "")
    scene.check(clip)


def test_a_restart_goes_on_from_what_the_history_holds(tmp_path: Path) -> None:
    with History(tmp_path / "history" / FILE) as history:
        scene = Scene(tmp_path / "clips", history)
        scene.play(12, begin(10))
        scene.play(15, end(10, 14))  # its post-roll is not there yet
        assert history.positions() == {"": ("b1", 1)}  # before the end
        assert scene.recorder.clips is not None
        scene.recorder.clips.close()
        scene.recorder = scene.begin([ClipPolicy()])
        scene.feed.put(end(10, 14))  # what the log repeats
        scene.play(20)
        (clip,) = scene.clips()
        assert (clip.start_sample, clip.stop_sample, clip.note) == (7 * S, 17 * S, "")
        scene.check(clip)
        assert len(list(scene.folder.rglob("*.flac"))) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "../../../etc/cron.d/x"},
        {"class_": "../x"},
        {"stream": "../x"},
        {"epoch": "/"},
        {"onset_sample": 2**53},
        {"offset_sample": 2**53},
        {"epoch": None},
    ],
)
def test_an_event_that_no_worker_publishes_names_no_file(
    scene: Scene, fields: dict[str, Any]
) -> None:
    chosen: dict[str, Any] = {"onset_sample": 10 * S, "offset_sample": 12 * S, "id": "id1"} | fields
    scene.play(20, event_message(chosen.pop("id"), "end", **chosen), worker_status())
    scene.turn()
    assert [one.name for one in scene.folder.iterdir()] == ["lock"]
    assert len(scene.recorder.plan) == 0
    scene.feed.put(end(15, 16))
    scene.turn()
    assert len(scene.clips()) == 1


def test_a_clip_that_cannot_be_made_does_not_end_the_others(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = soundfile.SoundFile.write

    def failing(self: soundfile.SoundFile, data: Any) -> None:
        if self.album == "a":
            raise RuntimeError("broken")
        encode(self, data)

    monkeypatch.setattr(soundfile.SoundFile, "write", failing)
    scene.play(20, end(10, 12, "a"), end(10, 12, "b"))
    scene.turn()
    assert [clip.note for clip in scene.clips("a")] == ["internal error: RuntimeError"]
    assert scene.clips("b")[0].path != ""


def test_an_answer_that_is_none_is_a_refusal(scene: Scene) -> None:
    with pytest.raises(WireError):
        AudioAnswer.decode([b"{"])
    scene.worker.ask = lambda query, timeout_s: [b"{"]  # type: ignore[method-assign]
    scene.play(20, end(10, 12))
    scene.turn()
    assert scene.clips() == []


@pytest.mark.parametrize("comes", ["while the events last", "when all is cut"])
@pytest.mark.parametrize(
    ("when", "best", "kept"),
    [("alert", "b", {"a", "b"}), ("best", "b", {"b"}), ("best", None, {"a", "b"})],
)
def test_of_one_sound_at_several_microphones_all_or_the_best_are_kept(
    tmp_path: Path, when: str, best: str | None, kept: set[str], comes: str
) -> None:
    """None of them is the best of an alert of another kind of rule: all are kept."""
    named = alert(events=("a", "b"), best=best)
    with History(tmp_path / "history" / FILE) as history:
        scene = Scene(tmp_path / "clips", history, {"when": when})
        scene.play(12, begin(10, "a"), begin(10, "b"))
        if comes == "while the events last":
            scene.alert(named)
        scene.play(22, end(10, 16, "a"), end(10, 16, "b"))
        scene.turn()
        if comes == "when all is cut":
            assert not scene.clips("a") + scene.clips("b")
            scene.alert(named)
            scene.turn()
        assert {one for one in ("a", "b") if scene.clips(one)} == kept
