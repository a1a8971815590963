"""The worker's metrics for Prometheus."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Literal, get_args

from ast_stream.messages.status import StreamState
from ast_stream.runtime.metrics import (
    BATCH_BUCKETS,
    RENEW_EVERY_S,
    SECONDS_BUCKETS,
    Family,
    Metrics,
    Values,
    counter,
    gauge,
)
from ast_stream.worker.report import Streams, WorkerReport

Stage = Literal["receive", "rings", "detect", "journal", "report", "answer"]
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
    ("ring_timeouts_total", "ring_timeouts", "Ring reads without an answer"),
)


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

    def renew(self, report: WorkerReport, streams: Streams, now_s: float) -> None:
        """Expose the present figures, if it is time and anyone can read them."""
        if self._metrics.is_on and now_s >= self._next_s:
            self._next_s = now_s + RENEW_EVERY_S
            self._metrics.renew(_families(report, streams, now_s))


def _families(report: WorkerReport, streams: Streams, now_s: float) -> list[Family]:
    healths = [stream.health(now_s) for stream in streams]
    families = [
        (counter if name.endswith("_total") else gauge)(
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
    families.append(
        gauge(
            "ast_stream_stream_state",
            "1 for the state that a stream is in",
            states,
            ("stream", "state"),
        )
    )
    return families + _process_families(report)


def _process_families(report: WorkerReport) -> list[Family]:
    facts = report.facts.to_json()
    labels = tuple(facts)
    feed = report.feed
    return [
        gauge(
            "ast_stream_worker_info",
            "Always 1; what the worker runs with",
            {tuple(str(facts[label]) for label in labels): 1},
            labels,
        ),
        counter("ast_stream_worker_windows_total", "Windows scored", _single(report.n_scored)),
        counter(
            "ast_stream_worker_windows_gated_total",
            "Windows too quiet to be scored (detection.gate_dbfs)",
            _single(report.n_gated),
        ),
        counter(
            "ast_stream_worker_blocks_refused_total",
            "Audio blocks that did not follow the format, or for which there was no room",
            _single(report.blocks_refused),
        ),
        counter(
            "ast_stream_events_total",
            "Events that have begun",
            {key: n for key, n in report.events_by_class.items()},
            ("class", "stream"),
        ),
        counter(
            "ast_stream_feed_messages_total",
            "Messages published",
            {(kind,): n for kind, n in feed.messages.items()},
            ("kind",),
        ),
        counter("ast_stream_feed_drops_total", "Messages that found no room", _single(feed.drops)),
        counter(
            "ast_stream_event_log_errors_total",
            "Messages that could not be written to the event log at once",
            _single(feed.log_errors),
        ),
        counter(
            "ast_stream_event_log_damaged_total",
            "Lines and files of the event log that were found damaged at the start",
            _single(feed.log_damaged),
        ),
        gauge(
            "ast_stream_worker_disk_failing",
            "1 while the event log or the journal cannot be written",
            _single(float(report.disk is not None)),
        ),
    ]


def _single(value: float) -> Values:
    return {(): value}
