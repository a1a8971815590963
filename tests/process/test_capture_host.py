"""One capture process of several streams: what becomes of one source is no concern of another."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from capture_process import LIMIT_S, STREAM, CaptureProcess, capture_process
from ports import free_ports
from service_manager import ServiceManager, is_ready, service_manager

from ast_stream.capture import intake
from ast_stream.capture import stream as capture_stream
from ast_stream.capture.process import run_capture
from ast_stream.capture.sources.base import Source, SourceBlock
from ast_stream.messages.audio import Pcm16
from ast_stream.settings import streams
from ast_stream.settings.load import load_settings
from ast_stream.units import SAMPLE_RATE

Settings = dict[str, Any]


def write_noise(path: Path, seconds: float, seed: int = 0) -> Pcm16:
    generator = np.random.default_rng(seed)
    pcm = generator.integers(-20_000, 20_000, round(seconds * SAMPLE_RATE)).astype(np.int16)
    soundfile.write(path, pcm, SAMPLE_RATE)
    return pcm


def recording(path: Path, **options: object) -> Settings:
    return {"type": "file", "path": str(path), **options}


def looped(path: Path) -> Settings:
    return recording(path, loop=True)


def reload(process: CaptureProcess, change: Callable[[list[Settings]], list[Settings]]) -> None:
    """Give a process other streams, and wait until it has followed."""
    settings = json.loads(process.config.read_text())
    settings["streams"] = change(settings["streams"])
    process.config.write_text(json.dumps(settings))
    n_before = process.log.count("settings read again")
    assert process.process is not None
    process.process.send_signal(signal.SIGHUP)
    wait_for(lambda: process.log.count("settings read again") > n_before, process)


def wait_for(is_so: Callable[[], bool], process: CaptureProcess) -> None:
    end_s = time.monotonic() + LIMIT_S
    while not is_so():
        assert time.monotonic() < end_s, process.log
        time.sleep(0.02)


def test_recordings_of_one_process_arrive_whole_and_a_damaged_one_is_its_exit_code(
    tmp_path: Path,
) -> None:
    pcm = {name: write_noise(tmp_path / f"{name}.wav", 3.0 + seed, seed) for seed, name in
           enumerate(("porch", "b", "c"))}  # fmt: skip
    (tmp_path / "bad.wav").write_text("this is no recording")
    sources = {
        name: recording(tmp_path / f"{name}.wav", pace="fast")
        for name in ("porch", "b", "bad", "c")
    }
    with capture_process(sources.pop("porch"), others=sources) as process:
        process.start()
        for name in ("b", "porch", "bad", "c"):
            received, end = process.read_all(stream=name)
            if name in pcm:
                np.testing.assert_array_equal(received, pcm[name])
                assert end.detail is None
            else:
                assert len(received) == 0
                assert "expected wav, flac, ogg or mp3" in str(end.detail)
        assert process.wait_exit() == 1
        assert "capture bad: stopped: 0 samples" in process.log
        assert "Traceback" not in process.log
        assert not list(process.folder.glob("ended.*"))


def test_sources_that_are_not_there_do_not_hold_up_others_or_the_end(tmp_path: Path) -> None:
    write_noise(tmp_path / "a.wav", 1.0)
    others = {
        "dead": {"type": "url", "url": f"http://127.0.0.1:{free_ports()}/a.mp3"},
        "absent": recording(tmp_path / "absent.wav"),
        "short": recording(tmp_path / "a.wav"),
    }
    with capture_process(looped(tmp_path / "a.wav"), others=others) as process:
        process.start()
        process.wait_for(lambda reply: "refused" in (reply.detail or ""), "dead")
        process.wait_for(lambda reply: "No such file" in (reply.detail or ""), "absent")
        process.read_all(stream="short")
        wait_for(lambda: not (process.folder / "ring.short.sock").exists(), process)
        first = process.wait_for_state("listening")
        after = process.wait_for(lambda reply: reply.next > first.next + SAMPLE_RATE)
        assert after.block.epoch == first.block.epoch
        assert process.terminate() == 0
        assert "capture short: stopped: 16000 samples" in process.log


def test_a_recording_that_was_read_to_its_end_does_not_begin_again_after_a_kill(
    tmp_path: Path,
) -> None:
    write_noise(tmp_path / "a.wav", 1.0)
    others = {"short": recording(tmp_path / "a.wav", pace="fast")}
    with capture_process(looped(tmp_path / "a.wav"), others=others) as process:
        process.start()
        before = process.wait_for_state("listening").block.epoch
        process.read_all(stream="short")
        wait_for(lambda: (process.folder / "ended.short.json").exists(), process)
        process.terminate(signal.SIGKILL)
        process.start()
        process.wait_for(lambda reply: reply.block.epoch != before)
        assert "capture short: not started again: the source has already ended" in process.log
        assert not (process.folder / "ring.short.sock").exists()
        reload(process, lambda streams: [*streams[:1], {**streams[1], "ring_s": 61.0}])
        process.read_all(stream="short")  # what was changed is another source
        assert process.terminate() == 0
        process.start()  # and a process that was stopped in order begins with all of them
        process.read_all(stream="short")
        assert process.terminate() == 0


def test_streams_come_change_and_go_while_another_goes_on(tmp_path: Path) -> None:
    pcm = write_noise(tmp_path / "a.wav", 60.0)
    source = recording(tmp_path / "a.wav")
    others = {"changed": looped(tmp_path / "a.wav"), "gone": looped(tmp_path / "a.wav")}
    with capture_process(source, others=others) as process:
        process.start()
        kept = process.wait_for_state("listening").block.epoch
        changed = process.wait_for_state("listening", "changed").block.epoch
        process.wait_for_state("listening", "gone")
        new = {"name": "new", "source": source}
        reload(
            process,
            lambda streams: [new, *streams[:1], {**streams[1], "ring_s": 30.0}],
        )
        assert "streams.changed.ring_s, streams.gone, streams.new changed" in process.log
        process.wait_for(lambda reply: reply.block.epoch != changed, "changed")
        process.wait_for_state("listening", "new")
        wait_for(lambda: not (process.folder / "ring.gone.sock").exists(), process)
        now = process.wait_for_state("listening")
        assert now.block.epoch == kept
        received = process.read(start=0, stop=now.next).block.pcm
        np.testing.assert_array_equal(received, pcm[: len(received)])
        assert process.terminate() == 0
        assert "Traceback" not in process.log


def test_a_stream_whose_ring_is_still_another_process_waits_and_the_others_begin(
    tmp_path: Path,
) -> None:
    write_noise(tmp_path / "a.wav", 1.0)
    source = looped(tmp_path / "a.wav")
    with capture_process(source, others={"taken": source}) as process:
        holder = subprocess.Popen(process.command("taken"), stderr=subprocess.DEVNULL)
        process.wait_for_state("listening", "taken")
        process.start()
        process.wait_for_state("listening")
        wait_for(lambda: "capture taken: cannot start yet: " in process.log, process)
        holder.terminate()
        assert holder.wait(LIMIT_S) == 0
        process.wait_for_state("listening", "taken")
        assert process.terminate() == 0


def test_a_microphone_has_a_process_of_its_own(tmp_path: Path) -> None:
    write_noise(tmp_path / "a.wav", 1.0)
    microphone = {"type": "microphone"}
    with capture_process(looped(tmp_path / "a.wav"), others={"mic": microphone}) as process:
        command = process.command(STREAM, "mic")
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        assert done.returncode == 2
        assert "expected --stream mic alone: its source has a process of its own" in done.stderr
        process.start()  # all that can be in one
        process.wait_for_state("listening")
        assert not (process.folder / "ring.mic.sock").exists()
        assert process.terminate() == 0
    with capture_process(microphone, others={"second": microphone}) as process:
        command = process.command()
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        assert done.returncode == 2
        assert "expected --stream: each source of the configuration" in done.stderr


class FaultySource:
    """A live source that hangs, or crashes, whenever it is read the third time."""

    is_live = True
    is_paced = True

    def __init__(self, go_on: threading.Event, is_crashing: bool = False) -> None:
        self._go_on = go_on
        self._is_crashing = is_crashing
        self._n_read = 0

    def open(self) -> None:
        """Be there at once."""

    def read(self, timeout_s: float) -> SourceBlock | None:
        """Return two blocks, and then never return, or fail in a way that nobody has foreseen."""
        self._n_read += 1
        if self._n_read == 3 and self._is_crashing:
            raise ZeroDivisionError("a bug")
        if self._n_read == 3:
            self._go_on.wait(LIMIT_S)
        if self._n_read > 2:
            time.sleep(0.05)
        pcm = np.full((1_600, 1), self._n_read, np.int16)
        return SourceBlock(pcm, SAMPLE_RATE, time.time_ns(), time.monotonic_ns())

    def close(self) -> None:
        """Have nothing to free."""


@pytest.fixture
def manager(socket_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    with service_manager(socket_dir) as one:
        for key, value in one.environ.items():
            monkeypatch.setenv(key, value)
        yield one


@pytest.mark.parametrize("kind", ["hangs", "crashes"])
def test_a_stream_whose_source_hangs_or_crashes_begins_again_beside_others(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manager: ServiceManager,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    go_on = threading.Event()

    def make(settings: streams.Source) -> Source:
        if isinstance(settings, streams.UrlSource):
            return FaultySource(go_on, is_crashing=kind == "crashes")
        return intake.make_source(settings)

    monkeypatch.setattr(capture_stream, "make_source", make)
    # of this source alone: the other may come late on a busy machine, and must go on
    limit_s = 0.3 - capture_stream.PROGRESS_LIMIT_S
    monkeypatch.setattr(streams.UrlSource, "longest_step_s", limit_s)
    monkeypatch.setattr(capture_stream, "_HUNG_GRACE_S", 0.1)
    monkeypatch.setattr(capture_stream, "_AGAIN_S", (0.05, 0.1))
    monkeypatch.setattr(capture_stream, "MAX_HUNG", 2)
    write_noise(tmp_path / "a.wav", 1.0)
    others = {"faulty": {"type": "url", "url": "http://127.0.0.1/"}}
    with capture_process(looped(tmp_path / "a.wav"), others=others) as process:
        stop = threading.Event()
        thread = threading.Thread(
            target=run_capture, args=(load_settings(process.config), [], stop)
        )
        thread.start()
        try:
            manager.wait_for(is_ready, "READY=1")
            kept = process.wait_for_state("listening").block.epoch
            before = process.read("faulty", start=0, stop=0).block.epoch
            if kind == "hangs":
                waiting = process.wait_for(
                    lambda reply: "2 calls to the source have not" in (reply.detail or ""), "faulty"
                )
                assert waiting.state == "missing"
                before = waiting.block.epoch
                manager.wait_for(lambda message: message == "WATCHDOG=1", "the other's work")
                go_on.set()
            process.wait_for(lambda reply: reply.block.epoch != before, "faulty")
            assert process.read(start=0, stop=0).block.epoch == kept
        finally:
            go_on.set()
            stop.set()
            thread.join()
    said = "the source does not return" if kind == "hangs" else "a bug"
    assert f"{said}; the stream restarts in 0.05 s" in caplog.text


def test_bench_tells_what_each_stream_of_a_process_takes() -> None:
    command = [sys.executable, "-m", "ast_stream.cli", "bench", "capture", "--json"]
    command += ["--streams", "3", "--seconds", "2", "--ring", "10"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    (three,) = json.loads(done.stdout)["timings"]
    assert three["streams"] == 3
    assert three["mib_each"] == pytest.approx(three["pss_mib"] / 3)
    assert three["blocks"] > 3
    assert three["descriptors"] > three["threads"] > 3
