"""The alerts process: rules over the feed, alerts out through the outbox."""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from ast_stream.alerts.actions.base import (
    ActionRunner,
    DeferredRunner,
    Delivered,
    Entities,
    LiveSensors,
    Outcome,
    create_runner,
)
from ast_stream.alerts.administration import Administration
from ast_stream.alerts.delivery import DeliveryThreads, no_fault
from ast_stream.alerts.delivery_schedule import FEED
from ast_stream.alerts.engine import Engine
from ast_stream.alerts.loop import TOPICS, AlertLoop, TopicReader
from ast_stream.alerts.model_facts import DetectionTiming
from ast_stream.alerts.notification import Notification
from ast_stream.alerts.outbox import Outbox
from ast_stream.alerts.report import HeartbeatThread, StatusReporter
from ast_stream.alerts.rule_files import (
    RuleFiles,
    RulesInForce,
    configured_timing,
    exposed_entities,
)
from ast_stream.alerts.rules.rule import RuleSet
from ast_stream.alerts.steady_time import SteadyTime
from ast_stream.alerts.store import Store
from ast_stream.feed import SeveralFeeds, Subscriber
from ast_stream.messages.event import Content, Scores16
from ast_stream.messages.spectrogram import Spectrogram8
from ast_stream.pool.feed import pool_feed, pool_workers
from ast_stream.runtime import lifecycle
from ast_stream.runtime.database import set_aside_unless_file
from ast_stream.runtime.files import lock_file
from ast_stream.runtime.lifecycle import Notifier
from ast_stream.runtime.logging import setup_logging
from ast_stream.runtime.metrics import Metrics
from ast_stream.runtime.reload import Reloader
from ast_stream.runtime.state_format import prepare_state_dir
from ast_stream.settings import storage
from ast_stream.settings.load import LoadedSettings, load_file
from ast_stream.settings.paths import (
    admin_endpoint,
    alerts_endpoint,
    alerts_state_file,
    feed_endpoint,
    make_runtime_dir,
    metrics_address,
    query_endpoint,
)
from ast_stream.settings.schema import Settings
from ast_stream.settings.workers import of_worker
from ast_stream.transport.authenticator import authenticator_of
from ast_stream.transport.keys import client_keys
from ast_stream.transport.listener import Listener
from ast_stream.transport.publisher import FeedPublisher
from ast_stream.transport.sockets import FEED_HWM_MESSAGES, QUERY_HWM_MESSAGES, Sockets
from ast_stream.units import counted

STOP_PATIENCE_S = 3.0  # for deliveries under way; what is left goes out after the next start
REPLAY_PATIENCE_S = 60.0  # a worker that ended before it answered has started again by then

logger = logging.getLogger(__name__)


def alerts(
    config: Annotated[
        Path, typer.Option("--config", "-c", metavar="FILE", help="The configuration (YAML).")
    ],
) -> None:
    """Run the alerts process: rules over the feed, alerts to people and programs.

    SIGHUP, and a change of a rule file, put the new rules in force.

    Example: ast-stream alerts -c /etc/ast-stream/config.yaml
    """
    loaded = load_file(config)
    settings = loaded.settings
    setup_logging(settings.logging.level, settings.logging.format, process="alerts")
    reload = threading.Event()
    with lifecycle.stop_on_signals(reload) as stop:
        run_alerts(loaded, stop, reload=reload)


