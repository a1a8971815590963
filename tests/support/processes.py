"""Processes of this machine, by a file that their command line names."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def processes_of(config: Path) -> dict[int, str]:
    """Return the command lines of all processes but this that name `config`, by process id."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        pid = int(path.parent.name)
        with suppress(OSError):  # it has ended meanwhile
            line = path.read_bytes().decode(errors="replace")
            if str(config) in line and pid != os.getpid():
                found[pid] = line
    return found
