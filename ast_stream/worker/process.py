"""The worker process: start-up, self-check, then the loop until a signal stops it."""

from __future__ import annotations

import hashlib
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ast_stream.audio.opus import check_libopus
from ast_stream.coverage.answer import answer_coverage
from ast_stream.coverage.ledger import CoverageLedger
from ast_stream.detect.cascade import Cascade, load_cascade
from ast_stream.detect.detector import HOPS_AT_ONCE, Detector
from ast_stream.detect.scorer import HopRun
from ast_stream.detect.verifiers import Verifiers, load_verifiers
from ast_stream.errors import AstStreamError, ConfigError, Problem
from ast_stream.messages.event import Scores
from ast_stream.messages.pool import PoolMember
from ast_stream.messages.query import CoverageQuery
from ast_stream.messages.status import WorkerFacts
from ast_stream.model.audioset import short_window_warning
from ast_stream.model.loading import load_model
from ast_stream.model.selfcheck import self_check
from ast_stream.model.tagger import Tagger
from ast_stream.pool.bucket import PoolBucket
from ast_stream.pool.directory import PoolDirectory
from ast_stream.privacy.audit import AuditLog, open_audit_log
from ast_stream.runtime import lifecycle
from ast_stream.runtime.files import make_writable_folder
from ast_stream.runtime.lifecycle import Notifier, is_unit_of_systemd
from ast_stream.runtime.memory import FreeMemory
from ast_stream.runtime.metrics import Metrics
from ast_stream.runtime.reload import Reloader
from ast_stream.runtime.state_format import prepare_state_dir
from ast_stream.settings import storage
from ast_stream.settings.check import check_against_model, check_cascade
from ast_stream.settings.chosen_model import with_checkpoint
from ast_stream.settings.load import LoadedSettings
from ast_stream.settings.paths import (
    audio_endpoint,
    feed_endpoint,
    make_runtime_dir,
    metrics_address,
    query_endpoint,
    ring_endpoint,
)
from ast_stream.settings.pool import member_name
from ast_stream.settings.schema import EACH_EVENT, Settings
from ast_stream.settings.streams import StreamSettings
from ast_stream.settings.workers import loaded_of_worker, process_name
from ast_stream.transport.authenticator import authenticator_of
from ast_stream.transport.event_log import EventLog
from ast_stream.transport.keys import server_key
from ast_stream.transport.sockets import (
    AUDIO_HWM_BLOCKS,
    FEED_HWM_MESSAGES,
    MAX_PEERS,
    QUERY_HWM_MESSAGES,
    Sockets,
)
from ast_stream.version import __version__
from ast_stream.worker.journal import SAVE_EVERY_S, Journal, JournalFile
from ast_stream.worker.links import RECORD_EVERY_S
from ast_stream.worker.loop import NoDirectory, Worker, WorkerSockets
from ast_stream.worker.model_choice import ModelChangedError, ModelChoice
from ast_stream.worker.report import WorkerMetrics
from ast_stream.worker.stream import StreamConfig

logger = logging.getLogger(__name__)

_OF_OTHERS: dict[str, Any] = {  # settings that are no concern of a worker
    **dict.fromkeys(("alerts", "logging", "recorder"), True),
    "retention": {"alerts", "clips", "history", "scores"},
}
HAND_OVER_S = 20.0  # at most, for streams that other workers of a pool take
LOAD_TIMEOUT_S = 180  # asked of systemd while the model loads


class _Models(NamedTuple):
    """The models of a worker: the tagger, and what depends on it."""

    tagger: Tagger
    cascade: Cascade | None
    verifiers: Verifiers | None


