"""Paths of a configuration: its runtime folder, and the endpoints in it.

These functions create nothing, except the private fallback under the temporary folder: a check run
as root must not leave a folder behind that the service user cannot write to.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from ast_stream.errors import ConfigError, Problem
from ast_stream.labels import stable_id
from ast_stream.settings.schema import Settings

MAX_IPC_PATH_BYTES = 107  # sun_path of AF_UNIX without its final zero
_FOLDER_MODE = 0o750
_PRIVATE_MODE = 0o700
_AUDIO, _FEED, _QUERY = "audio.sock", "feed.sock", "query.sock"
_ALERTS, _ADMIN, _RECORDER = "alerts.sock", "admin.sock", "recorder.sock"
_FORWARD = "forward.sock"
ENDED_FILES = "ended.*.json"  # of `ended_file`


def runtime_dir(settings: Settings) -> Path:
    """Return the absolute folder of the ipc sockets.

    `runtime_dir` of the configuration, else $RUNTIME_DIRECTORY (systemd), else
    $XDG_RUNTIME_DIR/ast-stream, else a private folder of this user in the temporary folder.

    Raises:
        ConfigError: the fallback folder exists and is not this user's alone.
    """
    if settings.runtime_dir:
        return Path(settings.runtime_dir).absolute()
    if folders := os.environ.get("RUNTIME_DIRECTORY"):
        return Path(folders.split(":")[0])  # systemd lists several with colons; the first is ours
    if folder := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(folder) / "ast-stream"
    return _private_folder(Path(tempfile.gettempdir()) / f"ast-stream-{os.getuid()}")


def make_runtime_dir(settings: Settings) -> Path:
    """Return `runtime_dir`, created with mode 0750 if it is not there.

    Raises:
        ConfigError: it cannot be created, is not a folder, or cannot be written to.
    """
    folder = runtime_dir(settings)
    try:
        folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
    except OSError as error:
        raise _error(f"cannot create {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _error(f"expected a folder that this user may write to, got {folder}")
    return folder


def audio_endpoint(settings: Settings) -> str:
    """Return where the worker takes audio blocks (it binds PULL)."""
    return settings.transport.audio or _ipc(settings, _AUDIO)


def feed_endpoint(settings: Settings) -> str:
    """Return where the worker publishes (it binds PUB)."""
    return settings.transport.feed or _ipc(settings, _FEED)


def query_endpoint(settings: Settings) -> str:
    """Return where the worker answers queries (it binds ROUTER)."""
    return settings.transport.query or _ipc(settings, _QUERY)


def alerts_endpoint(settings: Settings) -> str:
    """Return where the alerts process publishes (it binds PUB)."""
    return _ipc(settings, _ALERTS)


def recorder_endpoint(settings: Settings) -> str:
    """Return where the recorder publishes its status (it binds PUB)."""
    return _ipc(settings, _RECORDER)


def forward_endpoint(settings: Settings) -> str:
    """Return where the forwarder publishes its status (it binds PUB)."""
    return _ipc(settings, _FORWARD)


def admin_endpoint(settings: Settings) -> str:
    """Return where the alerts process takes requests to administrate (it binds ROUTER)."""
    return settings.transport.admin or _ipc(settings, _ADMIN)


def socket_problem(settings: Settings) -> str | None:
    """Return why the sockets cannot lie in the `runtime_dir` of a configuration, if so."""
    if settings.runtime_dir is None:
        return None
    names = [
        _AUDIO,
        _FEED,
        _QUERY,
        _ALERTS,
        _ADMIN,
        _RECORDER,
        _FORWARD,
        *(_ring(stream.name) for stream in settings.streams),
    ]
    names += [f"{worker}/{name}" for worker in settings.workers for name in names]
    return next(filter(None, (_too_long(runtime_dir(settings) / name) for name in names)), None)


def alerts_state_file(settings: Settings) -> Path:
    """Return the database of alert states and deliveries."""
    return Path(settings.alerts.state_file or Path(settings.state_dir) / "alerts.sqlite")


def web_users_file(settings: Settings) -> Path:
    """Return the file of who may log in to the page."""
    return Path(settings.web.users_file or Path(settings.state_dir) / "web" / "users.json")


def page_id(settings: Settings) -> str:
    """Return what tells the page of one configuration from that of another."""
    return stable_id("page", str(Path(settings.state_dir).absolute()))


def ring_endpoint(settings: Settings, stream: str) -> str:
    """Return where the capture process of `stream` answers ring reads (it binds ROUTER)."""
    return _ipc(settings, _ring(stream))


def ended_file(settings: Settings, stream: str) -> Path:
    """Return the file that marks the source of `stream` as ended."""
    return runtime_dir(settings) / ENDED_FILES.replace("*", stream)


def metrics_address(settings: Settings, process: str) -> tuple[str, int] | None:
    """Return host and port of a process's metrics endpoint; None if it has none.

    Args:
        process: one of `processes`.
    """
    if settings.metrics.listen is None:
        return None
    host, _, port = settings.metrics.listen.rpartition(":")
    return host.strip("[]"), int(port) + processes(settings).index(process)


def processes(settings: Settings) -> list[str]:
    """Return the processes of a configuration, in the order of their ports.

    The worker has the port of `metrics.listen`, the alerts process the next one, the capture
    processes follow in the order of the streams, then the other workers if there are several,
    the recorder, the page and the forwarder. A process that captures several streams has the port
    of the first of them.
    """
    captures = [f"capture {stream.name}" for stream in settings.streams]
    first, *others = [f"worker {name}" for name in settings.workers] or ["worker"]
    return [first, "alerts", *captures, *others, "recorder", "web", "forward"]


def _ipc(settings: Settings, name: str) -> str:
    path = runtime_dir(settings) / name
    if (problem := _too_long(path)) is not None:
        raise _error(problem)
    return f"ipc://{path}"


def _ring(stream: str) -> str:
    return f"ring.{stream}.sock"


def _too_long(socket: Path) -> str | None:
    length = len(str(socket).encode())
    if length <= MAX_IPC_PATH_BYTES:
        return None
    return (
        f"expected a folder short enough for sockets of at most {MAX_IPC_PATH_BYTES} bytes, "
        f"got {length} bytes in {socket}"
    )


def _private_folder(folder: Path) -> Path:
    """Create or check a folder in a place where everyone may create: no link, ours alone."""
    try:
        folder.mkdir(mode=_PRIVATE_MODE, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise _error(f"cannot create {folder}: {error.strerror}") from error
    is_private = stat.S_ISDIR(found.st_mode) and found.st_mode & 0o077 == 0
    if not is_private or found.st_uid != os.getuid():
        raise _error(
            f"expected {folder} to be a folder of user {os.getuid()} with mode 0700, got owner "
            f"{found.st_uid} and mode {stat.S_IMODE(found.st_mode):04o}; remove it or set "
            "runtime_dir"
        )
    return folder


def _error(text: str) -> ConfigError:
    return ConfigError([Problem(file="configuration", line=None, path="runtime_dir", text=text)])
