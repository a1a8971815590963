"""The data-protection sheet of a configuration: what is kept, where, how long, and who may have it.

Its facts come from where the processes take them: settings, declared files, endpoints and rights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ast_stream.errors import StartupError
from ast_stream.privacy.access import HISTORY_S, SENSOR_REFUSAL
from ast_stream.privacy.page_users import read_users
from ast_stream.privacy.speech import MARGIN_S
from ast_stream.settings import paths
from ast_stream.settings.forward import Kind
from ast_stream.settings.paths import web_users_file
from ast_stream.settings.schema import PrivacyMode, Settings
from ast_stream.settings.storage import kept
from ast_stream.settings.web import SCOPES
from ast_stream.settings.workers import of_worker, worker_names
from ast_stream.transport.allow_list import GROUP_RIGHTS, WORDS, AllowedClient, read_allow_list
from ast_stream.units import SAMPLE_RATE
from ast_stream.urls import check_endpoint

SAMPLE_BYTES = 2
MODES: dict[PrivacyMode, str] = {
    "off": "every client with the right audio can get the last minute of audio",
    "speech": "every client with the right audio can get the last minute of audio, in which "
    f"anything that may be speech, and {MARGIN_S:g} s on either side, is replaced by silence",
    "sensor": "nobody can get audio: every query is refused, and no audio is kept for queries",
}
PICTURES: dict[PrivacyMode, str] = {
    "off": ", spectrograms",
    "speech": ", spectrograms that are blank where there may be speech",
    "sensor": "",
}
_FORWARDED: dict[Kind, str] = {
    "event": "events",
    "gap": "gaps",
    "alert": "alerts",
    "coverage": "coverage",
    "health": "levels and health of streams each minute",
}
NOT_COVERED = (
    "Root, and anyone who may change the configuration or the program, can do everything.",
    "Other programs with access to the sound card or the network stream can record it themselves.",
    "A program of the services' user that opens the memory of a worker or capture process in its "
    "first moments, before access is blocked, can continue to read it; kernel.yama.ptrace_scope "
    "of 1 or more prevents that.",
    "What is logged goes to the service manager's journal, which keeps it by its own rules.",
    "Memory may be swapped out or hibernated to a disk unless the units are used, which forbid "
    "the first with privacy: speech and sensor.",
    "Deleted files may be recovered by anyone who holds the disk: encrypt it.",
)


@dataclass(frozen=True)
class Row:
    """One line of the sheet.

    Attributes:
        what: the thing.
        where: its place.
        holds: what of people and sound is in it.
        until: how long.
        max_bytes: at most; None: not bounded by bytes.
        readers: who may read it.
    """

    what: str
    where: str
    holds: str
    until: str
    max_bytes: int | None
    readers: str


@dataclass(frozen=True)
class PrivacySheet:
    """The content of the sheet.

    Attributes:
        sources: where the sound comes from.
        memory: sound in memory.
        files: what is kept.
        sockets: what can be asked for or read while it runs.
        outgoing: what leaves the box, and to whom.
        keys: who has rights over tcp.
        users: who has rights on the page.
    """

    privacy: PrivacyMode
    meaning: str
    sources: list[str]
    memory: list[Row]
    files: list[Row]
    sockets: list[Row]
    outgoing: list[str]
    keys: list[str]
    users: list[str]
    not_covered: tuple[str, ...] = NOT_COVERED

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return asdict(self)


def sheet(settings: Settings) -> PrivacySheet:
    """Return the sheet of a configuration."""
    return PrivacySheet(
        privacy=settings.privacy,
        meaning=MODES[settings.privacy],
        sources=[f"{stream.name}: {stream.source.describe()}" for stream in settings.streams],
        memory=list(_memory(settings)),
        files=list(_files(settings)),
        sockets=list(_sockets(settings)),
        outgoing=list(_outgoing(settings)),
        keys=list(_keys(settings)),
        users=list(_users(settings)),
    )


def _memory(settings: Settings) -> Iterator[Row]:
    is_off = settings.privacy == "off"
    ring_readers = "the services' user and root" if is_off else "the worker process alone"
    for stream in settings.streams:
        n_bytes = round(stream.ring_s * SAMPLE_RATE) * SAMPLE_BYTES
        until = f"{stream.ring_s:g} s"
        yield Row(
            f"ring of {stream.name}", "capture process", "sound", until, n_bytes, ring_readers
        )
    yield Row(
        "window of each stream",
        "worker process",
        "audio and its features",
        "a window, or until it is scored",
        None,
        "nobody",
    )
    if settings.recorder is not None and settings.recorder.keeps_sound:
        yield Row(
            "events in progress", "recorder process", "sound", "until their clips are written",
            None, "nobody",
        )  # fmt: skip
    if settings.privacy != "sensor":
        n_bytes = HISTORY_S * SAMPLE_RATE * SAMPLE_BYTES * settings.model.max_streams
        readers = "clients with the right audio"
        yield Row(
            "last minute of each stream", "worker process", "sound", f"{HISTORY_S} s", n_bytes,
            readers,
        )  # fmt: skip


def _files(settings: Settings) -> Iterator[Row]:
    readers = "the services' user and group, and root"
    for file in kept(settings):
        yield Row(file.name, str(file.path), file.holds, file.until, file.max_bytes, readers)


def _sockets(settings: Settings) -> Iterator[Row]:
    group = "the services' user and group, and root"
    own = "the services' user and root"
    keyed = "; over tcp keys with the right {}" if settings.transport.has_keyed_tcp else ""
    audio = SENSOR_REFUSAL if settings.privacy == "sensor" else MODES[settings.privacy]
    assert not GROUP_RIGHTS.may("audio")
    live = "not kept there"
    readers = "nobody" if settings.privacy == "sensor" else own + keyed.format("audio")
    for part in (of_worker(settings, name) for name in worker_names(settings)):
        yield Row(
            "feed", paths.feed_endpoint(part),
            "events, gaps, levels once a second, and a score per class and hop or frame, the "
            "finest detail published", live, 0, group + keyed.format("feed or scores"),
        )  # fmt: skip
        yield Row(
            "queries", paths.query_endpoint(part), "past messages, and the state of streams",
            live, 0, group + keyed.format("feed"),
        )  # fmt: skip
        yield Row("queries for audio", paths.query_endpoint(part), audio, live, 0, readers)
    if settings.recorder is not None:
        what = "number of clips, and failures to write"
        yield Row("recorder", paths.recorder_endpoint(settings), what, live, 0, group)
    if settings.forward:
        what = "number of messages sent to each broker, and why others wait"
        yield Row("forward", paths.forward_endpoint(settings), what, live, 0, group)
    if settings.alerts.rules:
        yield Row("alerts", paths.alerts_endpoint(settings), "alerts", live, 0, group)
        admins = own + keyed.format("admin")
        yield Row("administration", paths.admin_endpoint(settings), "alerts", live, 0, admins)
    if settings.web.listen is not None:
        yield from _page(settings)
    if settings.metrics.listen is not None:
        yield Row(
            "metrics", settings.metrics.listen, "figures, levels, counts of events by class", live,
            0, "anyone who can connect",
        )  # fmt: skip


def _page(settings: Settings) -> Iterator[Row]:
    is_sensor = settings.privacy == "sensor"
    for what, scope, holds in (
        ("page", "view", "events, alerts, levels and scores" + PICTURES[settings.privacy]),
        ("page: clips", "listen", SENSOR_REFUSAL if is_sensor else "the clips that are kept"),
        ("page: verdicts", "review", "people's verdicts on events, with their names"),
        ("page: administration", "administrate", "alerts and deliveries"),
    ):
        readers = f"users with the right {scope}"
        if not settings.web.needs_login:
            is_open = scope in settings.web.without_login
            readers = "anyone who can connect on this box" if is_open else "nobody"
        if scope == "listen" and is_sensor:
            readers = "nobody"
        yield Row(what, settings.web.origin, holds, "as it is kept", 0, readers)


def _users(settings: Settings) -> Iterator[str]:
    if settings.web.listen is None or not settings.web.needs_login:
        return
    try:
        users = read_users(web_users_file(settings))
    except StartupError as error:
        yield str(error)
        return
    for user in users.values():
        yield f"{user.name}: {', '.join(f'{scope} ({SCOPES[scope]})' for scope in user.scopes)}"
    if settings.privacy == "sensor" and any("listen" in user.scopes for user in users.values()):
        yield "with privacy: sensor the right listen grants nothing"


def _outgoing(settings: Settings) -> Iterator[str]:
    for name in ("audio", "feed", "query"):
        endpoint = getattr(settings.transport, name)
        if endpoint is not None and _is_beyond_this_box(endpoint):
            what = {"audio": "sound", "feed": "events and scores", "query": "answers"}[name]
            yield f"{what}, encrypted, to keys that are allowed: {endpoint}"
    for name, action in settings.alerts.actions.items():
        if action.receiver is not None:
            yield f"alerts of the action {name}: to {action.receiver}"
    if settings.alerts.heartbeat is not None:
        yield f"a sign of life through the action {settings.alerts.heartbeat.action}"
    for output in settings.forward:
        what = ", ".join(_FORWARDED[kind] for kind in output.kinds)
        sent = f"{what} and the status of this box, through the output {output.name}"
        yield f"{sent}: to {output.receiver}"
    if settings.web.listen is not None and settings.web.behind_proxy is not None:
        yield f"the page, through a proxy that authenticates with a secret: {settings.web.origin}"
    elif settings.web.listen is not None and not settings.web.is_on_loopback:
        yield f"the page, encrypted, to users who have logged in: {settings.web.origin}"
    listen = settings.metrics.listen
    if listen is not None and _is_beyond_this_box(f"tcp://{listen}"):
        yield f"metrics, unencrypted, to anyone who asks: {listen}"


def _is_beyond_this_box(endpoint: str) -> bool:
    try:
        check_endpoint(endpoint)
    except ValueError:
        return True
    return False


def _keys(settings: Settings) -> Iterator[str]:
    curve = settings.transport.curve
    if curve is None or not settings.transport.has_keyed_tcp:
        return
    if curve.server_secret is None:
        yield "the allow-list is on the box of the worker"
        return
    try:
        clients: list[AllowedClient] = read_allow_list(Path(curve.allow_list))
    except StartupError as error:
        yield str(error)
        return
    for client in clients:
        words = ", ".join(f"{word} ({WORDS.get(word, 'send audio')})" for word in client.words)
        yield f"{client.name}: {words}"
    if settings.privacy == "sensor" and any(client.rights.may("audio") for client in clients):
        yield "with privacy: sensor the right audio grants nothing"
