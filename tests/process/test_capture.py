"""The capture process over its real sockets, on sources that need no sound card."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from capture_process import LIMIT_S, capture_process
from ports import free_ports
from sound_server import http_server, muxed, paced

from ast_stream.audio.pcm import Resampler
from ast_stream.messages.audio import Pcm16, ReadRequest
from ast_stream.units import SAMPLE_RATE


def write_noise(path: Path, seconds: float, seed: int = 0) -> Pcm16:
    generator = np.random.default_rng(seed)
    pcm = generator.integers(-20_000, 20_000, round(seconds * SAMPLE_RATE)).astype(np.int16)
    soundfile.write(path, pcm, SAMPLE_RATE)
    return pcm


def fast_file(path: Path) -> dict[str, object]:
    return {"type": "file", "path": str(path), "pace": "fast"}


def test_a_recording_reaches_the_worker_whole_and_the_process_ends(tmp_path: Path) -> None:
    pcm = write_noise(tmp_path / "a.wav", 7.3)
    with capture_process(fast_file(tmp_path / "a.wav")) as capture:
        capture.listen()
        capture.start()
        capture.read(stop=0)  # a worker asks before it acknowledges
        received: list[Pcm16] = []
        while True:
            block = capture.next_block()
            assert block.start_sample == sum(map(len, received))
            received.append(block.pcm)
            capture.ack(block.epoch, block.end_sample)
            if block.is_last:
                break
        np.testing.assert_array_equal(np.concatenate(received), pcm)
        assert capture.read(start=len(pcm)).block.is_last  # a worker asks before it believes it
        assert capture.wait_exit() == 0


def test_a_recording_longer_than_the_ring_waits_for_a_worker_that_comes_late(
    tmp_path: Path,
) -> None:
    pcm = write_noise(tmp_path / "a.wav", 25.0)
    with capture_process(fast_file(tmp_path / "a.wav"), ring_s=10.0) as capture:
        capture.start()
        quarter = round(2.5 * SAMPLE_RATE)
        held = capture.wait_for(lambda reply: reply.next > quarter)
        assert held.next <= quarter + SAMPLE_RATE
        received, end = capture.read_all()
        np.testing.assert_array_equal(received, pcm)
        assert end.state == "ended"
        assert capture.wait_exit() == 0


def test_other_rates_and_channels_are_resampled_once(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    pcm = generator.integers(-20_000, 20_000, (44_100, 2)).astype(np.int16)
    soundfile.write(tmp_path / "a.flac", pcm, 44_100)
    resampler = Resampler(44_100)
    expected = np.concatenate([resampler.push(pcm), resampler.flush()])
    with capture_process(fast_file(tmp_path / "a.flac")) as capture:
        capture.start()
        received, _ = capture.read_all()
    np.testing.assert_array_equal(received, expected)


def test_what_a_killed_worker_missed_is_in_the_ring(tmp_path: Path) -> None:
    pcm = write_noise(tmp_path / "a.wav", 6.0)  # longer than a worker takes to come back
    source = {"type": "file", "path": str(tmp_path / "a.wav"), "pace": "realtime"}
    with capture_process(source) as capture:
        capture.listen()
        capture.start()
        capture.read(stop=0)
        first = capture.next_block()
        capture.ack(first.epoch, first.end_sample)
        capture.stop_listening()
        capture.wait_for(lambda reply: reply.next > SAMPLE_RATE)
        capture.listen()
        later = capture.next_block()
        assert later.start_sample > first.end_sample
        assert later.gap_reason is None
        missed = capture.read(stop=later.start_sample)
        assert missed.block.start_sample == first.end_sample
        whole = np.concatenate([first.pcm, missed.block.pcm, later.pcm])
        np.testing.assert_array_equal(whole, pcm[: len(whole)])
        rest, _ = capture.read_all(start=later.end_sample)
        np.testing.assert_array_equal(rest, pcm[later.end_sample :])
        assert capture.wait_exit() == 0


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_ends_the_process_cleanly(tmp_path: Path, signal_number: int) -> None:
    write_noise(tmp_path / "a.wav", 1.0)
    source = {"type": "file", "path": str(tmp_path / "a.wav"), "loop": True}
    with capture_process(source) as capture:
        capture.start()
        capture.wait_for_state("listening")
        assert capture.terminate(signal_number) == 0
        assert "stopped:" in capture.log


def test_a_source_that_is_not_there_is_missing_until_it_comes(tmp_path: Path) -> None:
    with capture_process(fast_file(tmp_path / "a.wav")) as capture:
        capture.start()
        missing = capture.wait_for(lambda reply: reply.detail != "starting")
        assert missing.state == "missing"
        assert missing.detail is not None
        assert "No such file" in missing.detail
        pcm = write_noise(tmp_path / "ready.wav", 1.0)
        (tmp_path / "ready.wav").rename(tmp_path / "a.wav")
        received, end = capture.read_all()
        np.testing.assert_array_equal(received, pcm)
        assert end.block.gap_reason is None
        assert capture.log.count("trying again") == 1


def test_a_damaged_recording_gives_what_it_has_and_fails(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("this is no recording")
    with capture_process(fast_file(tmp_path / "a.wav")) as capture:
        capture.start()
        received, end = capture.read_all()
        assert len(received) == 0
        assert end.detail is not None
        assert "expected wav, flac, ogg or mp3" in end.detail
        assert capture.wait_exit() == 1
        assert "Traceback" not in capture.log


def test_after_a_kill_a_new_process_takes_the_endpoint_with_a_new_epoch(tmp_path: Path) -> None:
    write_noise(tmp_path / "a.wav", 1.0)
    source = {"type": "file", "path": str(tmp_path / "a.wav"), "loop": True}
    with capture_process(source) as capture:
        capture.start()
        before = capture.wait_for_state("listening").block.epoch
        assert capture.terminate(signal.SIGKILL) == -signal.SIGKILL
        capture.start()
        after = capture.wait_for(lambda reply: reply.block.epoch != before).block.epoch
        request = ReadRequest(v=1, op="read", stream="porch", epoch=before, start=0)
        (refusal,) = capture.ask(request.encode())
        assert json.loads(refusal)["error"] == "wrong_epoch"
        assert json.loads(refusal)["epoch"] == after


def test_a_second_process_for_the_same_stream_is_refused(tmp_path: Path) -> None:
    write_noise(tmp_path / "a.wav", 1.0)
    source = {"type": "file", "path": str(tmp_path / "a.wav"), "loop": True}
    with capture_process(source) as capture:
        capture.start()
        capture.wait_for_state("listening")
        second = subprocess.run(
            capture.command(), capture_output=True, text=True, check=False, timeout=LIMIT_S
        )
        assert second.returncode == 3
        assert "is in use by another process" in second.stderr
        assert "Traceback" not in second.stderr
        assert capture.read().state == "listening"


def test_an_unknown_stream_is_a_wrong_usage_with_a_near_name(tmp_path: Path) -> None:
    with capture_process(fast_file(tmp_path / "a.wav")) as capture:
        done = subprocess.run(
            capture.command("proch"), capture_output=True, text=True, check=False, timeout=LIMIT_S
        )
    assert done.returncode == 2
    assert "no stream 'proch'" in done.stderr
    assert "did you mean 'porch'?" in done.stderr


def test_garbage_on_the_ring_socket_is_answered_counted_and_forgotten(tmp_path: Path) -> None:
    write_noise(tmp_path / "a.wav", 1.0)
    source = {"type": "file", "path": str(tmp_path / "a.wav"), "loop": True}
    with capture_process(source) as capture:
        capture.start()
        generator = np.random.default_rng(5)
        for size in (0, 1, 60, 20_000):
            assert b"malformed" in capture.ask([generator.bytes(size)])[0]
        assert b"malformed" in capture.ask([b"", b'{"v":1,"op":"read","stream":"porch"}'])[0]
        assert capture.wait_for_state("listening").acked == 0
        assert capture.terminate() == 0
        assert capture.log.count("malformed request refused") == 1
        assert "5 malformed requests" in capture.log


def test_raw_pcm_on_standard_input_is_captured_to_its_last_whole_sample() -> None:
    pcm = np.random.default_rng(6).integers(-20_000, 20_000, 12_345).astype("<i2")
    with capture_process({"type": "stdin"}) as capture:
        capture.start(stdin=subprocess.PIPE)
        assert capture.process is not None
        assert capture.process.stdin is not None
        capture.process.stdin.write(pcm.tobytes() + b"\x7f")
        capture.process.stdin.close()
        received, _ = capture.read_all()
        np.testing.assert_array_equal(received, pcm)
        assert capture.wait_exit() == 0


def test_a_wav_on_standard_input_is_read_by_its_header(tmp_path: Path) -> None:
    pcm = np.random.default_rng(6).integers(-20_000, 20_000, (9_000, 2)).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", pcm, 16_000, subtype="PCM_24")
    with capture_process({"type": "stdin", "format": "wav", "channel": 1}) as capture:
        with (tmp_path / "a.wav").open("rb") as stdin:
            capture.start(stdin=stdin)
        received, _ = capture.read_all()
        np.testing.assert_array_equal(received, pcm[:, 1])
        assert capture.wait_exit() == 0


def test_a_wav_where_raw_pcm_is_expected_is_bad_configuration_in_one_sentence(
    tmp_path: Path,
) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(30 * SAMPLE_RATE), SAMPLE_RATE, subtype="PCM_24")
    with capture_process({"type": "stdin"}) as capture:
        with (tmp_path / "a.wav").open("rb") as stdin:
            capture.start(stdin=stdin)
        assert capture.wait_exit() == 78
        assert "standard input begins with RIFF: a WAV file" in capture.log
        assert "Traceback" not in capture.log


def test_a_wav_that_is_cut_short_gives_what_it_has_and_fails(tmp_path: Path) -> None:
    pcm = write_noise(tmp_path / "a.wav", 2.0)
    (tmp_path / "a.wav").write_bytes((tmp_path / "a.wav").read_bytes()[: 44 + 2 * SAMPLE_RATE])
    with capture_process({"type": "stdin", "format": "wav"}) as capture:
        with (tmp_path / "a.wav").open("rb") as stdin:
            capture.start(stdin=stdin)
        received, _ = capture.read_all()
        np.testing.assert_array_equal(received, pcm[:SAMPLE_RATE])
        assert capture.wait_exit() == 1
        assert "ended after 1.0 s: its WAV header says 2.0 s" in capture.log


def test_a_generated_scene_is_a_source_like_any_other() -> None:
    scene = {"type": "scene", "seed": 7, "duration_s": 6.0, "pace": "fast"}
    with capture_process(scene) as capture:
        capture.start()
        received, end = capture.read_all()
        assert len(received) == 6 * SAMPLE_RATE
        assert end.oldest == 0
        assert np.abs(received).max() > 0


def test_a_capture_process_never_loads_torch() -> None:
    modules = "ast_stream.capture.process, ast_stream.cli.devices"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_dead_server_of_a_network_stream_is_missing_and_leaves_a_gap(tmp_path: Path) -> None:
    write_noise(tmp_path / "a.wav", 30.0)
    port = free_ports()
    source = {
        "type": "url",
        "url": f"http://127.0.0.1:{port}/a.wav",
        "read_timeout_s": 1.0,
        "open_timeout_s": 5.0,
    }
    with capture_process(source) as capture:
        capture.start()
        capture.wait_for(lambda reply: "refused" in (reply.detail or ""))
        server = serve(tmp_path / "a.wav", port)
        reply = capture.wait_for_state("listening")
        assert reply.oldest > 0
        server.kill()
        server.wait()
        missing = capture.wait_for_state("missing")
        assert missing.detail is not None
        server = serve(tmp_path / "a.wav", port)
        capture.wait_for_state("listening")
        after = capture.read(start=missing.next)
        assert after.block.start_sample > missing.next
        assert after.block.gap_reason == "url_lost"
        assert capture.terminate() == 0
        server.kill()
        server.wait()


def test_sound_that_stops_while_video_goes_on_is_lost_and_reopened_by_the_process_itself() -> None:
    body = muxed((0.0, 3.0), 40.0)
    with http_server(paced(body, 20.0)) as url:
        source = {"type": "url", "url": url, "read_timeout_s": 1.0}
        with capture_process(source) as capture:
            capture.start()
            capture.wait_for_state("listening")
            missing = capture.wait_for(lambda reply: "although video" in (reply.detail or ""))
            assert missing.state == "missing"
            assert missing.detail is not None
            assert missing.detail.endswith("was lost: no sound for 1 s although video comes")
            capture.wait_for_state("listening")
            after = capture.read(start=missing.next)
            assert after.block.epoch == missing.block.epoch
            assert after.block.gap_reason == "url_lost"
            assert capture.terminate() == 0


def test_a_process_stops_cleanly_while_a_server_does_not_answer() -> None:
    asked, answer = threading.Event(), threading.Event()

    def say_nothing(handler: object) -> None:
        asked.set()
        answer.wait(LIMIT_S)

    with http_server(say_nothing) as url, capture_process({"type": "url", "url": url}) as capture:
        capture.start()
        assert asked.wait(LIMIT_S)
        assert capture.terminate() == 0
        assert "Traceback" not in capture.log
        answer.set()


def serve(path: Path, port: int) -> subprocess.Popen[bytes]:
    """Serve a recording in real time over HTTP, as a radio station does."""
    code = (
        "import sys, time, http.server\n"
        "data = open(sys.argv[1], 'rb').read()\n"
        "class Radio(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.end_headers()\n"
        "        self.wfile.write(data[:96000])\n"
        "        for at in range(96000, len(data), 3200):\n"
        "            time.sleep(0.1); self.wfile.write(data[at:at + 3200])\n"
        "    def log_message(self, *_): pass\n"
        "http.server.HTTPServer(('127.0.0.1', int(sys.argv[2])), Radio).serve_forever()\n"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(path), str(port)])
