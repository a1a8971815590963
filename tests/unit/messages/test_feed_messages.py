"""Bytes of feed messages and queries: exact, both ways, and refused where damaged."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_messages import (
    FAILING,
    T0_NS,
    alert,
    alerts_status,
    event_message,
    forward_status,
    gap_message,
    health,
    recorder_status,
    scores_header,
    spectrogram_header,
    worker_status,
)

from ast_stream.errors import WireError
from ast_stream.machine_clock import CLOCK_ID, Moment
from ast_stream.messages.audio import AudioBlock
from ast_stream.messages.event import (
    Content,
    EventMessage,
    FeedMessage,
    Gap,
    GapMessage,
    Stamp,
)
from ast_stream.messages.query import (
    AudioAnswer,
    AudioQuery,
    PingAnswer,
    PingQuery,
    ReplayPage,
    ReplayQuery,
    Snapshot,
    SnapshotQuery,
    TooOld,
    decode_query,
    decode_replay,
    refuse_query,
)
from ast_stream.messages.spectrogram import (
    LOW_DB,
    STEP_DB,
    SpectrogramHeader,
    spectrogram_levels,
)

BODY: dict[str, Any] = {"v": 1, "boot": "b1", "seq": 7}


def json_frame(value: object) -> bytes:
    return json.dumps(value).encode()


def test_message_has_these_bytes() -> None:
    assert FeedMessage("gap/porch/", BODY | {"reason": "ü"}).encode() == [
        b"gap/porch/",
        '{"v":1,"boot":"b1","seq":7,"reason":"ü"}'.encode(),
    ]


def test_scores_have_these_bytes() -> None:
    frames = FeedMessage("scores/porch/", BODY, np.array([0.0, 0.5, 1.0], np.float16)).encode()
    assert frames == [
        b"scores/porch/",
        b'{"v":1,"boot":"b1","seq":7,"dtype":"float16","shape":[3]}',
        b"\x00\x00\x00\x38\x00\x3c",
    ]


@given(
    topic=st.text(max_size=40).map(lambda name: name + "/"),
    scores=st.none() | st.lists(st.floats(0, 1, width=16), max_size=50),
    extra=st.dictionaries(
        st.text(max_size=8).filter(lambda key: key not in {"previous", "durable_seq", *BODY}),
        st.none() | st.text(max_size=8) | st.integers(-(2**53), 2**53),
        max_size=5,
    ),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_decoding_gives_what_was_encoded(
    topic: str, scores: list[float] | None, extra: dict[str, Any]
) -> None:
    body = extra | BODY
    wanted = None if scores is None else np.array(scores, np.float16)
    message = FeedMessage.decode(FeedMessage(topic, body, wanted).encode())
    assert message.topic == topic
    assert body.items() <= message.body.items()
    if wanted is None:
        assert message.scores is None
    else:
        assert message.scores is not None
        np.testing.assert_array_equal(message.scores, wanted)


@pytest.mark.parametrize(
    ("frames", "problem"),
    [
        ([], "got 0"),
        ([b"event/bark/porch/"], "got 1"),
        ([b"event/bark/porch", json_frame(BODY)], "ending in '/'"),
        ([b"\xff/", json_frame(BODY)], "expected UTF-8"),
        ([b"x" * 600 + b"/", json_frame(BODY)], "ending in '/'"),
        ([b"event/", b"{"], "a JSON object"),
        ([b"event/", b"[]"], "got list"),
        ([b"event/", b'{"v":NaN}'], "not a finite number"),
        ([b"event/", b"[" * 100_000], "a JSON object"),
        ([b"event/", b" " * 300_000], "at most 262144 bytes"),
        ([b"event/", json_frame(BODY | {"v": 2})], ": v: "),
        ([b"event/", json_frame(BODY | {"boot": "a b"})], ": boot: "),
        ([b"event/", json_frame(BODY | {"boot": 3})], ": boot: "),
        ([b"event/", json_frame(BODY | {"seq": -1})], ": seq: "),
        ([b"event/", json_frame(BODY | {"seq": 1.0})], ": seq: "),
        ([b"event/", json_frame(BODY | {"seq": 2**60})], ": seq: "),
        ([b"event/", json_frame(BODY | {"previous": "6"})], ": previous: "),
        ([b"health/porch/", json_frame(BODY | {"durable_seq": None})], ": durable_seq: "),
        ([b"scores/porch/", json_frame(BODY), b"\x00\x00"], ": dtype: "),
        (
            [b"scores/porch/", json_frame(BODY | {"dtype": "float16", "shape": [2]}), b"\x00\x00"],
            "expected 4 bytes of scores",
        ),
        (
            [b"scores/porch/", json_frame(BODY | {"dtype": "float32", "shape": [1]}), b"\x00\x00"],
            ": dtype: ",
        ),
        (
            [
                b"scores/porch/",
                json_frame(BODY | {"dtype": "float16", "shape": [1, 1]}),
                b"\x00\x00",
            ],
            ": shape: ",
        ),
        (
            [b"scores/porch/", json_frame(BODY | {"dtype": "float16", "shape": []}), b"\x00\x00"],
            ": shape: ",
        ),
    ],
)
def test_damaged_message_is_refused(frames: list[bytes], problem: str) -> None:
    with pytest.raises(WireError, match=problem):
        FeedMessage.decode(frames)


@given(frames=st.lists(st.binary(max_size=200), max_size=4))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_random_bytes_raise_nothing_but_wire_errors(frames: list[bytes]) -> None:
    for decode in (
        FeedMessage.decode,
        PingAnswer.decode,
        Snapshot.decode,
        AudioAnswer.decode,
        decode_replay,
    ):
        with pytest.raises(WireError):
            decode(frames)


LOGGED = FeedMessage("gap/porch/", BODY | {"previous": 3})
LINE = b'{"crc":"26796886","topic":"gap/porch/","body":{"v":1,"boot":"b1","seq":7,"previous":3}}\n'


def test_line_of_the_log_has_these_bytes() -> None:
    assert LOGGED.encode_line() == LINE
    assert FeedMessage.decode_line(LINE).body == LOGGED.body


def test_line_with_any_byte_changed_is_refused() -> None:
    for place in range(len(LINE) - 1):
        for damaged in (LINE[:place], LINE[:place] + b"~" + LINE[place + 1 :]):
            with pytest.raises(WireError, match="line"):
                FeedMessage.decode_line(damaged)


def test_line_without_previous_is_refused() -> None:
    with pytest.raises(WireError, match="previous"):
        FeedMessage.decode_line(FeedMessage("event/", BODY).encode_line())


def test_gap_body_has_seconds_and_time() -> None:
    gap = Gap("porch", "aaaaaaaa", 1600, 32000, "device_lost")
    assert GapMessage.of(gap, 1_500_000_000).to_json() == {
        "stream": "porch",
        "epoch": "aaaaaaaa",
        "start": 1600,
        "samples": 32000,
        "duration_s": 2.0,
        "reason": "device_lost",
        "time": "1970-01-01T00:00:01.500000Z",
    }
    assert GapMessage.of(gap, None).to_json()["time"] is None


@pytest.mark.parametrize(
    ("frame", "query"),
    [
        ('{"op":"ping"}', PingQuery(op="ping")),
        ('{"v":1,"op":"snapshot"}', SnapshotQuery(op="snapshot")),
        ('{"op":"replay"}', ReplayQuery(op="replay")),
        ('{"op":"replay","after":null}', ReplayQuery(op="replay")),
        ('{"op":"replay","after":["b1",5]}', ReplayQuery(op="replay", after=("b1", 5))),
        (
            '{"op":"audio","stream":"porch","from":0,"to":16000}',
            AudioQuery.model_validate({"op": "audio", "stream": "porch", "from": 0, "to": 16000}),
        ),
    ],
)
def test_queries_written_by_hand_are_understood(frame: str, query: object) -> None:
    assert decode_query([frame.encode()]) == query


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        ('{"op":"reply"}', "replay, snapshot, ping, audio"),
        ("{}", "got 'None'"),
        ('{"op":["replay"]}', "op"),
        ('{"op":"ping","v":2}', "v"),
        ('{"op":"replay","aftr":["b1",5]}', "aftr"),
        ('{"op":"replay","after":["b1"]}', "expected"),
        ('{"op":"replay","after":["b1",true]}', "expected"),
        ('{"op":"replay","after":["b1",-1]}', "expected"),
        ('{"op":"replay","after":"b1"}', "expected"),
        ('{"op":"audio","stream":"porch","from":0}', "to"),
        ('{"op":"audio","stream":"porch","from":-1,"to":3}', "from"),
        ('{"op":"audio","stream":"porch","from":0.5,"to":3}', "from"),
        ("x" * 20_000, "bytes"),
    ],
)
def test_wrong_query_is_refused_with_the_place(frame: str, expected: str) -> None:
    with pytest.raises(WireError, match=expected):
        decode_query([frame.encode()])


def test_encoded_query_is_decoded_again() -> None:
    audio = AudioQuery(stream="porch", start=0, stop=16_000)
    for query in (ReplayQuery(after=("b1", 5)), SnapshotQuery(), PingQuery(), audio):
        assert decode_query(query.encode()) == query


def test_replay_answers_are_distinguished() -> None:
    entry = {"topic": "event/bark/porch/", "body": BODY | {"previous": 0}}
    page = decode_replay([json_frame({"v": 1, "messages": [entry], "more": True})])
    assert isinstance(page, ReplayPage)
    assert (page.messages[0].position, page.more) == (("b1", 7), True)
    old = decode_replay([json_frame({"v": 1, "error": "too_old", "oldest": ["b1", 3]})])
    assert old == TooOld(("b1", 3))
    assert decode_replay([json_frame({"error": "too_old", "oldest": None})]) == TooOld(None)
    with pytest.raises(WireError, match="no event log"):
        decode_replay([json_frame({"error": "no event log"})])
    with pytest.raises(WireError, match="previous"):
        decode_replay([json_frame({"messages": [{"topic": "x/", "body": BODY}], "more": False})])


CONTENTS: tuple[Content, ...] = (
    event_message(),
    event_message(
        type="end",
        labels={"room": "porch"},
        index=74,
        mean=0.5,
        offset_ns=T0_NS + 10**9,
        duration_s=1.0,
        duration_reliable=False,
        uncertainty_s=0.25,
        offset_sample=16_000,
        reason="quiet",
        scored_ns=T0_NS,
        model="sha256:00",
    ),
    gap_message(time_ns=T0_NS),
    scores_header(),
    health(epoch="aaaaaaaa", audio_s=1.0, level_dbfs=-42.0, lag_s=0.3, hop_s=0.5, open_events=1),
    worker_status(lag_s=0.3, disk="full", counters={"windows": 7}),
    alerts_status(failing=[FAILING], pending_by_action={"p": 1}),
    recorder_status(disk="full"),
    forward_status(),
    alert(),
)


@pytest.mark.parametrize("content", CONTENTS, ids=lambda content: content.topic)
def test_content_comes_back_as_it_was_published(content: Content) -> None:
    stamp = Stamp("b1", 7, Moment(T0_NS, 5), previous=3)
    message = FeedMessage.decode(FeedMessage.of(content, stamp).encode())
    stamped = {"published_ns": T0_NS, "monotonic_ns": 5, "clock": CLOCK_ID}
    assert message.content() == content.model_copy(update=stamped)
    assert message.content().published == stamp.published
    assert (message.position, message.position_before) == (("b1", 7), ("b1", 3))


def test_stamp_of_a_status_says_where_the_durable_messages_are() -> None:
    message = FeedMessage.of(health(), Stamp("b1", 7, Moment(T0_NS, 5), durable_seq=3))
    assert message.position_before == ("b1", 3)
    assert not message.is_durable


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"id": 5}, "id: "),
        ({"type": "start"}, "type: "),
        ({"peak": "0.9"}, "peak: "),
        ({"onset": 1_700_000_000}, "onset: "),
        ({"onset": "yesterday"}, "onset: "),
        ({"captured": None}, "captured: "),
        ({"labels": {"floor": 3}}, "labels.floor: "),
        ({"at_sample": 1.5}, "at_sample: "),
    ],
)
def test_wrong_value_in_an_event_is_named(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(WireError, match=complaint):
        EventMessage.from_json(event_message().to_json() | changes)


def test_python_names_of_fields_are_no_keys_of_the_wire() -> None:
    body = event_message().to_json()
    body["onset_ns"] = body.pop("onset")
    with pytest.raises(WireError, match="onset: Field required"):
        EventMessage.from_json(body)


def test_event_written_by_hand_needs_few_fields_and_is_as_good_as_its_peak() -> None:
    keys = ("id", "type", "stream", "class", "label", "peak", "onset", "captured")
    body = {key: value for key, value in event_message().to_json().items() if key in keys}
    event = EventMessage.from_json(body)
    assert event.score == event.peak == 0.9
    assert event.at_sample is None


def test_halves_of_characters_become_question_marks() -> None:
    event = EventMessage.from_json(event_message().to_json() | {"label": "B\ud800rk"})
    assert event.label == "B?rk"


def test_topic_of_another_version_has_no_content_that_is_known() -> None:
    with pytest.raises(WireError, match="topic is not known"):
        FeedMessage("weather/porch/", BODY).content()


def test_answers_come_back_as_they_were_given() -> None:
    ping = PingAnswer(boot="b1", started_ns=T0_NS, durable_seq=7)
    assert PingAnswer.decode(ping.encode()) == ping
    snapshot = Snapshot(
        boot="b1", streams=[health()], events=[event_message()], status=worker_status()
    )
    assert Snapshot.decode(snapshot.encode()) == snapshot
    block = AudioBlock("porch", "aaaaaaaa", 16_000, Moment(T0_NS, 5), np.arange(5, dtype=np.int16))
    answer = AudioAnswer.decode(AudioAnswer(block, "b1").encode())
    assert vars(answer.block) | {"pcm": None} == vars(block) | {"pcm": None}
    np.testing.assert_array_equal(answer.block.pcm, block.pcm)
    assert TooOld(("b1", 3)) == decode_replay(TooOld(("b1", 3)).encode())
    with pytest.raises(WireError, match="no event log"):
        PingAnswer.decode(refuse_query("no event log"))


def test_spectrogram_comes_back_as_it_was_published_and_no_other_length_is_taken() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(2, 128)
    stamp = Stamp("b1", 9, Moment(T0_NS, 1))
    frames = FeedMessage.of(spectrogram_header(), stamp, spectrogram=levels).encode()
    again = FeedMessage.decode(frames)
    assert again.spectrogram is not None
    assert (again.spectrogram == levels).all()
    assert again.scores is None
    assert again.content() == SpectrogramHeader.from_json(again.body, "header")
    for payload in (b"", frames[2][:-1], frames[2] + b"\0"):
        with pytest.raises(
            WireError, match=r"spectrogram/porch/.*expected 256 bytes of levels, got"
        ):
            FeedMessage.decode([*frames[:2], payload])
    for key, wrong in (("frames", 0), ("frames", 10**9), ("mels", "128"), ("mels", None)):
        body = json.dumps(again.body | {key: wrong}).encode()
        with pytest.raises(WireError, match=f"spectrogram/porch/.*{key}"):
            FeedMessage.decode([frames[0], body, frames[2]])


def test_levels_of_a_spectrogram_are_half_decibels_from_its_floor() -> None:
    db = np.array([-200.0, -69.2, -10.0, 0.0, 57.4, 90.0], np.float32)
    levels = spectrogram_levels(db * np.float32(np.log(10) / 10))
    assert levels.tolist() == [1, 2, 120, 140, 255, 255]
    assert (LOW_DB + STEP_DB * 140, LOW_DB + STEP_DB * 120) == (0.0, -10.0)
