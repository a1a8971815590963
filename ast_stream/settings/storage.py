"""The catalogue of files: every kind that the processes keep, its place, content and limits.

Processes take paths and limits from here, `ast-stream privacy` shows them, and `doctor` looks for
files that are none of these: a kind of file that is not declared cannot be written unnoticed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from ast_stream.settings.chosen_model import CURRENT, PREVIOUS, models_folder
from ast_stream.settings.paths import (
    ENDED_FILES,
    alerts_state_file,
    runtime_dir,
    web_users_file,
)
from ast_stream.settings.retention import MIB
from ast_stream.settings.schema import Settings
from ast_stream.settings.workers import of_worker, worker_names

DAY_S = 86_400.0
MAX_SPARE_BYTES = 64 * MIB  # of what waits for a disk that is full
MAX_JOURNAL_BYTES = 64 * MIB  # more than all streams of a worker with all classes active
MAX_USERS_BYTES = 1024 * 1024
MAX_VERIFIERS_BYTES = 64 * MIB  # of one file
MAX_MODELS_BYTES = 4 * 1024 * MIB  # three, and one that is being fetched
MAX_POSITION_BYTES = 1024 * 1024  # of one output
MAX_SPOOL_BYTES = 64 * MIB  # of health summaries
MAX_SPOOL_DAYS = 21.0
MAX_ENDED_BYTES = 64 * 1024  # of the note of one source
_ASIDE = ".damaged-[1-9]"  # what cannot be read is kept under such a name
_WRITER, _RECORDER, _FORWARD = "worker", "recorder", "forward"
_HISTORY = "history.sqlite"


@dataclass(frozen=True)
class Kept:
    """One kind of file.

    Attributes:
        name: in a word or two.
        folder: where they are.
        patterns: of their names.
        writer: the process.
        holds: what of people and sound is in them.
        max_bytes: of all of them together.
        max_age_s: after which they are deleted; None: not by age.
        until: for how long they are kept, in words.
        has_folders: they are in folders below `folder`.
    """

    name: str
    folder: Path
    patterns: tuple[str, ...]
    writer: str
    holds: str
    max_bytes: int
    max_age_s: float | None
    until: str
    has_folders: bool = False

    @property
    def path(self) -> Path:
        """The file, where it is one."""
        return self.folder / self.patterns[0]

    def is_one(self, file: Path) -> bool:
        """Return whether a file is of this kind, or was before it was set aside."""
        patterns = [*self.patterns, *(pattern + _ASIDE for pattern in self.patterns)]
        is_here = self.has_folders and file.is_relative_to(self.folder)
        return (is_here or file.parent == self.folder) and any(
            fnmatchcase(file.name, pattern) for pattern in (*patterns, f"segment{_ASIDE}")
        )


def event_log(settings: Settings) -> Kept:
    """Return where events and gaps are."""
    own = settings.retention.events
    holds = "events and gaps: classes, times, scores, stream names and labels"
    return _log(settings, "events", "events", _WRITER, holds, own.max_mib, own.max_days)


def coverage_ledger(settings: Settings) -> Kept:
    """Return where it is recorded what was listened to."""
    own = settings.retention.coverage
    holds = "which samples of each stream were listened to"
    return _log(settings, "coverage", "coverage", _WRITER, holds, own.max_mib, own.max_days)


def audit_log(settings: Settings, process: str) -> Kept:
    """Return where a process records who asked for audio.

    Args:
        process: "worker", "web", or "capture" and the name of its stream.
    """
    own = settings.retention.audit
    holds = "who asked for audio: process, user or key, stream and span"
    folder = f"audit/{process.replace(' ', '.')}"
    return _log(settings, folder, "audit", process, holds, own.max_mib, own.max_days)


def pool_members(settings: Settings) -> Kept:
    """Return the file in which the processes of a box keep the members of its pool."""
    return Kept(
        "pool members",
        Path(settings.state_dir),
        ("pool.json",),
        "capture",
        "workers of the pool: names, endpoints, public keys",
        16 * MIB,
        None,
        "until it is replaced",
    )


def alert_database(settings: Settings) -> Kept:
    """Return the database of alerts and deliveries."""
    file, own = alerts_state_file(settings), settings.retention.alerts
    return Kept(
        "alerts",
        file.parent,
        (
            file.name,
            *(f"{file.name}{suffix}" for suffix in ("-wal", "-shm", ".lock", ".engine-damaged")),
            f"{file.name}{_ASIDE}-*",  # side files of one that was set aside
        ),
        "alerts",
        "alerts and deliveries: rules, messages with classes, times and labels, receivers' errors",
        own.max_mib * MIB,
        own.max_days * DAY_S,
        f"{own.max_days:g} days after they are over, and until {own.max_mib} MiB are full",
    )


def clips(settings: Settings) -> Kept:
    """Return where the sound of events is."""
    own, recorder = settings.retention.clips, settings.recorder
    until = f"until {own.max_mib} MiB are full"
    if own.max_days is not None:
        until = f"{own.max_days:g} days, and {until}"
    if recorder is not None and any(policy.when in ("alert", "best") for policy in recorder.clips):
        until += f"; {recorder.alert_wait_s:g} s of events that no alert names"
    withheld = ", silence where somebody may talk" if settings.privacy == "speech" else ""
    return Kept(
        "clips",
        Path(settings.state_dir) / "clips",
        ("*.flac", "*.opus", "*.json", "lock"),
        _RECORDER,
        f"the sound of events{withheld}, their classes, times and scores",
        own.max_mib * MIB,
        None if own.max_days is None else own.max_days * DAY_S,
        until,
        has_folders=True,
    )


def history_database(settings: Settings) -> Kept:
    """Return the database of events, gaps, alerts, clips and verdicts."""
    own = settings.retention.history
    until = f"until {own.max_mib} MiB are full"
    if own.max_days is not None:
        until = f"{own.max_days:g} days, and {until}"
    suffixes = ("-wal", "-shm", ".lock")
    return Kept(
        "history",
        Path(settings.state_dir) / "history",
        (
            _HISTORY,
            *(f"{_HISTORY}{suffix}" for suffix in suffixes),
            f"{_HISTORY}{_ASIDE}-*",  # side files of one that was set aside
        ),
        _RECORDER,
        "events, gaps, alerts, clips and what people say of them: classes, times, scores, names",
        own.max_mib * MIB,
        None if own.max_days is None else own.max_days * DAY_S,
        until,
    )


def verifiers(settings: Settings) -> Kept:
    """Return where verifiers are that `ast-stream review fit` has written."""
    holds = "numbers fitted to reviewed events, and their ids"
    return Kept(
        "verifiers",
        Path(settings.state_dir) / "verifiers",
        ("verifiers-*.safetensors",),
        "review fit",
        holds,
        MAX_VERIFIERS_BYTES,
        None,
        "until you delete them: each fit writes a new one",
    )


def chosen_models(settings: Settings) -> Kept:
    """Return where the models are that the centre of a fleet has chosen."""
    return Kept(
        "models",
        models_folder(settings),
        ("*.safetensors", "*.json", "*.csv", "*.md", "*.txt", CURRENT, PREVIOUS),
        "forward",
        "weights and thresholds of models; how many events of each class they have found",
        MAX_MODELS_BYTES,
        None,
        "the one in use and two before it; older ones are deleted",
        has_folders=True,
    )


def score_log(settings: Settings) -> Kept:
    """Return where the scores of all classes are."""
    own = settings.retention.scores
    until = f"until {own.max_mib} MiB are full"
    if own.max_days is not None:
        until = f"{own.max_days:g} days, and {until}"
    return Kept(
        "scores",
        Path(settings.state_dir) / "history" / "scores",
        ("scores-*.blocks", "lock"),
        _RECORDER,
        "the scores of all classes, several a second, of which speech may be one",
        own.max_mib * MIB,
        None if own.max_days is None else own.max_days * DAY_S,
        until,
    )


def forward_positions(settings: Settings) -> Kept:
    """Return where it is how far each output of the forwarder is."""
    n_outputs = max(1, len(settings.forward))
    return Kept(
        "positions of outputs",
        Path(settings.state_dir) / "forward",
        (*(f"{output.name}.json" for output in settings.forward), "lock"),
        _FORWARD,
        "how far messages are sent: numbers, names of streams",
        n_outputs * MAX_POSITION_BYTES,
        None,
        "always: without them everything is sent again",
    )


def health_spool(settings: Settings) -> Kept:
    """Return where health summaries wait to be sent."""
    return Kept(
        "health spool",
        Path(settings.state_dir) / "forward" / "health",
        ("health-*.jsonl", "lock"),
        _FORWARD,
        "a summary each minute: levels and states of streams",
        MAX_SPOOL_BYTES,
        MAX_SPOOL_DAYS * DAY_S,
        f"{MAX_SPOOL_DAYS:g} days, and until {MAX_SPOOL_BYTES // MIB} MiB are full",
    )


def page_users(settings: Settings) -> Kept:
    """Return the file of who may log in to the page."""
    file = web_users_file(settings)
    return Kept(
        "users of the page",
        file.parent,
        (file.name, f".{file.name}.lock"),
        "ast-stream users",
        "names, hashes of passwords, and rights",
        MAX_USERS_BYTES,
        None,
        "until they are removed",
    )


def worker_journal(settings: Settings) -> Kept:
    """Return the file from which a worker resumes."""
    holds = "where each stream stands, its open events and newest scores"
    return _runtime_file(settings, "journal", "worker-journal.jsonl", holds, MAX_JOURNAL_BYTES)


def unlogged_events(settings: Settings) -> Kept:
    """Return the file of events that could not be written to a full disk."""
    holds = "events that the event log does not hold yet"
    return _runtime_file(
        settings, "unlogged events", "unlogged-events.jsonl", holds, MAX_SPARE_BYTES
    )


def unwritten_coverage(settings: Settings) -> Kept:
    """Return the file of what the coverage ledger does not hold yet."""
    holds = "what the coverage ledger does not hold yet, of minutes"
    return _runtime_file(
        settings, "unwritten coverage", "unwritten-coverage.jsonl", holds, MAX_SPARE_BYTES
    )


def kept(settings: Settings) -> Iterator[Kept]:
    """Yield every kind of file that the processes of a configuration may keep."""
    workers = [of_worker(settings, name) for name in worker_names(settings)]
    for own in workers:
        yield event_log(own)
        yield coverage_ledger(own)
        yield audit_log(own, "worker")
        for stream in own.streams:
            yield audit_log(own, f"capture {stream.name}")
    if settings.alerts.rules:
        yield alert_database(settings)
    if settings.web.listen is not None and settings.web.needs_login:
        yield page_users(settings)
    if settings.web.listen is not None:
        yield audit_log(settings, "web")
    if settings.recorder is not None:
        yield history_database(settings)
        yield verifiers(settings)
        if settings.recorder.history.scores:
            yield score_log(settings)
        if settings.recorder.keeps_sound:
            yield clips(settings)
    if settings.pool is not None and settings.pool.nats is not None:
        yield pool_members(settings)
    if settings.fleet.models.follow:
        yield chosen_models(settings)
    if settings.forward:
        yield forward_positions(settings)
        yield health_spool(settings)
    for own in workers:
        yield worker_journal(own)
        yield unlogged_events(own)
        yield unwritten_coverage(own)
    if settings.workers:  # what lies in the folders of each lies in those of all, too
        for own in workers:
            yield from _kept_in_folders(own)
    yield from _kept_in_folders(settings)


def _kept_in_folders(settings: Settings) -> Iterator[Kept]:
    always, nothing = "always", "nothing of sound or people"
    yield Kept(
        "format", Path(settings.state_dir), ("format.json",), "all", nothing, 4096, None, always
    )
    note = "which recordings were read to their end"
    until, most = "until the processes are stopped", MAX_ENDED_BYTES * len(settings.streams)
    yield Kept(
        "ended sources", runtime_dir(settings), (ENDED_FILES,), "capture", note, most, None, until
    )
    sockets = ("*.sock", "*.sock.lock", "watch.[0-9]*", "run.lock")
    yield Kept("sockets", runtime_dir(settings), sockets, "all", nothing, 0, None, always)


def undeclared(settings: Settings, files: Iterator[Path]) -> Iterator[Path]:
    """Yield which of the files in the folders of a configuration are of no kind that is kept."""
    kinds = list(kept(settings))
    for file in files:
        if not any(kind.is_one(file) for kind in kinds) and not file.name.endswith(".unfinished"):
            yield file


def _log(
    settings: Settings,
    folder: str,
    name: str,
    writer: str,
    holds: str,
    max_mib: int,
    max_days: float | None,
) -> Kept:
    until = f"until {max_mib} MiB are full"
    if max_days is not None:
        until = f"{max_days:g} days, and {until}"
    return Kept(
        name if name != "audit" else f"audit of {writer}",
        Path(settings.state_dir) / folder,
        (f"{name}-*.jsonl", "lock"),
        writer,
        holds,
        max_mib * MIB,
        None if max_days is None else max_days * DAY_S,
        until,
    )


def _runtime_file(settings: Settings, name: str, file: str, holds: str, max_bytes: int) -> Kept:
    until = "replaced each second, or deleted when it is of no use; gone after a reboot"
    return Kept(name, runtime_dir(settings), (file,), _WRITER, holds, max_bytes, None, until)
