"""`ast-stream install-units`: the systemd units for this environment and configuration."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from ast_stream.cli.options import config_option
from ast_stream.cli.systemctl import Systemctl
from ast_stream.errors import AstStreamError, StartupError
from ast_stream.runtime.files import replace_file
from ast_stream.settings.load import load_settings
from ast_stream.settings.pool import is_capture_box
from ast_stream.settings.retention import MIB
from ast_stream.settings.schema import Settings
from ast_stream.transport.keys import CLIENT_CREDENTIAL, SERVER_CREDENTIAL
from ast_stream.units import SAMPLE_RATE

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
TARGET = "ast-stream.target"
MARK = "# Written by ast-stream install-units, which removes only files with this line.\n"
_OURS = (
    TARGET,
    "ast-stream-alerts.service",
    "ast-stream-record.service",
    "ast-stream-worker.service",
    "ast-stream-worker@*.service",
    "ast-stream-capture@*.service",
    "ast-stream-capture-net.service",
    "ast-stream-web.service",
    "ast-stream-forward.service",
    "ast-stream-failed@*.service",
)
_SPARE_MIB = 256  # of a capture process, beside its streams
_STREAM_MIB = 16  # of a stream, beside its ring: several times what any decoder was seen to take
_LEAST_MIB = 1024


@dataclass(frozen=True)
class UnitPlan:
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

    @property
    def wanted_by(self) -> str:
        return "default.target" if self.is_user else "multi-user.target"

    @property
    def unit_folder(self) -> Path:
        """Below the root; a user's: below its folder."""
        return Path() if self.is_user else Path("etc/systemd/system")

    @property
    def control(self) -> str:
        return "systemctl --user" if self.is_user else "systemctl"


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


def render(plan: UnitPlan) -> dict[Path, str]:
    """Return the text of each file by its path below the root (a user's: below its folder)."""
    rendered = {}
    for template in sorted(files("ast_stream").joinpath("systemd").iterdir(), key=str):
        path = _place(template.name, plan)
        if path is not None:
            rendered[path] = MARK + _fill(template.read_text(), plan)
    worker = plan.unit_folder / "ast-stream-worker.service"
    if plan.settings is None or plan.settings.workers:
        rendered[worker.with_name("ast-stream-worker@.service")] = _of_several(rendered[worker])
    return rendered


def _of_several(unit: str) -> str:
    """Return the unit of one of several workers, ast-stream-worker@NAME."""
    unit = re.sub(r"^(ExecStart=.*)$", r"\1 --name %i", unit, flags=re.MULTILINE)
    unit = re.sub(r"^(SyslogIdentifier=.*)$", r"\1-%i", unit, flags=re.MULTILINE)
    return re.sub(r"^(Description=.*)$", r"\1 %i", unit, flags=re.MULTILINE)


def wanted_units(plan: UnitPlan) -> list[str]:
    """Return the units that the target starts, those of workers first.

    Where a pool's workers are on other boxes, there is none.
    """
    workers = [] if plan.settings is None else [*plan.settings.workers]
    units = [f"ast-stream-worker@{name}.service" for name in workers]
    has_worker = plan.settings is None or not is_capture_box(plan.settings)
    units = units or (["ast-stream-worker.service"] if has_worker else [])
    if plan.settings is not None:
        units += ["ast-stream-alerts.service"] if plan.settings.alerts.rules else []
        units += ["ast-stream-record.service"] if plan.settings.recorder is not None else []
        units += [unit for stream in plan.settings.streams if (unit := stream.unit) is not None]
        units += ["ast-stream-web.service"] if plan.settings.web.listen is not None else []
        units += ["ast-stream-forward.service"] if plan.settings.forward else []
    return list(dict.fromkeys(units))


def doubts(plan: UnitPlan) -> list[str]:
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


def _place(name: str, plan: UnitPlan) -> Path | None:
    stem, dot, rest = name.partition(".")
    suffix = dot + rest
    if suffix in (".service", ".target"):
        return plan.unit_folder / name
    if plan.is_user or (suffix == _MODULES and not plan.has_nvidia):
        return None
    folder = _FOLDERS.get(suffix, "modules-load.d")
    return Path("etc") / folder / f"{stem}.conf"


