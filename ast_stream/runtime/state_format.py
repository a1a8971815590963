"""The format of the state folder: one number for all that a version keeps there.

Event log, coverage ledger and alert database each refuse what they cannot read; which versions of
them belong together is said here, once, in a file that is written before anything else. An older
folder is migrated, step by step; one of a later version is refused and never written to.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from ast_stream.errors import ConfigError, Problem, StartupError
from ast_stream.runtime.files import locked_folder, make_writable_folder, read_state, replace_file
from ast_stream.version import __version__

logger = logging.getLogger(__name__)

FILE = "format.json"
_WHAT = "format of the state folder"
_MAX_BYTES = 4096

Migration = Callable[[Path], None]
"""Brings a state folder from one format to the next; done again after a crash in its middle."""


def _keep_as_it_is(folder: Path) -> None:
    """Take over a folder without a format number: its files have format 1."""


MIGRATIONS: Sequence[Migration] = (_keep_as_it_is,)
"""From each format, counted from 0, to the next."""


def prepare_state_dir(
    folder: Path, config: str, migrations: Sequence[Migration] = MIGRATIONS
) -> None:
    """Create a state folder, or bring it to the format of this version.

    Args:
        config: the file that names the folder.
        migrations: to the format of this version, which is their number.

    Raises:
        ConfigError: it is of a later version; nothing in it was touched.
        StartupError: it cannot be created, read or written to, or not be migrated.
    """
    make_writable_folder(folder, "state_dir", 0o750)
    try:
        with locked_folder(folder):
            found = _expect_known(folder, config, len(migrations))
            for number in range(found or 0, len(migrations)):
                migrations[number](folder)
                if found is not None:
                    logger.info("state folder %s: migrated to format %d", folder, number + 1)
            if found != len(migrations):
                _write(folder, len(migrations))
    except OSError as error:
        raise StartupError(
            f"state_dir: cannot use {folder}: {error.strerror}; "
            "set state_dir to a folder that this user may write to"
        ) from error


def check_state_dir(folder: Path, config: str) -> None:
    """Refuse a state folder of a later version, before something in it is changed.

    Raises:
        ConfigError: it is of a later version.
    """
    _expect_known(folder, config, len(MIGRATIONS))


def _expect_known(folder: Path, config: str, newest: int) -> int | None:
    """Return the format of a folder; None: it has none yet, or one that cannot be read."""
    found = read_state(folder / FILE, _decode, _MAX_BYTES, _WHAT)
    if found is None:
        return None
    number, version = found
    if number > newest:
        text = (
            f"{folder} has the format {number} of ast-stream {version}, where this is "
            f"{__version__} with format {newest}: install that version or a later one, "
            "or set another state_dir"
        )
        raise ConfigError([Problem(config, None, "state_dir", text)])
    return number


def _decode(content: bytes) -> tuple[int, str]:
    body = json.loads(content)
    if not isinstance(body, dict):
        raise ValueError("expected an object")
    number, version = body.get("format"), body.get("version")
    if type(number) is not int or number < 0 or not isinstance(version, str):
        raise ValueError("expected a format and a version")
    return number, version[:40]


def _write(folder: Path, number: int) -> None:
    content = json.dumps({"format": number, "version": __version__}) + "\n"
    try:
        replace_file(folder / FILE, content.encode(), is_synced=True, mode=0o640)
    except OSError as error:  # a full disk stops nothing, and the next start writes it
        logger.warning("%s %s cannot be written: %s", _WHAT, folder / FILE, error.strerror)