def run_worker(
    loaded: LoadedSettings,
    stop: threading.Event,
    reload: threading.Event,
    name: str | None = None,
    choice: ModelChoice | None = None,
) -> bool:
    """Load, check, serve until `stop` is set, and close everything.

    Args:
        loaded: the settings of this worker.
        reload: read the configuration again when it is set.
        name: of this worker, where there are several.
        choice: of the model; None: the one in the settings.

    Returns:
        Whether this process has to begin again, with another model; events that are open stay so.

    Raises:
        ConfigError: classes or durations that do not fit the model.
        StartupError: device, self-check, endpoint in use, a missing codec, or a folder that cannot
            be written.
        CheckpointError: the checkpoint cannot be used.
    """
    settings = loaded.settings
    if choice is None:
        choice = ModelChoice(settings, settings.model.checkpoint)
    begins_again = False
    if settings.privacy != "off":
        lifecycle.keep_memory_private()
    runtime_dir = make_runtime_dir(settings)
    prepare_state_dir(Path(settings.state_dir), loaded.file)
    for log in (storage.event_log(settings), storage.coverage_ledger(settings)):
        make_writable_folder(log.folder, "state_dir", 0o750)
    notifier = Notifier()
    notifier.starting("loading the model", LOAD_TIMEOUT_S)
    with (
        closing(Sockets()) as sockets,
        closing(Metrics("worker", metrics_address(settings, "worker"))) as metrics,
    ):
        if any(stream.wire.codec == "opus" for stream in settings.streams):
            check_libopus()
        # first, so that a second worker is refused before it loads a model
        bound = _bind(sockets, settings)
        event_log, ledger, audit = _open_logs(settings)
        figures = WorkerMetrics(metrics)
        with lifecycle.leaving_when_stopped(stop):
            loaded, models = _load_choice(loaded, choice, notifier, figures)
        settings, tagger = loaded.settings, models.tagger
        facts = _facts(tagger)
        directory = _directory(models, settings)
        worker = Worker(
            _stream_configs(settings, settings.streams),
            partial(_make_detector, models, settings),
            event_log,
            _open_journal(models, settings),
            ledger,
            audit,
            bound,
            privacy=settings.privacy,
            metrics=figures,
            facts=facts,
            ring_folder=f"ipc://{runtime_dir}/",
            syncs_first=settings.durability == EACH_EVENT,
            directory=directory or _listed(settings),
            coverage=_coverage_answers(settings),
            record_every_s=RECORD_EVERY_S if settings.pool is None else settings.pool.record_s,
        )
        logger.info("ready: %s", ", ".join(f"{k} {v}" for k, v in facts.to_json().items()))
        reloader = _reloader(reload, loaded, worker, models, name)

        free_memory = FreeMemory()
        if directory is not None:
            directory.start()

        def after_tick() -> None:
            notifier.turn(worker.status_line, is_working=worker.has_progressed())
            reloader.poll(notifier)
            free_memory.turn()
            choice.poll()
            worker.report_to_pool()

        def hand_over() -> None:
            if directory is not None:
                notifier.stopping("giving its streams to other workers")
                worker.hand_over(HAND_OVER_S)

        choice.started()
        try:
            worker.run(stop, after_tick)
        except ModelChangedError as change:
            begins_again = True
            logger.info("%s: beginning again", change)
            hand_over()
            notifier.beginning_again("beginning again with another model", LOAD_TIMEOUT_S)
            worker.leave_open()
        else:
            hand_over()
            notifier.stopping("ending open events")
            worker.finish()
        if directory is not None:
            directory.close(is_leaving=True)
        event_log.close()
        ledger.close()
        audit.close()
    return begins_again


def _open_logs(settings: Settings) -> tuple[EventLog, CoverageLedger, AuditLog]:
    events, covered = storage.event_log(settings), storage.coverage_ledger(settings)
    event_log = EventLog(
        events.folder,
        events.max_bytes,
        spare=storage.unlogged_events(settings).path,
        max_age_s=events.max_age_s,
    )
    ledger = CoverageLedger(
        covered.folder,
        storage.unwritten_coverage(settings).path,
        max_bytes=covered.max_bytes,
        max_age_s=covered.max_age_s,
    )
    return event_log, ledger, open_audit_log(settings, "worker")


def _coverage_answers(settings: Settings) -> Callable[[CoverageQuery, str], list[bytes]]:
    """Return what answers queries for the coverage of this worker, given also its run."""
    folder = storage.coverage_ledger(settings).folder
    unwritten = storage.unwritten_coverage(settings).path
    return lambda query, boot: answer_coverage(query, folder, unwritten, boot)


def _bind(sockets: Sockets, settings: Settings) -> WorkerSockets:
    max_peers = max(MAX_PEERS, 2 * settings.model.max_streams)
    bind = partial(sockets.bind, authenticator=authenticator_of(settings.transport))
    at = settings.transport.rings
    rings = None
    if at is not None:
        rings = bind("router", at, QUERY_HWM_MESSAGES, max_peers, reads_rings=True)
    return WorkerSockets(
        sockets,
        audio=bind("pull", audio_endpoint(settings), AUDIO_HWM_BLOCKS, max_peers),
        feed=bind("pub", feed_endpoint(settings), FEED_HWM_MESSAGES),
        query=bind("router", query_endpoint(settings), QUERY_HWM_MESSAGES),
        rings=rings,
    )