def _fill(template: str, plan: UnitPlan) -> str:
    state_dir, is_open = STATE_DIR, False
    if plan.settings is not None:
        state_dir = STATE_DIR / plan.settings.state_dir  # a relative one lies in the usual one
        listen = plan.settings.metrics.listen
        is_open = listen is not None and not listen.startswith(_LOOPBACK)
        is_open |= plan.settings.transport.has_keyed_tcp or plan.settings.pool is not None
    ip_filter = "IPAddressDeny=any\nIPAddressAllow=localhost"
    if is_open:
        ip_filter = "# No IPAddressDeny: metrics.listen, transport or pool reaches other hosts."
    shown = "" if plan.settings is None else f", {state_dir},"
    writable = f"# state_dir{shown} is writable as StateDirectory."
    if not state_dir.is_relative_to(STATE_DIR):
        writable = "# state_dir is not where a service keeps its state by itself.\n"
        writable += f"ReadWritePaths={state_dir}"
    paths = (plan.command, plan.config)
    is_in_home = any(
        path.is_relative_to(home) for path in paths for home in _HIDDEN_BY_PROTECT_HOME
    )
    values = {
        "STATE_DIR": str(state_dir),
        "SYSTEMCTL": plan.control,
        "COMMAND": _quoted(str(plan.command)),
        "CONFIG": _quoted(str(plan.config)),
        "WANTS": " ".join(wanted_units(plan)),
        "WANTED_BY": plan.wanted_by,
        "WORKING_DIRECTORY": "~" if plan.is_user else "%S/ast-stream",
        "PROTECT_HOME": "read-only" if is_in_home else "yes",
        "IP_FILTER": ip_filter,
        "WEB_IP_FILTER": _web_ip_filter(plan),
        "READ_WRITE_PATHS": writable,
        "PRIVATE_MEMORY": _private_memory(plan),
        "CAPTURE_MEMORY_MAX": f"{_capture_memory_mib(plan)}M",
        "SERVER_CREDENTIAL": _credential(plan, SERVER_CREDENTIAL),
        "CLIENT_CREDENTIAL": _credential(plan, CLIENT_CREDENTIAL),
        "FORWARD_CREDENTIALS": _forward_credentials(plan),
        "MODEL_CHECK": _model_check(plan),
        "PROC_SUBSET": _proc_subset(plan),
        "ADMIN_CREDENTIAL": _admin_credential(plan),
    }
    text = _SYSTEM_ONLY.sub("" if plan.is_user else r"\1", template)
    filled = _PLACEHOLDER.sub(lambda found: values[found[1]], text)
    return re.sub(r"\n\n\n+", "\n\n", filled)


def _web_ip_filter(plan: UnitPlan) -> str:
    """Return the lines that keep the page on this box, where it is meant to stay there."""
    settings = plan.settings
    if settings is not None and (settings.transport.has_keyed_tcp or settings.pool is not None):
        return "# No IPAddressDeny: transport or pool reaches other hosts."
    if settings is not None and settings.web.listen is not None and not settings.web.is_on_loopback:
        return "# No IPAddressDeny: web.listen is for other hosts."
    return "IPAddressDeny=any\nIPAddressAllow=localhost"


def _capture_memory_mib(plan: UnitPlan) -> int:
    """Return what the process of all streams without a device may take at most."""
    streams = [] if plan.settings is None else plan.settings.streams
    shared = [stream for stream in streams if stream.source.shares_process]
    rings = sum(stream.ring_s for stream in shared) * SAMPLE_RATE * 2 / MIB
    return max(_LEAST_MIB, _SPARE_MIB + round(rings) + 2 * _STREAM_MIB * len(shared))


def _private_memory(plan: UnitPlan) -> str:
    """Return the lines that keep sound out of core dumps and swap, where `privacy` is set."""
    if plan.settings is None or plan.settings.privacy == "off":
        return "# No MemorySwapMax: privacy is off."
    return "LimitCORE=0\nMemorySwapMax=0"


def _model_check(plan: UnitPlan) -> str:
    """Return what the forwarder's unit needs to load a model before the worker gets it."""
    if plan.settings is None or not plan.settings.fleet.models.follow:
        return "MemoryMax=512M\nMemoryDenyWriteExecute=yes"
    return (
        "# Models that the centre chooses are loaded on the CPU, in a process of their own, for\n"
        "# which oneDNN makes machine code; one that is too large is refused, and no more.\n"
        "MemoryMax=4G\nMemoryDenyWriteExecute=no\nOOMPolicy=continue"
    )


def _proc_subset(plan: UnitPlan) -> str:
    """Return what the forwarder sees of /proc, for which a check of models needs more."""
    if plan.settings is None or not plan.settings.fleet.models.follow:
        return "ProcSubset=pid"
    why = "# torch computes nothing without /proc/cpuinfo, which ProcSubset=pid would hide."
    return f"{why}\nProcSubset=all"


