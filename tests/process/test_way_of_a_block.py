"""The way of a block from PortAudio's callback to the published event, as its page lists it."""

from __future__ import annotations

import json
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
from fake_portaudio import FakeSoundDevice
from reactive_model import save_reactive, tones_and_noise

import ast_stream
from ast_stream.capture.process import run_capture
from ast_stream.feed import Subscriber
from ast_stream.settings.load import load_file
from ast_stream.worker.process import run_worker

pytestmark = pytest.mark.slow

PACKAGE = Path(ast_stream.__file__).parent
PAGE = PACKAGE.parent / "docs" / "design" / "way-of-a-block.md"
MAX_FILES = 24  # may only fall
BLOCK = 1600
PATIENCE_S = 60
# what the clock, the service manager, Prometheus and clients ask for between two blocks
BESIDE = {"Worker._do_chores", "run_worker.<locals>.after_tick", "WorkerMetrics.stage"}
BESIDE |= {"WorkerMetrics.on_batch", "CaptureHost.run", "Listener._sweep"}
BESIDE |= {"Worker._account_for"}
# on a busy machine a block may be missed, which is logged, and the ring is asked for it
BESIDE |= {"WorkerStream.exchange_with_ring", "LimitedLog.warning"}
# what is logged goes through the formatter that an earlier test of this process may have set up
BESIDE |= {"Logger._log", "Outage.failed", "Outage.worked"}


class Trace:
    """The files of the package in which a function was called, in any thread, while it was on."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.is_on = False
        self._known: set[object] = set()

    def __call__(self, frame: FrameType, event: str, _argument: object) -> None:
        if not self.is_on or event != "call" or frame.f_code in self._known:
            return
        file = frame.f_code.co_filename
        if file.startswith(f"{PACKAGE}/") and not _is_beside(frame):
            self._known.add(frame.f_code)
            self.files.add(file.removeprefix(f"{PACKAGE}/"))


def _is_beside(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_qualname in BESIDE:
            return True
        frame = frame.f_back
    return False


@contextmanager
def box(folder: Path, trace: Trace) -> Iterator[tuple[FakeSoundDevice, Subscriber]]:
    """Run a capture process and a worker as threads; only PortAudio is not the real one."""
    config = folder / "config.yaml"
    config.write_text(
        json.dumps(
            {
                "runtime_dir": str(folder),
                "state_dir": str(folder / "state"),
                "streams": [{"name": "porch", "source": {"type": "microphone"}}],
                "model": {
                    "checkpoint": str(save_reactive(folder / "model")),
                    "hop_s": 0.25,
                    "device": "cpu",
                    "precision": "fp32",
                    "attention": "math",
                },
                "detection": {
                    "defaults": {"onset_threshold": 0.5, "confirm_s": 0.25, "hold_s": 0.25}
                },
            }
        )
    )
    loaded = load_file(config)
    stop = threading.Event()
    portaudio = FakeSoundDevice(["Fake (hw:0,0)"], rates={16_000}, channels={1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "sounddevice", portaudio)
        threading.setprofile(trace)
        threads = [
            threading.Thread(target=run_worker, args=(loaded, stop, threading.Event())),
            threading.Thread(target=run_capture, args=(loaded.settings, ["porch"], stop)),
        ]
        for thread in threads:
            thread.start()
        subscriber = Subscriber(f"ipc://{folder}/feed.sock", idle_timeout_s=PATIENCE_S)
        try:
            yield portaudio, subscriber
        finally:
            threading.setprofile(None)
            subscriber.close()
            stop.set()
            for thread in threads:
                thread.join(PATIENCE_S)


def test_the_design_page_lists_the_files_that_a_block_crosses() -> None:
    trace = Trace()
    with (
        tempfile.TemporaryDirectory(prefix="ast-", dir="/tmp") as folder,
        box(Path(folder), trace) as (portaudio, subscriber),
    ):
        is_over = threading.Event()

        def play() -> None:
            pcm = tones_and_noise(PATIENCE_S)
            while not portaudio.streams:
                time.sleep(0.05)
            for start in range(0, len(pcm), BLOCK):
                portaudio.streams[-1].deliver(pcm[start : start + BLOCK])
                if is_over.wait(0.1):
                    return

        player = threading.Thread(target=play)
        player.start()
        wait_for_event(subscriber, "end")  # now everything is set up
        trace.is_on = True
        wait_for_event(subscriber, "begin")
        wait_for_event(subscriber, "end")
        trace.is_on = False
        is_over.set()
        player.join()
    way, words = listed("The way"), listed("Words")
    assert sorted(trace.files) == sorted([*way, *words])
    assert len(way) <= MAX_FILES


def wait_for_event(subscriber: Subscriber, kind: str) -> None:
    assert kind in (event["type"] for event in subscriber), f"no {kind} in {PATIENCE_S} s"


def listed(heading: str) -> list[str]:
    """Return the files that a section of the page names at the beginning of a line or a row."""
    section = PAGE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^(?:\d+\. |\* |\| )`([\w/]+\.py)`", section, re.MULTILINE)
