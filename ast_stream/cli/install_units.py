"""`ast-stream install-units`: the systemd units for this environment and configuration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ast_stream.cli.unit_files import Plan, doubts, enabled_link, program, render, wanted_units
from ast_stream.errors import StartupError
from ast_stream.runtime.files import replace_file
from ast_stream.settings.load import load_settings

DEFAULT_CONFIG = Path("/etc/ast-stream/config.yaml")


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
    adding streams. What is printed are the paths written; own changes belong into drop-ins.
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
