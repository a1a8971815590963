from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ast_stream.errors import WireError
from ast_stream.machine_clock import Moment
from ast_stream.messages.audio import (
    MAX_BLOCK_SAMPLES,
    MAX_DETAIL_CHARACTERS,
    MAX_REASON_CHARACTERS,
    AckRequest,
    AudioBlock,
    OpusPacket,
    OpusPackets,
    Pcm16,
    ReadRequest,
    RingRefusal,
    RingReply,
    decode_ring_request,
)
from ast_stream.messages.codec import (
    MAX_HEADER_BYTES,
    MAX_SAMPLE_INDEX,
    decode_json,
    encode_json,
)
from ast_stream.sample_clock import SampleClock
from ast_stream.units import MAX_TIME_NS, parse_time

EPOCH = "9f2c4e1a"
RING = "ipc:///run/ast-stream/ring.porch.sock"
HEADER = (
    b'{"v":1,"epoch":"9f2c4e1a","start":483200,"rate":16000,"samples":3,'
    b'"time":"2026-11-20T10:00:30.200000Z","monotonic_ns":7000000,"ring":"ipc:///run/ast-stream/ring.porch.sock"}'
)
PCM = b"\x01\x00\xff\xff\x00\x80"

epochs = st.text("0123456789abcdef", min_size=8, max_size=64)
names = st.from_regex(r"\A[a-z0-9][a-z0-9-]{0,62}\Z")
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=10,
)


def make_block(**changes: Any) -> AudioBlock:
    facts: dict[str, Any] = {
        "stream": "porch",
        "epoch": EPOCH,
        "start_sample": 483_200,
        "moment": Moment(parse_time("2026-11-20T10:00:30.2Z"), 7_000_000),
        "pcm": np.array([1, -1, -32768], np.int16),
        "ring": RING,
    }
    return AudioBlock(**(facts | changes))