def run_alerts(
    loaded: LoadedSettings,
    stop: threading.Event,
    fault: Callable[[str], None] = no_fault,
    *,
    reload: threading.Event | None = None,
) -> None:
    """Evaluate and deliver until `stop` is set.

    Args:
        fault: called at every boundary between an event and its delivery; for tests.
        reload: read the configuration and the rules again when it is set.

    Raises:
        ConfigError: the rules cannot be used.
        StartupError: the database, an endpoint, a library, file or secret of an action.
    """
    settings = loaded.settings
    files = RuleFiles(loaded)
    rules, timing = files.load(), configured_timing(loaded)
    files.log_warnings(rules)
    make_runtime_dir(settings)
    prepare_state_dir(alerts_state_file(settings).parent, loaded.file)
    with ExitStack() as cleanup:
        store = _open_store(settings, cleanup)
        metrics = Metrics("alerts", metrics_address(settings, "alerts"))
        cleanup.callback(metrics.close)
        sockets = Sockets()
        cleanup.callback(sockets.close)
        publisher = SharedPublisher(sockets, alerts_endpoint(settings))
        time = store.steady_time()
        time.follow_machine()
        outbox = Outbox(
            store,
            settings.alerts.actions,
            time.now_ns,
            wall_ns=time.wall_ns,
            kept_s=settings.retention.alerts.max_days * storage.DAY_S,
            max_bytes=storage.alert_database(settings).max_bytes,
        )
        outbox.recover()
        sensors: list[LiveSensors] = []
        runners = _create_runners(settings, exposed_entities(settings, rules), sensors)
        feed_runner = FeedRunner(publisher)
        deliveries = DeliveryThreads({FEED: feed_runner, **runners}, outbox, fault)
        cleanup.callback(deliveries.stop, STOP_PATIENCE_S)
        reporter = StatusReporter(
            Notifier(),
            metrics,
            publisher,
            outbox,
            runners,
            feed_runner.published,
            lambda: (len(in_force), loop.hears_worker),
            lambda: loop.suppressed,
        )

        def watch() -> None:
            store.expect_in_place()
            reporter.tick()

        loop = AlertLoop(
            _subscribe(settings, store, cleanup),
            resume_engine(store, rules, timing, time),
            store,
            outbox,
            deliveries,
            sensors=sensors,
            since_ns=store.since_ns(time.now_ns()),
            fault=fault,
            on_blocked=watch,
        )
        in_force = RulesInForce(settings, files, rules, timing, loop, sensors)
        administration = Administration(
            _bind_admin(sockets, settings), store, lambda: in_force.names, settings.alerts.actions
        )
        deliveries.start()
        _start_heartbeat(settings, loop, cleanup)
        n_rules, actions = counted(len(in_force), "rule"), ", ".join(runners) or "none"
        logger.info("ready: %s, actions: %s", n_rules, actions)
        reload = reload or threading.Event()
        loop.run(stop, _between_turns(loaded, reload, watch, reporter, in_force, administration))
        reporter.notifier.stopping("delivering what is under way")


def _bind_admin(sockets: Sockets, settings: Settings) -> Listener:
    endpoint = admin_endpoint(settings)
    is_tcp = endpoint.startswith("tcp://")  # else a key of the worker's is none of our business
    authenticator = authenticator_of(settings.transport) if is_tcp else None
    return sockets.bind("router", endpoint, QUERY_HWM_MESSAGES, authenticator=authenticator)


def _open_store(settings: Settings, cleanup: ExitStack) -> Store:
    """Return the database, which no other process may have."""
    state_file = alerts_state_file(settings)
    lock = state_file.with_name(f"{state_file.name}.lock")
    set_aside_unless_file(lock)
    cleanup.callback(os.close, lock_file(lock, f"the alert database {state_file}"))
    store = Store(state_file)
    cleanup.callback(store.close)
    return store


def resume_engine(
    store: Store, rules: RuleSet, timing: DetectionTiming, time: SteadyTime
) -> Engine:
    """Return an engine that continues where the last one stopped, or a new one if it cannot."""
    state = store.engine_state()
    if state is not None:
        try:
            trial = Engine(rules, state, now_ns=time.now_ns(), timing=timing, time=time)
            bodies = [transition.alert.to_json() for transition in trial.resume()]
            bodies += [alert.to_json() for alert in trial.active_alerts()]
            json.dumps([trial.export(), bodies])
            return Engine(rules, state, now_ns=time.now_ns(), timing=timing, time=time)
        except Exception as error:  # one boundary: what is stored must not keep it from starting
            store.forget_engine(f"{type(error).__name__}: {error}")
    return Engine(rules, now_ns=time.now_ns(), timing=timing, time=time)


