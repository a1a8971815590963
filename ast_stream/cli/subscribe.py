"""`ast-stream subscribe`: the feed as JSON lines, or as lines for people in a terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.text import Text

from ast_stream.cli.options import config_option, json_option
from ast_stream.cli.output import json_line, say
from ast_stream.cli.standard_streams import reader_is_gone
from ast_stream.cli.terminal import console
from ast_stream.errors import WireError
from ast_stream.feed import ClientKeys, FeedMessage, Missed, SeveralFeeds, Subscriber
from ast_stream.labels import did_you_mean
from ast_stream.messages.event import Content, EventMessage, GapMessage, ScoresHeader
from ast_stream.messages.levels import LevelsMessage
from ast_stream.messages.spectrogram import WITHHELD, SpectrogramHeader
from ast_stream.messages.status import Health
from ast_stream.runtime.lifecycle import stop_on_signals
from ast_stream.settings.load import load_settings
from ast_stream.settings.paths import feed_endpoint, query_endpoint
from ast_stream.settings.schema import Settings
from ast_stream.settings.streams import StdinSource, StreamSettings
from ast_stream.settings.workers import of_worker, worker_names
from ast_stream.transport.keys import client_keys
from ast_stream.units import NS_PER_SECOND

Reader = Subscriber | SeveralFeeds

DEFAULT_TOPICS = ("event/", "gap/")
KINDS = ("event", "gap", "health", "status", "scores", "levels", "spectrogram", "alert")
SAY_WAITING_AFTER_S = 1.0
_POLL_S = 0.2  # of the stop signal, the reader of our output and the publisher
_STREAM_COLUMNS = 12
_TOP_SCORES = 5
_STYLES = {"begin": "bold green", "update": "dim", "end": "green"}
_STATE_STYLES = {"listening": "green", "missing": "bold red", "degraded": "yellow"}


def subscribe(
    topics: Annotated[
        list[str] | None,
        typer.Argument(
            help="Topics, e.g. event/bark, gap, health/porch, levels, scores, status. "
            "(default: event and gap)",
            show_default=False,
        ),
    ] = None,
    config: Annotated[Path | None, config_option("Use the endpoints of this file.")] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Endpoint of the feed, ipc:///path or tcp://host:port.")
    ] = None,
    query: Annotated[
        str | None, typer.Option(help="Endpoint that repeats what was missed.")
    ] = None,
    client_key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Your secret key, where --endpoint is tcp with keys."),
    ] = None,
    server_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The public key of the worker there.")
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
        bool, json_option("JSON lines also where the output is a terminal.")
    ] = False,
) -> None:
    """Print the feed: one JSON object a line, or lines for people in a terminal.

    Example: ast-stream subscribe event/bark --stream porch
    """
    keys = ClientKeys.of_options(client_key, server_key)
    for topic in topics or ():
        _warn_if_unknown("topic that begins with", topic.partition("/")[0], KINDS)

    def reader_of(endpoint: str, query: str | None, keys: ClientKeys | None) -> Subscriber:
        return Subscriber(
            endpoint,
            classes=classes,
            streams=streams,
            topics=[_prefix(topic) for topic in topics or DEFAULT_TOPICS],
            query=query,
            after="oldest" if replay else None,
            keys=keys,
        )

    reader: Reader
    if endpoint is not None:
        reader = reader_of(endpoint, query, keys)
    else:
        settings = default_settings() if config is None else load_settings(config)
        if config is not None and settings.all_streams is not None:
            names = [stream.name for stream in settings.all_streams]
            for name in streams or ():
                _warn_if_unknown("stream", name, names)
        keys = keys or client_keys(settings.transport)
        parts = [of_worker(settings, name) for name in worker_names(settings)]
        feeds = [reader_of(feed_endpoint(own), query or query_endpoint(own), keys) for own in parts]
        named = dict(zip(settings.workers, feeds, strict=False))  # empty where there is one for all
        reader = SeveralFeeds(named) if named else feeds[0]
        endpoint = ", ".join(feed_endpoint(own) for own in parts)
    out = console(stderr=False)

    def show_line(item: FeedMessage | Missed) -> None:
        out.print(feed_line(item), soft_wrap=True)

    show = show_line if sys.stdout.isatty() and not as_json else show_json
    with stop_on_signals() as stop, reader:
        _follow(reader, _Waiting(endpoint), show, count, stop)


def show_json(item: FeedMessage | Missed) -> None:
    """Print one JSON object: topic and body, scores and spectrograms as lists."""
    if isinstance(item, Missed):
        line: dict[str, Any] = {"topic": "missed/", **vars(item)}
    else:
        line = {"topic": item.topic} | item.body
        if item.scores is not None:
            line["scores"] = [round(float(score), 4) for score in item.scores]
        if item.spectrogram is not None:
            line["spectrogram"] = item.spectrogram.tolist()
    print(json_line(line), flush=True)


def _follow(
    reader: Reader,
    waiting: _Waiting,
    show: Callable[[FeedMessage | Missed], None],
    count: int | None,
    stop: threading.Event,
) -> None:
    n_shown = 0
    while not stop.is_set() and n_shown != count and not reader_is_gone():  # events are rare
        item = reader.receive(_POLL_S)
        waiting.update(reader)
        if item is not None:
            show(item)
            n_shown += 1


class _Waiting:
    """Says on standard error that there is no publisher, and when there is one again."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._since_s = time.monotonic()
        self._has_said = False

    def update(self, reader: Reader) -> None:
        now_s = time.monotonic()
        if reader.is_publisher_there:
            if self._has_said:
                print(f"connected to {self._endpoint}", file=sys.stderr)
            self._has_said, self._since_s = False, now_s
        elif not self._has_said and now_s - self._since_s >= SAY_WAITING_AFTER_S:
            print(f"waiting for a publisher at {self._endpoint}", file=sys.stderr)
            self._has_said = True