def _directory(models: _Models, settings: Settings) -> PoolDirectory | None:
    """Return this worker's entry in its pool; None unless the pool is kept in NATS.

    Raises:
        ConfigError: capture boxes could not reach it.
        StartupError: its key cannot be used.
    """
    pool, transport = settings.pool, settings.transport
    if pool is None:
        return None
    for name in ("audio", "rings"):
        endpoint = getattr(transport, name)
        if endpoint is None or not endpoint.startswith("tcp://"):
            text = f"expected a tcp endpoint for the worker of a pool, got {endpoint or 'none'}"
            raise ConfigError([Problem("configuration", None, f"transport.{name}", text)])
    if pool.nats is None:
        return None
    assert transport.audio is not None
    assert transport.rings is not None
    name, key = member_name(settings), server_key(transport)
    member = PoolMember(
        name=name,
        boot=secrets.token_hex(8),
        audio=_reachable(transport.audio, pool.host),
        rings=_reachable(transport.rings, pool.host),
        feed=_reachable_by_tcp(transport.feed, pool.host),
        query=_reachable_by_tcp(transport.query, pool.host),
        key=None if key is None else key.public,
        model=_identity(models, settings),
        capacity=settings.model.max_streams,
        weight=settings.model.max_streams if pool.weight is None else pool.weight,
        version=__version__,
    )
    return PoolDirectory(PoolBucket(pool, f"worker {name}"), member)


def _listed(settings: Settings) -> NoDirectory | None:
    """Return this worker's side of a pool that is a fixed list; None if it is in none."""
    return None if settings.pool is None else NoDirectory(member_name(settings))


def _reachable(endpoint: str, host: str | None) -> str:
    """Return an endpoint that this process binds as others can connect to it."""
    bound, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    is_everywhere = bound.strip("[]") in ("0.0.0.0", "::", "*")
    return f"tcp://{host or (socket.gethostname() if is_everywhere else bound)}:{port}"


def _reachable_by_tcp(endpoint: str | None, host: str | None) -> str | None:
    if endpoint is None or not endpoint.startswith("tcp://"):
        return None
    return _reachable(endpoint, host)


def _make_detector(
    models: _Models,
    settings: Settings,
    on_scores: Callable[[Scores], None],
    on_run: Callable[[HopRun], None],
) -> Detector:
    """Return the detector, and log what the settings in seconds became, class by class."""
    detector = Detector(
        models.tagger,
        settings.detection,
        hop_s=settings.model.hop_s,
        min_context_s=settings.model.min_context_s,
        max_streams=settings.model.max_streams,
        on_scores=on_scores,
        on_run=on_run,
        cascade=models.cascade,
        opinion=models.verifiers,
    )
    for index, is_enabled in enumerate(detector.parameters.is_enabled):
        if is_enabled:
            logger.info("class %s", detector.parameters.describe(index))
    return detector


def _open_journal(models: _Models, settings: Settings) -> Journal:
    path, model = storage.worker_journal(settings).path, _identity(models, settings)
    file = JournalFile(path, model, len(models.tagger.labels))
    every_s = SAVE_EVERY_S if settings.durability == EACH_EVENT else settings.durability
    return Journal(file, settings.model.max_streams, time.monotonic(), every_s)


def _reloader(
    requested: threading.Event,
    loaded: LoadedSettings,
    worker: Worker,
    models: _Models,
    name: str | None,
) -> Reloader:
    settings, tagger = loaded.settings, models.tagger
    hop_s = settings.model.hop_s
    detection, units = settings.detection, _units(settings)

    def apply(new: LoadedSettings) -> None:
        nonlocal detection, units
        check_against_model(
            new, tagger.labels, hop_s=hop_s, window_s=tagger.window_s, frame_s=tagger.frame_s
        )
        streams, max_streams = new.settings.streams, settings.model.max_streams
        if len(streams) > max_streams:
            text = f"expected at most {max_streams} until the next restart (model.max_streams), "
            raise ConfigError([new.problem(("streams",), f"{text}got {len(streams)}")])
        if new.settings.detection != detection:
            in_use = settings.model_copy(update={"detection": new.settings.detection})
            worker.use_detection(in_use.detection, _identity(models, in_use))
            detection = in_use.detection
        worker.use_streams(_stream_configs(settings, streams))
        if name is None and is_unit_of_systemd():  # of several, a stream may only have moved
            _name_units(units, _units(new.settings), new.file)
        units = _units(new.settings)

    return Reloader(
        requested,
        Path(loaded.file),
        settings,
        process_name(name),
        parts=lambda new: {
            **new.model_dump(exclude=_OF_OTHERS),
            "streams": {stream.name: stream.model_dump() for stream in new.streams},
        },
        live=frozenset({"detection", "streams"}),
        apply=apply,
        on_waiting=worker.note_restart_needed,
        view=lambda new: loaded_of_worker(new, name),
    )


