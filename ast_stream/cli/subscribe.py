"""`ast-stream subscribe`: the feed as JSON lines, or as lines for people in a terminal."""

from __future__ import annotations

import select
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ast_stream.cli.feed_lines import FeedLines
from ast_stream.cli.output import json_line
from ast_stream.feed import FeedMessage, Missed, Subscriber
from ast_stream.runtime.lifecycle import stop_on_signals
from ast_stream.settings.load import load_settings
from ast_stream.settings.paths import feed_endpoint, query_endpoint
from ast_stream.settings.schema import Settings, StdinSource, StreamSettings

DEFAULT_TOPICS = ("event/", "gap/")
SAY_WAITING_AFTER_S = 1.0
_LOOK_EVERY_S = 0.2  # at the stop signal, the reader of our output and the publisher


def subscribe(
    topics: Annotated[
        list[str] | None,
        typer.Argument(
            help="Topics, e.g. event/bark, gap, health/porch, scores, status. "
            "(default: event and gap)",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Take the endpoints from this file.")
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(help="Endpoint of the feed, ipc:///path or tcp://host:port."),
    ] = None,
    query: Annotated[
        str | None, typer.Option(help="Endpoint that repeats what was missed.")
    ] = None,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="Only events of this class; repeatable.")
    ] = None,
    streams: Annotated[
        list[str] | None, typer.Option("--stream", help="Only this stream; repeatable.")
    ] = None,
    replay: Annotated[
        bool, typer.Option("--replay", help="Begin with what the worker's event log holds.")
    ] = False,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many messages.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON lines also where the output is a terminal.")
    ] = False,
) -> None:
    """Print the feed: one JSON object a line, or lines for people in a terminal.

    Example: ast-stream subscribe event/bark --stream porch
    """
    if endpoint is None:
        settings = default_settings() if config is None else load_settings(config)
        endpoint, query = feed_endpoint(settings), query or query_endpoint(settings)
    reader = Subscriber(
        endpoint,
        classes=classes,
        streams=streams,
        topics=[_prefix(topic) for topic in topics or DEFAULT_TOPICS],
        query=query,
        after="oldest" if replay else None,
    )
    is_for_people = sys.stdout.isatty() and not as_json
    show = FeedLines().show if is_for_people else show_json
    with stop_on_signals() as stop, reader:
        _follow(reader, _Waiting(endpoint), show, count, stop)


def show_json(item: FeedMessage | Missed) -> None:
    """Print one JSON object: topic and body, scores as a list."""
    if isinstance(item, Missed):
        line: dict[str, Any] = {"topic": "missed/", "after": item.after, "upto": item.upto}
        line["reason"] = item.reason
    else:
        line = {"topic": item.topic} | item.body
        if item.scores is not None:
            line["scores"] = [round(float(score), 4) for score in item.scores]
    print(json_line(line), flush=True)


def _follow(
    reader: Subscriber,
    waiting: _Waiting,
    show: Callable[[FeedMessage | Missed], None],
    count: int | None,
    stop: threading.Event,
) -> None:
    n_shown = 0
    while not stop.is_set() and n_shown != count and not _output_is_closed():
        item = reader.receive(_LOOK_EVERY_S)
        waiting.look(reader)
        if item is not None:
            show(item)
            n_shown += 1


class _Waiting:
    """Says on standard error that there is no publisher, and when there is one again."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._since_s = time.monotonic()
        self._has_said = False

    def look(self, reader: Subscriber) -> None:
        now_s = time.monotonic()
        if reader.is_publisher_there:
            if self._has_said:
                print(f"connected to {self._endpoint}", file=sys.stderr)
            self._has_said, self._since_s = False, now_s
        elif not self._has_said and now_s - self._since_s >= SAY_WAITING_AFTER_S:
            print(f"waiting for a publisher at {self._endpoint}", file=sys.stderr)
            self._has_said = True


def _output_is_closed() -> bool:
    """Whether nobody reads our output any more: noticed without writing, as events are rare."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(flags & select.POLLERR for _, flags in poll.poll(0))


def _prefix(topic: str) -> str:
    """End a topic as the feed does, so that `event/bark` is not also `event/barking`."""
    return topic if topic.endswith("/") or not topic else f"{topic}/"


def default_settings() -> Settings:
    """Return settings for their endpoints alone: those of a configuration that names none."""
    unused = StreamSettings(name="unused", source=StdinSource(type="stdin"))
    return Settings(streams=[unused])
