"""What a program did to the files of a folder, one operation after the other, see `disk.c`."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Mark = Callable[[dict[str, Any]], None]
HERE = Path(__file__).parent
RUN_LIMIT_S = 300


@dataclass(frozen=True)
class Operation:
    """One operation.

    Attributes:
        kind: a letter, see `disk.c`; `M`: a mark of the program, which changes no file.
        inode: of the file or folder; 0 where there is none.
        paths: relative to the folder.
        offset: of a write; the new size of a file that is cut.
        data: of a write.
        mark: of the program.
    """

    kind: str
    inode: int = 0
    paths: tuple[str, ...] = ()
    offset: int = 0
    data: bytes = b""
    mark: Any = None


def marker() -> Mark:
    """Return what writes marks into the record; nothing where nobody records."""
    try:
        write = ctypes.CDLL(None).disk_mark
    except AttributeError:
        return lambda what: None
    return lambda what: write(json.dumps(what, separators=(",", ":")).encode())


def has_compiler() -> bool:
    """Return whether a program can be recorded here."""
    return sys.platform == "linux" and shutil.which("cc") is not None


def shim(folder: Path) -> Path:
    """Return the library to preload, compiled."""
    library = folder / "disk.so"
    command = [
        "cc",
        "-shared",
        "-fPIC",
        "-O1",
        "-o",
        str(library),
        str(HERE / "disk.c"),
        "-ldl",
        "-lpthread",
    ]
    subprocess.run(command, check=True)
    return library


def under_shim(folder: Path, root: Path, *command: str) -> Path:
    """Run a Python program under the shim.

    Args:
        folder: for the shim and the record.
        root: the folder whose files are watched.

    Returns:
        The record.
    """
    record = folder / "record"
    environment = os.environ | {
        "LD_PRELOAD": str(shim(folder)),
        "DISK_ROOT": str(root),
        "DISK_LOG": str(record),
        "OMP_NUM_THREADS": "1",
    }
    subprocess.run(
        [sys.executable, *command],
        env=environment,
        check=True,
        timeout=RUN_LIMIT_S,
        stdin=subprocess.DEVNULL,
    )
    return record


def read(record: Path) -> list[Operation]:
    """Return the operations of a record."""
    content = record.read_bytes()
    operations, at = [], 0
    while at < len(content):
        end = content.index(b"\n", at)
        kind, _, rest = content[at:end].decode().partition(" ")
        at = end + 1
        words = rest.split(" ")
        match kind:
            case "W":
                n_bytes = int(words[2])
                data = content[at : at + n_bytes]
                at += n_bytes + 1
                operation = Operation(kind, int(words[0]), offset=int(words[1]), data=data)
            case "T":
                operation = Operation(kind, int(words[0]), offset=int(words[1]))
            case "C" | "D":
                operation = Operation(kind, int(words[0]), (words[1],))
            case "R" | "U":
                operation = Operation(kind, paths=tuple(words))
            case "S":
                operation = Operation(kind, int(words[0]))
            case _:
                operation = Operation(kind, mark=json.loads(rest))
        operations.append(operation)
    return operations
