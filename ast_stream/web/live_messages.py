"""Messages to browsers: server-sent events, and binary messages with live spectrograms.

A binary message has the length of its header (uint32, little-endian), the header (JSON), and the
pixels (uint8, log-mel column by column, low frequencies first).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ast_stream.messages.event import FeedMessage

TOP_SCORES = 5
_SCORE_DIGITS = 3


def event_stream_message(name: str, body: Mapping[str, Any], place: str | None = None) -> str:
    """Return a server-sent event; the browser sends `place` when it reconnects."""
    lines = [] if place is None else [f"id: {place}\n"]
    # neither JSON nor names contain line breaks, which would end the event
    return "".join([*lines, f"event: {name}\n", f"data: {_json(body)}\n\n"])


def live_message(message: FeedMessage, labels: Sequence[str] | None) -> bytes | str | None:
    """Return the part of a message that live views get, as JSON text or bytes; None: nothing.

    Args:
        labels: of the model's classes; None: not known.
    """
    match message.kind:
        case "spectrogram" if message.spectrogram is not None:
            header = _json(message.body | {"type": "spectrogram"}).encode()
            return struct.pack("<I", len(header)) + header + message.spectrogram.tobytes()
        case "levels":
            return _json(message.body | {"type": "levels"})
        case "scores" if message.scores is not None and labels is not None:
            return _top_scores(message, labels)
    return None


def _top_scores(message: FeedMessage, labels: Sequence[str]) -> str | None:
    scores = message.scores
    if scores is None or len(scores) != len(labels):  # from another checkpoint than the page's
        return None
    best = np.argsort(-scores, kind="stable")[:TOP_SCORES]
    top = [(labels[index], round(float(scores[index]), _SCORE_DIGITS)) for index in best]
    return _json(
        {
            "type": "scores",
            "stream": message.stream,
            "epoch": message.body.get("epoch"),
            "end_sample": message.body.get("end_sample"),
            "top": top,
        }
    )


def _json(body: Mapping[str, Any]) -> str:
    return json.dumps(body, ensure_ascii=True, separators=(",", ":"))
