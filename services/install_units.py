"""`ast-stream install-units`: the systemd units for this environment and configuration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ast_stream.errors import StartupError
from ast_stream.settings.load import load_settings
from services.unit_files import Plan, doubts, program, render, wanted_units

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
        typer.Option(help="Load nvidia-uvm at boot. [default: if its driver is there]"),
    ] = None,
) -> None:
    """Write the systemd units of one configuration, and say what to do next.

    The units start the environment that this command runs from; run it again after moving that or
    adding streams. What is printed are the paths written; own changes belong into drop-ins.

    Example: sudo .venv/bin/ast-stream install-units -c /etc/ast-stream/config.yaml
    """
    file = Path(os.path.abspath(config))
    plan = Plan(
        command=program(),
        config=file,
        settings=load_settings(file) if file.exists() else None,
        is_user=user,
        has_nvidia=Path("/proc/driver/nvidia").exists() if nvidia is None else nvidia,
    )
    folder = _folder(dest, user)
    for path, text in render(plan).items():
        if dry_run:
            typer.echo(f"# {folder / path}\n{text}")
        else:
            typer.echo(f"{folder / path}: {_write(folder / path, text)}")
    typer.echo("\n".join(_next_steps(plan, is_elsewhere=dest is not None)), err=True)


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
        new = path.with_name(f".{path.name}.new")
        new.write_text(text)
        new.chmod(0o644)
        new.replace(path)
    except OSError as error:
        raise StartupError(
            f"cannot write {path}: {error.strerror}; run it as root, or with --user or --dest"
        ) from error
    return "written" if before is None else "replaced"


def _next_steps(plan: Plan, *, is_elsewhere: bool) -> list[str]:
    control = "systemctl --user" if plan.is_user else "systemctl"
    steps = [] if plan.is_user else ["systemd-sysusers", "systemd-tmpfiles --create"]
    status = f"{plan.command} status -c {plan.config}"
    steps += [f"{control} daemon-reload", f"{control} enable --now ast-stream.target", status]
    if not plan.is_user:
        steps[-1] += "   # as root or a member of the group ast-stream"
    else:
        steps.insert(0, "loginctl enable-linger   # to run also while you are not logged in")
    lines = [f"The target starts: {', '.join(wanted_units(plan))}"]
    lines += [f"Mind: {doubt}." for doubt in doubts(plan)]
    lines.append("Next, on the machine these files are for:" if is_elsewhere else "Next:")
    return lines + [f"  {step}" for step in steps]
