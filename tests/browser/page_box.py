"""The processes of one box with a page, and what its stream plays."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pipeline import Pipeline, wait_for
from ports import free_ports
from reactive_model import tones_and_noise

from ast_stream.history.database import History
from ast_stream.messages.audio import Pcm16
from ast_stream.settings.load import load_settings
from ast_stream.settings.storage import history_database

STREAM = "porch"
SOUND_S = 300.0
RULES = "groups: [{name: g, rules: [{alert: any-sound, match: {}, severity: high}]}]\n"


class Box:
    """Capture, worker, alerts, recorder and page, as real processes.

    Attributes:
        origin: address of the page.
        sound: what is played, shape (n_samples,), int16 at 16 kHz.
    """

    def __init__(self, running: Pipeline, origin: str, sound: Pcm16) -> None:
        self.running = running
        self.origin = origin
        self.sound = sound

    def start_all(self) -> None:
        """Start what a box has; return when the page answers."""
        for name in ("worker", "alerts", "record", "web"):
            self.running.start(name, name)
        self.running.start_capture(STREAM)
        wait_for(self._answers, "the page")

    def wait_for(
        self,
        condition: Callable[[], bool],
        what: str,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        """Wait until `condition` holds, by `pause` (milliseconds), in which a browser lives."""

        def is_so() -> bool:
            if pause is not None:
                pause(50)
            return condition()

        wait_for(is_so, what)

    def history(self) -> History:
        """Open the history beside the recorder."""
        path = history_database(load_settings(self.running.config)).path
        return History.open_read_only(path)

    def _answers(self) -> bool:
        for name, process in self.running.processes.items():
            assert process.poll() is None, f"{name} has ended:\n{self.running.log(name)}"
        try:
            with urllib.request.urlopen(f"{self.origin}/alive", timeout=5):
                return True
        except OSError:
            return False


@contextmanager
def page_box(checkpoint: Path) -> Iterator[Box]:
    """Yield a box whose processes run."""
    sound = tones_and_noise(SOUND_S)
    port = free_ports()
    running = Pipeline(
        checkpoint,
        {STREAM: {"type": "file"}},
        recorder={"clips": [{"pre_s": 1.0, "post_s": 1.0}]},
        web={"listen": f"127.0.0.1:{port}"},
        alerts={"rules": ["rules.yaml"]},
    )
    try:
        (running.folder / "rules.yaml").write_text(RULES)
        running.write_audio(sound)
        box = Box(running, f"http://127.0.0.1:{port}", np.asarray(sound))
        box.start_all()
        yield box
    finally:
        running.close()
