"""Health and status of the worker: on the feed each second, on request, and to Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, get_args

from ast_stream.coverage.spans import KINDS, Kind
from ast_stream.detect.detector import Detector
from ast_stream.errors import WireError
from ast_stream.machine_clock import read_clocks
from ast_stream.messages.audio import AudioBlock
from ast_stream.messages.query import Snapshot
from ast_stream.messages.status import (
    Health,
    StreamState,
    WorkerFacts,
    WorkerStatus,
)
from ast_stream.runtime.logging import Outage
from ast_stream.runtime.metrics import (
    BATCH_BUCKETS,
    RENEW_EVERY_S,
    SECONDS_BUCKETS,
    Family,
    Metrics,
    Values,
    figure,
)
from ast_stream.transport.publisher import DeduplicatingPublisher, FeedPublisher
from ast_stream.transport.query import AudioRange
from ast_stream.units import NS_PER_SECOND, samples_to_seconds
from ast_stream.worker.stream import CodedOutcome, WorkerStream

REPORT_EVERY_S = 1.0

Streams = Collection[WorkerStream]

Change = Literal["begun", "continued", "given", "lost"]
"""What became of a stream of another box: this worker began it, or went on where another one was;
it gave it to another one, or found that another one had it."""
Stage = Literal["receive", "rings", "levels", "detect", "journal", "report", "answer"]
MODEL_STAGE = "model"  # the part of `detect` in which the model computes
_STREAM_METRICS: tuple[tuple[str, str, str], ...] = (  # name, field of Health, help
    ("level_dbfs", "level_dbfs", "Level of the newest hop"),
    ("lag_seconds", "lag_s", "Audio that exists and is not scored yet"),
    ("silence_seconds", "silence_s", "Since audio of the stream last came"),
    ("hop_seconds", "hop_s", "Between two windows; wider under overload"),
    ("open_events", "open_events", "Events that have begun and not ended"),
    ("gaps_total", "gaps", "Gap records published"),
    ("lost_samples_total", "lost_samples", "Samples at 16 kHz that are lost for good"),
    ("overflows_total", "overflows", "Gaps made by a device that overflowed"),
    ("ring_timeouts_total", "ring_timeouts", "Ring reads without an answer in time"),
)


class WorkerReporter:
    """Reports on the worker and on the streams that it is given.

    Args:
        facts: model, device, precision, attention and the like, for the status message.
        outages: of what is written to the disk.
        covered: samples accounted for since the start, by stream and kind.

    Attributes:
        blocks_refused: audio blocks that were invalid, or for which there was no room.
        coded: blocks of Opus, by what became of them.
        placed: streams of other boxes, by what became of them.
        restart_needed: keys of the configuration that have changed and are not in use.
    """

    def __init__(
        self,
        detector: Detector,
        feed: FeedPublisher,
        publisher: DeduplicatingPublisher,
        facts: WorkerFacts,
        now_s: float,
        outages: Sequence[Outage],
        covered: Mapping[tuple[str, Kind], int],
    ) -> None:
        self._detector = detector
        self._publisher = publisher
        self._outages = outages
        self._covered = covered
        self._feed = feed
        self._facts = facts
        self.blocks_refused = 0
        self.coded: Counter[CodedOutcome] = Counter()
        self.placed: Counter[Change] = Counter()
        self.restart_needed: Sequence[str] = ()
        self._started_s = self._reported_s = now_s
        self._reported_windows = 0
        self._windows_per_s = 0.0  # over the last whole report
        self._states: dict[str, StreamState] = {}  # as last published

    def publish(self, streams: Streams, now_s: float) -> None:
        """Publish health and status once a second, and health at once when a state changes."""
        is_due = now_s - self._reported_s >= REPORT_EVERY_S
        states = {stream.name: stream.state(now_s) for stream in streams}
        for stream in streams:
            if is_due or states[stream.name] != self._states.get(stream.name):
                self._feed.publish(stream.health(now_s))
        self._states = states
        if is_due:
            n_scored = self._detector.n_scored
            n_windows = n_scored - self._reported_windows
            self._windows_per_s = round(n_windows / (now_s - self._reported_s), 2)
            self._reported_s, self._reported_windows = now_s, n_scored
            self._feed.publish(self._status(streams, now_s))

    def publish_farewell(self, stream: WorkerStream, now_s: float) -> None:
        """Publish the last health of a stream, from which readers learn that none follows."""
        self._feed.publish(stream.health(now_s))

    @property
    def disk(self) -> str | None:
        """What cannot be written, and why; None while everything can."""
        texts = (outage.text for outage in self._outages)
        return "; ".join(filter(None, texts)) or None

    def status_line(self, streams: Streams, now_s: float) -> str:
        """Return the state of the worker as a line for people."""
        line = describe_streams([stream.health(now_s) for stream in streams])
        return line if self.disk is None else f"{line}, {self.disk}"

    def snapshot(self, streams: Streams, now_s: float) -> Snapshot:
        """Return streams, open events and status."""
        return Snapshot(
            boot=self._feed.boot,
            streams=[stream.health(now_s) for stream in streams],
            events=[event for stream in streams for event in stream.open_events()],
            status=self._status(streams, now_s),
        )

    def families(self, streams: Streams, now_s: float) -> list[Family]:
        """Return the figures of the streams and of the worker."""
        healths, now_ns = [stream.health(now_s) for stream in streams], read_clocks().wall_ns
        families = [
            figure(
                f"ast_stream_stream_{name}",
                help,
                {(health.stream,): getattr(health, key) for health in healths},
                ("stream",),
            )
            for name, key, help in _STREAM_METRICS
        ]
        states: Values = {
            (health.stream, state): float(health.state == state)
            for health in healths
            for state in get_args(StreamState)
        }
        placed: Values = {
            (health.stream,): (now_ns - health.placement.since_ns) / NS_PER_SECOND
            for health in healths
            if health.placement is not None and health.placement.since_ns is not None
        }
        families.append(
            figure(
                "ast_stream_stream_placed_seconds",
                "Since this worker of a pool has the stream; none where there is no pool",
                placed,
                ("stream",),
            )
        )
        families.append(
            figure(
                "ast_stream_stream_state",
                "1 for the state that a stream is in",
                states,
                ("stream", "state"),
            )
        )
        covered: Values = {
            (health.stream, kind): samples_to_seconds(self._covered.get((health.stream, kind), 0))
            for health in healths
            for kind in KINDS
        }
        families.append(
            figure(
                "ast_stream_stream_coverage_seconds_total",
                "Audio by what became of it, see ast-stream coverage; none without a worker",
                covered,
                ("stream", "kind"),
            )
        )
        return families + self._process_families()

    def _process_families(self) -> list[Family]:
        facts, n_asked = self._facts.to_json(), self._detector.n_asked
        labels, feed = tuple(facts), self._feed
        return [
            figure(
                "ast_stream_worker_info",
                "Always 1; what the worker runs with",
                {tuple(str(facts[label]) for label in labels): 1},
                labels,
            ),
            figure(
                "ast_stream_worker_windows_total",
                "Windows scored; with a cascade, by its small model",
                self._detector.n_scored,
            ),
            figure(
                "ast_stream_worker_windows_asked_total",
                "Windows that the checkpoint was asked about: all of them without a cascade",
                self._detector.n_scored if n_asked is None else n_asked,
            ),
            figure(
                "ast_stream_worker_windows_gated_total",
                "Windows too quiet to be scored (detection.gate_dbfs)",
                self._detector.n_gated,
            ),
            figure(
                "ast_stream_worker_blocks_refused_total",
                "Audio blocks that did not follow the format, or for which there was no room",
                self.blocks_refused,
            ),
            figure(
                "ast_stream_worker_opus_blocks_total",
                "Audio blocks of Opus by what became of them; all but `decoded` are read from the "
                "ring",
                {(outcome,): self.coded[outcome] for outcome in get_args(CodedOutcome)},
                ("outcome",),
            ),
            figure(
                "ast_stream_worker_placed_total",
                "Streams of other boxes: begun here, continued where another worker was, given to "
                "another one, and lost to one that had taken over",
                {(change,): self.placed[change] for change in get_args(Change)},
                ("change",),
            ),
            figure(
                "ast_stream_events_total",
                "Events that have begun",
                self._publisher.begun,
                ("class", "stream"),
            ),
            figure(
                "ast_stream_events_withheld_total",
                "Events that did not begin because their verifier rejected them",
                dict(self._detector.withheld),
                ("class", "stream"),
            ),
            figure(
                "ast_stream_feed_messages_total",
                "Messages published",
                {(kind,): n for kind, n in feed.messages.items()},
                ("kind",),
            ),
            figure("ast_stream_feed_drops_total", "Messages that found no room", feed.drops),
            figure(
                "ast_stream_event_log_errors_total",
                "Messages that could not be written to the event log at once",
                feed.log_errors,
            ),
            figure(
                "ast_stream_event_log_damaged_total",
                "Lines and files of the event log that were found damaged at the start",
                feed.log_damaged,
            ),
            figure(
                "ast_stream_worker_disk_failing",
                "1 while the event log, the journal or the coverage ledger cannot be written",
                self.disk is not None,
            ),
        ]

    def _status(self, streams: Streams, now_s: float) -> WorkerStatus:
        lags_s = [stream.backlog_s() for stream in streams if stream.is_open]
        counters = dict(self._publisher.counters)
        n_asked, withheld = self._detector.n_asked, self._detector.withheld.total()
        if self.blocks_refused:
            counters["blocks_refused"] = self.blocks_refused
        counters |= {f"opus_{outcome}": n for outcome, n in self.coded.items()}
        counters |= {f"streams_{change}": n for change, n in self.placed.items()}
        counters |= {
            "windows": self._detector.n_scored,
            **({} if n_asked is None else {"windows_asked": n_asked}),
            "windows_gated": self._detector.n_gated,
            **({"events_withheld": withheld} if withheld else {}),
            "feed_drops": self._feed.drops,
            "nan_scores": self._detector.nan_scores,
            "event_log_errors": self._feed.log_errors,
            "event_log_damaged": self._feed.log_damaged,
        }
        return WorkerStatus(
            **dict(self._facts),
            streams=sorted(stream.name for stream in streams),
            windows_per_s=self._windows_per_s,
            lag_s=round(max(lags_s), 3) if lags_s else None,
            uptime_s=round(now_s - self._started_s, 1),
            disk=self.disk,
            restart_needed=list(self.restart_needed),
            counters=counters,
        )


def read_audio(streams: Streams, wanted: AudioRange) -> AudioBlock:
    """Return what is held of the audio that a query asks for.

    Raises:
        WireError: a stream without audio, or an epoch that is over.
    """
    by_name = {stream.name: stream for stream in streams if stream.has_audio}
    if wanted.stream not in by_name:
        raise WireError(
            f"audio: expected a stream with sound ({', '.join(by_name) or 'none yet'}), "
            f"got {wanted.stream!r}"
        )
    return by_name[wanted.stream].audio(wanted)


def describe_streams(healths: Sequence[Health]) -> str:
    """Return streams as a line for people, e.g. `listening to porch, -42 dBFS, lag 0.3 s`."""
    live = [health for health in healths if health.state != "missing"]
    missing = [health for health in healths if health.state == "missing"]
    parts = []
    if live:
        names = live[0].stream if len(live) == 1 else f"{len(live)} streams"
        level = f", {live[0].level_dbfs:.0f} dBFS" if len(healths) == 1 else ""
        lag_s = max(health.lag_s or 0.0 for health in live)
        n_open = sum(health.open_events or 0 for health in live)
        events = f"{n_open or 'no'} event{'' if n_open == 1 else 's'} open"
        parts.append(f"listening to {names}{level}, lag {lag_s:.1f} s, {events}")
    parts += [f"{health.stream}: {health.detail}" for health in live if health.detail]
    parts += [
        f"{health.stream} {health.recent_loss.text}" for health in healths if health.recent_loss
    ]
    parts += [f"waiting for {health.stream}: {health.detail}" for health in missing]
    return "; ".join(parts) or "waiting for streams"


class WorkerMetrics:
    """Times the stages of the loop, and exposes the figures of the report once a second."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._next_s = float("-inf")
        seconds = metrics.histogram(
            "ast_stream_worker_stage_seconds",
            "Time spent in one turn of the loop, by stage; `model` is a part of `detect`",
            SECONDS_BUCKETS,
            ("stage",),
        )
        self._stages = {name: seconds.labels(name) for name in (*get_args(Stage), MODEL_STAGE)}
        self._batches = metrics.histogram(
            "ast_stream_worker_batch_windows", "Windows scored at once", BATCH_BUCKETS
        )

    def stage(self, name: Stage) -> AbstractContextManager[Any]:
        """Return a context that times a stage."""
        return self._stages[name].time()

    def on_batch(self, n_windows: int, seconds: float) -> None:
        """Observe a batch that the model has scored."""
        self._batches.observe(n_windows)
        self._stages[MODEL_STAGE].observe(seconds)

    def renew(self, figures: Callable[[], list[Family]], now_s: float) -> None:
        """Expose the present figures, if it is time and anyone can read them."""
        if self._metrics.is_on and now_s >= self._next_s:
            self._next_s = now_s + RENEW_EVERY_S
            self._metrics.renew(figures())