def _credential(plan: UnitPlan, name: str) -> str:
    """Return the line by which systemd hands a secret key, which may be root's alone, to a unit."""
    if plan.settings is None or not plan.settings.transport.has_keyed_tcp:
        return "# No LoadCredential: nothing goes over tcp with keys."
    curve = plan.settings.transport.curve
    assert curve is not None
    path = curve.server_secret if name == SERVER_CREDENTIAL else curve.client_secret
    if path is None:
        return f"# No LoadCredential: the configuration names no key for {name}."
    return f"LoadCredential={name}:{path.replace('%', '%%')}"


def _admin_credential(plan: UnitPlan) -> str:
    """Return the line for the key that the alerts process itself shows to those who operate it."""
    admin = None if plan.settings is None else plan.settings.transport.admin
    if admin is None or not admin.startswith("tcp://"):
        return "# No second LoadCredential: transport.admin is no tcp endpoint."
    return _credential(plan, SERVER_CREDENTIAL)


def _forward_credentials(plan: UnitPlan) -> str:
    """Return the lines by which systemd hands the secrets of outputs to the forwarder."""
    found = [
        f"LoadCredential={output.credential(key)}:{file.replace('%', '%%')}"
        for output in ([] if plan.settings is None else plan.settings.forward)
        for key, file in output.secret_files.items()
    ]
    return "\n".join(found) or "# No LoadCredential: no output has a file with a secret."


def _quoted(word: str) -> str:
    """Return a word of ExecStart= as it is, whatever systemd would read into it."""
    escaped = word.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$")
    return escaped if _PLAIN.match(word) else '"' + escaped.replace('"', '\\"') + '"'


