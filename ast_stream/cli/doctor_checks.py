"""The checks of `ast-stream doctor`: packages, sound input, folders, sockets, and the model."""

from __future__ import annotations

import importlib
import importlib.metadata
import itertools
import os
import platform
import shutil
import stat
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from ast_stream.capture.sources import microphone
from ast_stream.cli.pool_checks import pool_problems, pool_warnings
from ast_stream.detect.cascade import load_cascade
from ast_stream.detect.detector import Detector
from ast_stream.errors import AstStreamError, StartupError
from ast_stream.fleet.clock import ClockWatch
from ast_stream.labels import find_label
from ast_stream.model.attention import KernelTiming, measure_all
from ast_stream.model.runners import dtype_of
from ast_stream.model.selfcheck import golden_clip, self_check
from ast_stream.model.tagger import Tagger, load_tagger
from ast_stream.model.torchaudio_guard import has_compiled_part, import_kaldi
from ast_stream.runtime import state_format
from ast_stream.runtime.files import out_of_reach, why_not_writable
from ast_stream.runtime.temporary import temporary_folder
from ast_stream.settings import paths, storage
from ast_stream.settings.explain import show_path
from ast_stream.settings.model import ModelSettings
from ast_stream.settings.retention import MIB
from ast_stream.settings.schema import Settings
from ast_stream.settings.section import Misfit
from ast_stream.settings.workers import of_worker, worker_names
from ast_stream.transport.authenticator import key_problems, key_warnings
from ast_stream.transport.sockets import Sockets, lock_endpoint
from ast_stream.units import SAMPLE_RATE
from ast_stream.version import __version__

Status = Literal["ok", "warning", "failed"]

