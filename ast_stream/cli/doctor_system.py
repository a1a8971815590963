"""What `ast-stream doctor` finds out about the box: packages, sound input, folders, sockets."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ast_stream.cli.doctor_findings import Check, Status
from ast_stream.errors import AstStreamError, StartupError
from ast_stream.settings import paths
from ast_stream.settings.schema import Settings
from ast_stream.transport.sockets import Sockets, lock_endpoint
from ast_stream.version import __version__

TRY_TIMEOUT_MS = 2000
PACKAGES = ("torch", "torchaudio", "numpy", "safetensors", "pyzmq", "soxr", "soundfile")
SOUND_MODULES = ("soxr", "soundfile")
OPTIONAL_MODULES = {"av": "url", "huggingface_hub": "hub", "flash_attn": "flash"}


def check_versions() -> Iterator[Check]:
    """Yield versions of everything that computes or carries."""
    import torch

    from ast_stream.model.torchaudio_guard import has_compiled_part

    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    for module in SOUND_MODULES:
        try:
            importlib.import_module(module)
        except (ImportError, OSError) as error:
            yield Check(module, "failed", f"{module} cannot be imported: {error}")
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    facts: dict[str, Any] = {"ast_stream": __version__, "python": platform.python_version()}
    facts |= {**versions, "cuda": torch.version.cuda, "cudnn": cudnn}
    shown = ", ".join(f"{name} {version or 'none'}" for name, version in facts.items())
    facts["torchaudio_compiled"] = has_compiled_part()
    yield Check("versions", "ok", shown, facts)
    present = {module: _is_importable(module) for module in OPTIONAL_MODULES}
    words = [
        f"{module} {'installed' if there else f'not installed (extra {OPTIONAL_MODULES[module]})'}"
        for module, there in present.items()
    ]
    yield Check("extras", "ok", ", ".join(words), present)


def check_microphones() -> Iterator[Check]:
    """Yield what PortAudio finds; a box that only reads files or streams needs none."""
    from ast_stream.capture.sources.microphone import (
        list_devices,  # PortAudio itself is loaded by the call
    )

    try:
        found = list_devices()
    except AstStreamError as error:
        yield Check("microphones", "warning", str(error))
        return
    names = [device.stable for device in found]
    text = f"{len(names)} input devices: {', '.join(names)}" if names else "PortAudio finds none"
    yield Check("microphones", "ok" if names else "warning", text, {"devices": names})


def check_runtime_dir(settings: Settings) -> Iterator[Check]:
    """Yield whether this user can put sockets where the configuration says."""
    folder = paths.runtime_dir(settings)
    facts: dict[str, Any] = {"runtime_dir": str(folder)}
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        text = f"{folder}: this user ({os.getuid()}) may not write to {nearest}"
        yield Check("runtime_dir", "failed", text, facts)
    elif nearest != folder:
        yield Check("runtime_dir", "ok", f"{folder} does not exist yet and can be made", facts)
    else:
        mode = stat.S_IMODE(folder.stat().st_mode)
        facts["mode"] = f"{mode:04o}"
        if mode & stat.S_IRWXO:
            text = f"{folder} has mode {mode:04o}: all users of this machine can use its sockets"
            yield Check("runtime_dir", "warning", text, facts)
        else:
            yield Check("runtime_dir", "ok", f"{folder}, mode {mode:04o}", facts)


def check_endpoints(settings: Settings) -> Iterator[Check]:
    """Yield whether the worker could bind its endpoints; those in use are left alone."""
    for name, endpoint in {
        "audio": paths.audio_endpoint(settings),
        "feed": paths.feed_endpoint(settings),
        "query": paths.query_endpoint(settings),
    }.items():
        facts = {"endpoint": endpoint}
        try:
            in_use = _is_in_use(endpoint)
        except StartupError as error:
            yield Check(f"{name} endpoint", "failed", str(error), facts)
            continue
        status: Status = "warning" if in_use else "ok"
        text = f"{endpoint} is in use: a worker is running" if in_use else f"{endpoint} is free"
        yield Check(f"{name} endpoint", status, text, facts | {"in_use": in_use})
    yield _try_sockets()


def _is_in_use(endpoint: str) -> bool:
    """Tell whether another process holds `endpoint`; leaves no file that was not there."""
    if endpoint.startswith("ipc://"):
        if not Path(endpoint.removeprefix("ipc://") + ".lock").exists():
            return False
        try:
            lock_fd = lock_endpoint(endpoint)
        except StartupError as error:
            if isinstance(error.__cause__, BlockingIOError):
                return True
            raise
        if lock_fd is not None:
            os.close(lock_fd)
        return False
    sockets = Sockets()
    try:
        sockets.bind("pub", endpoint, hwm=1)
    except StartupError as error:
        if "Address already in use" in str(error):
            return True
        raise
    finally:
        sockets.close()
    return False


def _try_sockets() -> Check:
    """Send one message over an ipc socket in a private folder."""
    with tempfile.TemporaryDirectory() as folder:
        endpoint = f"ipc://{folder}/try.sock"
        sockets = Sockets()
        try:
            receiver = sockets.bind("pull", endpoint, hwm=1)
            sender = sockets.connect("push", endpoint, hwm=1)
            deadline = time.monotonic() + TRY_TIMEOUT_MS / 1000
            while not sender.send([b"try"]) and time.monotonic() < deadline:
                time.sleep(0.01)
            arrived = receiver.receive(TRY_TIMEOUT_MS) == [b"try"]
        finally:
            sockets.close()
    if arrived:
        return Check("sockets", "ok", "a message went through an ipc socket")
    return Check("sockets", "failed", "a message over an ipc socket did not arrive")


def _is_importable(module: str) -> bool:
    try:
        importlib.import_module(module)
    except (ImportError, OSError):
        return False
    return True
