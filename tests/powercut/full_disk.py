"""A busy minute on a disk that is full, or broken, again and again: by turns at each operation.

    LD_PRELOAD=disk.so DISK_ROOT=FOLDER DISK_LOG=FILE python full_disk.py ENOSPC 60

In each quarter of a second the disk refuses one operation, three, or all from one on: at the next
turn it works again. Nothing is restarted because of that. The last mark, `refused`, says how many
operations were.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

from busy_minute import Box, reactive_tagger
from recording import marker

ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "SHORT": 0}
BURSTS = (1, 3, 1_000_000)
OPERATIONS = 41  # of a turn that are refused by turns


class Disk:
    """Lets operations fail, another one in each turn that has a fault."""

    def __init__(self, error: int) -> None:
        self.n_refused = 0
        self._error = error
        self._library = ctypes.CDLL(None)
        self._library.disk_refused.restype = ctypes.c_long
        self._turn = 0

    def fail_next(self) -> None:
        """Choose what fails in this turn; each third one is without a fault."""
        self._turn += 1
        if self._turn % 3 == 0:
            self.recover()
            return
        burst = BURSTS[self._turn // 3 % len(BURSTS)]
        # 7 has no factor in common with the number: each operation has its turn
        first = ctypes.c_long(7 * self._turn % OPERATIONS)
        self._count()
        self._library.disk_fail(first, ctypes.c_long(burst), ctypes.c_long(self._error))

    def recover(self) -> None:
        """Let everything work again."""
        self._count()
        self._library.disk_fail(ctypes.c_long(-1), ctypes.c_long(0), ctypes.c_long(0))

    def _count(self) -> None:
        self.n_refused += self._library.disk_refused()


def main() -> None:
    disk = Disk(ERRORS[sys.argv[1]])
    mark = marker()
    box = Box(Path(os.environ["DISK_ROOT"]), reactive_tagger(), mark, syncs_first=True)
    box.before_turn, box.before_restart = disk.fail_next, disk.recover
    box.play(float(sys.argv[2]))
    disk.recover()
    box.site.tick(8, seconds=1.0)  # what waits is written once a second
    box.end()
    mark({"refused": disk.n_refused})
    os._exit(0)


if __name__ == "__main__":
    main()
