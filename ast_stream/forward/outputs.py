"""The outputs of a configuration: started, stopped and changed independently."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import import_module
from pathlib import Path

from ast_stream.errors import Problem, StartupError
from ast_stream.feed import Position, Subscriber
from ast_stream.forward.alert_source import AlertSource
from ast_stream.forward.coverage_source import CoverageSource, Watched
from ast_stream.forward.feed_source import (
    FEED,
    REPLAY_PATIENCE_S,
    TOPICS,
    FeedSource,
    feed_source_name,
)
from ast_stream.forward.health_source import HealthSource
from ast_stream.forward.health_spool import HealthSpool
from ast_stream.forward.output import Output, OutputMaker
from ast_stream.forward.positions import PositionFile, adopt
from ast_stream.forward.sender import Sender
from ast_stream.forward.source import Cursor, MessageSource
from ast_stream.pool.coverage import own_part_of
from ast_stream.settings.fleet import BoxIdentity, box_identity
from ast_stream.settings.forward import ForwardOutput
from ast_stream.settings.load import LoadedSettings
from ast_stream.settings.paths import alerts_state_file, feed_endpoint, query_endpoint
from ast_stream.settings.schema import Settings
from ast_stream.settings.storage import event_log, forward_positions
from ast_stream.settings.workers import of_worker, worker_names
from ast_stream.transport.keys import client_keys

logger = logging.getLogger(__name__)


def make_output(settings: ForwardOutput, identity: BoxIdentity) -> Output:
    """Return an output that has not been started; its library is imported only now.

    Raises:
        StartupError: its library is missing.
    """
    maker: OutputMaker = import_module(f"{__package__}.to_{settings.type}").OUTPUT
    return maker(settings, identity)


class Outputs:
    """All running outputs.

    Args:
        settings: returns the current configuration.
    """

    def __init__(
        self, settings: Callable[[], Settings], identity: BoxIdentity, spool: HealthSpool
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._spool = spool
        self._running: dict[str, tuple[ForwardOutput, Sender]] = {}

    @property
    def running(self) -> Mapping[str, tuple[ForwardOutput, Sender]]:
        """Settings and sender of each output, by name; a copy."""
        return dict(self._running)

    def follow(self, wanted: Sequence[ForwardOutput]) -> None:
        """Start and stop outputs so that exactly those wanted run; unchanged ones keep running.

        Raises:
            StartupError: one cannot be used; nothing has changed.
        """
        new = [output for output in wanted if self._settings_of(output.name) != output]
        made = {output.name: (output, self._sender(output)) for output in new}
        kept = {output.name for output in wanted}
        ended = [name for name in self._running if name not in kept or name in made]
        self._end([self._running.pop(name)[1] for name in ended])
        for name, (settings, sender) in made.items():
            # by now the previous sender has saved its position
            sender.positions = self._position_file(settings)
            sender.start()
            logger.info("output %s: sends to %s", name, settings.receiver)
        self._running |= made

    def publish_status(self, report: bytes) -> None:
        """Publish the status of this box, once to each broker."""
        receivers: set[str] = set()
        for own, sender in self.running.values():
            if own.status_place not in receivers:
                sender.output.publish_status(report)
            receivers.add(own.status_place)

    def close(self) -> None:
        """Stop all outputs, in bounded time."""
        self._end([sender for _, sender in self._running.values()])

    def _settings_of(self, name: str) -> ForwardOutput | None:
        found = self._running.get(name)
        return None if found is None else found[0]

    def _end(self, senders: Sequence[Sender]) -> None:
        for sender in senders:
            sender.stop()
        for sender in senders:
            sender.close()

    def _position_file(self, own: ForwardOutput) -> PositionFile:
        path = forward_positions(self._settings()).folder / f"{own.name}.json"
        in_use = {output.name for output in self._settings().forward} | self._running.keys()
        if (found := adopt(path, own.place_of_messages, in_use)) is not None:
            logger.info("output %s: goes on where %s was", own.name, found.stem)
        return PositionFile(path, receiver=own.place_of_messages)

    def _sender(self, own: ForwardOutput) -> Sender:
        return Sender(
            make_output(own, self._identity),
            self._position_file(own),
            lambda cursors: self._sources(own, cursors),
            self._identity,
            own.max_unconfirmed,
        )

    def _sources(self, own: ForwardOutput, cursors: Mapping[str, Cursor]) -> list[MessageSource]:
        settings = self._settings()
        warn_of_former_workers(own.name, cursors, worker_names(settings))
        found: list[MessageSource] = []
        if "event" in own.kinds or "gap" in own.kinds:
            found += [self._feed(own, name, cursors) for name in worker_names(settings)]
        if "alert" in own.kinds and settings.alerts.rules:
            file = alerts_state_file(settings)
            found.append(AlertSource(file, cursors.get(AlertSource.name), self._identity))
        if "coverage" in own.kinds:
            cursor = cursors.get(CoverageSource.name)
            part = own_part_of(settings, "forward")
            found.append(
                CoverageSource(
                    lambda: Watched.of(self._settings()), cursor, self._identity, part=part
                )
            )
        if "health" in own.kinds:
            found.append(HealthSource(self._spool, cursors.get(HealthSource.name), self._identity))
        return found

    def _feed(
        self, own: ForwardOutput, worker: str | None, cursors: Mapping[str, Cursor]
    ) -> FeedSource:
        settings = of_worker(self._settings(), worker)

        def subscribe(after: Position | str) -> Subscriber:
            return worker_feed(settings, TOPICS, after)

        name = feed_source_name(worker)
        log: Path = event_log(settings).folder
        return FeedSource(
            name,
            subscribe,
            cursors.get(name),
            self._identity,
            own.kinds,
            updates=own.updates,
            log=log,
        )


def warn_of_former_workers(
    output: str, cursors: Collection[str], workers: Sequence[str | None]
) -> None:
    """Warn of workers that are no longer in the configuration, so that their feeds are not sent."""
    known = {feed_source_name(name) for name in workers}
    for name in sorted(cursors):
        if name.partition(".")[0] == FEED and name not in known:
            worker = name.partition(".")[2] or "of a configuration without workers"
            text = (
                "output %s: the worker %s is not in the configuration any more: what its log has "
                "that was not sent stays there"
            )
            logger.warning(text, output, worker)


def worker_feed(
    settings: Settings, topics: Sequence[str], after: Position | str | None
) -> Subscriber:
    """Return a reader of the feed of one worker."""
    return Subscriber(
        feed_endpoint(settings),
        topics=topics,
        query=query_endpoint(settings),
        after=after,  # type: ignore[arg-type]
        replay_patience_s=REPLAY_PATIENCE_S,
        keys=client_keys(settings.transport),
    )


def output_problems(loaded: LoadedSettings) -> list[Problem]:
    """Return what would keep the configured outputs from sending, without connecting."""
    identity = box_identity(loaded.settings)
    problems = []
    for index, own in enumerate(loaded.settings.forward):
        try:
            make_output(own, identity).check()
        except StartupError as error:
            text = str(error).removeprefix(f"output {own.name}: ")
            problems.append(loaded.problem(("forward", index), text))
    return problems
