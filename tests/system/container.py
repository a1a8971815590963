"""A machine in a container of systemd-nspawn: its own PID 1, the kernel of this machine."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from machine import ENVIRONMENT, Machine, absent, why_not_build

MICROPHONE = "/opt/microphone"
_PROGRAMS = ("mmdebstrap", "systemd-nspawn", "nsenter", "setpriv")
_CGROUPS = Path("/sys/fs/cgroup")
_REBOOTED = 133  # exit status of systemd-nspawn with --keep-unit: start it again
_ASOUND = f"""pcm."USB Audio" {{
    type pulse
    server "unix:{MICROPHONE}/native"
    hint {{ show on description "USB Audio" }}
}}
"""


def missing_parts() -> str | None:
    """Return which programs for containers are not installed, or None."""
    return absent(_PROGRAMS, "mmdebstrap systemd-container")


def obstacle() -> str | None:
    """Return why this machine cannot have containers whatever is installed, or None."""
    if (reason := why_not_build()) is not None:
        return reason
    if not os.access("/sys/fs/cgroup", os.W_OK):
        return "/sys/fs/cgroup is read-only"
    try_all = ["unshare", "-m", "-p", "-f", "-n", "mount", "-t", "tmpfs", "none", "/tmp"]
    done = subprocess.run(try_all, capture_output=True, text=True)
    return None if done.returncode == 0 else f"no namespaces: {done.stderr.strip()}"


class Container(Machine):
    """The systemd that was booted in a root folder, beside the processes of this machine."""

    kind = "container"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._log = folder / "nspawn.log"
        self._nspawn: subprocess.Popen[bytes] | None = None

    def build(self) -> None:
        self.root.mkdir()
        # in memory: a disk that others use as well would have each package wait for it
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "mode=755", "box", str(self.root)], check=True
        )
        super().build()

    def boot(self) -> None:
        command = [*self._enter_cgroups(), "setpriv", "--pdeathsig", "TERM"]
        command += ["systemd-nspawn", "--quiet", "--boot"]
        command += ["--directory", str(self.root), "--register=no", "--keep-unit"]
        command += ["--private-network", "--console=pipe", "--kill-signal=SIGRTMIN+3"]
        command += [f"--bind-ro={here}:{there}" for here, there in self._lent.items()]
        with self._log.open("ab") as log:
            self._nspawn = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.wait_for_boot()
        self.run("ldconfig")  # an interpreter may have its library beside it

    def reboot(self) -> None:
        assert self._nspawn is not None
        self.run("systemctl reboot", check=False)
        assert self._nspawn.wait(self.patience_s) == _REBOOTED, self._what_it_said()
        self.boot()

    def cut_power(self) -> None:
        if self._nspawn is not None:
            with contextlib.suppress(LookupError, AssertionError):
                os.kill(self._pid_1(), signal.SIGKILL)  # everything in there ends with it
            self._nspawn.kill()
            self._nspawn.wait(self.patience_s)

    def lend_microphone(self, folder: Path) -> None:
        """Make the sound server of a `VirtualMic` the sound card "USB Audio" of the container.

        ALSA's plug-in for it is copied with the libraries it needs: as a package it would bring
        fifty others along.
        """
        (plugin,) = Path("/usr/lib").glob("**/alsa-lib/libasound_module_pcm_pulse.so")
        libraries = subprocess.run(
            ["ldd", str(plugin)], capture_output=True, text=True, check=True
        ).stdout
        for file in (plugin, *map(Path, re.findall(r"=> (/\S+)", libraries))):
            copy = self.place(str(file.parent.resolve() / file.name))
            if not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, copy)
        self._lent[str(folder)] = MICROPHONE
        self.furnish("/etc/asound.conf", _ASOUND)

    def close(self) -> None:
        self.cut_power()
        subprocess.run(["umount", "--lazy", str(self.root)], check=False)
        for cgroup in self._cgroups():
            for folder, _, _ in os.walk(cgroup, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)

    def _cgroups(self) -> list[Path]:
        """Return where the container has its control groups: not those of another one."""
        name = f"{self.folder.parent.name}-{self.folder.name}-{os.getpid()}"
        is_unified = (_CGROUPS / "cgroup.procs").exists()
        hierarchies = [_CGROUPS] if is_unified else [*_CGROUPS.iterdir()]
        return [path / name for path in hierarchies if (path / "cgroup.procs").exists()]

    def _enter_cgroups(self) -> list[str]:
        """Return a prefix by which a command runs in the container's own control groups.

        In groups that two containers share, the systemd of each would find processes that it
        cannot see, and refuse to send signals.
        """
        for cgroup in self._cgroups():
            with contextlib.suppress(OSError):
                cgroup.mkdir(exist_ok=True)
        enter = 'for group; do [ "$group" = -- ] && break; echo $$ > "$group/cgroup.procs"; done'
        skip = 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"'
        return ["sh", "-c", f"{enter}; {skip}", "enter", *map(str, self._cgroups()), "--"]

    def _execute(
        self, argv: Sequence[str], text: str | None, timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        entry = ["nsenter", "-t", str(self._pid_1()), *["-m", "-p", "-u", "-i", "-n", "-C", "--"]]
        return subprocess.run(
            [*entry, *argv],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            input=text or "",
            env=ENVIRONMENT,
        )

    def _what_it_said(self) -> str:
        return self._log.read_text(errors="replace")

    def _pid_1(self) -> int:
        """Return the process of this machine that is PID 1 in there."""
        assert self._nspawn is not None
        if self._nspawn.poll() is not None:
            raise AssertionError(f"container has ended\n{self._what_it_said()}")
        for pid in _descendants(self._nspawn.pid):
            status = Path(f"/proc/{pid}/status")
            with contextlib.suppress(OSError):
                text = status.read_text()
                if re.search(r"^NSpid:.*\s1$", text, re.M) and "Name:\tsystemd\n" in text:
                    return pid
        raise LookupError("no PID 1")


def _descendants(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield int(child)
            yield from _descendants(int(child))
