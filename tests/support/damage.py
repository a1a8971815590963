"""What can happen to files between two runs: seeded mutations, and things that are no files."""

from __future__ import annotations

import errno
import os
import random
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

STRANGE_FILES = (
    "folder", "full folder", "FIFO", "socket", "device", "dangling link", "link to itself",
    "sparse file", "empty file", "closed file",
)  # fmt: skip
SPARSE_BYTES = 1 << 30
NUMBERS = (
    "-1", "0", "1e308", "1e400", "NaN", "-Infinity", "9" * 40, "4.5", "true", "null", '"7"', "[]",
    "{}", "18446744073709551616",
)  # fmt: skip


def make_strange(path: Path, kind: str) -> None:
    """Put something in the place of a file."""
    match kind:
        case "folder" | "full folder":
            path.mkdir()
            if kind == "full folder":
                (path / "something").write_text("of a person")
        case "FIFO":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as one:
                folder = os.open(path.parent, os.O_RDONLY)  # paths of sockets are short
                one.bind(f"/proc/self/fd/{folder}/{path.name}")
                os.close(folder)
        case "device":
            try:
                os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero: without end
            except PermissionError:
                path.symlink_to("/dev/zero")
        case "dangling link":
            path.symlink_to(path.parent / "nowhere")
        case "link to itself":
            path.symlink_to(path)
        case "sparse file":
            with path.open("wb") as file:
                file.truncate(SPARSE_BYTES)
        case "empty file":
            path.touch()
        case "closed file":  # to all but root, for whom it is garbage
            path.write_bytes(b"\0garbage")
            path.chmod(0)
        case _:
            raise ValueError(kind)


def forbid_below(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process look at nothing below a folder, as if another user had closed it.

    Modes do not keep root, as whom tests may run, from looking.
    """
    real = os.stat

    def stat_unless_below(path: Any, *args: Any, **options: Any) -> os.stat_result:
        if str(path).startswith(f"{folder}/"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(os, "stat", stat_unless_below)


def mutations(whole: bytes, n: int, seed: int) -> Iterator[bytes]:
    """Yield `n` damaged versions of a file of lines, each other than `whole`."""
    rng = random.Random(seed)
    made = 0
    while made < n:
        mutated = _mutated(whole, rng)
        if mutated != whole:
            made += 1
            yield mutated


def _mutated(whole: bytes, rng: random.Random) -> bytes:
    content = bytearray(whole)
    lines = whole.splitlines(keepends=True)
    place = rng.randrange(len(content))
    match rng.randrange(11):
        case 0:
            content[place] ^= 1 << rng.randrange(8)
        case 1:
            for position in rng.sample(range(len(content)), min(20, len(content))):
                content[position] = rng.randrange(256)
        case 2:
            del content[place:]
        case 3:
            content[place:place] = rng.randbytes(rng.randrange(1, 50))
        case 4:
            content[place : place + 4096] = bytes(len(content[place : place + 4096]))
        case 5:
            lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
            return b"".join(lines)
        case 6:
            del lines[rng.randrange(len(lines))]
            return b"".join(lines)
        case 7:
            rng.shuffle(lines)
            return b"".join(lines)
        case 8:
            return _with_other_number(whole, rng)
        case 9:
            return _with_other_word(whole, rng)
        case 10:
            del content[place : place + rng.randrange(1, 30)]
    return bytes(content)


def _with_other_number(whole: bytes, rng: random.Random) -> bytes:
    """Replace a value of the JSON by one of another type or size."""
    digits = [
        position for position in range(1, len(whole)) if whole[position : position + 1].isdigit()
    ]
    begin = rng.choice(digits)
    end = begin
    while begin > 0 and whole[begin - 1 : begin] in b"0123456789.-e":
        begin -= 1
    while end < len(whole) and whole[end : end + 1] in b"0123456789.-e":
        end += 1
    return whole[:begin] + rng.choice(NUMBERS).encode() + whole[end:]


def _with_other_word(whole: bytes, rng: random.Random) -> bytes:
    """Let the file be of another epoch, boot, stream or key."""
    words = whole.split(b'"')
    inner = rng.randrange(1, len(words), 2) if len(words) > 2 else 0
    words[inner] = rng.choice([b"", b"cd" * 16, b"other", b"\\ud800", b"v", words[-2]])
    return b'"'.join(words)