@st.composite
def blocks(draw: st.DrawFn) -> AudioBlock:
    samples = draw(st.lists(st.integers(-32768, 32767), max_size=20))
    return make_block(
        stream=draw(names),
        epoch=draw(epochs),
        start_sample=draw(st.integers(0, MAX_SAMPLE_INDEX)),
        moment=Moment(
            draw(st.integers(0, MAX_TIME_NS // 1000)) * 1000, draw(st.integers(0, MAX_TIME_NS))
        ),
        pcm=np.array(samples, np.int16),
        ring=draw(st.none() | st.just(RING) | st.just("tcp://127.0.0.1:7000")),
        gap_reason=draw(st.none() | st.text(max_size=MAX_REASON_CHARACTERS)),
        is_last=draw(st.booleans()),
    )


def facts_of(block: AudioBlock) -> dict[str, Any]:
    return vars(block) | {"pcm": block.pcm.tolist()}


def header_with(**changes: Any) -> list[bytes]:
    return [b"porch", json.dumps(json.loads(HEADER) | changes).encode(), PCM]


def test_audio_block_has_these_exact_bytes() -> None:
    assert make_block().encode() == [b"porch", HEADER, PCM]


def test_audio_block_after_a_gap_and_at_the_end_says_so() -> None:
    header = make_block(gap_reason="overflow", is_last=True).encode()[1]
    assert header == HEADER[:-1] + b',"gap":"overflow","last":true}'


def test_ring_requests_have_these_exact_bytes() -> None:
    read = ReadRequest(v=1, op="read", stream="porch", epoch=None, start=480_000, stop=483_200)
    assert read.encode() == [
        b'{"v":1,"op":"read","stream":"porch","epoch":null,"start":480000,"stop":483200}'
    ]
    ack = AckRequest(v=1, op="ack", epoch=EPOCH, stop=483_200)
    assert ack.encode() == [b'{"v":1,"op":"ack","epoch":"9f2c4e1a","stop":483200}']


def test_ring_reply_has_these_exact_bytes() -> None:
    reply = RingReply(make_block(), oldest=480_000, next=500_000, acked=483_200)
    assert reply.encode() == [
        HEADER[:-1] + b',"stream":"porch","oldest":480000,"next":500000,"acked":483200,'
        b'"state":"listening","detail":null}',
        PCM,
    ]


def test_refusal_has_these_exact_bytes() -> None:
    assert RingRefusal.wrong_epoch(EPOCH, 7, 9).encode() == [
        b'{"v":1,"error":"wrong_epoch","epoch":"9f2c4e1a","oldest":7,"next":9}'
    ]
    assert RingRefusal.wrong_stream("yard").encode() == [
        b'{"v":1,"error":"wrong_stream","stream":"yard"}'
    ]
    assert RingRefusal.malformed("v: missing").encode() == [
        b'{"v":1,"error":"malformed","detail":"v: missing"}'
    ]


@given(blocks())
def test_audio_block_comes_back_as_it_was_sent(block: AudioBlock) -> None:
    assert facts_of(AudioBlock.decode(block.encode())) == facts_of(block)


@given(
    block=blocks(),
    index=st.integers(0, MAX_SAMPLE_INDEX),
    detail=st.none() | st.text(max_size=MAX_DETAIL_CHARACTERS),
)
def test_ring_reply_comes_back_as_it_was_sent(
    block: AudioBlock, index: int, detail: str | None
) -> None:
    reply = RingReply(block, oldest=index, next=index, acked=index, state="missing", detail=detail)
    back = RingReply.decode(reply.encode(), block.stream)
    assert facts_of(back.block) == facts_of(replace(block, state="missing", detail=detail))
    assert vars(back) | {"block": None} == vars(reply) | {"block": None}


@given(epoch=epochs, index=st.integers(0, MAX_SAMPLE_INDEX), start=st.none() | st.just(5))
def test_ring_requests_come_back_as_they_were_sent(
    epoch: str, index: int, start: int | None
) -> None:
    for request in (
        ReadRequest(v=1, op="read", stream="porch", epoch=epoch, start=start, stop=index),
        AckRequest(v=1, op="ack", epoch=epoch, stop=index),
    ):
        assert decode_ring_request(request.encode()) == request


def test_long_texts_are_cut_so_that_the_audio_with_them_is_accepted() -> None:
    block = make_block(gap_reason="x" * 1000)
    reply = RingReply(block, oldest=0, next=0, acked=0, state="missing", detail="y" * 10_000)
    back = RingReply.decode(reply.encode(), "porch")
    assert back.block.gap_reason == "x" * MAX_REASON_CHARACTERS
    assert back.detail == "y" * MAX_DETAIL_CHARACTERS


def test_keys_of_a_newer_writer_are_ignored() -> None:
    assert AudioBlock.decode(header_with(loudness=3)).start_sample == 483_200


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"v": 2}, "v: "),
        ({"v": None}, "v: "),
        ({"epoch": "xyz"}, "epoch: "),
        ({"epoch": EPOCH + "\n"}, "epoch: "),
        ({"start": -1}, "start: "),
        ({"start": 1.5}, "start: "),
        ({"start": "483200"}, "start: "),
        ({"start": True}, "start: "),
        ({"start": MAX_SAMPLE_INDEX + 1}, "start: "),
        ({"start": float("nan")}, "NaN"),
        ({"start": float("inf")}, "Infinity"),
        ({"rate": 48_000}, "rate: "),
        ({"samples": 4}, "expected 8 bytes of PCM for 4 samples, got 6"),
        ({"samples": 2}, "expected 4 bytes"),
        ({"samples": MAX_BLOCK_SAMPLES + 1}, "samples: "),
        ({"samples": 10**30}, "samples: "),
        ({"time": "yesterday"}, "time: "),
        ({"time": "2026-11-20T10:00:30"}, "offset from UTC"),
        ({"time": "9999-12-31T23:59:59Z"}, "1970 to 2200"),
        ({"time": "0001-01-01T00:00:00+23:59"}, "time: "),
        ({"time": 5}, "time: "),
        ({"ring": "tcp://192.0.2.1:5000"}, "ring: "),
        ({"ring": "nonsense"}, "ring: "),
        ({"ring": "ipc:///" + "x" * 200}, "ring: "),
        ({"ring": "ipc:///\ud800"}, "ring: "),
        ({"gap": "x" * 65}, "gap: "),
        ({"last": 1}, "last: "),
    ],
)
def test_wrong_value_in_a_block_header_is_named(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(WireError, match=complaint):
        AudioBlock.decode(header_with(**changes))


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff\xfe",
        '{"v":1}'.encode("utf-16"),
        b'{"v":1e999}',
        b'{"v":-Infinity}',
        b'{"v":' + b"1" * 5000 + b"}",
        b"[" * 10_000,
        b'{"v":' * 2000,
        b" " * (MAX_HEADER_BYTES + 1),
    ],
    ids=lambda frame: repr(frame[:12]),
)
def test_frame_that_is_no_json_object_is_refused(frame: bytes) -> None:
    with pytest.raises(WireError, match="header: "):
        decode_json(frame, "header")


