"""Fetches, checks and installs, or rejects, the model that a centre asks a box to use.

First a separate process loads the model and checks that it fits the configuration. Only then is
one link changed. The workers notice it, restart, and resume from the rings. If they do not come up
with the new model, the link is changed back, even if the centre cannot be reached.

All progress is on disk, so that a kill at any moment leaves the box with a complete model, and the
next run continues.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import Field

from ast_stream.errors import AstStreamError, WireError
from ast_stream.fleet.buckets import RolloutStore
from ast_stream.fleet.event_counts import (
    Mark,
    begun_before,
    bounded,
    end_of_logs,
    event_folders,
    read_begun,
)
from ast_stream.fleet.model_folder import (
    DamagedModelError,
    ModelFolder,
    missing_pieces,
    write_piece,
)
from ast_stream.labels import printable
from ast_stream.messages.codec import Body, Text, Time, decode_json, encode_json
from ast_stream.messages.fleet import (
    MAX_PROBLEM_CHARACTERS,
    RolloutReport,
    RolloutState,
    WorkerReport,
)
from ast_stream.messages.rollout import PIECE_BYTES, CheckpointManifest, WantedModel
from ast_stream.runtime.backoff import Backoff
from ast_stream.runtime.files import make_folder, read_state, reason_of, replace_file
from ast_stream.runtime.lifecycle import start_command
from ast_stream.runtime.nats import NatsError
from ast_stream.settings.chosen_model import models_folder
from ast_stream.settings.fleet import box_identity
from ast_stream.settings.schema import Settings
from ast_stream.urls import mask

STATE_FILE = "follower.json"
TICK_S = 10.0
START_LIMIT_S = 300.0  # for the workers to come up with a new model
CHECK_LIMIT_S = 600.0
SPARE_BYTES = 256 * 1024 * 1024  # must stay free on the disk
_COUNT_EVERY_S = 30.0
_MAX_STATE_BYTES = 1024 * 1024
_MAX_REFUSED = 20
_RETRY_S = (TICK_S, 600.0)
_POLL_S = 0.1
_MAX_OUTPUT = 64 * 1024

logger = logging.getLogger(__name__)

Check = Callable[[Path, CheckpointManifest], str | None]
"""Returns why the box cannot use the model in a folder, as a sentence; None: it can."""


class FollowerState(Body):
    """The state of a follower, as kept on disk."""

    v: int = 1
    state: RolloutState = "in_use"
    detail: Text | None = None
    wanted: Text | None = None
    order: Text | None = None
    target: Text | None = None
    """Content hash of the model that the workers start with."""
    return_to: Text | None = None
    """Content hash of the model that was in use before."""
    since_ns: Time | None = None
    boots: dict[Text, Text] = Field(default_factory=dict)
    """Boot ids of the workers, by name: those before the restart, later the current ones."""
    mark: dict[Text, tuple[int, int]] = Field(default_factory=dict)
    began: dict[Text, int] = Field(default_factory=dict)
    began_before: dict[Text, int] = Field(default_factory=dict)
    before_s: float = 0.0
    restarts: int = 0
    refused: dict[Text, Text] = Field(default_factory=dict)
    """Why, by order and content hash."""


class RolloutFollower:
    """Follows the roll-outs of a centre on this box.

    Args:
        settings: of the box.
        store: of the fleet.
        workers: returns the state of the workers, at most a few seconds old.
        check: see `Check`.
        now_s, wall_ns: clocks.
    """

    def __init__(
        self,
        settings: Settings,
        store: RolloutStore,
        workers: Callable[[], Sequence[WorkerReport]],
        check: Check,
        *,
        start_limit_s: float = START_LIMIT_S,
        now_s: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._key = box_identity(settings).key
        self._store = store
        self._workers = workers
        self._check = check
        self._start_limit_s = start_limit_s
        self._now_s = now_s
        self._wall_ns = wall_ns
        self._logs = event_folders(settings)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._backoff = Backoff(*_RETRY_S)
        self._retry_s = float("-inf")
        self._counted_s = self._started_s = float("-inf")
        self.folder = ModelFolder(models_folder(settings))
        self._path = self.folder.path / STATE_FILE
        self._state = (
            read_state(self._path, _decoded, _MAX_STATE_BYTES, "state of the model roll-out")
            or FollowerState()
        )
        if self._state.state == "starting":
            self._started_s = now_s()

    def start(self) -> None:
        """Start following roll-outs, in a thread."""
        self._thread = threading.Thread(target=self._run, name="model roll-out", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop; a roll-out that is under way continues at the next start."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2.0)

    @property
    def is_stopped(self) -> bool:
        """Whether it was closed."""
        return self._stop.is_set()

    def report(self) -> RolloutReport:
        """Return the progress of the current roll-out on this box."""
        state = self._state
        return RolloutReport(
            wanted=state.wanted,
            current=self.folder.current,
            previous=self.folder.previous,
            state=state.state,
            detail=state.detail,
            since_ns=state.since_ns,
            began=state.began,
            began_before=state.began_before,
            before_s=state.before_s,
            restarts=state.restarts,
        )

    def tick(self) -> None:
        """Take the steps that are due; may take as long as a download and a check."""
        try:
            if self._state.state == "starting":
                self._watch_start()
            elif self._now_s() >= self._retry_s:
                self._follow(self._store.wanted(self._key))
            self._watch_use()
        except NatsError as error:  # the centre is unreachable: keep the model in use
            if self._state.state in ("downloading", "checking"):
                self._wait(str(error))
        except DamagedModelError as error:  # the model in use is damaged: there is no better one
            logger.error("%s", error)
        except OSError as error:
            self._wait(f"the disk refuses: {reason_of(error)}")

    def _run(self) -> None:
        while not self._workers() and not self._stop.is_set():
            self._stop.wait(_POLL_S)  # until the workers are known
        while not self._stop.is_set():
            try:
                self.tick()
            except Exception as error:  # a bug here must not end the forwarder
                logger.exception("the model roll-out: %s: %s", type(error).__name__, error)
            self._stop.wait(min(TICK_S, 1.0 if self._state.state == "starting" else TICK_S))

    def _follow(self, wanted: WantedModel | None) -> None:
        if wanted is None:  # no roll-out any more: keep the model in use
            if self._state.wanted is not None:
                self._change("in_use", wanted=None, order=None, detail=None)
            return
        content, order = wanted.content, wanted.order
        if content == self.folder.current and self._state.state not in ("returned", "refused"):
            if (self._state.wanted, self._state.order, self._state.state) != (
                content,
                order,
                "in_use",
            ):
                self._change("in_use", wanted=content, order=order, detail=None)
            return
        if (reason := self._state.refused.get(_key(content, order))) is not None:
            if self._state.state not in ("refused", "returned"):
                self._change("refused", wanted=content, order=order, detail=reason)
            return
        if content == self.folder.current:  # wanted again, after another model was wanted
            self._change("in_use", wanted=content, order=order, detail=None)
            return
        self._change("downloading", wanted=content, order=order, detail=None)
        try:
            self._prepare(content)
        except (DamagedModelError, WireError) as error:
            self._refuse(str(error))

    def _prepare(self, content: str | None) -> None:
        """Fetch and check a model, then let the workers restart with it."""
        if content is not None:
            manifest = self._fetch(content)
            if manifest is None:
                return
            self._change("checking")
            if (problem := self._check(self.folder.path_of(content), manifest)) is not None:
                if not self._stop.is_set():
                    self._refuse(problem)
                return
        before, before_s = begun_before(self._logs, self._wall_ns())
        self._change(
            "starting",
            target=content,
            return_to=self.folder.current,
            since_ns=self._wall_ns(),
            boots={_name(worker): worker.boot for worker in self._workers() if worker.boot},
            mark=end_of_logs(self._logs),
            began={},
            began_before=bounded(before),
            before_s=round(before_s, 1),
            restarts=0,
        )
        self._started_s = self._now_s()
        self.folder.activate(content)
        self._backoff.reset()
        logger.info("the workers begin again with the model %s", content or "of the configuration")

    def _fetch(self, content: str) -> CheckpointManifest | None:
        """Fetch a model completely and return its manifest; None: try again later."""
        if self.folder.holds(content):
            try:
                return self.folder.check(content)
            except DamagedModelError as error:
                logger.warning("%s; it is fetched again", error)
                if content in (self.folder.current, self.folder.previous):
                    raise
                self.folder.forget(content)
        manifest = CheckpointManifest.decode(self._store.manifest(content), content)
        place = self.folder.incoming(content)
        free = shutil.disk_usage(place).free
        missing = {file.name: missing_pieces(place, file) for file in manifest.files}
        needed = sum(map(len, missing.values())) * PIECE_BYTES
        if free < needed + SPARE_BYTES:
            mib = 1024 * 1024
            text = f"{needed // mib + SPARE_BYTES // mib} MiB are needed, {free // mib} are free"
            self._wait(f"the disk has no room for the model: {text}")
            return None
        names = {file.name for file in manifest.files}
        for path in place.iterdir():
            if path.name not in names:
                path.unlink()
        for file in manifest.files:
            if not file.pieces:
                (place / file.name).write_bytes(b"")
            for index in missing[file.name]:
                if self._stop.is_set():
                    return None
                write_piece(place, file, index, self._store.piece(file.pieces[index]))
            with (place / file.name).open("r+b") as opened:
                opened.truncate(file.size)
        self.folder.accept(manifest)
        return manifest

    def _watch_start(self) -> None:
        """Check whether the workers have come up with the new model."""
        state = self._state
        if self.folder.current != state.target:  # killed before the link was changed
            self._change("checking" if state.target else "in_use")
            return
        expected = None if state.target is None else self.folder.manifest(state.target).model
        workers = list(self._workers())
        new = [worker for worker in workers if worker.boot not in (None, *state.boots.values())]
        other = [worker for worker in new if expected not in (None, worker.model)]
        if other:
            self._return(
                f"{_title(other[0])} did not start with it and uses {other[0].model}: "
                "its log says why"
            )
        elif workers and len(new) == len(workers):
            boots = {_name(worker): worker.boot for worker in new if worker.boot}
            self._change("in_use", boots=boots, since_ns=self._wall_ns(), detail=None)
            logger.info("the workers use the model %s", state.target or "of the configuration")
            self.folder.purge()
        elif self._now_s() - self._started_s > self._start_limit_s:
            silent = [worker for worker in workers if worker not in new]
            text = f"{_title(silent[0])} did not come up" if silent else "no worker came up"
            self._return(f"{text} within {self._start_limit_s:g} s")

    def _return(self, reason: str) -> None:
        """Roll back to the previous model; the link changes first, so that a kill is harmless."""
        self.folder.restore(self._state.return_to)
        self._refuse(reason, "returned")

    def _refuse(self, reason: str, state: RolloutState = "refused") -> None:
        reason = _short(reason)
        refused = {**self._state.refused, _key(self._state.wanted, self._state.order): reason}
        kept = dict(list(refused.items())[-_MAX_REFUSED:])
        self._change(state, detail=reason, refused=kept)
        logger.error("the model %s is not used: %s", self._state.wanted, reason)
        if self._state.wanted is not None:
            self.folder.forget(self._state.wanted)

    def _wait(self, reason: str) -> None:
        """Try again later."""
        delay_s = self._backoff.next_s()
        self._retry_s = self._now_s() + delay_s
        with suppress(OSError):
            self._change("waiting", detail=_short(reason))
        logger.warning(
            "the model %s has to wait: %s; next try in %g s", self._state.wanted, reason, delay_s
        )

    def _watch_use(self) -> None:
        """Check that the model stays in use, and count events and restarts since then."""
        now_s = self._now_s()
        if self._state.state != "in_use":
            return
        workers = [worker for worker in self._workers() if worker.boot]
        content = self.folder.current
        expected = None if content is None else self.folder.manifest(content).model
        other = [worker for worker in workers if expected not in (None, worker.model)]
        if other:  # a worker has restarted since, and could not use the model
            self._return(f"{_title(other[0])} no longer uses it, but {other[0].model}")
            return
        if not self._state.mark:  # no model has been put into use since this state was created
            return
        boots = {_name(worker): worker.boot for worker in workers if worker.boot}
        changed = sum(self._state.boots.get(name, boot) != boot for name, boot in boots.items())
        if not changed and now_s - self._counted_s < _COUNT_EVERY_S:
            return
        self._counted_s = now_s
        mark: Mark = {name: (at[0], at[1]) for name, at in self._state.mark.items()}
        counts, new = read_begun(self._logs, mark)
        if not changed and new == mark:
            return
        self._change(
            "in_use",
            mark=new,
            began=bounded(Counter(self._state.began) + counts),
            boots={**self._state.boots, **boots},
            restarts=self._state.restarts + changed,
        )

    def _change(self, state: RolloutState, **fields: object) -> None:
        """Change the state, on disk first.

        Raises:
            OSError: the disk cannot be written; the state in memory has changed all the same.
        """
        self._state = self._state.model_copy(update={"state": state, **fields})
        make_folder(self.folder.path, 0o750)
        replace_file(self._path, encode_json(self._state.to_json()), is_synced=True, mode=0o640)


def check_in_process(
    config: Path, is_stopped: Callable[[], bool], limit_s: float = CHECK_LIMIT_S
) -> Check:
    """Return a check that runs in a separate process, on the CPU.

    Args:
        config: of the box.
        is_stopped: polled meanwhile; ends the process when it returns True.
    """

    def check(folder: Path, manifest: CheckpointManifest) -> str | None:
        process = start_command(
            ["fleet", "check", str(folder), "--model", manifest.model, "--config", str(config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert process.stderr is not None
        output: list[bytes] = []
        reader = threading.Thread(target=_drain, args=(process.stderr, output), daemon=True)
        reader.start()
        end_s = time.monotonic() + limit_s
        try:
            while process.poll() is None:
                if is_stopped():
                    return "the forwarder was stopped during the check"
                if time.monotonic() > end_s:
                    return f"its check was not over within {limit_s:g} s"
                time.sleep(_POLL_S)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            reader.join(1.0)
        if process.returncode == 0:
            return None
        lines = b"".join(output).decode(errors="replace").strip().splitlines()
        if process.returncode < 0:
            return f"its check was killed by signal {-process.returncode}"
        return lines[-1] if lines else f"its check ended with exit code {process.returncode}"

    return check


def _drain(pipe: object, output: list[bytes]) -> None:
    """Read a pipe to its end, and keep the tail of the output."""
    with pipe:  # type: ignore[attr-defined]
        while piece := pipe.read1(8192):  # type: ignore[attr-defined]
            output.append(piece)
            while sum(map(len, output)) > _MAX_OUTPUT:
                output.pop(0)


def _decoded(content: bytes) -> FollowerState:
    try:
        what = "state of the model roll-out"
        return FollowerState.from_json(decode_json(content, what, _MAX_STATE_BYTES), what)
    except AstStreamError as error:
        raise ValueError(str(error)) from error


def _key(content: str | None, order: str | None) -> str:
    return f"{order} {content}"


def _name(worker: WorkerReport) -> str:
    return worker.name or ""


def _title(worker: WorkerReport) -> str:
    return "the worker" if worker.name is None else f"the worker {worker.name}"


def _short(reason: str) -> str:
    return printable(mask(" ".join(reason.split())))[:MAX_PROBLEM_CHARACTERS]
