"""Reload on SIGHUP: what may change in a running process does, and the rest is named."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import wait
from pathlib import Path
from typing import Any

from ast_stream.errors import AstStreamError, ConfigError, Problem
from ast_stream.runtime.background import in_background
from ast_stream.runtime.lifecycle import Notifier
from ast_stream.runtime.logging import setup_logging
from ast_stream.settings.explain import show_path
from ast_stream.settings.load import LoadedSettings, load_file
from ast_stream.settings.schema import Settings

logger = logging.getLogger(__name__)

READ_AT_ONCE_S = 1.0  # that a loop may wait in one turn
READ_LIMIT_S = 60.0

Parts = Mapping[str, Any]
"""Settings as plain data, by the name that a message gives them."""


class Reloader:
    """Reads the configuration of one process again when that is requested.

    A file with mistakes changes nothing, nor does anything else that goes wrong. Logging changes
    in every process.

    Args:
        requested: is set by whoever wants a reload.
        file: the configuration.
        process: its name in the log.
        parts: returns the part of settings that concerns this process.
        live: names of the parts that `apply` can change.
        apply: checks new settings, raising an `AstStreamError` if they cannot be used, then puts
            the live parts into effect.
        on_waiting: called with the keys that need a restart, after each reload.
        view: returns what of new settings is this process's; may raise as `apply` does.
    """

    def __init__(
        self,
        requested: threading.Event,
        file: Path,
        settings: Settings,
        process: str,
        *,
        parts: Callable[[Settings], Parts],
        live: frozenset[str] = frozenset(),
        apply: Callable[[LoadedSettings], None] = lambda loaded: None,
        on_waiting: Callable[[Sequence[str]], None] = lambda keys: None,
        view: Callable[[LoadedSettings], LoadedSettings] = lambda loaded: loaded,
    ) -> None:
        self._requested = requested
        self._file = file
        self._process = process
        self._parts = parts
        self._live = live | {"logging"}
        self._apply = apply
        self._on_waiting = on_waiting
        self._view = view
        self._in_use = self._parts_of(settings)
        self._reading: _Reading | None = None

    def poll(self, notifier: Notifier) -> None:
        """Reload if that was requested, and report it to the service manager.

        The file is read beside the loop: a long one, or a disk that hangs, must not stop it.
        """
        if self._reading is None and self._requested.is_set():
            self._requested.clear()
            notifier.reloading()
            self._reading = _Reading(self._file)
        if self._reading is not None and self._reading.is_over():
            reading, self._reading = self._reading, None
            notifier.reloaded(self._reload(reading))

    def _reload(self, reading: _Reading) -> str:
        """Use what was read; whatever that raises leaves everything as it was."""
        try:
            loaded = self._view(reading.result())
            self._apply(loaded)
        except AstStreamError as error:
            lines = str(error).splitlines() or [type(error).__name__]
            for line in lines:
                logger.error("settings are kept as they were: %s", line)
            return f"settings are kept as they were: {lines[0]}"
        except Exception as error:  # a fault of ours must not end a process that works
            text = f"{self._file}: {type(error).__name__}: {error}"
            logger.exception("settings are kept as they were: %s", text)
            return f"settings are kept as they were: {text}"
        logs = loaded.settings.logging
        setup_logging(logs.level, logs.format, process=self._process)
        return self._report(self._parts_of(loaded.settings))

    def _report(self, new: Parts) -> str:
        """Log what has changed and what needs a restart; return it as a line."""
        changed: list[str] = []
        waiting: list[str] = []
        for name in new:
            paths = [_shown(name, path) for path in changes(self._in_use[name], new[name])]
            (changed if name in self._live else waiting).extend(paths)
        self._in_use = {**self._in_use, **{name: new[name] for name in self._live if name in new}}
        self._on_waiting(waiting)
        text = f"settings read again: {', '.join(changed) or 'nothing'} changed"
        logger.info("%s", text)
        if waiting:
            logger.warning("a restart is needed for: %s", ", ".join(waiting))
            text += f"; a restart is needed for {', '.join(waiting)}"
        return text

    def _parts_of(self, settings: Settings) -> Parts:
        return {**self._parts(settings), "logging": settings.logging.model_dump()}


class _Reading:
    """Settings that are read in a thread; those of the usual size are read at once."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._began_s = time.monotonic()
        self._loaded = in_background(lambda: load_file(file))
        wait([self._loaded], READ_AT_ONCE_S)

    def is_over(self) -> bool:
        """Return whether there is a result, or none will be waited for."""
        return self._loaded.done() or time.monotonic() - self._began_s > READ_LIMIT_S

    def result(self) -> LoadedSettings:
        """Return the settings, or raise what reading them raised.

        Raises:
            ConfigError: the file has mistakes, or its disk does not answer.
        """
        if not self._loaded.done():
            text = f"the configuration file cannot be read: no answer within {READ_LIMIT_S:g} s"
            raise ConfigError([Problem(str(self._file), None, "", text)])
        return self._loaded.result()


def changes(old: Any, new: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Return the paths at which two pieces of plain data differ.

    >>> changes({"a": [1, 2], "b": {}}, {"a": [1, 3], "b": {"c": 0}})
    [('a', 1), ('b',)]
    """
    if isinstance(old, dict) and isinstance(new, dict) and _have_keys_alike(old, new):
        keys = dict.fromkeys([*old, *new])
        pairs: list[tuple[str | int, Any, Any]] = [
            (key, old.get(key), new.get(key)) for key in keys
        ]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(index, *both) for index, both in enumerate(zip(old, new, strict=True))]
    else:
        return [] if old == new else [path]
    return [found for key, before, after in pairs for found in changes(before, after, (*path, key))]


def _have_keys_alike(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Return whether two objects have the same keys, or are both sections by names of their own."""
    is_of_sections = all(isinstance(value, dict) for value in (*old.values(), *new.values()))
    return old.keys() == new.keys() or is_of_sections


def _shown(name: str, path: tuple[str | int, ...]) -> str:
    inside = show_path(path)
    return f"{name}{'' if not inside or inside.startswith('[') else '.'}{inside}"
