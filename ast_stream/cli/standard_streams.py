"""Standard input, output and error: what a command does where they are closed, full or unread.

What fails on standard output raises an error of its own kind, so that whoever catches it knows
that it is the output and not a file or a socket: a reader that has gone ends the command quietly,
as `head` expects; all else is one sentence and an exit code. What cannot be written to standard
error is lost, since it is for people and no result.
"""

from __future__ import annotations

import io
import os
import select
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_STDIN, _STDOUT, _STDERR = 0, 1, 2


class OutputError(OSError):
    """Standard output takes nothing: it is full, closed, or its device is gone."""


class ReaderGoneError(BrokenPipeError):
    """Whoever read standard output does not want any more of it."""


def set_up_standard_streams() -> None:
    """Make the three streams safe to use; once, at the start of a program."""
    _open_what_is_closed()
    sys.stdout = _text(_Output(_STDOUT, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Messages(_STDERR, "w", closefd=False), sys.stderr)


def drop_output() -> None:
    """Let what is still buffered go nowhere: flushing it at exit would complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, _STDOUT)
    os.close(nowhere)


def reader_is_gone() -> bool:
    """Return whether standard output is a pipe that nobody reads, without writing to it."""
    poll = select.poll()
    poll.register(_STDOUT, 0)
    return any(flags & select.POLLERR for _, flags in poll.poll(0))


def _open_what_is_closed() -> None:
    """Give closed standard streams back their numbers, as after `>&-` or under an old init.

    The next file or socket would get the number of a closed one, and what is printed would end up
    in it. Standard output is opened so that a write to it fails: a result that nobody can have
    received is no success.
    """
    for number, flags in (
        (_STDIN, os.O_RDONLY),
        (_STDOUT, os.O_RDONLY),
        (_STDERR, os.O_WRONLY),
    ):
        try:
            os.fstat(number)
        except OSError:  # the lowest free number is taken, which is this one
            os.open(os.devnull, flags)
            os.set_inheritable(number, True)


def _text(raw: io.FileIO, before: object) -> io.TextIOWrapper:
    """Return a text stream like the one before, which is None where its number was closed."""
    like = before if isinstance(before, io.TextIOWrapper) else None
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding="utf-8" if like is None else like.encoding,
        # halves of characters and what an old locale lacks: written out instead of a crash
        errors="backslashreplace",
        line_buffering=like is None or like.line_buffering or like.write_through,
    )


class _Patient(io.FileIO):
    def write(self, data: ReadableBuffer) -> int:
        """Write all or a part; where the descriptor would not wait for its reader, wait here."""
        while (n_written := super().write(data)) is None:
            select.select([], [self], [])
        return n_written


class _Output(_Patient):
    """Standard output, whose errors say that they are its own."""

    def write(self, data: ReadableBuffer) -> int:
        """Write all or a part."""
        try:
            return super().write(data)
        except BrokenPipeError as error:
            raise ReaderGoneError(*error.args) from None
        except OSError as error:
            raise OutputError(*error.args) from None


class _Messages(_Patient):
    """Standard error: a command goes on where it takes nothing, unless all its readers have gone.

    After `ast-stream listen 2>&1 | head` nobody sees anything any more.
    """

    def write(self, data: ReadableBuffer) -> int:
        """Write all or a part, or lose it."""
        try:
            return super().write(data)
        except OSError as error:
            if isinstance(error, BrokenPipeError) and reader_is_gone():
                raise ReaderGoneError(*error.args) from None
            return memoryview(data).nbytes
