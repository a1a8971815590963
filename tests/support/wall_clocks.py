"""The wall clocks of real processes, set while they run: a library that is preloaded into them."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).parent / "clock_shift.c"


class WallClocks:
    """Offsets of the wall clocks of the processes of a box; all are 0 at first.

    Args:
        folder: for the library, and for the files that it reads.
    """

    def __init__(self, folder: Path, processes: list[str]) -> None:
        self._folder = folder
        self._library = folder / "clock_shift.so"
        folder.mkdir()
        command = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(self._library), str(SOURCE), "-ldl"]
        subprocess.run(command, check=True)
        self.processes = processes
        for process in processes:
            self._path(process).write_bytes(struct.pack("=q", 0))

    @staticmethod
    def can_be_set() -> bool:
        """Return whether this machine has what it takes."""
        return shutil.which("gcc") is not None

    @property
    def environment(self) -> dict[str, str]:
        """What processes need in their environment."""
        return {"LD_PRELOAD": str(self._library), "CLOCK_SHIFT_DIR": str(self._folder)}

    def shift(self, process: str, by_ns: int) -> None:
        """Set the clock of a process to so much later than it is, at once."""
        fd = os.open(self._path(process), os.O_WRONLY)
        os.pwrite(fd, struct.pack("=q", by_ns), 0)  # in place: the file is mapped
        os.close(fd)

    def _path(self, process: str) -> Path:
        return self._folder / process.replace(" ", ".")
