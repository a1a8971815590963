"""The recorder process: `ast-stream record`."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ast_stream.alerts.model_facts import model_facts
from ast_stream.alerts.rule_files import configured_timing
from ast_stream.errors import CheckpointError, ConfigError, UsageError
from ast_stream.feed import SeveralFeeds, Subscriber
from ast_stream.history.database import History
from ast_stream.history.score_log import ScoreLog
from ast_stream.messages.event import Position
from ast_stream.recorder.alert_rows import AlertRows
from ast_stream.recorder.fetcher import AudioFetcher
from ast_stream.recorder.folder import ClipFolder
from ast_stream.recorder.held_audio import Hole
from ast_stream.recorder.loop import (
    ALERTS_FEED,
    NEW_S,
    ONLY_FEED,
    SCORES_TOPIC,
    TOPICS,
    ClipChoice,
    Recorder,
)
from ast_stream.recorder.plan import Plan
from ast_stream.recorder.policy import Policies
from ast_stream.recorder.report import RecorderReport
from ast_stream.runtime import lifecycle
from ast_stream.runtime.lifecycle import Notifier
from ast_stream.runtime.logging import setup_logging
from ast_stream.runtime.metrics import Metrics
from ast_stream.runtime.reload import Reloader
from ast_stream.runtime.state_format import prepare_state_dir
from ast_stream.settings import storage
from ast_stream.settings.load import LoadedSettings, load_file
from ast_stream.settings.paths import (
    alerts_state_file,
    feed_endpoint,
    make_runtime_dir,
    metrics_address,
    query_endpoint,
    recorder_endpoint,
)
from ast_stream.settings.recorder import RecorderSettings
from ast_stream.settings.schema import Settings
from ast_stream.settings.workers import of_worker, worker_names, worker_of
from ast_stream.transport.keys import client_keys
from ast_stream.transport.publisher import FeedPublisher
from ast_stream.transport.query import QueryClient
from ast_stream.transport.sockets import FEED_HWM_MESSAGES, Sockets
from ast_stream.units import NS_PER_SECOND, seconds_to_ns, seconds_to_samples

REPLAY_PATIENCE_S = 60.0  # a worker that ended before it answered has started again by then
MARGIN_S = 2.0  # for messages on their way
MAX_MARGIN_S = 90.0

logger = logging.getLogger(__name__)


def record(
    config: Annotated[
        Path, typer.Option("--config", "-c", metavar="FILE", help="The configuration (YAML).")
    ],
) -> None:
    """Run the recorder: clips of events, and the history of all that the feeds say.

    SIGHUP puts new policies and limits in force.

    Example: ast-stream record -c /etc/ast-stream/config.yaml
    """
    loaded = load_file(config)
    settings = loaded.settings
    setup_logging(settings.logging.level, settings.logging.format, process="recorder")
    reload = threading.Event()
    with lifecycle.stop_on_signals(reload) as stop:
        run_recorder(loaded, stop, reload)


def run_recorder(
    loaded: LoadedSettings, stop: threading.Event, reload: threading.Event | None = None
) -> None:
    """Record until `stop` is set.

    Raises:
        ConfigError: there is no section `recorder`.
        StartupError: the history, the folder of clips, or an endpoint.
    """
    settings = loaded.settings
    own = settings.recorder
    if own is None:
        text = "expected a section such as {clips: [{when: alert}]}, got null: nothing to record"
        raise ConfigError([loaded.problem(("recorder",), text)])
    if settings.privacy != "off":
        lifecycle.keep_memory_private()
    make_runtime_dir(settings)
    prepare_state_dir(Path(settings.state_dir), loaded.file)
    with ExitStack() as cleanup:
        history = cleanup.enter_context(History(storage.history_database(settings).path))
        positions = history.positions()
        metrics = Metrics("recorder", metrics_address(settings, "recorder"))
        cleanup.callback(metrics.close)
        sockets = Sockets(client_keys(settings.transport))
        cleanup.callback(sockets.close)
        pub = sockets.bind("pub", recorder_endpoint(settings), FEED_HWM_MESSAGES)
        publisher = FeedPublisher(pub, None, secrets.token_hex(8))
        clips = None
        if own.keeps_sound:
            place, limits = storage.clips(settings), settings.retention.clips
            clips = ClipFolder(place.folder, history, limits, own.alert_wait_s)
            cleanup.callback(clips.close)
        fetcher = _fetcher(settings, sockets, stop)
        _note_gaps(fetcher, history)
        alerts = None
        if settings.alerts.rules:
            _, after = positions.get(ALERTS_FEED, ("", 0))
            alerts = AlertRows(alerts_state_file(settings), after)
            cleanup.callback(alerts.close)
        scores = None
        if own.history.scores:
            scores = cleanup.enter_context(_score_log(settings))
        feed = _subscribe(settings, positions)
        cleanup.callback(feed.close)
        is_first = not positions
        recorder = Recorder(
            feed,
            history,
            _plan(loaded, own),
            fetcher,
            clips,
            ClipChoice(own.format, bool(settings.alerts.rules), settings.privacy == "speech"),
            settings.retention.history,
            alerts,
            scores,
            since_ns=time.time_ns() - seconds_to_ns(NEW_S) if is_first else 0,
        )
        report = RecorderReport(Notifier(), metrics, publisher, recorder, fetcher, history, scores)
        reloader = _reloader(reload or threading.Event(), loaded, recorder, report)

        def between() -> None:
            report.tick()
            reloader.poll(report.notifier)

        logger.info("ready: %s", _what_is_kept(own))
        recorder.run(stop, between)
        report.notifier.stopping("writing what is complete")


def _plan(loaded: LoadedSettings, own: RecorderSettings) -> Plan:
    timing = configured_timing(loaded).of_classes(None)
    margin_s = min(MAX_MARGIN_S, timing.smear_ns / NS_PER_SECOND + MARGIN_S)
    max_clip, margin = seconds_to_samples(own.max_clip_s), seconds_to_samples(margin_s)
    return Plan(Policies(own.clips), max_clip, margin)


def _score_log(settings: Settings) -> ScoreLog:
    """Return the score log, which names the classes of the configured checkpoint."""
    place = storage.score_log(settings)

    def labels() -> Sequence[str] | None:
        try:
            return model_facts(settings.model).labels
        except CheckpointError as error:
            logger.warning("scores are kept without the names of their classes: %s", error)
            return None

    return ScoreLog(place.folder, place.max_bytes, place.max_age_s, labels)


def _fetcher(settings: Settings, sockets: Sockets, stop: threading.Event) -> AudioFetcher:
    clients = {
        name: QueryClient(sockets, query_endpoint(of_worker(settings, name)))
        for name in worker_names(settings)
    }

    def client_of(stream: str) -> QueryClient | None:
        return clients.get(worker_of(settings, stream))

    return AudioFetcher(client_of, withholds=settings.privacy == "speech")


def _note_gaps(fetcher: AudioFetcher, history: History) -> None:
    """Know the gaps of the last minutes, which a clip may reach back to."""
    since_ns = time.time_ns() - seconds_to_ns(2 * NEW_S)
    for gap in history.gaps(since_ns):
        hole = Hole(gap.start_sample, gap.start_sample + gap.samples, gap.reason)
        fetcher.note((gap.stream, gap.epoch), hole)


def _subscribe(settings: Settings, positions: dict[str, Position]) -> Subscriber | SeveralFeeds:
    """Return the feed of the worker, or of several as one, from where the last run stopped."""
    assert settings.recorder is not None
    scores = (SCORES_TOPIC,) if settings.recorder.history.scores else ()

    def feed_of(worker: str | None) -> Subscriber:
        own = of_worker(settings, worker)
        return Subscriber(
            feed_endpoint(own),
            topics=(*TOPICS, *scores),
            query=query_endpoint(own),
            after=positions.get(worker or ONLY_FEED) or "oldest",
            replay_patience_s=REPLAY_PATIENCE_S,
            keys=client_keys(settings.transport),
        )

    if settings.workers:
        return SeveralFeeds({name: feed_of(name) for name in settings.workers})
    return feed_of(None)


def _reloader(
    requested: threading.Event, loaded: LoadedSettings, recorder: Recorder, report: RecorderReport
) -> Reloader:
    """Return what reads the configuration again: policies and limits change at once."""
    (kept_sound, kept_scores) = _shape(loaded.settings)

    def apply(new: LoadedSettings) -> None:
        own = new.settings.recorder
        if own is None or _shape(new.settings) != (kept_sound, kept_scores):
            raise UsageError("recorder: a restart is needed to begin or end with clips or scores")
        plan = _plan(new, own)
        recorder.plan.policies, recorder.plan.margin = plan.policies, plan.margin
        recorder.plan.max_clip = plan.max_clip
        recorder.choice = replace(recorder.choice, format=own.format)
        recorder.limits = new.settings.retention.history
        if recorder.clips is not None:
            recorder.clips.limits = new.settings.retention.clips
            recorder.clips.wait_s = own.alert_wait_s

    return Reloader(
        requested,
        Path(loaded.file),
        loaded.settings,
        "recorder",
        parts=lambda new: {
            **new.model_dump(include={"runtime_dir", "state_dir", "transport", "privacy"}),
            "metrics": new.metrics.model_dump(),
            "workers": [*new.workers],
            "alerts": {"rules": bool(new.alerts.rules)},
            "recorder": None if new.recorder is None else new.recorder.model_dump(),
            "retention": new.retention.model_dump(include={"clips", "history"}),
            "retention.scores": new.retention.scores.model_dump(),
        },
        live=frozenset({"recorder", "retention"}),
        apply=apply,
        on_waiting=report.note_restart_needed,
    )


def _shape(settings: Settings) -> tuple[bool, bool]:
    own = settings.recorder
    return own is not None and own.keeps_sound, own is not None and own.history.scores


def _what_is_kept(own: RecorderSettings) -> str:
    clips = f"clips in {own.format}" if own.keeps_sound else "no clips"
    return f"{clips}, the history {'with' if own.history.scores else 'without'} scores"