@pytest.mark.parametrize("name", [b"", b"Porch", b"a/b", b"\xff", b"x" * 64, b"porch\n"])
def test_wrong_stream_name_is_refused(name: bytes) -> None:
    with pytest.raises(WireError, match="stream name"):
        AudioBlock.decode([name, HEADER, PCM])


@pytest.mark.parametrize("n_frames", [0, 1, 2, 4])
def test_wrong_number_of_frames_is_refused(n_frames: int) -> None:
    with pytest.raises(WireError, match="frames"):
        AudioBlock.decode([b"porch", HEADER, PCM, b""][:n_frames])


def test_refusal_of_a_ring_is_reported_in_one_short_line() -> None:
    with pytest.raises(WireError, match="ring of porch refused: 'wrong_stream'"):
        RingReply.decode(RingRefusal.wrong_stream("yard").encode(), "porch")
    with pytest.raises(WireError, match="ring of porch refused: ") as caught:
        RingReply.decode([b'{"error":"' + b"\\ud800\\n" * 500 + b'"}'], "porch")
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()


def test_error_about_a_hostile_frame_stays_one_short_printable_line() -> None:
    with pytest.raises(WireError, match="header") as caught:
        decode_json(b"\x1b[2J\n" * 1000, "header")
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


@given(frames=st.lists(st.binary(max_size=60), max_size=4))
def test_random_frames_raise_only_wire_errors(frames: list[bytes]) -> None:
    assert all(problem.isprintable() for problem in problems_of_decoding(frames))


@pytest.mark.slow
@given(
    header=st.fixed_dictionaries(
        {},
        optional={
            key: json_values
            for key in [*json.loads(HEADER), "gap", "last", "op", "stream", "stop", "oldest"]
        },
    ),
    keep=st.booleans(),
)
def test_headers_with_random_values_raise_only_wire_errors(
    header: dict[str, Any], keep: bool
) -> None:
    body = json.dumps(json.loads(HEADER) | header if keep else header).encode()
    assert all(problem.isprintable() for problem in problems_of_decoding([b"porch", body, PCM]))


def problems_of_decoding(frames: list[bytes]) -> list[str]:
    """Decode `frames` as every message that has this form; return the problems by their text."""
    problems = []
    attempts = [
        lambda: AudioBlock.decode(frames),
        lambda: RingReply.decode(frames[1:], "porch"),
        lambda: decode_ring_request(frames[1:2]),
    ]
    for attempt in attempts:
        try:
            attempt()
        except WireError as error:
            problems.append(str(error))
    return problems


