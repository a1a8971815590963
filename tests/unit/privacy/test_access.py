"""Audio is handed out in one place, which refuses, and records both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from audit_lines import lines

from ast_stream.errors import WireError
from ast_stream.machine_clock import Moment
from ast_stream.messages.audio import AudioBlock
from ast_stream.messages.query import AudioAnswer
from ast_stream.privacy.access import SENSOR_REFUSAL, AudioAccess
from ast_stream.privacy.audit import AuditLog
from ast_stream.settings.schema import PrivacyMode
from ast_stream.transport.allow_list import ALL_RIGHTS, GROUP_RIGHTS
from ast_stream.transport.query import AudioRange
from ast_stream.transport.requester import NOBODY

OWNER = replace(NOBODY, name="process 1 of user 0", account="user 0", rights=ALL_RIGHTS)
MEMBER = replace(NOBODY, name="process 2 of user 7", account="user 7", rights=GROUP_RIGHTS)
WANTED = AudioRange("porch", None, 0, 1600, is_wall_time=False)


def held(wanted: AudioRange) -> AudioBlock:
    if wanted.stream != "porch":
        raise WireError(f"audio: no stream {wanted.stream}")
    return AudioBlock("porch", "ab" * 8, 0, Moment(0, 0), np.ones(1600, np.int16))


def speech(block: AudioBlock) -> list[tuple[int, int]]:
    return [(block.start_sample + 100, block.start_sample + 300)]


def audio_access(folder: Path, mode: PrivacyMode = "off") -> AudioAccess:
    return AudioAccess(mode, AuditLog(folder, max_bytes=4096), held, speech)


def test_what_is_handed_out_is_recorded(tmp_path: Path) -> None:
    released = audio_access(tmp_path).release(WANTED, OWNER)
    assert len(released.block.pcm) == 1600
    (line,) = lines(tmp_path)
    assert (line.who, line.outcome, line.samples) == ("process 1 of user 0", "granted", 1600)


def test_whoever_lacks_the_right_is_refused_and_recorded(tmp_path: Path) -> None:
    with pytest.raises(WireError, match="lacks the right 'audio'"):
        audio_access(tmp_path).release(WANTED, MEMBER)
    (line,) = lines(tmp_path)
    assert (line.account, line.outcome, line.samples) == ("user 7", "refused", 0)
    assert line.reason is not None
    assert "lacks the right" in line.reason


def test_unknown_streams_are_recorded_as_refused(tmp_path: Path) -> None:
    with pytest.raises(WireError, match="no stream attic"):
        audio_access(tmp_path).release(replace(WANTED, stream="attic"), OWNER)
    assert [line.stream for line in lines(tmp_path)] == ["attic"]


@pytest.mark.parametrize("requester", [OWNER, MEMBER, NOBODY])
def test_a_sensor_refuses_everybody_in_the_same_words(tmp_path: Path, requester: object) -> None:
    access = audio_access(tmp_path, "sensor")
    assert access.history_s == 0
    with pytest.raises(WireError) as refused:
        access.release(WANTED, requester)  # type: ignore[arg-type]
    assert str(refused.value) == SENSOR_REFUSAL
    assert [line.outcome for line in lines(tmp_path)] == ["refused"]


def test_times_are_recorded_as_they_were_asked(tmp_path: Path) -> None:
    wanted = AudioRange("porch", None, 10**18, 10**18 + 10**9, is_wall_time=True)
    audio_access(tmp_path).release(wanted, OWNER)
    assert lines(tmp_path)[0].start == "2001-09-09T01:46:40.000000Z"


def test_speech_is_replaced_by_silence_and_the_answer_says_where(tmp_path: Path) -> None:
    released = audio_access(tmp_path, "speech").release(WANTED, OWNER)
    assert released.withheld == [(100, 300)]
    assert not released.block.pcm[100:300].any()
    assert released.block.pcm[:100].all()
    assert released.block.pcm[300:].all()
    assert lines(tmp_path)[0].withheld == 200
    answer = AudioAnswer.decode(AudioAnswer(released.block, "b1", released.withheld).encode())
    assert answer.withheld == [(100, 300)]


def test_an_answer_without_protection_says_nothing_of_it(tmp_path: Path) -> None:
    released = audio_access(tmp_path).release(WANTED, OWNER)
    frames = AudioAnswer(released.block, "b1", released.withheld).encode()
    assert b"withheld" not in frames[0]
    assert AudioAnswer.decode(frames).withheld is None
