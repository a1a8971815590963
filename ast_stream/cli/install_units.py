"""`ast-stream install-units`: the systemd units for this environment and configuration."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from ast_stream.errors import StartupError
from ast_stream.runtime.files import replace_file
from ast_stream.settings.load import load_settings
from ast_stream.settings.schema import Settings, StreamSettings

STATE_DIR = Path("/var/lib/ast-stream")  # what StateDirectory=ast-stream makes for a system
RUNTIME_DIR = Path("/run/ast-stream")
_SYSTEM_ONLY = re.compile(r"^# -- system only --\n(.*?)^# -- end --\n", re.DOTALL | re.MULTILINE)
_PLACEHOLDER = re.compile(r"@([A-Z_]+)@")
_PLAIN = re.compile(r"[A-Za-z0-9_./:=+-]+\Z")
_HIDDEN_BY_PROTECT_HOME = tuple(map(Path, ("/home", "/root", "/run/user")))
_LOOPBACK = ("127.", "localhost:", "[::1]:")
_FOLDERS = {".sysusers.conf": "sysusers.d", ".tmpfiles.conf": "tmpfiles.d"}
_MODULES = ".modules-load.conf"


DEFAULT_CONFIG = Path("/etc/ast-stream/config.yaml")


@dataclass(frozen=True)
class Plan:
    """What to install for whom.

    Attributes:
        command: the `ast-stream` program of the environment.
        config: the configuration, absolute.
        settings: what it holds; None: it does not exist yet.
        is_user: for the service manager of one user, not of the system.
        has_nvidia: the kernel module for NVIDIA's memory has to be loaded at boot.
    """

    command: Path
    config: Path
    settings: Settings | None
    is_user: bool = False
    has_nvidia: bool = False


def program() -> Path:
    """Return the `ast-stream` program of the environment that this runs in.

    Raises:
        StartupError: the package is not installed in it.
    """
    found = Path(sys.executable).parent / "ast-stream"
    if not found.exists():
        raise StartupError(
            f"expected the program ast-stream beside {sys.executable}, got none; "
            "install the package into this environment (pip install .)"
        )
    return found


def render(plan: Plan) -> dict[Path, str]:
    """Return the text of each file by its path below the root (a user's: below its folder)."""
    rendered = {}
    for template in sorted(files("ast_stream").joinpath("systemd").iterdir(), key=str):
        path = _place(template.name, plan)
        if path is not None:
            rendered[path] = _fill(template.read_text(), plan)
    return rendered


def enabled_link(plan: Plan) -> Path:
    """Return the link that `systemctl enable` makes, below the root (a user's: its folder)."""
    return _unit_folder(plan) / f"{_wanted_by(plan)}.wants/ast-stream.target"


def wanted_units(plan: Plan) -> list[str]:
    """Return the units that the target starts: worker, alerts, and a capture for each stream."""
    streams = () if plan.settings is None else plan.settings.streams
    has_alerts = plan.settings is not None and bool(plan.settings.alerts.rules)
    captures = [
        f"{_capture_unit(stream)}@{stream.name}.service"
        for stream in streams
        if stream.source.type != "stdin"
    ]
    alerts = ["ast-stream-alerts.service"] if has_alerts else []
    return ["ast-stream-worker.service", *alerts, *captures]


def _capture_unit(stream: StreamSettings) -> str:
    is_local = stream.source.type == "microphone"
    return "ast-stream-capture" if is_local else "ast-stream-capture-net"


def doubts(plan: Plan) -> list[str]:
    """Return what the service user would stumble over, in sentences."""
    found = [] if plan.is_user else _unreachable(plan.command, plan.config)
    if plan.settings is None:
        return [*found, f"{plan.config} does not exist yet: write it, then install again"]
    streams = plan.settings.streams
    found += [
        f"stream {stream.name} reads standard input, which a service does not have"
        for stream in streams
        if stream.source.type == "stdin"
    ]
    if plan.is_user and Path(plan.settings.state_dir) == STATE_DIR:
        found.append(
            f"state_dir is {STATE_DIR}, which is not yours: set it, e.g. to "
            f"{Path.home() / '.local/state/ast-stream'}"
        )
    runtime_dir = plan.settings.runtime_dir
    if not plan.is_user and (runtime_dir is None or Path(runtime_dir) != RUNTIME_DIR):
        found.append(
            f"the services meet in {RUNTIME_DIR}: write runtime_dir: {RUNTIME_DIR}, so that "
            "commands in a shell, such as status and subscribe, find them there"
        )
    return found


def _wanted_by(plan: Plan) -> str:
    return "default.target" if plan.is_user else "multi-user.target"


def _unit_folder(plan: Plan) -> Path:
    return Path() if plan.is_user else Path("etc/systemd/system")


def _place(name: str, plan: Plan) -> Path | None:
    stem, dot, rest = name.partition(".")
    suffix = dot + rest
    if suffix in (".service", ".target"):
        return _unit_folder(plan) / name
    if plan.is_user or (suffix == _MODULES and not plan.has_nvidia):
        return None
    folder = _FOLDERS.get(suffix, "modules-load.d")
    return Path("etc") / folder / f"{stem}.conf"


def _fill(template: str, plan: Plan) -> str:
    values = {
        "STATE_DIR": str(_state_dir(plan.settings)),
        "SYSTEMCTL": "systemctl --user" if plan.is_user else "systemctl",
        "COMMAND": _quoted(str(plan.command)),
        "CONFIG": _quoted(str(plan.config)),
        "WANTS": " ".join(wanted_units(plan)),
        "WANTED_BY": _wanted_by(plan),
        "WORKING_DIRECTORY": "~" if plan.is_user else "%S/ast-stream",
        "PROTECT_HOME": "read-only" if _is_in_home(plan.command, plan.config) else "yes",
        "IP_FILTER": _ip_filter(plan.settings),
        "READ_WRITE_PATHS": _writable(plan.settings),
    }
    text = _SYSTEM_ONLY.sub("" if plan.is_user else r"\1", template)
    filled = _PLACEHOLDER.sub(lambda found: values[found[1]], text)
    return re.sub(r"\n\n\n+", "\n\n", filled)


def _ip_filter(settings: Settings | None) -> str:
    listen = None if settings is None else settings.metrics.listen
    if listen is not None and not listen.startswith(_LOOPBACK):
        return "# No IPAddressDeny: metrics.listen shows the figures to other hosts."
    return "IPAddressDeny=any\nIPAddressAllow=localhost"


def _state_dir(settings: Settings | None) -> Path:
    return STATE_DIR if settings is None else STATE_DIR / settings.state_dir


def _writable(settings: Settings | None) -> str:
    """Return the line that opens a state folder elsewhere; relative ones lie in the usual one."""
    if settings is None:
        return "# state_dir is writable as StateDirectory."
    folder = _state_dir(settings)
    if folder.is_relative_to(STATE_DIR):
        return f"# state_dir, {folder}, is writable as StateDirectory."
    return f"# state_dir is not where a service keeps its state by itself.\nReadWritePaths={folder}"


def _quoted(word: str) -> str:
    """Return a word of ExecStart= as it is, whatever systemd would read into it."""
    escaped = word.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$")
    return escaped if _PLAIN.match(word) else '"' + escaped.replace('"', '\\"') + '"'


def _is_in_home(*paths: Path) -> bool:
    return any(path.is_relative_to(hidden) for path in paths for hidden in _HIDDEN_BY_PROTECT_HOME)


def _unreachable(*paths: Path) -> list[str]:
    """Return why the user ast-stream may not get to a file, for the first folder in its way."""
    found: list[str] = []
    for path in paths:
        if path.is_relative_to("/tmp") or path.is_relative_to("/var/tmp"):
            found.append(f"{path} lies in a temporary folder, which services do not see")
        for folder in reversed(path.parents):
            is_ours = folder == Path("/etc/ast-stream")  # made by tmpfiles.d for our group
            if folder.is_dir() and not is_ours and not folder.stat().st_mode & 0o001:
                found.append(f"{path}: the user ast-stream may not enter {folder}")
                break
    return found


def install_units(
    config: Annotated[
        Path, typer.Option("--config", "-c", metavar="FILE", help="The configuration (YAML).")
    ] = DEFAULT_CONFIG,
    dest: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write below this folder as if it were the root."),
    ] = None,
    user: Annotated[
        bool,
        typer.Option(
            "--user", help="For your own service manager: where your desktop holds the sound card."
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print instead of writing.")] = False,
    nvidia: Annotated[
        bool | None,
        typer.Option(help="Load nvidia-uvm at boot. (default: if its driver is there)"),
    ] = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove what this command has written.")
    ] = False,
) -> None:
    """Write the systemd units of one configuration, and say what to do next.

    The units start the environment that this command runs from; run it again after moving that or
    adding streams. It prints the paths of the files written. Put changes of your own into drop-ins.
    Removing leaves configuration, state and drop-ins where they are.

    Example: sudo .venv/bin/ast-stream install-units -c /etc/ast-stream/config.yaml
    """
    if remove:
        _remove(_folder(dest, user), is_user=user, is_dry=dry_run)
        return
    file = Path(os.path.abspath(config))
    plan = Plan(
        command=program(),
        config=file,
        settings=load_settings(file) if file.exists() else None,
        is_user=user,
        has_nvidia=Path("/proc/driver/nvidia").exists() if nvidia is None else nvidia,
    )
    folder = _folder(dest, user)
    is_update = False
    for path, text in render(plan).items():
        if dry_run:
            typer.echo(f"# {folder / path}\n{text}")
        else:
            done = _write(folder / path, text)
            typer.echo(f"{folder / path}: {done}")
            is_update |= done == "replaced"
    steps = _next_steps(plan, is_elsewhere=dest is not None, is_update=is_update)
    typer.echo("\n".join(steps), err=True)


def _folder(dest: Path | None, is_user: bool) -> Path:
    if not is_user:
        return dest or Path("/")
    if dest is not None:
        return dest / "etc/systemd/user"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd/user"


def _write(path: Path, text: str) -> str:
    """Write a file, whole or not at all; return what became of it."""
    try:
        before = path.read_text() if path.exists() else None
        if before == text:
            return "as it was"
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text.encode(), is_synced=True, mode=0o644)
    except OSError as error:
        raise StartupError(
            f"cannot write {path}: {error.strerror}; run it as root, or with --user or --dest"
        ) from error
    return "written" if before is None else "replaced"