def _unreachable(*paths: Path) -> list[str]:
    """Return the first folder that keeps the user ast-stream from a file, as a sentence."""
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
    config: Annotated[Path, config_option()] = DEFAULT_CONFIG,
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

    The units use the environment that this command runs from. Run it again after moving that or
    changing the streams: if the target is active, units of new streams are started and those of
    removed streams stopped. It prints the paths of the files written. Put your own changes into
    drop-ins.

    --remove stops the units, disables the target and removes the files that this command has
    written. Configuration, state and drop-ins are kept; it prints how to delete them.

    Example: sudo .venv/bin/ast-stream install-units -c /etc/ast-stream/config.yaml
    """
    systemctl = Systemctl(is_user=user)
    is_live = dest is None and not dry_run and systemctl.is_there
    if remove:
        removal = _Removal(_folder(dest, user), is_user=user, is_dry=dry_run)
        removal.run(systemctl if is_live else None, config)
        return
    file = Path(os.path.abspath(config))
    plan = UnitPlan(
        command=program(),
        config=file,
        settings=load_settings(file) if file.exists() else None,
        is_user=user,
        has_nvidia=Path("/proc/driver/nvidia").exists() if nvidia is None else nvidia,
    )
    folder = _folder(dest, user)
    before = _wanted_before(folder / plan.unit_folder / TARGET)
    is_update = False
    for path, text in render(plan).items():
        if dry_run:
            typer.echo(f"# {folder / path}\n{text}")
        else:
            done = _write(folder / path, text)
            typer.echo(f"{folder / path}: {done}")
            is_update |= done == "replaced"
    if is_live and systemctl.is_active(TARGET):
        folders = [folder / path for path in render(plan) if path.parent.name == "tmpfiles.d"]
        _follow(systemctl, folders, before, wanted_units(plan))
    steps = _next_steps(plan, is_elsewhere=dest is not None, is_update=is_update)
    typer.echo("\n".join(steps), err=True)


def _wanted_before(target: Path) -> list[str]:
    """Return the units that an installed target starts."""
    try:
        found = re.search(r"^Wants=(.*)$", target.read_text(), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        return []
    return [] if found is None else found[1].split()


def _follow(
    systemctl: Systemctl, folders: Sequence[Path], before: Sequence[str], now: Sequence[str]
) -> None:
    """Start and stop units so that what runs is what the target wants now.

    Args:
        folders: files of tmpfiles.d: a unit does not start without the folders that it writes to.

    Raises:
        StartupError: systemd could not do it.
    """
    gone = [unit for unit in before if unit not in now]
    new = [unit for unit in now if unit not in before]
    failures = [*map(systemctl.make_folders, folders), systemctl.do("daemon-reload")]
    for verb, units in (("stop", gone), ("start", new)):
        if units:
            typer.echo(f"{verb}: {' '.join(units)}")
            failures.append(systemctl.do(verb, units))
    for failure in filter(None, failures):
        raise StartupError(f"systemctl: {failure}")


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


class _Removal:
    """Removes what was installed for any configuration; what is not there is passed over.

    Args:
        folder: the root, or a user's folder of units.
    """

    def __init__(self, folder: Path, *, is_user: bool, is_dry: bool) -> None:
        self._plan = UnitPlan(program(), DEFAULT_CONFIG, None, is_user=is_user, has_nvidia=True)
        self._folder = folder
        self._is_dry = is_dry

    def run(self, systemctl: Systemctl | None, config: Path) -> None:
        """Stop, disable, remove, and say what is left.

        Args:
            systemctl: of the machine that the files are for; None: that is another one.
        """
        if systemctl is not None:
            installed = {path.name for path in self._files() if path.exists()}
            units = [unit for unit in _OURS if "*" in unit or unit in installed]
            self._do(systemctl, "stop", units)
            if systemctl.do("disable", [TARGET]) is None:  # the link below is removed anyway
                typer.echo(f"{TARGET}: disabled")
        kept = [path for path in self._files() if not self._is_removed(path)]
        if systemctl is not None:
            self._do(systemctl, "daemon-reload")
            systemctl.do("reset-failed", ["ast-stream*"])
        typer.echo("\n".join(self._what_is_left(kept, config, systemctl)), err=True)

    def _do(self, systemctl: Systemctl, verb: str, units: Sequence[str] = ()) -> None:
        if (failure := systemctl.do(verb, units)) is not None:
            before = "nothing was removed; " if verb == "stop" else ""
            raise StartupError(f"systemctl {verb}: {failure}; {before}run it as root")
        typer.echo(f"systemctl {' '.join([verb, *units])}: done")

    def _files(self) -> list[Path]:
        return [self._folder / name for name in render(self._plan)]

    def _is_removed(self, path: Path) -> bool:
        """Remove a file that this command wrote, and the link to it; False if it is another's."""
        paths = [path]
        if path.name == TARGET:  # by systemctl enable
            paths.append(path.parent / f"{self._plan.wanted_by}.wants" / TARGET)
        if path.is_file() and MARK.encode() not in path.read_bytes():
            typer.echo(f"{path}: left, it is not as install-units writes it")
            return False
        for file in paths:
            if not os.path.lexists(file) or self._is_dry:
                there = "would be removed" if os.path.lexists(file) else "not there"
                typer.echo(f"{file}: {there}")
                continue
            try:
                file.unlink()
            except OSError as error:
                text = f"cannot remove {file}: {error.strerror}; run it as root"
                raise StartupError(text) from error
            typer.echo(f"{file}: removed")
        return True

    def _what_is_left(
        self, kept: Sequence[Path], config: Path, systemctl: Systemctl | None
    ) -> list[str]:
        plan = self._plan
        drop_ins = sorted((self._folder / plan.unit_folder).glob("ast-stream*.d"))
        folders = [*kept, *drop_ins, *_folders_of(config, is_user=plan.is_user)]
        lines = []
        if systemctl is None:
            lines = ["Next, on the machine these files were for:"]
            lines += [f"  {plan.control} stop {' '.join(map(repr, _OURS))}"]
            lines += [f"  {plan.control} daemon-reload"]
        lines.append(f"Left as it was: {', '.join(map(str, folders))}")
        lines.append("To delete that too, with all events, alerts, keys and settings:")
        lines.append(f"  rm -rf {shlex.join(map(str, folders))}")
        return lines if plan.is_user else [*lines, "  userdel ast-stream"]


def _folders_of(config: Path, *, is_user: bool) -> list[Path]:
    """Return where settings, state and caches are, as far as the configuration can be read."""
    usual = [] if is_user else [DEFAULT_CONFIG.parent, STATE_DIR, Path("/var/cache/ast-stream")]
    try:
        settings = load_settings(config)
    except AstStreamError:
        return usual
    state_dir = (Path() if is_user else STATE_DIR) / settings.state_dir
    return list(dict.fromkeys([*usual, Path(os.path.abspath(config)), state_dir]))


def _next_steps(plan: UnitPlan, *, is_elsewhere: bool, is_update: bool) -> list[str]:
    control = plan.control
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
