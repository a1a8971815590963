"""A capture process that hardly gets to run, or is stopped for a while, loses no event."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from pipeline import events_of, pipeline, wait_for
from reactive_model import tones_and_noise

STOPS_S = (1.0, 6.5)  # again and again
RUNS_S = 0.025  # after each of them
COMPUTES_S = 0.005  # in that time, where the machine does not give it to others


def computed_s(pid: int) -> float:
    """Return the time that all threads of a process have had a processor."""
    found_ns = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(OSError):  # a thread that has ended meanwhile
            found_ns += int(path.read_text().split()[0])
    return found_ns / 1e9


@contextmanager
def starved(pid: int) -> Iterator[None]:
    """Let a process run for a moment only, now and then, until it ends."""
    is_over = threading.Event()

    def send(sent: signal.Signals) -> None:
        try:
            os.kill(pid, sent)
        except ProcessLookupError:  # its recording has ended
            is_over.set()

    def starve() -> None:
        while not is_over.is_set():
            for stop_s in STOPS_S:
                send(signal.SIGSTOP)
                is_over.wait(stop_s)
                before_s = computed_s(pid)
                send(signal.SIGCONT)
                end_s = time.monotonic() + RUNS_S
                while time.monotonic() < end_s or (
                    computed_s(pid) < before_s + COMPUTES_S and time.monotonic() < end_s + stop_s
                ):
                    time.sleep(0.001)

    thread = threading.Thread(target=starve)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_events_of_a_capture_process_that_hardly_runs_are_those_of_an_undisturbed_run(
    checkpoint: Path,
) -> None:
    pcm = tones_and_noise(9.0)
    with pipeline(checkpoint, {"a": {"type": "file", "pace": "fast"}}) as calm:
        calm.write_audio(pcm)
        calm.start_worker()
        calm.start_capture("a")
        assert calm.wait("capture-a") == 0
        calm.stop("worker")
        expected = events_of(calm.published(), "a")
    assert expected
    with pipeline(checkpoint, {"a": {"type": "file", "pace": "realtime"}}) as run:
        run.write_audio(pcm)
        run.start_worker()
        wait_for(lambda: "ready:" in run.log("worker"), "the worker")
        capture = run.start_capture("a")
        wait_for((run.folder / "run" / "ring.a.sock").exists, "the ring")
        with starved(capture.pid):
            wait_for(lambda: "the source has ended" in run.log("worker"), "the end of the source")
        assert run.wait("capture-a") == 0
        assert run.stop("worker") == 0
        messages = run.published()
    assert [body for topic, body in messages if topic.startswith("gap/")] == []
    assert events_of(messages, "a") == expected
