"""State files: replaced atomically, locked, read within bounds, set aside if damaged.

Whatever lies where a state file should be (a folder, a FIFO, a device, a terabyte of zeros, the
file of another program) must neither prevent a start nor delay it.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from ast_stream.errors import AstStreamError, StartupError

_NOT_OF_THE_FILE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_LOCK_MODE = 0o660
MAX_ASIDE = 3  # damaged files kept of each name; the oldest makes room

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

Content = bytes | Callable[[Path], None]
"""What a file shall hold, or a function that writes it to the path that it is given."""

_T = TypeVar("_T")

logger = logging.getLogger(__name__)


class DamagedFileError(AstStreamError):
    """A file that cannot be what this program wrote."""


class RemovedError(AstStreamError):
    """A file that was removed or replaced under a process, which has to begin anew."""


def replace_files(
    folder: Path,
    contents: Mapping[str, Content],
    *,
    is_synced: bool = False,
    mode: int | None = None,
) -> None:
    """Write files by name so that a reader sees the old or the new ones, never half of one.

    None takes its place before all are written; then they do, in their order.

    Args:
        is_synced: they survive a power cut from the moment this returns.
        mode: of the files; None: as new files have it.

    Raises:
        OSError: a file could not be written (`filename` says which); what was there is whole.
    """
    unfinished = {name: folder / f".{name}.unfinished" for name in contents}
    try:
        for name, content in contents.items():
            with _named(folder / name):
                _write(unfinished[name], content, mode)
                if is_synced:
                    sync(unfinished[name])
        for name, written in unfinished.items():
            with _named(folder / name):
                os.replace(written, folder / name)
        if is_synced:
            sync(folder)
    finally:
        for left_over in unfinished.values():
            with suppress(OSError):
                left_over.unlink(missing_ok=True)


def replace_file(
    path: Path, content: Content, *, is_synced: bool = False, mode: int | None = None
) -> None:
    """Write one file, see `replace_files`."""
    replace_files(path.parent, {path.name: content}, is_synced=is_synced, mode=mode)


def write_output_file(path: Path, content: Content) -> None:
    """Write a file that a user has named, which a reader never sees half of.

    A link is followed, and what is no file takes the bytes as it can: a FIFO such as that of
    `>(command)`, or a device. Nothing is put in its place, unlike that of a state file.

    Raises:
        OSError: it could not be written; a file that was there is whole.
    """
    place = Path(os.path.realpath(path))
    if place.is_file() or place.is_dir() or not path.exists():
        replace_file(place, content)
    elif isinstance(content, bytes):
        with path.open("wb") as file:
            file.write(content)
    else:
        content(path)


def make_folder(path: Path, mode: int = 0o777) -> None:
    """Make a folder and its missing parents, synced: a power cut does not remove them again.

    Args:
        mode: of the parents as well: who may write to one may replace what lies in it.

    Raises:
        OSError: it cannot be made, or is something else.
    """
    if path.is_dir():
        return
    if not path.parent.exists():
        make_folder(path.parent, mode)
    path.mkdir(mode, exist_ok=True)
    sync(path.parent)


def make_writable_folder(path: Path, key: str, mode: int = 0o777) -> None:
    """Make a folder if it is not there, and refuse one that nothing can be written to.

    Nothing is written to find out. A full disk is accepted: it may have room again later.

    Args:
        key: of the configuration, as the error names it.

    Raises:
        StartupError: it cannot be made, its disk is read-only, or this user may not write there.
    """
    try:
        make_folder(path, mode)
        problem = why_not_writable(path)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return
        problem = f"cannot create {path}: {error.strerror}"
    if problem is not None:
        text = f"{key}: {problem}; set {key} to a folder that this user may write to"
        raise StartupError(text)


def why_not_writable(path: Path) -> str | None:
    """Return what keeps this user from writing to a folder, or from making it; None: nothing.

    Raises:
        OSError: it cannot be looked at.
    """
    nearest = next(place for place in (path, *path.parents) if place.exists())
    if os.access(nearest, os.W_OK | os.X_OK) and nearest.is_dir():
        return None
    if not nearest.is_dir():
        return f"cannot write to {path}: {nearest} is no folder"
    is_read_only = os.statvfs(nearest).f_flag & os.ST_RDONLY
    why = "its disk is read-only" if is_read_only else f"user {os.geteuid()} may not"
    return f"cannot write to {nearest}: {why}"


def out_of_reach(folder: Path, uid: int, gids: Collection[int]) -> Iterator[Path]:
    """Yield the files and folders in a folder that belong to others and that a user may not change.

    Args:
        uid, gids: the user, and its groups.
    """
    if uid == 0:
        return
    for place, folders, files in os.walk(folder):
        for name in sorted([*folders, *files]):
            path = Path(place, name)
            with suppress(OSError):  # it has gone meanwhile
                found = path.lstat()
                is_folder = stat.S_ISDIR(found.st_mode)
                if not is_folder and not stat.S_ISREG(found.st_mode):
                    continue
                needed = 0o7 if is_folder else 0o6
                rights = found.st_mode >> (3 if found.st_gid in gids else 0)
                if found.st_uid != uid and rights & needed != needed:
                    yield path


def sync(path: Path) -> None:
    """Sync the content of a file, or the entries of a folder, to disk.

    A synced file may still be lost in a power cut if its folder is not synced.

    Raises:
        OSError: the disk failed, or the path is not there.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder that takes the place of `path`, which is empty or not there, once filled.

    Raises:
        OSError: it cannot be made or moved; nothing of it is left.
    """
    unfinished = path.parent / f".{path.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def reason_of(error: Exception) -> str:
    """Return why a file cannot be read or written: the system's words without number and path."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def read_bounded(path: Path, max_bytes: int, *, is_cut: bool = False) -> bytes:
    """Return the content of a regular file, without ever waiting for it.

    Args:
        is_cut: of a longer file return the first `max_bytes`.

    Raises:
        OSError: it is not there, or cannot be read.
        DamagedFileError: it is something else than a file, or longer than `max_bytes`.
    """
    _expect_regular(os.stat(path))
    # between the two somebody may have put a FIFO there: it must not be waited for
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        _expect_regular(found)
        if found.st_size > max_bytes and not is_cut:
            raise DamagedFileError(f"expected at most {max_bytes} bytes, got {found.st_size}")
        return file.read(max_bytes)


