"""A private PulseAudio whose null sink is a microphone: what is played is recorded bit for bit.

`norewinds=1` is what makes it exact: without it the sink renders ahead and rewinds when a stream
joins, after its monitor has handed those samples out.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

SINK = "vmic"
_PLUGIN = "alsa-lib/libasound_module_pcm_pulse.so"
_START_LIMIT_S = 60.0
_DEFAULT_PA = """.fail
load-module module-native-protocol-unix auth-anonymous=1 socket={socket}
{sink}
"""
_NULL_SINK = (
    "load-module module-null-sink sink_name={name} rate={rate} channels={channels} "
    "format=s16le norewinds=1{map}\nset-default-sink {name}\nset-default-source {name}.monitor"
)
# as ALSA numbers them: between other maps the server mixes channels by their names
_MAPS = {6: "front-left,front-right,rear-left,rear-right,front-center,lfe"}
_ASOUND = """</usr/share/alsa/alsa.conf>
pcm.!default {{ type pulse hint {{ show on description "virtual mic" }} }}
ctl.!default {{ type pulse }}
"""


def missing_parts() -> str | None:
    """Return what the virtual microphone lacks on this machine, or None."""
    programs = [name for name in ("pulseaudio", "pactl", "pacat") if shutil.which(name) is None]
    if programs:
        return f"{', '.join(programs)} not installed (apt install pulseaudio pulseaudio-utils)"
    if not any(Path("/usr/lib").glob(f"**/{_PLUGIN}")):
        return "ALSA's PulseAudio plug-in not installed (apt install libasound2-plugins)"
    if not any(Path("/usr/lib").glob("**/libportaudio.so.2*")):
        return "PortAudio not installed (apt install libportaudio2)"
    return None


def require_virtual_mic() -> None:
    """Skip the calling test where parts are missing; in CI that is a failure."""
    missing = missing_parts()
    if missing is None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"virtual microphone: {missing}")
    pytest.skip(f"virtual microphone: {missing}")


class VirtualMic:
    """A sound server with one null sink, and the environment that makes it the default input."""

    def __init__(self, rate: int = 16_000, channels: int = 1) -> None:
        self.rate = rate
        self.channels = channels
        self.folder = Path(tempfile.mkdtemp(prefix="vmic-", dir="/tmp"))  # socket paths are short
        self._server: subprocess.Popen[bytes] | None = None
        self._write_configuration()
        self.environment = {
            "PULSE_SERVER": f"unix:{self.folder}/native",
            "ALSA_CONFIG_PATH": f"{self.folder}/asound.conf",
            "PULSE_RUNTIME_PATH": str(self.folder),
            "PULSE_STATE_PATH": str(self.folder),
            "PULSE_COOKIE": f"{self.folder}/cookie",
        }

    def start(self) -> VirtualMic:
        """Start the server and wait until it answers."""
        command = ["pulseaudio", "-n", "-F", f"{self.folder}/default.pa", "--daemonize=no"]
        command += ["--exit-idle-time=-1", "--use-pid-file=no", "--disallow-exit"]
        command += ["--disable-shm=yes", f"--log-target=file:{self.folder}/log"]
        self._server = subprocess.Popen(
            command,
            env=self.full_environment() | {"HOME": str(self.folder)},
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + _START_LIMIT_S
        while not self._answers():
            if self._server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "log").read_text())
            time.sleep(0.05)
        return self

    def play(self, pcm: npt.NDArray[np.int16]) -> None:
        """Play int16 samples at the sink's rate, and return when they are played."""
        command = ["pacat", "--raw", f"--rate={self.rate}", f"--channels={self.channels}"]
        command += ["--format=s16le", "-d", SINK]
        if self.channels in _MAPS:
            command.append(f"--channel-map={_MAPS[self.channels]}")
        subprocess.run(
            command, input=pcm.astype("<i2").tobytes(), env=self.full_environment(), check=True
        )

    def unplug(self) -> None:
        """Remove the device."""
        self.pactl("unload-module", "module-null-sink")

    def plug(self) -> None:
        """Bring the device back."""
        for line in self._sink_commands().splitlines():
            self.pactl(*line.split())

    def suspend(self, is_suspended: bool) -> None:
        """Make the device silent, or wake it up: no callbacks, no error."""
        self.pactl("suspend-sink", SINK, str(int(is_suspended)))

    def freeze(self) -> None:
        """Hang the server: calls to it never return."""
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a hung server go on."""
        self._send(signal.SIGCONT)

    def pactl(self, *arguments: str) -> str:
        """Run pactl and return its output."""
        return subprocess.run(
            ["pactl", *arguments],
            env=self.full_environment(),
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def kill(self) -> None:
        """End the server at once; `start` brings it back on the same paths."""
        if self._server is not None:
            self._server.kill()
            self._server.wait(_START_LIMIT_S)
            self._server = None

    def stop(self) -> None:
        """End the server; `start` brings it back on the same paths."""
        if self._server is not None:
            self.thaw()
            self._send(signal.SIGTERM)
            self._server.wait(_START_LIMIT_S)
            self._server = None

    def close(self) -> None:
        """End the server and remove its folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write_configuration(self) -> None:
        script = _DEFAULT_PA.format(socket=f"{self.folder}/native", sink=self._sink_commands())
        (self.folder / "default.pa").write_text(script)
        (self.folder / "asound.conf").write_text(_ASOUND.format())

    def _sink_commands(self) -> str:
        names = f" channel_map={_MAPS[self.channels]}" if self.channels in _MAPS else ""
        return _NULL_SINK.format(name=SINK, rate=self.rate, channels=self.channels, map=names)

    def full_environment(self) -> dict[str, str]:
        """Return the environment of a program that plays or records here."""
        return {**os.environ, **self.environment}

    def _answers(self) -> bool:
        asked = subprocess.run(
            ["pactl", "info"], env=self.full_environment(), capture_output=True, check=False
        )
        return asked.returncode == 0

    def _send(self, signal_number: int) -> None:
        if self._server is not None and self._server.poll() is None:
            self._server.send_signal(signal_number)


@contextmanager
def virtual_mic(
    rate: int = 16_000, channels: int = 1, *, started: bool = True
) -> Iterator[VirtualMic]:
    """Give a virtual microphone for the length of a test, or skip it."""
    require_virtual_mic()
    mic = VirtualMic(rate, channels)
    try:
        yield mic.start() if started else mic
    finally:
        mic.close()
