"""The alerts process: rules over the feed, alerts out through the outbox."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from ast_stream.alerts.actions.base import (
    ActionRunner,
    Delivered,
    Notification,
    Outcome,
)
from ast_stream.alerts.actions.factory import make_runner, routes
from ast_stream.alerts.actions.home_assistant import Watched
from ast_stream.alerts.actions.mqtt import MqttRunner
from ast_stream.alerts.delivery import Couriers, no_fault
from ast_stream.alerts.engine import Engine
from ast_stream.alerts.outbox import FEED, Outbox
from ast_stream.alerts.rules import RuleSet
from ast_stream.alerts.schema import EventMatch, RuleSettings
from ast_stream.alerts.store import Store
from ast_stream.feed import Subscriber
from ast_stream.labels import slug
from ast_stream.runtime import lifecycle
from ast_stream.runtime.logging_setup import setup_logging
from ast_stream.runtime.metrics import Metrics
from ast_stream.runtime.notifier import Notifier
from ast_stream.settings.check import LoadedSettings
from ast_stream.settings.load import load_file
from ast_stream.settings.paths import (
    alerts_endpoint,
    alerts_state_file,
    feed_endpoint,
    make_runtime_dir,
    metrics_address,
    query_endpoint,
)
from ast_stream.settings.schema import Settings
from ast_stream.wire.locks import lock_file
from ast_stream.wire.publisher import FeedPublisher
from ast_stream.wire.sockets import FEED_HWM_MESSAGES, Sockets
from services.alert_heartbeat import HeartbeatThread
from services.alert_life import AlertLife
from services.alert_loop import TOPICS, AlertLoop
from services.alert_rules import RuleFiles, detection_timing, model_facts
from services.reload import Reloader

STOP_PATIENCE_S = 3.0  # for deliveries under way; what is left goes out after the next start

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
    rules = files.load()
    make_runtime_dir(settings)
    state_file = alerts_state_file(settings)
    with ExitStack() as cleanup:
        lock_fd = lock_file(
            state_file.with_name(f"{state_file.name}.lock"), f"the alert database {state_file}"
        )
        cleanup.callback(os.close, lock_fd)
        metrics = Metrics("alerts", metrics_address(settings, "alerts"))
        cleanup.callback(metrics.close)
        sockets = Sockets()
        cleanup.callback(sockets.close)
        pub = sockets.bind("pub", alerts_endpoint(settings), FEED_HWM_MESSAGES)
        publisher = SharedPublisher(pub, None, secrets.token_hex(8), time.time_ns)
        store = Store(state_file)
        cleanup.callback(store.close)
        outbox = Outbox(store, routes(settings.alerts.actions), time.time_ns)
        outbox.recover()
        runners = _make_runners(settings, _watched(loaded, rules))
        feed_runner = FeedRunner(publisher)
        couriers = Couriers({FEED: feed_runner, **runners}, outbox, fault)
        cleanup.callback(couriers.stop, STOP_PATIENCE_S)
        feed = Subscriber(
            feed_endpoint(settings),
            topics=TOPICS,
            query=query_endpoint(settings),
            after=store.position() or "oldest",
        )
        cleanup.callback(feed.close)
        sensors = [one for one in runners.values() if isinstance(one, MqttRunner)]
        engine = Engine(
            rules,
            store.engine_state(),
            now_ns=time.time_ns(),
            timing=detection_timing(loaded),
        )
        loop = AlertLoop(
            feed,
            engine,
            store,
            outbox,
            couriers,
            sensors=sensors,
            since_ns=store.since_ns(time.time_ns()),
            fault=fault,
        )

        def put_in_force(changed: RuleSet) -> None:
            nonlocal rules
            rules = changed
            loop.replace_rules(rules)
            for one in sensors:
                one.watch(_watched(loaded, rules))

        life = AlertLife(
            Notifier(),
            metrics,
            publisher,
            facts=lambda: (len(rules.rules), loop.hears),
            pending=outbox.pending,
            published=feed_runner.published,
        )
        loop.while_stuck = life.turn
        between = _between(loaded, reload or threading.Event(), life, files, put_in_force)
        heartbeat = HeartbeatThread.of(settings.alerts, lambda: loop.hears)
        couriers.start()
        if heartbeat is not None:
            heartbeat.start()
            cleanup.callback(heartbeat.stop)
        logger.info("ready: %s rules, actions: %s", len(rules.rules), ", ".join(runners) or "none")
        loop.run(stop, between)
        life.notifier.stopping("delivering what is under way")


def _between(
    loaded: LoadedSettings,
    reload: threading.Event,
    life: AlertLife,
    files: RuleFiles,
    put_in_force: Callable[[RuleSet], None],
) -> Callable[[], None]:
    """Return what is done after each turn: tell how it is, and look for new settings and rules."""
    reloader = Reloader(
        reload,
        Path(loaded.file),
        loaded.settings,
        "alerts",
        parts=lambda new: new.model_dump(exclude={"logging", "detection"}),
        apply=lambda new: put_in_force(files.load()),
    )

    def between() -> None:
        life.turn()
        reloader.look(life.notifier)
        if files.have_changed() and (changed := files.reload()) is not None:
            put_in_force(changed)

    return between


class SharedPublisher(FeedPublisher):
    """A publisher for two threads: alerts come from their delivery, the status from the loop."""

    _lock = threading.Lock()

    def publish(self, topic: str, body: dict[str, Any]) -> None:
        """Publish one message at a time, whole."""
        with self._lock:
            super().publish(topic, body)


class FeedRunner:
    """Publishes alerts on the process's own PUB; one of the actions, so none is forgotten.

    Attributes:
        published: alerts published, by rule and severity.
    """

    def __init__(self, publisher: FeedPublisher) -> None:
        self.published: Counter[tuple[str, str]] = Counter()
        self._publisher = publisher

    def deliver(self, notification: Notification) -> Outcome:
        """Publish one alert."""
        self.published[notification.rule, notification.severity] += 1
        topic = f"alert/{notification.severity}/{notification.rule}/"
        self._publisher.publish(topic, dict(notification.alert))
        return Delivered()

    def close(self) -> None:
        """Leave the socket to who made it."""


def _make_runners(settings: Settings, watched: Watched) -> dict[str, ActionRunner]:
    runners: dict[str, ActionRunner] = {}
    try:
        for name, action in settings.alerts.actions.items():
            runners[name] = make_runner(name, action, watched)
    except BaseException:
        for runner in runners.values():
            runner.close()
        raise
    return runners


def _watched(loaded: LoadedSettings, rules: RuleSet) -> Watched:
    """Return what is shown live: classes that rules name, not all of a branch or of the model."""
    labels = {slug(label): label for label in model_facts(loaded.settings.model).labels or ()}
    named = {
        one: None
        for rule in rules.rules
        for match in _matches(rule.settings)
        for name in (*(match.class_ or ()), *(match.any_of or ()))
        for one in (slug(name),)
    }
    return Watched(
        streams=tuple(stream.name for stream in loaded.settings.streams),
        classes=tuple(labels.get(one, one) for one in named),
        rules=tuple(rule.name for rule in rules.rules),
    )


def _matches(settings: RuleSettings) -> list[EventMatch]:
    steps = [] if settings.sequence is None else [one.match for one in settings.sequence.steps]
    absent = [] if settings.absent is None else [settings.absent.match]
    return ([] if settings.match is None else [settings.match]) + steps + absent
