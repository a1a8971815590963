"""Feed messages as people read them in a terminal: one line each, local time, colour."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np
from rich.text import Text

from ast_stream.cli.live import console
from ast_stream.cli.output import json_line
from ast_stream.feed import FeedMessage, Missed

_STREAM_COLUMNS = 12
_TOP_SCORES = 5
_SAID_BEFORE = ("stream", "published", "v", "boot", "seq", "durable_seq", "previous")
_STYLES = {"begin": "bold green", "update": "dim", "end": "green"}
_STATE_STYLES = {"listening": "green", "missing": "bold red", "degraded": "yellow"}


class FeedLines:
    """Prints one line for each message on standard output."""

    def __init__(self) -> None:
        self._console = console(stderr=False)

    def show(self, item: FeedMessage | Missed) -> None:
        """Print a message, or that some are missed."""
        line = feed_line(item)
        self._console.print(line, soft_wrap=True)


def feed_line(item: FeedMessage | Missed) -> Text:
    """Return the line of one item."""
    if isinstance(item, Missed):
        return Text(f"missed messages up to {item.upto[1]}: {item.reason}", style="bold red")
    body = item.body
    line = Text.assemble((_clock(body.get("published")), "dim"), "  ")
    if "stream" in body:
        line.append(f"{body['stream']:<{_STREAM_COLUMNS}}  ", style="cyan")
    match item.kind:
        case "event":
            return line.append(_event(body))
        case "gap":
            return line.append(f"gap     {_seconds(body)} lost: {body.get('reason')}", "yellow")
        case "health":
            return line.append(_health(body))
        case "scores":
            return line.append(_scores(item))
    facts = {key: value for key, value in body.items() if key not in _SAID_BEFORE}
    return line.append(f"{item.topic} {json_line(facts)}")


def _event(body: dict[str, Any]) -> Text:
    kind = str(body.get("type"))
    text = Text.assemble(
        (f"{kind:<6}", _STYLES.get(kind, "")), "  ", (str(body.get("label")), "bold")
    )
    if kind == "end":
        peak, mean = _number(body.get("peak")), _number(body.get("mean"))
        text.append(f"  {_seconds(body)}, peak {peak}, mean {mean}, {body.get('reason')}")
    else:
        since = f"since {_clock(body.get('onset'))} ± {_number(body.get('uncertainty_s'))} s"
        text.append(f"  score {_number(body.get('score'))}  {since}")
    return text


def _health(body: dict[str, Any]) -> Text:
    state = str(body.get("state"))
    text = Text.assemble("health  ", (state, _STATE_STYLES.get(state, "")))
    facts = (
        f"{key} {body[key]}"
        for key in ("detail", "level_dbfs", "lag_s", "hop_s", "gaps")
        if body.get(key) is not None
    )
    return text.append(", ".join(["", *facts]))


def _scores(message: FeedMessage) -> str:
    if message.scores is None:
        return "scores"
    best = np.argsort(-message.scores, kind="stable")[:_TOP_SCORES]
    return "scores  " + "  ".join(f"{index}: {message.scores[index]:.2f}" for index in best)


def _seconds(body: dict[str, Any]) -> str:
    return f"{_number(body.get('duration_s'))} s"


def _number(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, int | float) else "?"


def _clock(time: object) -> str:
    """Return an RFC 3339 time as local time of day with tenths."""
    try:
        local = datetime.fromisoformat(str(time)).astimezone()
    except ValueError:
        return "--:--:--.-"
    return f"{local:%H:%M:%S}.{local.microsecond // 100_000}"
