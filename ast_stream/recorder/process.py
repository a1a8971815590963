"""The recorder process: `ast-stream record`."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ast_stream.alerts.alert_rows import AlertRows
from ast_stream.alerts.model_facts import model_facts
from ast_stream.alerts.rule_files import configured_timing
from ast_stream.errors import CheckpointError, ConfigError, UsageError
from ast_stream.feed import SeveralFeeds, Subscriber
from ast_stream.history.database import History
from ast_stream.history.score_log import ScoreLog
from ast_stream.messages.event import Position
from ast_stream.pool.feed import PoolFeed, own_key, pool_feed, pool_workers
from ast_stream.recorder.audio_clients import PoolClients, clients_of_workers
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
from ast_stream.runtime.reload import Reloader
from ast_stream.runtime.service import run_service
from ast_stream.runtime.state_format import prepare_state_dir
from ast_stream.settings import storage
from ast_stream.settings.load import LoadedSettings
from ast_stream.settings.paths import (
    alerts_state_file,
    feed_endpoint,
    make_runtime_dir,
    query_endpoint,
    recorder_endpoint,
)
from ast_stream.settings.recorder import RecorderSettings
from ast_stream.settings.schema import Settings
from ast_stream.settings.workers import of_worker
from ast_stream.transport.keys import ClientKeys, client_keys
from ast_stream.transport.process_report import Reporting
from ast_stream.transport.sockets import Sockets
from ast_stream.units import NS_PER_SECOND, seconds_to_ns, seconds_to_samples

REPLAY_PATIENCE_S = 60.0  # enough for a worker that ended without answering to restart
MARGIN_S = 2.0  # for messages in flight
MAX_MARGIN_S = 90.0

Feed = Subscriber | SeveralFeeds

logger = logging.getLogger(__name__)


def record(
    config: Annotated[
        Path, typer.Option("--config", "-c", metavar="FILE", help="The configuration (YAML).")
    ],
) -> None:
    """Run the recorder: it stores the messages of the feeds in a history, and clips of events.

    SIGHUP applies new policies and limits.

    Example: ast-stream record -c /etc/ast-stream/config.yaml
    """
    run_service(config, "recorder", run_recorder)


def run_recorder(
    loaded: LoadedSettings, stop: threading.Event, reload: threading.Event | None = None
) -> None:
    """Record until `stop` is set.

    Raises:
        ConfigError: there is no section `recorder`.
        StartupError: the history, the folder of clips, or an endpoint cannot be used.
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
        to = Reporting.open(settings, "recorder", recorder_endpoint(settings), cleanup)
        clips = None
        if own.keeps_sound:
            place, limits = storage.clips(settings), settings.retention.clips
            clips = ClipFolder(place.folder, history, limits, own.alert_wait_s)
            cleanup.callback(clips.close)
        feed = _subscribe(settings, positions, cleanup)
        cleanup.callback(feed.close)
        fetcher = _fetcher(settings, feed, to.sockets, cleanup)
        _note_gaps(fetcher, history)
        alerts = None
        if settings.alerts.rules:
            _, after = positions.get(ALERTS_FEED, ("", 0))
            alerts = AlertRows(alerts_state_file(settings), after)
            cleanup.callback(alerts.close)
        scores = None
        if own.history.scores:
            scores = cleanup.enter_context(_score_log(settings))
        is_first = not feed.position
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
        report = RecorderReport(to, recorder, fetcher, history, scores)
        reloader = _reloader(reload or threading.Event(), loaded, recorder, report)

        def between() -> None:
            history.expect_in_place()
            if clips is not None:
                clips.expect_in_place()
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
    """Return the score log, with the class names of the configured checkpoint."""
    place = storage.score_log(settings)

    def labels() -> Sequence[str] | None:
        try:
            return model_facts(settings.model).labels
        except CheckpointError as error:
            logger.warning("scores are kept without the names of their classes: %s", error)
            return None

    return ScoreLog(place.folder, place.max_bytes, place.max_age_s, labels)


def _fetcher(settings: Settings, feed: Feed, sockets: Sockets, cleanup: ExitStack) -> AudioFetcher:
    client_of = clients_of_workers(settings, sockets)
    if isinstance(feed, PoolFeed):
        own = own_key(settings)
        keyed = Sockets(None if own is None else ClientKeys(own, own.public))
        cleanup.callback(keyed.close)
        client_of = PoolClients(feed, keyed)
    return AudioFetcher(client_of, withholds=settings.privacy == "speech")


def _note_gaps(fetcher: AudioFetcher, history: History) -> None:
    """Tell the fetcher the gaps of the last minutes, to which a clip may reach back."""
    since_ns = time.time_ns() - seconds_to_ns(2 * NEW_S)
    for gap in history.gaps(since_ns):
        hole = Hole(gap.start_sample, gap.start_sample + gap.samples, gap.reason)
        fetcher.note((gap.stream, gap.epoch), hole)


def _subscribe(settings: Settings, positions: dict[str, Position], cleanup: ExitStack) -> Feed:
    """Return the feed of the worker, or of several as one, from where the last run stopped."""
    assert settings.recorder is not None
    topics = (*TOPICS, SCORES_TOPIC) if settings.recorder.history.scores else TOPICS
    if settings.pool is not None:
        workers = pool_workers(settings, "recorder")
        workers.start()
        cleanup.callback(workers.close)
        return pool_feed(settings, workers, topics, positions, replay_patience_s=REPLAY_PATIENCE_S)

    def feed_of(worker: str | None) -> Subscriber:
        own = of_worker(settings, worker)
        return Subscriber(
            feed_endpoint(own),
            topics=topics,
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
    """Return a reloader that applies new policies and limits at once."""
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
            "pool": None if new.pool is None else new.pool.model_dump(),
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
