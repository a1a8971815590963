"""A Debian of its own in a container, whose PID 1 is systemd: what runs there runs as installed.

It is made from the mirror that this machine's apt uses, of the same release as this machine. The
interpreter and the packages of the tests are lent to it, read-only: nothing is downloaded twice.
Its network is its own, so ports and sockets of this machine do not matter.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

PACKAGES = ("systemd", "systemd-sysv", "dbus", "procps", "python3", "libportaudio2")
PYTHON = "/opt/python"  # the interpreter of the tests, where no sandbox hides it
LENT = "/opt/packages"
MICROPHONE = "/opt/microphone"
SOURCE = "/root/ast-stream"  # the repository, as a person has cloned it
PROGRAMS = ("mmdebstrap", "systemd-nspawn", "nsenter", "setpriv")
BOOT_S = 60.0
PATIENCE_S = 120.0
REBOOTED = 133  # exit status of systemd-nspawn with --keep-unit: start it again
_REPOSITORY = Path(__file__).parents[2]
_CLONED = ("ast_stream", "configs", "pyproject.toml", "constraints.txt", "README.md")
_ASOUND = f"""pcm."USB Audio" {{
    type pulse
    server "unix:{MICROPHONE}/native"
    hint {{ show on description "USB Audio" }}
}}
"""
_ENVIRONMENT = {
    "PATH": f"{PYTHON}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "PIP_NO_INDEX": "1",
    "PIP_NO_BUILD_ISOLATION": "0",  # "no" of the option itself: there is nothing to isolate from
    "PIP_NO_CACHE_DIR": "1",
    "PIP_ROOT_USER_ACTION": "ignore",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
}


def missing_parts() -> str | None:
    """Return which programs for containers are not installed, or None."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"no {', '.join(absent)} (apt-get install mmdebstrap systemd-container)"
    return None


def obstacle() -> str | None:
    """Return why this machine cannot have containers whatever is installed, or None."""
    if os.geteuid() != 0:
        return "containers need root"
    if not Path("/etc/debian_version").exists():
        return "the container is made from the mirror of Debian's or Ubuntu's apt"
    if not os.access("/sys/fs/cgroup", os.W_OK):
        return "/sys/fs/cgroup is read-only"
    try_all = ["unshare", "-m", "-p", "-f", "-n", "mount", "-t", "tmpfs", "none", "/tmp"]
    done = subprocess.run(try_all, capture_output=True, text=True)
    return None if done.returncode == 0 else f"no namespaces: {done.stderr.strip()}"