def _units(settings: Settings) -> set[str]:
    return {unit for stream in settings.streams if (unit := stream.unit) is not None}


def _name_units(before: set[str], now: set[str], file: str) -> None:
    """Say which units have to be started and stopped; those of removed streams have ended."""
    words = [("start", now - before), ("stop", before - now)]
    steps = [f"{word} {' '.join(sorted(units))}" for word, units in words if units]
    if steps:
        logger.warning("%s: ast-stream install-units -c %s does so", ", ".join(steps), file)


def _stream_configs(settings: Settings, streams: Sequence[StreamSettings]) -> list[StreamConfig]:
    """Return what the worker must know of `streams`, in the runtime folder of `settings`.

    In a pool it expects none: capture processes bring them, also those of the same configuration.
    """
    if settings.pool is not None:
        return []
    return [
        StreamConfig(
            stream.name,
            stream.labels,
            ring_endpoint(settings, stream.name),
            stream.calibration_db,
        )
        for stream in streams
    ]


def _load_choice(
    loaded: LoadedSettings, choice: ModelChoice, notifier: Notifier, figures: WorkerMetrics
) -> tuple[LoadedSettings, _Models]:
    """Return the first model that can be used, with the settings that name it.

    Raises:
        AstStreamError: none can; as `_load` of the last one says.
    """
    *others, last = choice.candidates()
    for checkpoint in others:
        choice.starting(checkpoint)
        own = replace(loaded, settings=with_checkpoint(loaded.settings, checkpoint))
        try:
            return own, _load(own, notifier, figures)
        except AstStreamError as error:
            choice.failed(checkpoint, error)
    choice.starting(last)
    own = replace(loaded, settings=with_checkpoint(loaded.settings, last))
    return own, _load(own, notifier, figures)


def _load(loaded: LoadedSettings, notifier: Notifier, figures: WorkerMetrics) -> _Models:
    model = loaded.settings.model
    tagger = load_model(model, figures.on_batch)
    check_against_model(
        loaded,
        tagger.labels,
        hop_s=model.hop_s,
        window_s=tagger.window_s,
        frame_s=tagger.frame_s,
    )
    short = short_window_warning(tagger.window_s, tagger.checkpoint.dims)
    if short is not None:
        logger.warning("model.window_s: %s", short)
    verifiers = load_verifiers(model, tagger.hash, tagger.labels)
    cascade = load_cascade(model, figures.on_batch)
    taggers = [tagger]
    if cascade is not None:
        small = cascade.tagger
        check_cascade(loaded, tagger.labels, small.labels, small.window_s)
        taggers.append(small)
    notifier.starting("checking the model against known scores", LOAD_TIMEOUT_S)
    for runner in taggers:
        self_check(runner)
    notifier.starting("preparing for all streams", LOAD_TIMEOUT_S)
    for runner in taggers:
        runner.prepare(model.max_streams * HOPS_AT_ONCE)
    return _Models(tagger, cascade, verifiers)


def _identity(models: _Models, settings: Settings) -> str:
    """Return what must be unchanged for journalled decisions to be continued."""
    # how many streams there may be, and on which device, is no concern of a stream's decisions
    elsewhere = {"max_streams", "device"} if settings.pool is not None else set()
    chosen = settings.detection.model_dump_json()
    chosen += settings.model.model_dump_json(exclude=elsewhere)
    if models.cascade is not None:
        chosen += models.cascade.tagger.hash
    if models.verifiers is not None:
        chosen += models.verifiers.file.digest
    return f"{models.tagger.hash}/{hashlib.sha256(chosen.encode()).hexdigest()[:16]}"


def _facts(tagger: Tagger) -> WorkerFacts:
    return WorkerFacts(
        model=tagger.hash,
        device=str(tagger.device),
        precision=tagger.precision,
        attention=tagger.attention,
        window_s=tagger.window_s,
        torch=str(torch.__version__),
    )