def _subscribe(settings: Settings, store: Store, cleanup: ExitStack) -> TopicReader:
    """Return the feed of the worker, or of several as one, from where this process stopped."""
    stored = store.position()
    if settings.pool is not None:
        known = stored if isinstance(stored, Mapping) else {}
        workers = pool_workers(settings, "alerts")
        workers.start()
        cleanup.callback(workers.close)
        pooled = pool_feed(settings, workers, TOPICS, known, replay_patience_s=REPLAY_PATIENCE_S)
        cleanup.callback(pooled.close)
        return pooled

    def feed_of(worker: str | None) -> Subscriber:
        own = of_worker(settings, worker)
        after = stored.get(worker or "") if isinstance(stored, Mapping) else stored
        return Subscriber(
            feed_endpoint(own),
            topics=TOPICS,
            query=query_endpoint(own),
            after=after or "oldest",
            replay_patience_s=REPLAY_PATIENCE_S,
            keys=client_keys(settings.transport),
        )

    feed: Subscriber | SeveralFeeds = (
        SeveralFeeds({name: feed_of(name) for name in settings.workers})
        if settings.workers
        else feed_of(None)
    )
    cleanup.callback(feed.close)
    return feed


def _start_heartbeat(settings: Settings, loop: AlertLoop, cleanup: ExitStack) -> None:
    heartbeat = HeartbeatThread.of(settings.alerts, lambda: loop.hears_worker)
    if heartbeat is not None:
        heartbeat.start()
        cleanup.callback(heartbeat.stop)


def _between_turns(
    loaded: LoadedSettings,
    reload: threading.Event,
    watch: Callable[[], None],
    reporter: StatusReporter,
    in_force: RulesInForce,
    administration: Administration,
) -> Callable[[], None]:
    """Return what is done after each turn: `watch`, and look for new settings and rules."""
    reloader = Reloader(
        reload,
        Path(loaded.file),
        loaded.settings,
        "alerts",
        parts=lambda new: {
            **new.model_dump(exclude={"logging", "recorder"}),
            "streams": [stream.name for stream in new.streams],
            "workers": [*new.workers],
        },
        live=frozenset({"detection", "streams"}),
        apply=in_force.apply,
        on_waiting=reporter.note_restart_needed,
    )

    def between() -> None:
        watch()
        reloader.poll(reporter.notifier)
        in_force.poll()
        administration.serve()

    return between


def _create_runners(
    settings: Settings, entities: Entities, sensors: list[LiveSensors]
) -> dict[str, ActionRunner]:
    """Return the runner of each action; one that cannot be used yet affects no other.

    Args:
        sensors: runners that show live sensors are added to it, also later.
    """

    def note(runner: ActionRunner) -> None:
        if isinstance(runner, LiveSensors):
            sensors.append(runner)

    runners: dict[str, ActionRunner] = {}
    for name, action in settings.alerts.actions.items():
        runners[name] = runner = create_runner(name, action, entities, note)
        if isinstance(runner, DeferredRunner):
            text = "the action %s cannot be used: %s; its alerts wait, it is tried again with each"
            logger.error(text, name, runner.error)
    return runners


class SharedPublisher(FeedPublisher):
    """A publisher for two threads: alerts come from their delivery, the status from the loop."""

    def __init__(self, sockets: Sockets, endpoint: str) -> None:
        pub = sockets.bind("pub", endpoint, FEED_HWM_MESSAGES)
        super().__init__(pub, None, secrets.token_hex(8))
        self._lock = threading.Lock()

    def publish(
        self,
        content: Content,
        scores: Scores16 | None = None,
        spectrogram: Spectrogram8 | None = None,
    ) -> None:
        """Publish one message at a time, whole."""
        with self._lock:
            super().publish(content, scores, spectrogram)


class FeedRunner(ActionRunner):
    """Publishes alerts on the process's own PUB; one of the actions, so none is forgotten.

    Attributes:
        published: alerts published, by rule and severity.
    """

    def __init__(self, publisher: FeedPublisher) -> None:
        super().__init__("feed", None)
        self.published: Counter[tuple[str, str]] = Counter()
        self._publisher = publisher

    def deliver(self, notification: Notification) -> Outcome:
        """Publish one alert."""
        alert = notification.alert
        self.published[alert.rule, alert.severity] += 1
        self._publisher.publish(alert)
        return Delivered()
