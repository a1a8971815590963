"""Which model a worker starts with if a centre chooses it, and the next one if it fails.

The newest choice comes first, then the one before, then the one that the configuration names. A
worker that fails to load a model says why and takes the next. One that was killed by it cannot: so
each start is counted before, and after `MAX_TRIES` that did not last the next one is taken.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ast_stream.errors import AstStreamError
from ast_stream.runtime.files import read_state, replace_file
from ast_stream.settings.chosen_model import PREVIOUS, chosen_model, hash_of_folder, models_folder
from ast_stream.settings.schema import Settings

MAX_TRIES = 3
WORKS_AFTER_S = 60.0
LOOK_EVERY_S = 1.0
_MAX_BYTES = 4096

logger = logging.getLogger(__name__)


class ModelChangedError(AstStreamError):
    """Another model is to be used: this process has to begin again."""


class ModelChoice:
    """The model of one worker.

    Args:
        settings: of all workers.
        configured: the checkpoint that the configuration names.
        worker: its name, where there are several.
        now_s: a clock that only goes forward.
    """

    def __init__(
        self,
        settings: Settings,
        configured: str,
        worker: str | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._configured = configured
        self._now_s = now_s
        self._follows = settings.fleet.models.follow
        self._trial = models_folder(settings) / f"trial.{worker or 'worker'}.json"
        self._failed: set[str] = set()
        self._in_use: str | None = None
        self._since_s = self._looked_s = now_s()
        self._is_known_to_work = False

    def candidates(self) -> list[str]:
        """Return the checkpoints to try, in order."""
        current, previous = self._newest(), chosen_model(self._settings, PREVIOUS)
        found = [current, *([] if previous is None else [str(previous)]), self._configured]
        found = list(dict.fromkeys(found))
        if self._tries(current) >= MAX_TRIES and len(found) > 1:
            logger.error(
                "the model %s is left out: %d starts with it did not last", current, MAX_TRIES
            )
            self._failed.add(current)
            del found[0]
        return found

    def starting(self, checkpoint: str) -> None:
        """Count a start, before anything is loaded."""
        self._in_use = checkpoint
        if _is_choice(checkpoint):
            self._write(checkpoint, self._tries(checkpoint) + 1)

    def failed(self, checkpoint: str, error: AstStreamError) -> None:
        """Note that a model cannot be loaded."""
        self._failed.add(checkpoint)
        logger.error("the model %s cannot be used: %s", checkpoint, error)

    def started(self) -> None:
        """Note that the worker begins to work."""
        self._since_s = self._now_s()

    def poll(self) -> None:
        """Look, once a second, whether another model is to be used.

        Raises:
            ModelChangedError: it is.
        """
        now_s = self._now_s()
        if not self._follows or now_s - self._looked_s < LOOK_EVERY_S:
            return
        self._looked_s = now_s
        if not self._is_known_to_work and now_s - self._since_s > WORKS_AFTER_S:
            self._is_known_to_work = True
            if self._in_use is not None and _is_choice(self._in_use):
                self._write(self._in_use, 0)
        newest = self._newest()
        if newest != self._in_use and newest not in self._failed:
            raise ModelChangedError(f"the model is now {newest}")

    def _newest(self) -> str:
        chosen = chosen_model(self._settings)
        return self._configured if chosen is None else str(chosen)

    def _tries(self, checkpoint: str) -> int:
        if not _is_choice(checkpoint):
            return 0
        found = read_state(self._trial, json.loads, _MAX_BYTES, "trial of a model")
        if not isinstance(found, dict) or found.get("model") != Path(checkpoint).name:
            return 0
        tries = found.get("tries")
        return tries if isinstance(tries, int) else 0

    def _write(self, checkpoint: str, tries: int) -> None:
        content = json.dumps({"model": Path(checkpoint).name, "tries": tries}).encode()
        with suppress(OSError):  # a full disk must not keep a worker from starting
            replace_file(self._trial, content, is_synced=True, mode=0o640)


def _is_choice(checkpoint: str) -> bool:
    return hash_of_folder(Path(checkpoint).name) is not None