def _remove(folder: Path, *, is_user: bool, is_dry: bool) -> None:
    """Remove the files of any configuration; what is not there is passed over."""
    plan = Plan(program(), DEFAULT_CONFIG, settings=None, is_user=is_user, has_nvidia=True)
    for path in (folder / name for name in (*render(plan), enabled_link(plan))):
        is_there = os.path.lexists(path)
        if is_dry or not is_there:
            typer.echo(f"{path}: {'would be removed' if is_there else 'not there'}")
            continue
        try:
            path.unlink()
        except OSError as error:
            raise StartupError(f"cannot remove {path}: {error.strerror}; run it as root") from error
        typer.echo(f"{path}: removed")
    control = _control(is_user)
    steps = [
        f"{control} stop 'ast-stream*'   # what still runs",
        f"{control} daemon-reload",
    ]
    typer.echo("\n".join(["Next:", *(f"  {step}" for step in steps)]), err=True)


def _control(is_user: bool) -> str:
    return "systemctl --user" if is_user else "systemctl"


def _next_steps(plan: Plan, *, is_elsewhere: bool, is_update: bool) -> list[str]:
    control = _control(plan.is_user)
    steps = [] if plan.is_user else ["systemd-sysusers", "systemd-tmpfiles --create"]
    status = f"{plan.command} status -c {plan.config}"
    start = "restart" if is_update else "enable --now"
    steps += [f"{control} daemon-reload", f"{control} {start} ast-stream.target", status]
    if not plan.is_user:
        steps[-1] += "   # as root or a member of the group ast-stream"
    else:
        steps.insert(0, "loginctl enable-linger   # to run also while you are not logged in")
    lines = [f"The target starts: {', '.join(wanted_units(plan))}"]
    lines += [f"Mind: {doubt}." for doubt in doubts(plan)]
    lines.append("Next, on the machine these files are for:" if is_elsewhere else "Next:")
    return lines + [f"  {step}" for step in steps]