TRY_TIMEOUT_MS = 2000
PACKAGES = ("torch", "torchaudio", "numpy", "safetensors", "pyzmq", "soxr", "soundfile")
SOUND_MODULES = ("soxr", "soundfile")
OPTIONAL_MODULES = {
    "av": "url",
    "huggingface_hub": "hub",
    "flash_attn": "flash",
    "apprise": "notify",
    "starlette": "web",
    "pyarrow": "export",
    "scipy": "train",
}
MAX_SHOWN_PATHS = 3
MAX_FEATURE_ERROR = 1e-4  # after normalisation, against torchaudio
SPEED_REPEATS = 15
SPEED_LIMIT_S = 5.0  # of measuring; slow machines get fewer repeats


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        status: `failed` is something that must work and does not; `warning` may be intended.
        text: one sentence for people.
        facts: the same for programs.
    """

    name: str
    status: Status
    text: str
    facts: dict[str, Any] = field(default_factory=dict)


def checks(settings: Settings, report: Callable[[str], None]) -> Iterator[Check]:
    """Yield each finding as soon as it is known; a check that breaks is a failed one.

    Args:
        report: called with what is being checked next.
    """
    yield from _guarded("versions", check_versions)
    yield from _model_checks(settings.model, report)
    report("looking for microphones")
    yield from _guarded("microphones", check_microphones)
    yield from _guarded("runtime_dir", lambda: check_runtime_dir(settings))
    yield from _guarded("endpoints", lambda: check_endpoints(settings))
    yield from _guarded("keys", lambda: check_keys(settings))
    yield from _guarded("pool", lambda: check_pool(settings))
    yield from _guarded("clock", lambda: check_clock(settings))


def check_clock(settings: Settings) -> Iterator[Check]:
    """Yield how right the clock of this machine is."""
    watch = ClockWatch(settings.fleet.ntp)
    watch.measure_once()
    clock = watch.report()
    problem = clock.problem if clock.error is None else clock.problem or clock.error
    yield Check(
        "clock", "ok" if problem is None else "warning", problem or clock.text, clock.to_json()
    )


def _model_checks(model: ModelSettings, report: Callable[[str], None]) -> Iterator[Check]:
    report("loading the model")
    try:
        tagger = load_tagger(
            model.checkpoint, model.device, model.precision, model.attention, model.window_s
        )
    except AstStreamError as error:
        yield Check("model", "failed", str(error))
        return
    yield from _guarded("model", lambda: check_model(tagger))
    for name, check in {
        "attention": check_attention,
        "features": check_features,
        "self-check": check_scores,
        "speed": check_speed,
    }.items():
        report(f"checking {name}")
        yield from _guarded(name, partial(check, tagger))
    if model.cascade is not None:
        report("checking the cascade")
        yield from _guarded("cascade", lambda: check_cascade(model, tagger))


def _guarded(name: str, check: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    try:
        yield from check()
    except (AstStreamError, RuntimeError, OSError) as error:  # RuntimeError: torch and CUDA
        yield Check(name, "failed", str(error).split("\n")[0])


def check_versions() -> Iterator[Check]:
    """Yield versions of everything that computes or carries."""
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
    present = {}
    for module in OPTIONAL_MODULES:
        present[module] = True
        try:
            importlib.import_module(module)
        except (ImportError, OSError):
            present[module] = False
    words = [
        f"{module} {'installed' if there else f'not installed (extra {OPTIONAL_MODULES[module]})'}"
        for module, there in present.items()
    ]
    yield Check("extras", "ok", ", ".join(words), present)


def check_microphones() -> Iterator[Check]:
    """Yield what PortAudio finds; a box that only reads files or streams needs none."""
    try:
        found = microphone.list_devices()  # loads PortAudio
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
    if (problem := why_not_writable(folder)) is not None:
        yield Check("runtime_dir", "failed", problem, facts)
    elif not folder.exists():
        yield Check("runtime_dir", "ok", f"{folder} does not exist yet and can be made", facts)
    else:
        mode = stat.S_IMODE(folder.stat().st_mode)
        facts["mode"] = f"{mode:04o}"
        if mode & stat.S_IRWXO:
            text = f"{folder} has mode {mode:04o}: all users of this machine can use its sockets"
            yield Check("runtime_dir", "warning", text, facts)
        else:
            yield Check("runtime_dir", "ok", f"{folder}, mode {mode:04o}", facts)


def check_state_dirs(settings: Settings, config: Path) -> Iterator[Check]:
    """Yield whether what is kept has a place: a folder to write to, of this version, with room."""
    folders = [settings.state_dir]
    folders += [of_worker(settings, worker).state_dir for worker in worker_names(settings)]
    for folder in map(Path, dict.fromkeys(folders)):
        yield from _guarded("state_dir", lambda at=folder: _check_state_dir(settings, config, at))  # type: ignore[misc]


def _check_state_dir(settings: Settings, config: Path, folder: Path) -> Iterator[Check]:
    facts: dict[str, Any] = {"state_dir": str(folder)}
    if (problem := why_not_writable(folder)) is not None:
        yield Check("state_dir", "failed", problem, facts)
        return
    state_format.check_state_dir(folder, str(config))
    if folder.exists():
        yield from _check_owners(folder)
    kinds = [kind for kind in storage.kept(settings) if kind.folder.is_relative_to(folder)]
    limit = sum(kind.max_bytes for kind in kinds)
    used = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    disk = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists()))
    facts |= {"free_bytes": disk.free, "used_bytes": used, "max_bytes": limit}
    text = f"{folder}: {used / MIB:.0f} of up to {limit / MIB:.0f} MiB, {disk.free / MIB:.0f} free"
    if disk.free < limit - used:
        yield Check("state_dir", "warning", f"{text}: the disk may become full", facts)
    else:
        yield Check("state_dir", "ok", text, facts)


def _check_owners(folder: Path) -> Iterator[Check]:
    """Yield what in a state folder the processes may not change, which ends them at their start.

    Root may, but the processes are run by the owner of the folder.
    """
    uid, gids = os.geteuid(), {os.getegid(), *os.getgroups()}
    if uid == 0:
        found = folder.stat()
        uid, gids = found.st_uid, {found.st_gid}
    paths = list(itertools.islice(out_of_reach(folder, uid, gids), MAX_SHOWN_PATHS + 1))
    if paths:
        shown = ", ".join(str(path) for path in paths[:MAX_SHOWN_PATHS])
        more = " and others" if len(paths) > MAX_SHOWN_PATHS else ""
        text = (
            f"user {uid} may not change {shown}{more}, of another owner: the processes end "
            f"where they need it; chown -R --reference={folder} {folder} gives it back"
        )
        yield Check("state_dir", "failed", text, {"paths": [str(path) for path in paths]})


def check_endpoints(settings: Settings) -> Iterator[Check]:
    """Yield whether the worker could bind its endpoints; those in use are left alone."""
    for worker in worker_names(settings):
        own = of_worker(settings, worker)
        of = "" if worker is None else f" of {worker}"
        for name, endpoint in {
            "audio": paths.audio_endpoint(own),
            "feed": paths.feed_endpoint(own),
            "query": paths.query_endpoint(own),
        }.items():
            yield _check_endpoint(f"{name} endpoint{of}", endpoint)
    yield _try_sockets()


def _check_endpoint(name: str, endpoint: str) -> Check:
    facts = {"endpoint": endpoint}
    try:
        in_use = _is_in_use(endpoint)
    except StartupError as error:
        return Check(name, "failed", str(error), facts)
    status: Status = "warning" if in_use else "ok"
    text = f"{endpoint} is in use: a worker is running" if in_use else f"{endpoint} is free"
    return Check(name, status, text, facts | {"in_use": in_use})


def check_pool(settings: Settings) -> Iterator[Check]:
    """Yield whether what the pool needs can be used."""
    if settings.pool is None:
        return
    found: list[tuple[Status, Misfit]] = [
        *(("failed", problem) for problem in pool_problems(settings)),
        *(("warning", warning) for warning in pool_warnings(settings)),
    ]
    for status, (path, text) in found:
        yield Check("pool", status, f"{show_path(path)}: {text}")
    if not found:
        yield Check("pool", "ok", f"login and keys of the pool {settings.pool.name} can be used")


def check_keys(settings: Settings) -> Iterator[Check]:
    """Yield whether keys and allow-list can be used, where an endpoint needs them."""
    if not settings.transport.has_keyed_tcp:
        return
    found: list[tuple[Status, Misfit]] = [
        *(("failed", problem) for problem in key_problems(settings.transport)),
        *(("warning", warning) for warning in key_warnings(settings.transport)),
    ]
    for status, (path, text) in found:
        yield Check("keys", status, f"{show_path(path)}: {text}")
    if not found:
        yield Check("keys", "ok", "the keys of transport.curve can be used")


def _is_in_use(endpoint: str) -> bool:
    """Return whether another process holds `endpoint`; leaves no file that was not there."""
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
    with temporary_folder("doctor") as folder:
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


def check_model(tagger: Tagger) -> Iterator[Check]:
    """Yield what the model is and where it computes."""
    checkpoint = tagger.checkpoint
    n_params = sum(tensor.numel() for tensor in checkpoint.state_dict.values())
    facts: dict[str, Any] = {
        "checkpoint": checkpoint.origin,
        "hash": checkpoint.hash,
        "classes": len(tagger.labels),
        "params": n_params,
        "tokens": tagger.dims.n_tokens,
        "window_s": tagger.window_s,
    }
    text = (
        f"{checkpoint.origin}: {n_params / 1e6:.1f} M parameters, {len(tagger.labels)} classes, "
        f"window {tagger.window_s:g} s, {tagger.dims.n_tokens} tokens"
    )
    yield Check("model", "ok", text, facts)
    name = _device_name(tagger.device)
    facts = {"device": str(tagger.device), "device_name": name, "precision": tagger.precision}
    facts["kernels"] = tagger.kernels
    text = f"{tagger.device} ({name}), {tagger.precision}, {tagger.kernels}"
    yield Check("device", "ok", text, facts)


def check_attention(tagger: Tagger) -> Iterator[Check]:
    """Yield the attention in use, with speed and error of every candidate."""
    measurements = tagger.attention_choice.measurements
    if len(measurements) == 1:  # an explicit choice: measure the others, too
        dtype = dtype_of(tagger.precision)
        measurements = measure_all(tagger.dims, 1, tagger.device, dtype)
    facts = {"attention": tagger.attention, "candidates": [vars(found) for found in measurements]}
    text = f"{tagger.attention}, of {'; '.join(map(_measured, measurements))}"
    yield Check("attention", "ok", text, facts)


def check_features(tagger: Tagger) -> Iterator[Check]:
    """Yield how far the features are from torchaudio's."""
    clip = torch.from_numpy(golden_clip(0, SAMPLE_RATE))
    reference = import_kaldi().fbank(
        clip[None],
        sample_frequency=SAMPLE_RATE,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=tagger.dims.n_mels,
        dither=0.0,
    )
    ours = tagger.fbank.frames(clip.to(tagger.device)).cpu()
    error = (ours - reference).abs().max().item() / (2 * tagger.normalization.std)
    status: Status = "ok" if error <= MAX_FEATURE_ERROR else "failed"
    text = f"{error:.1g} from torchaudio's, {MAX_FEATURE_ERROR:g} is allowed"
    yield Check("features", status, text, {"max_error": error, "allowed": MAX_FEATURE_ERROR})


