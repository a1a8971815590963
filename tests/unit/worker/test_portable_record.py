"""The journal record that a worker gives away is whole, bounded and of its model, or not used."""

from __future__ import annotations

import warnings
import zlib

import pytest

from ast_stream.detect.state import ClassState, DetectorState
from ast_stream.errors import WireError
from ast_stream.machine_clock import CLOCK_ID, Moment
from ast_stream.units import NS_PER_SECOND
from ast_stream.worker.journal import StreamRecord, decode_record, encode_record

NOW = Moment(1_700_000_000 * NS_PER_SECOND, 50 * NS_PER_SECOND)
STARTED_NS = NOW.wall_ns - 10 * NS_PER_SECOND
RECORD = StreamRecord(
    epoch="a" * 32,
    detector=DetectorState(position=32_000, context_start=0, first_scored=16_000, classes={}),
    clock=[(0, STARTED_NS, 7 * NS_PER_SECOND)],
)


def test_a_record_comes_back_as_it_was() -> None:
    content = encode_record("porch", RECORD, "model/1")
    assert decode_record(content, "porch", "model/1", 3, NOW) == RECORD


def test_a_record_of_another_model_is_not_used() -> None:
    content = encode_record("porch", RECORD, "model/1")
    assert decode_record(content, "porch", "model/2", 3, NOW) is None


def test_a_record_of_another_machine_gets_the_clock_of_this_one() -> None:
    line = zlib.decompress(encode_record("porch", RECORD, "m"))
    from ast_stream.messages.codec import add_checksum

    other = line.rstrip(b"\n").replace(CLOCK_ID.encode(), b"another")
    content = zlib.compress(add_checksum(b"{" + other.split(b",", 1)[1]))
    found = decode_record(content, "porch", "m", 3, NOW)
    assert found is not None
    assert found.clock == [(0, STARTED_NS, 40 * NS_PER_SECOND)]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nonsense",
        encode_record("porch", RECORD, "m")[:-9],
        zlib.compress(b"{}\n"),
        zlib.compress(b" " * 100_000_000),
        encode_record("yard", RECORD, "m"),
    ],
)
def test_a_damaged_record_is_refused(content: bytes) -> None:
    with pytest.raises(WireError, match="stream porch: journal record: "):
        decode_record(content, "porch", "m", 3, NOW)


def test_a_record_of_an_onset_that_no_sound_has_is_refused() -> None:
    known = RECORD.model_dump()
    state = ClassState(average=0.5).model_dump() | {"uncertainty_s": 2.0**53}
    known["detector"]["classes"] = {0: state}
    forged = StreamRecord.model_construct(
        epoch=RECORD.epoch, detector=known["detector"], clock=RECORD.clock
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is no state
        content = encode_record("porch", forged, "m")
    with pytest.raises(WireError, match="stream porch: journal record: "):
        decode_record(content, "porch", "m", 3, NOW)
