"""The loop of the recorder: writes messages to the history, and the audio of events to clips.

After a restart, reading begins where the last run had recorded everything: before the first end of
an event whose clip was incomplete. Messages that are read twice change nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ast_stream.alerts.alert_rows import AlertRows
from ast_stream.errors import WireError
from ast_stream.feed import FeedMessage, MessageReader, Missed, Position
from ast_stream.history.database import History, HistoryError
from ast_stream.history.records import AlertQuery, AlertRecord
from ast_stream.messages.alert import Alert
from ast_stream.messages.event import EventMessage, GapMessage
from ast_stream.messages.status import Health, WorkerStatus
from ast_stream.recorder.clip import Clip, why_without_clip
from ast_stream.recorder.fetcher import AudioFetcher
from ast_stream.recorder.folder import ClipFolder
from ast_stream.recorder.held_audio import Hole
from ast_stream.recorder.plan import ClipPart, Plan, Positions, TrackedEvent
from ast_stream.recorder.policy import Subject
from ast_stream.recorder.retention import StoredClip
from ast_stream.runtime.logging import LimitedLog
from ast_stream.settings.recorder import ClipFormat
from ast_stream.settings.retention import MIB, HistoryRetention
from ast_stream.settings.storage import DAY_S

TOPICS = ("event/", "gap/", "health/", "status/")
SCORES_TOPIC = "scores/"
ALERTS_FEED = "@alerts"  # name of the outbox among the positions; not a valid worker name
ONLY_FEED = ""  # name of the feed of a worker without a name
WAIT_S = 0.25  # longest delay before a stop is noticed
MAX_BATCH = 512
MAX_WAITING = 5000  # messages that wait for the history before reading pauses
TURN_S = 0.5  # interval of reading alerts, fetching audio and writing what waits
SWEEP_S = 60.0
NEW_S = 60.0  # a worker holds audio for so long
DRAIN_S, MAX_DRAIN_S = 0.5, 3.0  # on a busy box a worker's last messages arrive late

logger = logging.getLogger(__name__)


class ScoreSink(Protocol):
    """The part of ScoreLog that the loop needs."""

    def append(self, message: FeedMessage) -> None:
        """Add the scores of a hop."""

    def note_model(self, model: str) -> None:
        """Take note of the model that a worker uses."""

    def retry(self) -> None:
        """Write what waits, and delete what is too old."""


@dataclass(frozen=True)
class ClipChoice:
    """How clips are written.

    Attributes:
        has_alerts: there are rules, so alerts may decide on clips.
        is_without_speech: `privacy` is `speech`.
    """

    format: ClipFormat
    has_alerts: bool
    is_without_speech: bool = False


class Recorder:
    """Records the messages of the feeds, and the audio of events that the policies select.

    Args:
        feed: of all workers.
        plan: with the policies.
        clips: None: no audio is stored.
        limits: of the history.
        alerts: None: there is no alerts process.
        scores: None: scores are not stored.
        since_ns: events published earlier get no clips; for a first start, which reads everything
            in the workers' logs.

    Attributes:
        unkept: number of event parts that should have a clip but have none.
        missed: number of times that messages were lost.
    """

    def __init__(
        self,
        feed: MessageReader,
        history: History,
        plan: Plan,
        fetcher: AudioFetcher,
        clips: ClipFolder | None,
        choice: ClipChoice,
        limits: HistoryRetention,
        alerts: AlertRows | None = None,
        scores: ScoreSink | None = None,
        *,
        since_ns: int = 0,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.plan = plan
        self.clips = clips
        self.choice = choice
        self.limits = limits
        self.unkept = 0
        self.missed = 0
        self.received: Counter[str] = Counter()
        self._feed = feed
        self._history = history
        self._fetcher = fetcher
        self._alerts = alerts
        self._scores = scores
        self._since_ns = since_ns
        self._now_s = now_s
        self._next_turn_s = self._next_sweep_s = now_s()
        self._next_sweep_s += SWEEP_S
        self._before: Positions = feed.position  # after the previous message
        self._saved: Mapping[str, Position] | None = None
        self._batch: list[FeedMessage] = []
        self._limited_log = LimitedLog(logger)

    @property
    def hears_workers(self) -> bool:
        """Whether messages of the workers are being received."""
        return self._feed.is_publisher_there

    def run(self, stop: threading.Event, between: Callable[[], None]) -> None:
        """Record until `stop` is set; `between` is called several times a second."""
        while not stop.is_set():
            between()
            self.step()
        self._drain()
        self._turn(is_last=True)
        self._save()

    def step(self) -> None:
        """Process the messages of the feed, waiting a moment for them, and do what is due."""
        if self._history.figures.waiting < MAX_WAITING:
            self._receive()
        else:  # a full disk: unread messages are read later, from the workers' logs
            time.sleep(WAIT_S)
        self._save()  # first: clips need their events in the history
        if self._now_s() >= self._next_turn_s:
            self._next_turn_s = self._now_s() + TURN_S
            self._turn()
            self._save()

    def _receive(self) -> None:
        item = self._feed.receive(WAIT_S)
        for _ in range(MAX_BATCH):
            if item is None:
                break
            self._take(item)
            if self._now_s() >= self._next_turn_s:
                break
            item = self._feed.receive(0.0)

    def _take(self, item: FeedMessage | Missed) -> None:
        before, self._before = self._before, self._feed.position
        if isinstance(item, Missed):
            self.missed += 1
            logger.error(
                "messages up to %s of boot %s are missed: %s",
                item.upto[1],
                item.upto[0],
                item.reason,
            )
            return
        self.received[item.kind] += 1
        if item.kind == "scores":
            if self._scores is not None:
                self._scores.append(item)
            return
        if item.is_durable:
            self._batch.append(item)
        try:
            self._observe(item, before)
        except WireError as error:
            self._limited_log.warning("%s", error)
        except Exception as error:  # the boundary: messages from outside may have any content
            self._limited_log.warning("message %s cannot be used: %r", item.topic, error)

    def _observe(self, message: FeedMessage, before: Positions) -> None:
        match message.content():
            case EventMessage() as event:
                self._observe_event(event, before)
            case GapMessage() as gap:
                hole = Hole(gap.start_sample, gap.start_sample + gap.samples, gap.reason)
                self._fetcher.note((gap.stream, gap.epoch), hole)
            case Health() as health:
                self._fetcher.on_health(health)
            case WorkerStatus() as status:
                self._fetcher.window_s = status.window_s
                if self._scores is not None:
                    self._scores.note_model(status.model)

    def _observe_event(self, message: EventMessage, before: Positions) -> None:
        clips = self.clips
        if clips is None or (message.published_ns or self._since_ns) < self._since_ns:
            return
        if (why := why_without_clip(message)) is not None:
            self._limited_log.warning("no clip of the event %s: %s", message.id, why)
            return
        is_known = message.id in self.plan
        parts = [] if is_known else clips.of_event(message.id)
        if any(part.is_last for part in parts):
            return  # done by an earlier run
        event = self.plan.observe(message, before)
        if event is None:
            if not is_known:
                return
            clips.drop(message.id)  # its score has risen to a policy that keeps no clips
        elif not is_known:
            cut = [(part.part, part.start_sample, part.stop_sample) for part in parts]
            self.plan.resume(event, cut)
            alerts = self._alerts_of(message.id)
            event.is_alerted = bool(alerts)
            event.is_best = any(alert.best in (None, message.id) for alert in alerts)

    def _alerts_of(self, event_id: str) -> list[AlertRecord]:
        if not self.choice.has_alerts:
            return []
        try:
            return self._history.alerts(AlertQuery(event_id=event_id))
        except HistoryError as error:
            self._limited_log.warning("%s", error)
            return []

    def _turn(self, *, is_last: bool = False) -> None:
        """Do what is due at intervals."""
        self._read_alerts()
        if self._scores is not None:
            self._scores.retry()
        if self.clips is not None:
            self._record_sound(self.clips, is_last=is_last)
            self.clips.retry()
        if self._now_s() >= self._next_sweep_s:
            self._next_sweep_s = self._now_s() + SWEEP_S
            self._sweep()

    def _sweep(self) -> None:
        """Delete what is too old or too much."""
        if self.clips is not None:
            self.clips.sweep(self.plan)
        max_age_s = None if self.limits.max_days is None else self.limits.max_days * DAY_S
        try:
            if self._history.prune(self.limits.max_mib * MIB, max_age_s):
                self._next_sweep_s = self._now_s()  # continue at once: there is more to delete
        except HistoryError as error:
            self._history.outage.failed("%s", error)

    def _read_alerts(self) -> None:
        if self._alerts is None or self._history.figures.waiting >= MAX_WAITING:
            return
        messages = self._alerts.read()
        if not messages:
            return
        self._history.add_messages(messages, {ALERTS_FEED: self._alerts.position})
        for message in messages:
            self.received["alert"] += 1
            content = message.content()
            if self.clips is None or not isinstance(content, Alert):
                continue
            for event_id in content.events:
                is_best = content.best in (None, event_id)
                event = self.plan.get(event_id)
                if event is not None:
                    event.is_alerted = True
                    event.is_best = event.is_best or is_best
                    self._settle(self.clips, event)
                elif is_best or not self._is_for_the_best(self.clips.of_event(event_id)):
                    self.clips.keep(event_id)

    def _is_for_the_best(self, parts: Sequence[StoredClip]) -> bool:
        """Return whether clips of an event wait for an alert that names it as the best."""
        for part in parts:
            subject = Subject(part.class_, part.stream, part.peak, is_over=True, is_alerted=True)
            policy = self.plan.policies.chosen(subject)
            return policy is not None and policy.when == "best"
        return False

    def _record_sound(self, clips: ClipFolder, *, is_last: bool = False) -> None:
        """Fetch the audio that is wanted, and cut the parts that are complete.

        Args:
            is_last: do not wait any longer for workers that do not answer.
        """
        over = set(self._fetcher.over())
        self._fetcher.fetch(self.plan.wanted(), takes_all=over)
        if is_last:
            over |= set(self._fetcher.absent())
        ends = self._fetcher.ends()
        for part in self.plan.due(ends, over):
            try:
                self._cut(clips, part)
            except Exception as error:  # the boundary: one clip must not affect the others
                why = f"internal error: {type(error).__name__}"
                if clips.outage.text is None:  # traceback once: later clips may fail alike
                    logger.exception("a clip cannot be made")
                clips.outage.failed("clips are not kept: %s", why)
                self._note(clips, part, why)
            self.plan.is_cut(part)
            if part.is_last:
                self._settle(clips, part.event)

    def _cut(self, clips: ClipFolder, part: ClipPart) -> None:
        """Write one part, or record why there is none."""
        decision = self.plan.decision(part.event)
        if decision == "drop":
            return
        held = self._fetcher.audio(part.event.source)
        why = self._fetcher.why_not(part.event.source)
        audio = None if held is None else held.cut(part.start, part.stop)
        if audio is None or not audio.has_sound:
            reasons = [] if audio is None else [hole.reason for hole in audio.holes]
            if audio is not None and audio.withheld:
                reasons.append("somebody may talk")
            self._note(clips, part, "; ".join(dict.fromkeys(reasons)) or why)
            return
        is_without_speech = self.choice.is_without_speech
        clip = Clip.of(part, audio, self.choice.format, why, is_without_speech=is_without_speech)
        problem = clips.write(clip, is_waiting=decision == "wait")
        if problem is not None:
            self._note(clips, part, problem)

    def _note(self, clips: ClipFolder, part: ClipPart, why: str) -> None:
        self.unkept += 1
        clips.note(part, why)
        message = part.event.message
        self._limited_log.warning(
            "no clip of %s on %s (%s): %s", message.label, message.stream, message.id, why
        )

    def _settle(self, clips: ClipFolder, event: TrackedEvent) -> None:
        """Keep, drop or leave the clips of an event, as decided."""
        event_id = event.message.id
        match self.plan.decision(event):
            case "keep":
                clips.keep(event_id)
            case "drop":
                clips.drop(event_id)
            case "wait" if event.is_over:
                clips.wait(event_id)

    def _save(self) -> None:
        """Write the messages read, and the position where the next run begins."""
        batch, self._batch = self._batch, []
        positions = _by_feed(self.plan.resume_at(self._feed.position))
        if batch or positions != self._saved:
            self._history.add_messages(batch, positions)
            self._saved = positions
        else:
            self._history.retry()

    def _drain(self) -> None:
        """Process the last messages of workers that have ended, or of running ones for a moment."""
        end_s = self._now_s() + MAX_DRAIN_S
        while self._now_s() < end_s and (item := self._feed.receive(DRAIN_S)) is not None:
            self._take(item)


def _by_feed(positions: Positions) -> dict[str, Position]:
    """Return positions by the names of the feeds."""
    if positions is None:
        return {}
    if isinstance(positions, Mapping):
        return dict(positions)
    return {ONLY_FEED: positions}
