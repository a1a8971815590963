"""A machine whose PID 1 is systemd, with a Debian of its own: what runs there runs as installed.

It is a container where this machine can have one (`container.py`), otherwise a virtual machine
(`virtual_machine.py`): tests see no difference but in time. Its root is made from the mirror that
this machine's apt uses, of the same release as this machine. The interpreter and the packages of
the tests are lent to it, read-only: nothing is downloaded twice. Its network is its own, so ports
and sockets of this machine do not matter.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

PACKAGES = ("systemd", "systemd-sysv", "dbus", "procps", "python3", "libportaudio2")
PYTHON = "/opt/python"  # the interpreter of the tests, where no sandbox hides it
LENT = "/opt/packages"
PROGRAMS = "/opt/programs"  # servers of other people, as far as this machine has them
SOURCE = "/root/ast-stream"  # the repository, as a person has cloned it
_LENT_PROGRAMS = ("prometheus", "nats-server")
_REPOSITORY = Path(__file__).parents[2]
_CLONED = ("ast_stream", "configs", "pyproject.toml", "constraints.txt", "README.md")
ENVIRONMENT = {
    "PATH": f"{PYTHON}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "PIP_NO_INDEX": "1",
    "PIP_NO_BUILD_ISOLATION": "0",  # "no" of the option itself: there is nothing to isolate from
    "PIP_NO_CACHE_DIR": "1",
    "PIP_ROOT_USER_ACTION": "ignore",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
}


class Machine(ABC):
    """A root folder, and the systemd that is booted from it.

    Args:
        folder: empty, for everything that belongs to the machine.
    """

    kind = "machine"
    packages: tuple[str, ...] = PACKAGES
    patience_s = 120.0  # for what takes seconds on a quiet machine

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.folder = folder
        self._lent = {sys.base_prefix: PYTHON, str(folder / "programs"): PROGRAMS}
        self._lent |= {path: f"{LENT}/{number}" for number, path in enumerate(_packages())}

    @abstractmethod
    def boot(self) -> None:
        """Start systemd and wait until it has started everything."""

    @abstractmethod
    def reboot(self) -> None:
        """Reboot from within, and wait until everything has started."""

    @abstractmethod
    def cut_power(self) -> None:
        """End everything in there at once, as if the plug were pulled; `boot` starts it again."""

    @abstractmethod
    def lend_microphone(self, folder: Path) -> None:
        """Give the machine a sound card "USB Audio" that hears a room hum.

        Args:
            folder: of the `VirtualMic` of the tests, for machines without a card of their own.
        """

    @abstractmethod
    def close(self) -> None:
        """End the machine, and let go of its root."""

    @abstractmethod
    def _execute(
        self, argv: Sequence[str], text: str | None, timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        """Run a program beside PID 1 with `text` as its input.

        Raises:
            LookupError: the machine does not answer (yet).
        """

    @abstractmethod
    def _what_it_said(self) -> str:
        """Return what the machine has written on its console."""

    def build(self) -> None:
        """Make the root: a minimal Debian, the interpreter, and a clone of the repository."""
        self.root.mkdir(exist_ok=True)
        command = ["mmdebstrap", "--mode=root", "--variant=essential", "--quiet"]
        command += ["--aptopt=Acquire::Languages none", "--dpkgopt=force-unsafe-io"]
        release, sources = _release_and_sources()
        command += [f"--include={','.join(self.packages)}", release, str(self.root), sources]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
        self._furnish()

    def _furnish(self) -> None:
        """Put the clone and what is needed to run it into the root."""
        for name in _CLONED:
            copy = shutil.copytree if (_REPOSITORY / name).is_dir() else shutil.copy
            self.place(SOURCE).mkdir(exist_ok=True)
            copy(_REPOSITORY / name, self.place(SOURCE) / name)
        (self.folder / "programs").mkdir()
        search = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        for name in _LENT_PROGRAMS:
            if (program := shutil.which(name, path=search)) is not None:
                shutil.copy(program, self.folder / "programs" / name)
        self.furnish("/etc/ld.so.conf.d/python.conf", f"{PYTHON}/lib\n")
        self.furnish("/usr/local/bin/sudo", '#!/bin/sh\nexec "$@"\n').chmod(0o755)  # we are root
        self.furnish("/etc/hostname", "box\n")

    def place(self, name: str) -> Path:
        """Return where a file of the machine is before it has booted."""
        return self.root / name.lstrip("/")

    def furnish(self, name: str, text: str) -> Path:
        """Write a file of the machine before it has booted."""
        path = self.place(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def run(
        self,
        command: str,
        *,
        check: bool = True,
        timeout_s: float | None = None,
        user: str | None = None,
        text: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command beside PID 1, and fail the test if it fails.

        Raises:
            LookupError: the machine does not answer (yet).
        """
        inside = ["sh", "-c", f"cd {SOURCE} 2>/dev/null; {command}"]
        if user is not None:
            inside = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", *inside]
        done = self._execute(inside, text, timeout_s or 3 * self.patience_s)
        if check:
            assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def start(self, name: str, command: str) -> None:
        """Start a program of nobody's in there, as the unit `name`, in place of one before."""
        self.stop(name)
        self.run(f"systemd-run --quiet --collect --unit={name} -- {command}")

    def stop(self, name: str) -> None:
        """End what `start` has started."""
        self.run(f"systemctl kill -s KILL {name}; systemctl stop {name}", check=False)

    def has_program(self, name: str) -> bool:
        """Return whether this machine could lend a server."""
        return (self.folder / "programs" / name).exists()

    def write(self, name: str, text: str) -> None:
        """Write a file of the machine."""
        folder = Path(name).parent
        self.run(f"mkdir -p {shlex.quote(str(folder))} && cat > {shlex.quote(name)}", text=text)

    def read(self, name: str) -> str:
        """Return what a file of the machine has; nothing if there is none."""
        return self.run(f"cat {shlex.quote(name)}", check=False).stdout

    def exists(self, pattern: str) -> bool:
        """Return whether the machine has a file like that."""
        return self.run(f"ls -d {pattern}", check=False).returncode == 0

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Return properties of a unit as systemd has them."""
        names = ",".join(properties)
        lines = self.run(f"systemctl show -p {names} {shlex.quote(unit)}").stdout.splitlines()
        return dict(line.split("=", 1) for line in lines)

    def journal(self, unit: str = "*", options: str = "-o cat") -> str:
        """Return what a unit has logged, oldest first."""
        return self.run(f"journalctl --no-pager -q {options} -u '{unit}'").stdout

    def wait_for_boot(self) -> None:
        """Wait until systemd has started everything."""
        state = ""

        def is_up() -> bool:
            nonlocal state
            with contextlib.suppress(LookupError):
                state = self.run("systemctl is-system-running", check=False).stdout.strip()
            return state in ("running", "degraded")

        try:
            self.wait_until(is_up, "the boot")
        except AssertionError as error:
            raise AssertionError(f"not booted: {state}\n{self._what_it_said()}") from error

    def wait_until(self, condition: Callable[[], object], what: str, every_s: float = 0.3) -> None:
        """Wait until `condition` is true, looking `every_s`; fail naming `what` if it never is."""
        end_s = time.monotonic() + self.patience_s
        while not condition():
            assert time.monotonic() < end_s, f"waited {self.patience_s:.0f} s for {what}"
            time.sleep(every_s)


def why_not_build() -> str | None:
    """Return why this machine cannot make the root of another one, or None."""
    if os.geteuid() != 0:
        return "the root of a machine is made by root"
    if not Path("/etc/debian_version").exists():
        return "machines are made from the mirror of Debian's or Ubuntu's apt"
    return None


def absent(programs: Sequence[str], packages: str) -> str | None:
    """Return which programs are not installed, and how to have them; None: all are."""
    found = [name for name in programs if shutil.which(name) is None]
    return f"no {', '.join(found)} (apt-get install {packages})" if found else None


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
