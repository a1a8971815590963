"""Calls of `systemctl`, for the system or for this user."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

_BOOTED = Path("/run/systemd/system")  # see sd_booted(3)
_LIMIT_S = 120.0  # the alerts process delivers what is under way before it ends


class Systemctl:
    """One service manager.

    Args:
        is_user: that of this user.
    """

    def __init__(self, *, is_user: bool) -> None:
        self._command = ["systemctl", *(["--user"] if is_user else [])]

    @property
    def is_there(self) -> bool:
        """Whether this machine runs systemd."""
        return _BOOTED.is_dir() and shutil.which("systemctl") is not None

    def is_active(self, unit: str) -> bool:
        """Return whether a unit runs."""
        return self._run("is-active", "--quiet", unit).returncode == 0

    def do(self, verb: str, units: Sequence[str] = ()) -> str | None:
        """Do something, wait until it is done, and return why it failed, None if it has not."""
        done = self._run(verb, *units)
        return None if done.returncode == 0 else _reason(done)

    def make_folders(self, file: Path) -> str | None:
        """Make the folders that a file of tmpfiles.d names; return why that failed, or None."""
        done = _run(["systemd-tmpfiles", "--create", str(file)])
        return None if done.returncode == 0 else _reason(done)

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return _run([*self._command, *arguments])


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    said = done.stderr.strip().splitlines()
    return said[0] if said else f"{done.args[0]} failed"


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))