def read_state(path: Path, decode: Callable[[bytes], _T], max_bytes: int, what: str) -> _T | None:
    """Return what `decode` makes of a state file; None if there is no usable one.

    One that is damaged is set aside and a warning says so: a start goes on without it.

    Args:
        decode: raises `DamagedFileError` or ValueError for what it does not understand.
        what: the content of the file, as the warning names it.

    Raises:
        OSError: memory or descriptors are short; the file is as it was.
    """
    try:
        return decode(read_bounded(path, max_bytes))
    except FileNotFoundError:
        if path.is_symlink():
            warn_set_aside(path, what, "it is a link to nothing")
    except OSError as error:
        if error.errno in _NOT_OF_THE_FILE:
            raise
        warn_set_aside(path, what, reason_of(error))
    except (DamagedFileError, ValueError) as error:
        warn_set_aside(path, what, str(error))
    return None


def warn_set_aside(
    path: Path,
    what: str,
    reason: str,
    then: str = "starting afresh",
    kept_as: Path | None = None,
) -> None:
    """Set a damaged file aside and log one sentence about it, see `set_aside`."""
    kept = set_aside(path, kept_as)
    where = "it cannot be moved away" if kept is None else f"kept as {kept.name}"
    logger.warning("%s %s cannot be used (%s): %s, %s", what, path, reason, where, then)


def set_aside(path: Path, kept_as: Path | None = None) -> Path | None:
    """Rename what is at `path` to say that it is damaged; of each name `MAX_ASIDE` are kept.

    Args:
        kept_as: another name, for files that have a number in theirs.

    Returns:
        The new path; None if it cannot be moved.
    """
    name = path if kept_as is None else kept_as
    places = [name.with_name(f"{name.name}.damaged-{n}") for n in range(1, MAX_ASIDE + 1)]
    for place in sorted(places, key=_age):
        try:
            os.replace(path, place)
        except OSError as error:
            if error.errno in (errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST):
                continue  # a folder and a file do not replace each other
            return None
        return place
    return None


def make_way(path: Path) -> None:
    """Remove what an earlier run left here; a folder is not ours, and is set aside."""
    with suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            warn_set_aside(path, "the place of", "a folder is there", "going on without it")
        else:
            path.unlink()


def file_version(path: Path) -> tuple[int, ...] | None:
    """Return what differs once a file is replaced, written or given another mode; None without one.

    None also where the path cannot be looked at.
    """
    try:
        found = path.stat()
    except (OSError, ValueError):  # a ValueError: a name with NUL in it
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode


def is_in_place(path: Path, file: os.stat_result) -> bool:
    """Return whether `path` still is the file, or the socket, that it was."""
    try:
        return os.path.samestat(path.lstat(), file)
    except OSError:
        return False


def expect_in_place(path: Path, file: os.stat_result, what: str) -> None:
    """Check that `path` is the file that this process uses; links are followed.

    Where it cannot be looked at now, nothing is known, and nothing raised.

    Args:
        what: it is, or it is the lock of, as the error names it.

    Raises:
        RemovedError: it was removed or replaced: what is written to it is lost.
    """
    try:
        is_in_place = os.path.samestat(path.stat(), file)
    except (FileNotFoundError, NotADirectoryError):
        is_in_place = False
    except OSError:
        return
    if not is_in_place:
        text = "was removed or replaced while it was in use: this process ends, to begin anew"
        raise RemovedError(f"{what} {text}")


def _write(path: Path, content: Content, mode: int | None) -> None:
    make_way(path)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    with open(fd, "wb") as file:
        mode = stat.S_IMODE(os.fstat(fd).st_mode) if mode is None else mode
        if isinstance(content, bytes):
            file.write(content)
    if not isinstance(content, bytes):
        content(path)
    os.chmod(path, mode)  # some libraries make files that only their owner can read


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file that was to be written in an error, rather than an unfinished one."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def _expect_regular(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise DamagedFileError(f"expected a file, got {kind}")


def _age(path: Path) -> float:
    """Sort by when it was set aside: free places first."""
    try:
        return os.lstat(path).st_ctime
    except OSError:
        return 0.0


def lock_file(path: Path, what: str) -> int:
    """Lock `path` and return its descriptor; closing it, or the end of the process, releases it.

    Args:
        what: what the lock stands for, as it is named in the error.

    Raises:
        StartupError: another process holds the lock, or its folder cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        lock_fd = open_lock(path)
    except OSError as error:
        raise StartupError(f"cannot use {what}: {error}") from error
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock_fd)
        raise StartupError(f"{what} is in use by another process") from error
    return lock_fd


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Let one process at a time read and replace what several share in a folder."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def open_lock(path: Path) -> int:
    """Open a lock file; anything else in its place holds no lock and is set aside.

    Raises:
        OSError: it cannot be opened.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        pass
    else:
        if not stat.S_ISREG(found.st_mode):
            warn_set_aside(path, "lock", "it is not a file")
        elif not found.st_mode & stat.S_IRUSR and found.st_uid == os.geteuid():
            os.chmod(path, _LOCK_MODE)  # ours: another name would let a second process in
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    return os.open(path, flags, _LOCK_MODE)
