"""Markers of sources that have ended: a small file each, for the next capture process.

A process lives on when one of its sources has ended. If it is killed, the next one must not play
that recording again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ast_stream.errors import AudioError
from ast_stream.machine_clock import CLOCK_ID
from ast_stream.runtime.files import read_state, replace_file
from ast_stream.settings.paths import ENDED_FILES, ended_file, runtime_dir
from ast_stream.settings.schema import Settings
from ast_stream.settings.storage import MAX_ENDED_BYTES
from ast_stream.settings.streams import StreamSettings
from ast_stream.settings.workers import capture_settings, of_worker, worker_names

_WHAT = "note of a source that has ended"

logger = logging.getLogger(__name__)


class EndedMark:
    """The file that marks a source as ended, for these settings and this boot.

    Args:
        settings: of the worker that the stream belongs to.
    """

    def __init__(self, settings: Settings, stream: StreamSettings) -> None:
        self._path = ended_file(settings, stream.name)
        chosen = json.dumps(capture_settings(settings, stream), sort_keys=True)
        self._source = hashlib.sha256(chosen.encode()).hexdigest()  # a URL may hold a password

    def read(self) -> tuple[bool, Exception | None]:
        """Return whether the source has ended, and what was wrong with it."""
        found = read_state(self._path, self._decode, MAX_ENDED_BYTES, _WHAT)
        if found is None or found["clock"] != CLOCK_ID or found["source"] != self._source:
            return False, None
        text = found["failure"]
        return True, None if text is None else AudioError(str(text))

    def write(self, failure: Exception | None) -> None:
        """Mark the source as ended; a failure to write is only logged."""
        body = {
            "clock": CLOCK_ID,
            "source": self._source,
            "failure": None if failure is None else str(failure),
        }
        try:
            replace_file(self._path, json.dumps(body).encode(), mode=0o640)
        except OSError as error:
            text = "%s cannot be written: %s; the source begins again if this process is killed"
            logger.warning(text, self._path, error)

    def remove(self) -> None:
        """Remove the mark: the source starts again."""
        with suppress(OSError):
            self._path.unlink()

    @staticmethod
    def _decode(data: bytes) -> Mapping[str, Any]:
        body = json.loads(data)
        if not isinstance(body, dict) or not {"clock", "source", "failure"} <= body.keys():
            raise ValueError("expected an object with clock, source and failure")
        return body


def forget_ended(settings: Settings) -> None:
    """Remove the marks of all sources of a configuration, when `run` starts or has ended."""
    for path in _marks(settings):
        with suppress(OSError):
            path.unlink()


def _marks(settings: Settings) -> Iterator[Path]:
    for name in worker_names(settings):
        yield from runtime_dir(of_worker(settings, name)).glob(ENDED_FILES)
