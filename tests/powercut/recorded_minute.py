"""A minute of a recorder, as the disk sees it: history, clips, score log and verdicts.

    LD_PRELOAD=disk.so DISK_ROOT=FOLDER DISK_LOG=FILE python recorded_minute.py 60

Sounds of three classes on one stream, of which one gets a clip each, one where an alert names it,
and one never; a person who says what is right and wrong; clips that have to go for newer ones; a
recorder that is stopped and started again. The event log is that of the worker. Marks in the record
say what anyone could know, see `recorder_promises.Known`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))  # helpers that several tests share

import numpy as np
from alert_samples import alert
from clocks import FakeSeconds
from recording import Mark, marker
from sample_messages import EPOCH, STREAM, T0_NS, event_message, gap_message

from ast_stream.alerts.alert_rows import AlertRows
from ast_stream.feed import FeedMessage
from ast_stream.history.database import FILE, History
from ast_stream.history.records import Verdict, VerdictRecord
from ast_stream.history.score_log import ScoreLog
from ast_stream.machine_clock import Moment
from ast_stream.messages.audio import AudioBlock
from ast_stream.messages.event import Content, Position, ScoresHeader, Stamp
from ast_stream.messages.query import AudioAnswer, AudioQuery, Query, refuse_query
from ast_stream.recorder.fetcher import AudioFetcher
from ast_stream.recorder.folder import ClipFolder, Reason
from ast_stream.recorder.loop import ALERTS_FEED, ONLY_FEED, ClipChoice, Recorder
from ast_stream.recorder.plan import Plan
from ast_stream.recorder.policy import Policies
from ast_stream.recorder.retention import StoredClip
from ast_stream.settings.recorder import ClipPolicy
from ast_stream.settings.retention import ClipRetention, HistoryRetention
from ast_stream.transport.event_log import EventLog
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE, samples_to_ns, seconds_to_ns

SOUND = np.random.default_rng(3).integers(-2000, 2000, 200 * SAMPLE_RATE).astype(np.int16)
TURN_S = 0.5
LABELS = ("Bark", "Meow", "Rain")
POLICIES = (
    {"classes": ["Bark"], "pre_s": 1, "post_s": 1},
    {"classes": ["Meow"], "when": "alert", "pre_s": 1, "post_s": 1},
)
LOG_SIZES: dict[str, Any] = {"max_bytes": 256 * 1024, "segment_bytes": 8 * 1024}
SCORES_BYTES = 8 * 1024  # of all blocks, so that old ones go
VERDICTS: tuple[Verdict, ...] = ("right", "wrong", "unsure")


class Feed:
    """The feed of a worker, with what it holds for those who come later."""

    def __init__(self, position: Position | None) -> None:
        self.position = position
        self.is_publisher_there = True
        self.waiting: list[FeedMessage] = []

    def receive(self, timeout_s: float | None = None) -> FeedMessage | None:
        if not self.waiting:
            return None
        message = self.waiting.pop(0)
        if message.is_durable:
            self.position = message.position
        return message


class Worker:
    """What a worker holds of the stream; nothing of an epoch that a power cut has ended."""

    def __init__(self, *, has_sound: bool = True) -> None:
        self.end = 0
        self._has_sound = has_sound

    def ask(self, query: Query, timeout_s: float) -> list[bytes]:
        assert isinstance(query, AudioQuery)
        if not self._has_sound:
            return refuse_query("audio: expected the present epoch")
        first = min(max(int(query.start), 0), self.end)
        last = max(first, min(int(query.stop), self.end))
        block = AudioBlock(STREAM, EPOCH, first, Moment(T0_NS, 1), SOUND[first:last])
        return AudioAnswer(block, "b1").encode()


class Outbox(AlertRows):
    """Alerts, one of each event named; the real one is synced before anyone knows of them."""

    def __init__(self, after: int) -> None:
        super().__init__(Path("nowhere"), after)
        self.named: list[str] = []

    def read(self) -> list[FeedMessage]:
        new = self.named[self.after :]
        first = self.after + 1
        self.after += len(new)
        return [
            FeedMessage.of(alert(f"a{number}", events=(name,)), _stamp("outbox", number, 0))
            for number, name in enumerate(new, first)
        ]


class RecorderBox:
    """A recorder on the files of a folder: everything below its sockets is the real thing."""

    def __init__(self, folder: Path, worker: Worker, clock: FakeSeconds, mark: Mark) -> None:
        def wall_ns() -> int:
            return T0_NS + seconds_to_ns(clock())

        self.folder, self.mark = folder, mark
        self.history = History(folder / "history" / FILE, wall_s=lambda: wall_ns() / NS_PER_SECOND)
        positions = self.history.positions()
        limits = ClipRetention(max_mib=1, min_free_mib=0, keep_best=1)
        self.clips = ClipFolder(
            folder / "clips", self.history, limits, 600.0, wall_ns=wall_ns, free=lambda _: 10**12
        )
        delete = self.clips._delete

        def delete_marked(clips: Iterable[StoredClip], reason: Reason) -> None:
            chosen = list(clips)
            for clip in chosen:
                mark({"deleted": clip.path})
            delete(chosen, reason)

        self.clips._delete = delete_marked  # type: ignore[method-assign]
        self.scores = ScoreLog(folder / "scores", SCORES_BYTES)
        self.scores.set_model("sha256:tiny", LABELS)
        self.feed = Feed(positions.get(ONLY_FEED))
        self.outbox = Outbox(positions.get(ALERTS_FEED, ("", 0))[1])
        self.recorder = Recorder(
            self.feed,
            self.history,
            Plan(
                Policies([ClipPolicy.model_validate(one) for one in POLICIES]),
                30 * SAMPLE_RATE,
                2 * SAMPLE_RATE,
            ),
            AudioFetcher(lambda stream: worker, now_s=clock),
            self.clips,
            ClipChoice("flac", has_alerts=True),
            HistoryRetention(),
            self.outbox,
            self.scores,
            now_s=clock,
        )

    def stop(self) -> None:
        """End as after a signal."""
        self.recorder._turn(is_last=True)
        self.recorder._save()
        self.scores.close()
        self.clips.close()
        self.history.close()


class Minute:
    """What happens."""

    def __init__(self, folder: Path, mark: Mark) -> None:
        self.folder, self.mark = folder, mark
        self.clock, self.worker = FakeSeconds(0.0), Worker()
        self.log = EventLog(folder / "events", **LOG_SIZES)
        self.log.begin("b1")
        self.box = RecorderBox(folder, self.worker, self.clock, mark)
        self.clips: set[str] = set()
        self._seq = self._durable = 0
        self._sent: list[FeedMessage] = []
        self._named: list[str] = []

    def play(self, seconds: float) -> None:
        """Play it."""
        while self.clock.now_s < seconds:
            self.clock.now_s += TURN_S
            self.worker.end = round(self.clock.now_s * SAMPLE_RATE)
            turn = round(self.clock.now_s / TURN_S)
            for content in _what_happens(turn):
                self._publish(content)
            self._publish_scores()
            if turn % 22 == 15 and turn > 30:
                self._name(f"e{turn // 10 - 2}")
            self.box.recorder.step()
            while self.box.feed.waiting:
                self.box.recorder.step()
            self._look()
            if turn % 14 == 13 and turn > 24:
                self._judge(f"e{turn // 10 - 1}", VERDICTS[turn % len(VERDICTS)])
            if turn % 37 == 36:
                self.box.recorder._sweep()
            if turn == round(seconds):  # half way
                self.box.stop()
                self.box = RecorderBox(self.folder, self.worker, self.clock, self.mark)
                self.box.outbox.named = self._named
                self.box.feed.waiting += [one for one in self._sent if self._is_new(one)]

    def _is_new(self, message: FeedMessage) -> bool:
        known = self.box.feed.position
        return message.is_durable and (known is None or message.position > known)

    def _publish(self, content: Content) -> None:
        """Do as a worker with `durability: each event`."""
        self._seq += 1
        stamp = _stamp("b1", self._seq, self._durable, self.clock.now_s)
        message = FeedMessage.of(content, stamp)
        if message.is_durable:
            self.log.append(message)
            self.log.sync()
            self._durable = self._seq
            self._sent.append(message)
            self.mark({"sent": [*message.position, message.body]})
        self.box.feed.waiting.append(message)

    def _publish_scores(self) -> None:
        end = self.worker.end
        header = ScoresHeader(
            stream=STREAM, epoch=EPOCH, end_sample=end, time_ns=T0_NS + samples_to_ns(end)
        )
        self._seq += 1
        stamp = _stamp("b1", self._seq, self._durable, self.clock.now_s)
        self.box.feed.waiting.append(FeedMessage.of(header, stamp, scores_at(end)))

    def _name(self, event_id: str) -> None:
        self._named.append(event_id)
        self.mark({"named": event_id})
        self.box.outbox.named = self._named

    def _judge(self, event_id: str, verdict: Verdict) -> None:
        with History.open_beside(self.box.history.path) as beside:  # as the page does
            beside.add_verdict(VerdictRecord(event_id, verdict, None, "anna", T0_NS))
        self.mark({"judged": [event_id, verdict]})

    def _look(self) -> None:
        """Say which clips the history shows."""
        now = {clip.path for clip, _ in self.box.history.all_clips() if clip.path}
        for path in sorted(now - self.clips):
            self.mark({"shown": path})
        self.clips = now


def scores_at(end: int) -> np.ndarray[Any, np.dtype[np.float16]]:
    """Return the scores of the window that ends at a sample, shape (n_classes,)."""
    return np.random.default_rng(end).random(len(LABELS)).astype(np.float16)


def _what_happens(turn: int) -> Sequence[Content]:
    """Return what a worker says: each five seconds an event begins, and lasts for six."""
    number, phase = divmod(turn, 10)
    said: list[Content] = []
    if phase == 4:
        said.append(_event(number, "begin"))
    if number and phase == 6:
        said += [_event(number - 1, "update"), _event(number - 1, "end")]
    if number % 3 == 2 and phase == 8:
        said.append(gap_message(round((turn - 1) * TURN_S * SAMPLE_RATE), samples=1600))
    return said


def _event(number: int, type: str) -> Content:
    onset = round((number * 5 + 1) * SAMPLE_RATE)
    ends: dict[str, Any] = {}
    if type == "end":
        ends = {
            "offset_sample": onset + 6 * SAMPLE_RATE,
            "offset_ns": T0_NS + samples_to_ns(onset) + 6 * NS_PER_SECOND,
            "reason": "quiet",
        }
    peak = 0.5 + 0.3 * (number % 5) / 5 + 0.1 * (type != "begin")
    return event_message(
        f"e{number}", type, label=LABELS[number % len(LABELS)], index=number % len(LABELS),
        onset_sample=onset, onset_ns=T0_NS + samples_to_ns(onset), peak=peak,
        at_sample=onset + SAMPLE_RATE * (7 if type == "end" else 1), **ends,
    )  # fmt: skip


def _stamp(boot: str, seq: int, durable: int, now_s: float = 0.0) -> Stamp:
    now_ns = T0_NS + seconds_to_ns(now_s)
    return Stamp(boot, seq, Moment(now_ns, now_ns), previous=durable)


def main() -> None:
    minute = Minute(Path(os.environ["DISK_ROOT"]), marker())
    minute.play(float(sys.argv[1]))
    os._exit(0)  # as a power cut would, with all files open


if __name__ == "__main__":
    main()