def _warn_if_unknown(what: str, name: str, known: Sequence[str]) -> None:
    """Say that nothing will come of it: a mistake in typing looks like a quiet room."""
    if name and name not in known:
        near = did_you_mean(name, known) or f"; known: {', '.join(known)}"
        say(f"there is no {what} '{name}'{near}", err=True)


def _prefix(topic: str) -> str:
    """End a topic as the feed does, so that `event/bark` is not also `event/barking`."""
    return topic if topic.endswith("/") or not topic else f"{topic}/"


def default_settings() -> Settings:
    """Return settings for their endpoints alone: those of a configuration that names none."""
    unused = StreamSettings(name="unused", source=StdinSource(type="stdin"))
    return Settings(streams=[unused])


def feed_line(item: FeedMessage | Missed) -> Text:
    if isinstance(item, Missed):
        return Text(f"missed messages up to {item.upto[1]}: {item.reason}", style="bold red")
    try:
        content: Content | None = item.content()
    except WireError:  # of another version: shown as it is
        content = None
    line = Text.assemble((_clock(item.published_ns), "dim"), "  ")
    if item.stream is not None:
        line.append(f"{item.stream:<{_STREAM_COLUMNS}}  ", style="cyan")
    match content:
        case EventMessage():
            return line.append(_event(content))
        case GapMessage():
            lost_s = _number(content.duration_s)
            return line.append(f"gap     {lost_s} s lost: {content.reason}", "yellow")
        case Health():
            return line.append(_health(content))
        case ScoresHeader():
            return line.append(_scores(item))
        case LevelsMessage():
            return line.append(_levels(content))
        case SpectrogramHeader():
            return line.append(_spectrogram(content, item))
    return line.append(f"{item.topic} {json_line(item.facts)}")


def _event(event: EventMessage) -> Text:
    text = Text.assemble((f"{event.type:<6}", _STYLES[event.type]), "  ", (event.label, "bold"))
    if event.type == "end":
        peak, mean = _number(event.peak), _number(event.mean)
        text.append(f"  {_number(event.duration_s)} s, peak {peak}, mean {mean}, {event.reason}")
    else:
        since = f"since {_clock(event.onset_ns)} ± {_number(event.uncertainty_s)} s"
        text.append(f"  score {_number(event.score)}  {since}")
    return text


def _health(health: Health) -> Text:
    text = Text.assemble("health  ", (health.state, _STATE_STYLES.get(health.state, "")))
    facts = (
        f"{name} {getattr(health, name)}"
        for name in ("detail", "level_dbfs", "lag_s", "hop_s", "gaps")
        if getattr(health, name) is not None
    )
    return text.append(", ".join(["", *facts]))


def _scores(message: FeedMessage) -> str:
    if message.scores is None:
        return "scores"
    best = np.argsort(-message.scores, kind="stable")[:_TOP_SCORES]
    return "scores  " + "  ".join(f"{index}: {message.scores[index]:.2f}" for index in best)


def _levels(levels: LevelsMessage) -> str:
    unit = "dB(A)" if levels.calibrated else "dBFS(A), not calibrated"
    return (
        f"levels  LAeq {levels.laeq:.1f}, LAF {levels.laf_min:.1f} to {levels.laf_max:.1f}, "
        f"L90 {levels.l90:.1f} {unit}"
    )


def _spectrogram(header: SpectrogramHeader, message: FeedMessage) -> str:
    levels = message.spectrogram
    shown = None if levels is None else levels[levels != WITHHELD]
    if shown is None or not len(shown):
        return f"spectrogram  {header.frames} frames, none shown"
    low, high = (header.low_db + header.step_db * int(at) for at in (shown.min(), shown.max()))
    return f"spectrogram  {header.frames} frames, {low:.0f} to {high:.0f} dB"


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f}"


def _clock(time_ns: int | None) -> str:
    """Return a wall time as local time of day with tenths."""
    if time_ns is None:
        return "--:--:--.-"
    seconds, rest_ns = divmod(time_ns, NS_PER_SECOND)
    return f"{datetime.fromtimestamp(seconds):%H:%M:%S}.{rest_ns * 10 // NS_PER_SECOND}"
