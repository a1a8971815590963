"""The capture process on a real (virtual) microphone, through PortAudio: exact, and never lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from capture_process import LIMIT_S, CaptureProcess, capture_process
from virtual_mic import VirtualMic, virtual_mic

from ast_stream.messages.audio import Pcm16
from ast_stream.units import SAMPLE_RATE

pytestmark = pytest.mark.virtual_mic

MICROPHONE = {"type": "microphone", "device": "default"}
GAP_TOLERANCE = SAMPLE_RATE // 2  # samples: two blocks, and what the sound server holds


@pytest.fixture
def capture() -> Iterator[CaptureProcess]:
    with capture_process(MICROPHONE) as process:
        yield process


def noise(seconds: float, seed: int = 0) -> Pcm16:
    generator = np.random.default_rng(seed)
    return generator.integers(1, 20_000, round(seconds * SAMPLE_RATE)).astype(np.int16)


def read_from(capture: CaptureProcess, start: int) -> Pcm16:
    """Return everything from `start` to the first hole or to now."""
    pieces: list[Pcm16] = []
    while len(piece := capture.read(start=start).block.pcm):
        pieces.append(piece)
        start += len(piece)
    return np.concatenate(pieces)


def without_silence(pcm: Pcm16, played: Pcm16) -> Pcm16:
    """Return what was recorded from the first sample that is not silence."""
    first = int(np.flatnonzero(pcm)[0])
    return pcm[first : first + len(played)]


def test_captured_pcm_is_what_was_played_bit_for_bit_live_and_from_the_ring(
    mic: VirtualMic, capture: CaptureProcess
) -> None:
    capture.listen()
    capture.start(mic.environment)
    first = capture.next_block()
    assert (first.start_sample, first.gap_reason, len(first.pcm)) == (0, None, 1_600)
    played = noise(2.0)
    mic.play(played)
    live, cursor = [first.pcm], first.end_sample
    while np.count_nonzero(np.concatenate(live)) < len(played):
        block = capture.next_block()
        assert block.start_sample == cursor
        live.append(block.pcm)
        cursor = block.end_sample
    np.testing.assert_array_equal(without_silence(np.concatenate(live), played), played)
    np.testing.assert_array_equal(without_silence(read_from(capture, 0), played), played)
    assert capture.terminate() == 0


def test_an_unplugged_device_is_missing_and_comes_back_behind_a_gap(
    mic: VirtualMic, capture: CaptureProcess
) -> None:
    capture.start(mic.environment)
    capture.wait_for_state("listening")
    mic.unplug()
    missing = capture.wait_for_state("missing")
    mic.plug()
    capture.wait_for_state("listening")
    after = capture.read(start=missing.next).block
    assert after.gap_reason == "device_lost"
    assert (after.start_sample - missing.next) % 160 == 0
    before = capture.read(start=0).block
    elapsed_ns = after.moment.wall_ns - before.moment.wall_ns
    assert after.start_sample == pytest.approx(elapsed_ns * SAMPLE_RATE / 1e9, abs=GAP_TOLERANCE)
    played = noise(1.0, seed=1)
    mic.play(played)
    again = capture.wait_for(lambda reply: reply.next > after.start_sample + 2 * SAMPLE_RATE)
    recorded = read_from(capture, after.start_sample)
    assert again.state == "listening"
    np.testing.assert_array_equal(without_silence(recorded, played), played)


def test_a_device_that_falls_silent_is_missing_and_comes_back(
    mic: VirtualMic, capture: CaptureProcess
) -> None:
    capture.start(mic.environment)
    capture.wait_for_state("listening")
    mic.suspend(True)
    missing = capture.wait_for_state("missing")
    assert missing.detail is not None
    mic.suspend(False)
    capture.wait_for_state("listening")
    assert capture.read(start=missing.next).block.gap_reason == "stalled"


def test_a_sound_server_that_comes_after_us_is_found(capture: CaptureProcess) -> None:
    with virtual_mic(started=False) as late:
        capture.start(late.environment)
        missing = capture.wait_for(lambda reply: "not there" in (reply.detail or ""))
        assert (missing.state, missing.next) == ("missing", 0)
        late.start()
        capture.wait_for_state("listening")
        first = capture.read(start=0).block
        assert first.gap_reason == "device_absent"
        assert first.start_sample > 0


def test_a_sound_server_that_is_restarted_is_found_again(
    mic: VirtualMic, capture: CaptureProcess
) -> None:
    capture.start(mic.environment)
    capture.wait_for_state("listening")
    mic.stop()
    missing = capture.wait_for_state("missing")
    mic.start()
    capture.wait_for_state("listening")
    assert capture.read(start=missing.next).block.gap_reason == "device_lost"


def test_a_sound_server_that_hangs_ends_the_process_for_a_new_one(
    mic: VirtualMic, capture: CaptureProcess
) -> None:
    capture.start(mic.environment)
    capture.wait_for_state("listening")
    mic.freeze()
    missing = capture.wait_for(lambda reply: "no answer" in (reply.detail or ""))
    assert missing.state == "missing"
    held = read_from(capture, 0)
    assert len(held) == missing.next
    capture.ack(missing.block.epoch, missing.next)
    assert capture.wait_exit() == 75
    assert "Traceback" not in capture.log


def test_a_process_is_stopped_cleanly_while_the_sound_server_hangs(
    mic: VirtualMic, capture: CaptureProcess
) -> None:
    capture.start(mic.environment)
    capture.wait_for_state("listening")
    mic.freeze()
    assert capture.terminate() == 0


def test_one_channel_of_an_array_is_captured_bit_for_bit() -> None:
    generator = np.random.default_rng(4)
    played = generator.integers(1, 20_000, (2 * SAMPLE_RATE, 6)).astype(np.int16)
    source = MICROPHONE | {"channels": 6, "channel": 4}
    with virtual_mic(channels=6) as array, capture_process(source) as capture:
        capture.start(array.environment)
        capture.wait_for_state("listening")
        array.play(played)
        capture.wait_for(lambda reply: bool(np.count_nonzero(read_from(capture, 0)) >= len(played)))
        recorded = without_silence(read_from(capture, 0), played[:, 4])
        np.testing.assert_array_equal(recorded, played[:, 4])


def test_a_microphone_that_gives_zeros_alone_is_degraded_until_there_is_sound(
    mic: VirtualMic, capture: CaptureProcess
) -> None:
    capture.start(mic.environment)
    degraded = capture.wait_for_state("degraded")
    assert degraded.detail is not None
    assert degraded.detail.startswith("digital silence for 10 s: muted, unplugged, or channels")
    assert "no sound of a room: digital silence" in capture.log
    playing = threading.Thread(target=mic.play, args=(noise(3.0),))
    playing.start()
    capture.wait_for_state("listening")
    playing.join()


def test_every_sample_counts_under_a_busy_reader(mic: VirtualMic, capture: CaptureProcess) -> None:
    capture.start(mic.environment)
    capture.wait_for_state("listening")
    played = noise(1.5, seed=2)
    playing = threading.Thread(target=mic.play, args=(played,))
    playing.start()
    while playing.is_alive():
        capture.read(start=0)
    capture.wait_for(lambda reply: np.count_nonzero(read_from(capture, 0)) == len(played))
    np.testing.assert_array_equal(without_silence(read_from(capture, 0), played), played)


def test_devices_names_what_can_be_recorded_from(mic: VirtualMic) -> None:
    command = [sys.executable, "-m", "ast_stream.cli", "devices"]
    environment = {**os.environ, **mic.environment}
    as_json = subprocess.run(
        [*command, "--json"], env=environment, capture_output=True, timeout=LIMIT_S, check=True
    )
    found = [json.loads(line) for line in as_json.stdout.splitlines()]
    assert "default" in [device["stable"] for device in found]
    assert [device["is_default"] for device in found].count(True) == 1
    table = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=True
    ).stdout
    assert "default" in table
    assert "source: {type: microphone, device:" in table