def check_scores(tagger: Tagger) -> Iterator[Check]:
    """Yield the outcome of the self-check."""
    result = self_check(tagger)
    text = (
        f"differs by {result.max_error:.2g} from its {result.against} scores, "
        f"{result.tolerance:g} is allowed"
    )
    yield Check("self-check", "ok", text, vars(result))


def check_speed(tagger: Tagger) -> Iterator[Check]:
    """Yield milliseconds per window: one at a time, and as many as are worth it."""
    for batch in sorted({1, tagger.full_batch}):
        ms = median_ms(tagger, batch) / batch
        facts = {"batch": batch, "ms_per_window": ms, "windows_per_s": 1000 / ms}
        yield Check("speed", "ok", f"{ms:.2f} ms per window in batches of {batch}", facts)


def median_ms(tagger: Tagger, batch: int = 1) -> float:
    """Return the median of the milliseconds that `batch` windows take on this machine."""
    shape = (batch, tagger.n_input_frames, tagger.dims.n_mels)
    windows = torch.zeros(shape, device=tagger.device)
    score = tagger.window_scores if tagger.frames is None else tagger.frame_logits
    score(windows)  # the first one allocates, and captures graphs
    times_s: list[float] = []
    while len(times_s) < SPEED_REPEATS and sum(times_s) < SPEED_LIMIT_S:
        start = time.perf_counter()
        score(windows)  # returns when the scores are back
        times_s.append(time.perf_counter() - start)
    return statistics.median(times_s) * 1000


def check_cascade(model: ModelSettings, large: Tagger) -> Iterator[Check]:
    """Yield what the small model of a cascade is, how fast, and whether it fits `large`."""
    cascade = load_cascade(model)
    assert cascade is not None
    Detector(large, hop_s=model.hop_s, max_streams=1, cascade=cascade)  # raises if it does not
    small = cascade.tagger
    shared = [label for label in large.labels if find_label(label, small.labels) is not None]
    n_classes = len(large.labels)
    text = (
        f"{small.checkpoint.origin} hears all windows, knows {len(shared)} of {n_classes} classes"
    )
    facts = {"checkpoint": small.checkpoint.origin, "classes": len(shared)}
    yield Check("cascade", "ok", text, facts)
    for check in (check_model, check_scores, check_speed):
        for found in check(small):
            yield replace(found, name=f"cascade {found.name}")


def _measured(found: KernelTiming) -> str:
    if found.ms is None or found.max_error is None:
        return f"{found.name} unavailable: {found.problem}"
    text = f"{found.name} {found.ms:.2f} ms, error {found.max_error:.1g}"
    return f"{text} ({found.problem})" if found.problem else text


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = torch.cpu.get_capabilities().get("cpu_name")
    return str(name or platform.machine())
