"""What browsers are told."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from sample_messages import scores_header

from ast_stream.machine_clock import Moment
from ast_stream.messages.event import FeedMessage, Stamp
from ast_stream.messages.spectrogram import SpectrogramHeader
from ast_stream.web.live_messages import event_stream_message, live_message
from ast_stream.web.now_page import parse_wish

STAMP = Stamp("b", 1, Moment(0, 0))


def test_an_event_is_one_line_whatever_is_in_it() -> None:
    text = event_stream_message("event", {"label": "a\n\nevent: x\u2028"}, "b:1")
    assert text.startswith("id: b:1\nevent: event\ndata: ")
    assert text.endswith("\n\n")
    assert len(text.split("\n")) == 5
    assert json.loads(text.split("data: ")[1]) == {"label": "a\n\nevent: x\u2028"}


def test_the_likeliest_classes_are_told() -> None:
    scores = np.array([0.25, 1.0, 0.5], dtype=np.float16)
    message = FeedMessage.of(scores_header(), STAMP, scores)
    told = live_message(message, ["Bark", "Siren", "Rain"])
    assert isinstance(told, str)
    body = json.loads(told)
    assert body["top"] == [["Siren", 1.0], ["Rain", 0.5], ["Bark", 0.25]]
    assert (body["type"], body["stream"], body["end_sample"]) == ("scores", "porch", 16_000)


def test_a_spectrogram_is_a_header_and_its_levels() -> None:
    header = SpectrogramHeader(
        stream="porch", epoch="e", start_sample=320, time_ns=0, frames=2, mels=3
    )
    levels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    told = live_message(FeedMessage.of(header, STAMP, spectrogram=levels), None)
    assert isinstance(told, bytes)
    (length,) = struct.unpack("<I", told[:4])
    body = json.loads(told[4 : 4 + length])
    assert (body["type"], body["stream"], body["start_sample"]) == ("spectrogram", "porch", 320)
    assert (body["frames"], body["mels"], body["low_db"]) == (2, 3, header.low_db)
    assert told[4 + length :] == bytes(range(6))


def test_scores_of_another_checkpoint_are_not_named_wrongly() -> None:
    message = FeedMessage.of(scores_header(), STAMP, np.zeros(3, dtype=np.float16))
    assert live_message(message, ["Bark"]) is None
    assert live_message(message, None) is None


def test_a_browser_says_which_streams_it_shows() -> None:
    assert parse_wish('{"streams": ["porch", "attic"]}') == frozenset({"porch", "attic"})


@pytest.mark.parametrize(
    "text", ["", "[]", '{"streams": 5}', '{"streams": [5]}', "{", "[" * 50_000, "x" * 70_000]
)
def test_a_wish_that_makes_no_sense_is_none(text: str) -> None:
    assert parse_wish(text) is None