class Container:
    """A root folder, and the systemd that was booted in it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self._log = folder / "nspawn.log"
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._lent = {sys.base_prefix: PYTHON}
        self._lent |= {path: f"{LENT}/{number}" for number, path in enumerate(_packages())}

    def build(self) -> None:
        """Make the root: a minimal Debian, the interpreter, and a clone of the repository."""
        self.root.mkdir()
        # in memory: a disk that others use as well would have each package wait for it
        _printed(["mount", "-t", "tmpfs", "-o", "mode=755", "box", str(self.root)])
        command = ["mmdebstrap", "--mode=root", "--variant=essential", "--quiet"]
        command += ["--aptopt=Acquire::Languages none", "--dpkgopt=force-unsafe-io"]
        command += ["--dpkgopt=path-exclude=/usr/share/doc/*", f"--include={','.join(PACKAGES)}"]
        release, sources = _release_and_sources()
        command += [release, str(self.root), sources]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
        self.furnish()

    def furnish(self) -> None:
        """Put the clone and what is needed to run it into the root."""
        for name in _CLONED:
            copy = shutil.copytree if (_REPOSITORY / name).is_dir() else shutil.copy
            (self.root / SOURCE[1:]).mkdir(exist_ok=True)
            copy(_REPOSITORY / name, self.root / SOURCE[1:] / name)
        self.write("/etc/ld.so.conf.d/python.conf", f"{PYTHON}/lib\n")
        self.write("/usr/local/bin/sudo", '#!/bin/sh\nexec "$@"\n').chmod(0o755)  # we are root
        (self.root / "etc/hostname").write_text("box\n")

    def boot(self) -> None:
        """Start systemd as PID 1 and wait until it has started everything."""
        command = ["setpriv", "--pdeathsig", "TERM", "systemd-nspawn", "--quiet", "--boot"]
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
        """Reboot from within, and wait until everything has started."""
        assert self._nspawn is not None
        self.run("systemctl reboot", check=False)
        assert self._nspawn.wait(BOOT_S) == REBOOTED, self._log.read_text(errors="replace")
        self.boot()

    def lend_microphone(self, folder: Path) -> None:
        """Make the sound server of a `VirtualMic` the sound card "USB Audio" of the container.

        ALSA's plug-in for it is copied with the libraries it needs: as a package it would bring
        fifty others along.
        """
        (plugin,) = Path("/usr/lib").glob("**/alsa-lib/libasound_module_pcm_pulse.so")
        needed = re.findall(r"=> (/\S+)", _printed(["ldd", str(plugin)]))
        for file in (plugin, *map(Path, needed)):
            copy = self.path(str(file.parent.resolve() / file.name))
            if not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, copy)
        self._lent[str(folder)] = MICROPHONE
        self.write("/etc/asound.conf", _ASOUND)

    def wait_for_boot(self) -> None:
        """Wait until systemd has started everything."""
        end_s = time.monotonic() + BOOT_S
        state = ""
        while time.monotonic() < end_s:
            with contextlib.suppress(LookupError):
                state = self.run("systemctl is-system-running", check=False).stdout.strip()
                if state in ("running", "degraded"):
                    return
            time.sleep(0.2)
        raise AssertionError(f"not booted: {state}\n{self._log.read_text(errors='replace')}")

    def run(
        self, command: str, *, check: bool = True, timeout_s: float = 60.0, user: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command beside PID 1, and fail the test if it fails.

        Raises:
            LookupError: the container does not run.
        """
        inside = ["sh", "-c", f"cd {SOURCE} 2>/dev/null; {command}"]
        if user is not None:
            inside = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", *inside]
        done = subprocess.run(
            [*self._entry(), *inside],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            env=_ENVIRONMENT,
        )
        if check:
            assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a program of this machine in the network of the container."""
        entry = ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net=/proc/{self._pid_1()}/ns/net"]
        return subprocess.Popen([*entry, *command], stdin=subprocess.DEVNULL)

    def path(self, name: str) -> Path:
        """Return where a file of the container is on this machine."""
        return self.root / name.lstrip("/")

    def write(self, name: str, text: str) -> Path:
        """Write a file of the container."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Return properties of a unit as systemd has them."""
        names = ",".join(properties)
        lines = self.run(f"systemctl show -p {names} {shlex.quote(unit)}").stdout.splitlines()
        return dict(line.split("=", 1) for line in lines)

    def journal(self, unit: str = "*") -> str:
        """Return what a unit has logged, oldest first."""
        return self.run(f"journalctl --no-pager -o cat -u '{unit}'").stdout

    def status(self) -> dict[str, Any]:
        """Return what `ast-stream status` reports of the installed configuration."""
        command = "/opt/ast-stream/bin/ast-stream status --json -c /etc/ast-stream/config.yaml"
        report: dict[str, Any] = json.loads(self.run(command, check=False).stdout or "{}")
        return report

    def close(self) -> None:
        """End the container, and let go of its root."""
        if self._nspawn is not None:
            with contextlib.suppress(LookupError, AssertionError):
                os.kill(self._pid_1(), signal.SIGKILL)  # everything in there ends with it
            self._nspawn.kill()
            self._nspawn.wait(30)
        subprocess.run(["umount", "--lazy", str(self.root)], check=False)

    def _entry(self) -> list[str]:
        return ["nsenter", "-t", str(self._pid_1()), *["-m", "-p", "-u", "-i", "-n", "-C", "--"]]

    def _pid_1(self) -> int:
        """Return the process of this machine that is PID 1 in there."""
        assert self._nspawn is not None
        if self._nspawn.poll() is not None:
            raise AssertionError(f"container has ended\n{self._log.read_text(errors='replace')}")
        for pid in _descendants(self._nspawn.pid):
            status = Path(f"/proc/{pid}/status")
            with contextlib.suppress(OSError):
                text = status.read_text()
                if re.search(r"^NSpid:.*\s1$", text, re.M) and "Name:\tsystemd\n" in text:
                    return pid
        raise LookupError("no PID 1")


def wait_until(condition: Callable[[], object], what: str, every_s: float = 0.3) -> None:
    """Wait until `condition` is true, looking `every_s`; fail naming `what` if it never is."""
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, f"waited {PATIENCE_S:.0f} s for {what}"
        time.sleep(every_s)


def _descendants(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield int(child)
            yield from _descendants(int(child))


def _packages() -> list[str]:
    return [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]


def _release_and_sources() -> tuple[str, str]:
    """Return the release of this machine, and the file that names where apt has it from."""
    lines = Path("/etc/os-release").read_text().splitlines()
    release = dict(line.split("=", 1) for line in lines if "=" in line)["VERSION_CODENAME"]
    for file in (*Path("/etc/apt").glob("**/*.sources"), *Path("/etc/apt").glob("**/*.list")):
        if re.search(rf"^(Suites:|deb ).*\s{release}(\s|$)", file.read_text(), re.M):
            return release, str(file)
    raise AssertionError(f"apt has no source of {release}")


def _printed(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