def test_our_own_nan_is_a_bug_and_not_sent() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        encode_json({"level": float("nan")})


def test_block_of_another_machine_has_its_times_by_the_clocks_of_this_one() -> None:
    captured = Moment(1_795_000_000 * 10**9, 5)  # just after the boot of a box
    block = AudioBlock("porch", "ab" * 8, 0, captured, np.zeros(2, np.int16), clock="of the box")
    decoded = AudioBlock.decode(block.encode())
    assert decoded.clock == "of the box"
    now = Moment(captured.wall_ns + 10**8, 40 * 86_400 * 10**9)  # a worker that runs for weeks
    moved = decoded.by_clock_of(now)
    assert moved.clock is None
    assert moved.moment == Moment(captured.wall_ns, now.monotonic_ns - 10**8)
    clock = SampleClock()
    clock.observe(0, moved.moment)
    assert clock.time_ns(0, now) == captured.wall_ns


def opus_block(start: int, run: int, samples: int, n_packets: int) -> AudioBlock:
    packets = tuple(OpusPacket(bytes([184, n]), n - 2) for n in range(n_packets))
    opus = OpusPackets(run, packets, 0x12345678)
    return AudioBlock(
        "porch", "ab" * 8, start, Moment(1_795_000_000 * 10**9, 5), ramp(samples), opus=opus
    )


def ramp(samples: int) -> Pcm16:
    return np.arange(samples, dtype=np.int16)


def test_block_of_opus_has_its_packets_in_the_third_frame() -> None:
    block = opus_block(1_600, 960, 640, 2)
    _, header, sound = block.encode()
    said = {"codec": "opus", "run": 960, "crc": 0x12345678}
    assert said.items() <= json.loads(header).items()
    assert sound == b"\x02\x00\xfe\xb8\x00" + b"\x02\x00\xff\xb8\x01"
    decoded = AudioBlock.decode(block.encode())
    assert decoded.opus == block.opus
    assert decoded.end_sample == block.end_sample
    assert not decoded.pcm.any()  # until somebody decodes it


def test_first_block_of_a_run_has_one_packet_more_and_the_last_may_be_short() -> None:
    for block in (opus_block(960, 960, 320, 2), opus_block(1_280, 960, 330, 2)):
        assert AudioBlock.decode(block.encode()).opus == block.opus


@pytest.mark.parametrize(
    ("block", "changes", "fault"),
    [
        (opus_block(1_280, 960, 640, 1), {}, "expected 2 packets"),
        (opus_block(1_280, 960, 640, 3), {}, "expected 2 packets"),
        (opus_block(1_281, 960, 640, 2), {}, "whole packets"),
        (opus_block(640, 960, 640, 2), {}, "whole packets"),
        (opus_block(1_280, 960, 0, 0), {}, "run, crc and samples"),
        (opus_block(1_280, 960, 640, 2), {"run": None}, "run, crc and samples"),
        (opus_block(1_280, 960, 640, 2), {"crc": 2**32}, "crc"),
        (opus_block(1_280, 960, 640, 2), {"codec": "mp3"}, "codec"),
    ],
)
def test_block_of_opus_that_contradicts_itself_is_refused(
    block: AudioBlock, changes: dict[str, object], fault: str
) -> None:
    stream, header, sound = block.encode()
    frames = [stream, json.dumps(json.loads(header) | changes).encode(), sound]
    with pytest.raises(WireError, match=fault):
        AudioBlock.decode(frames)


@pytest.mark.parametrize("sound", [b"", b"\x02", b"\x02\x00\x00\xb8", b"\x00\x00\x00", b"\xff" * 9])
def test_packets_that_are_cut_or_too_long_are_refused(sound: bytes) -> None:
    stream, header, _ = opus_block(1_280, 960, 320, 1).encode()
    with pytest.raises(WireError, match="packets"):
        AudioBlock.decode([stream, header, sound])
