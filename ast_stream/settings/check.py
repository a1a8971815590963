"""Settings checked against what they name: a checkpoint's classes and hop, files, libraries."""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass, fields

from ast_stream.errors import ConfigError, Problem
from ast_stream.labels import did_you_mean, find_label, slug
from ast_stream.settings.detection import MAX_CONFIRM_HOPS, ClassSettings, DetectionDefaults
from ast_stream.settings.explain import Path
from ast_stream.settings.load import LoadedSettings
from ast_stream.settings.recorder import ALL


@dataclass(frozen=True)
class EffectiveDetection:
    """Detection settings of one class with the defaults filled in; None: as the checkpoint
    says.
    """

    enabled: bool
    onset_threshold: float | None
    confirm_s: float | None
    smoothing_s: float | None
    hold_s: float | None
    min_duration_s: float
    refractory_s: float
    max_duration_s: float


def effective_detection(
    defaults: DetectionDefaults, own: ClassSettings | None
) -> EffectiveDetection:
    """Return the settings that hold for a class: its own, else the defaults."""
    values = {}
    for field in fields(EffectiveDetection):
        if field.name == "enabled":
            continue
        chosen = None if own is None else getattr(own, field.name)
        values[field.name] = getattr(defaults, field.name) if chosen is None else chosen
    return EffectiveDetection(enabled=own is None or own.enabled is not False, **values)


def check_against_model(
    loaded: LoadedSettings,
    labels: Sequence[str],
    *,
    hop_s: float,
    window_s: float,
    frame_s: float | None = None,
) -> None:
    """Refuse settings that the checkpoint in use cannot fulfil.

    Args:
        labels: the checkpoint's class labels.
        hop_s: seconds between windows, as in use.
        window_s: seconds in a window, as in use.
        frame_s: seconds of a frame; None: windows decide, and not frames.

    Raises:
        ConfigError: unknown classes, or durations out of reach; every one is listed.
    """
    problems = check_classes(loaded, labels) + _check_model(loaded, hop_s, window_s)
    detection = loaded.settings.detection
    by_path: dict[Path, ClassSettings | None] = {("detection", "defaults"): None}
    by_path |= {("detection", "classes", name): own for name, own in detection.classes.items()}
    for path, own in by_path.items():
        effective = effective_detection(detection.defaults, own)
        if effective.enabled:
            problems += _check_durations(loaded, path, effective, hop_s, frame_s)
    if problems:
        raise ConfigError(sorted(problems, key=lambda problem: problem.line or 0))


def check_cascade(
    loaded: LoadedSettings, labels: Sequence[str], small_labels: Sequence[str], window_s: float
) -> None:
    """Refuse a cascade whose small model cannot serve.

    Args:
        labels, small_labels: of both checkpoints.
        window_s: of the small one.

    Raises:
        ConfigError: they share no class, or audio between its windows would not be heard.
    """
    problems = []
    path: Path = ("model", "cascade", "checkpoint")
    hop_s = loaded.settings.model.hop_s
    if not any(find_label(label, small_labels) for label in labels):
        text = "expected a checkpoint with classes of model.checkpoint, got one with none of them"
        problems.append(loaded.problem(path, text))
    if window_s < hop_s:
        text = f"expected windows of model.hop_s, {hop_s:g} s, or more, got {window_s:g} s"
        problems.append(loaded.problem(path, text))
    if problems:
        raise ConfigError(problems)


def check_classes(loaded: LoadedSettings, labels: Sequence[str]) -> list[Problem]:
    """Return a problem for each class in the settings that is not among `labels`.

    A class may be named by its label or by the label's slug, once.
    """
    problems = _check_recorder(loaded, labels)
    first: dict[str, str] = {}
    for name in loaded.settings.detection.classes:
        path: Path = ("detection", "classes", name)
        label = find_label(name, labels)
        if label is None:
            problems.append(_unknown_class(loaded, path, name, labels))
        elif label in first:
            problems.append(loaded.problem(path, f"names the same class as '{first[label]}'"))
        else:
            first[label] = name
    return problems


def _check_recorder(loaded: LoadedSettings, labels: Sequence[str]) -> list[Problem]:
    """Return a problem for each class in the policies of the recorder that is not known."""
    recorder = loaded.settings.recorder
    return [
        _unknown_class(loaded, ("recorder", "clips", index, "classes"), name, labels)
        for index, policy in enumerate(() if recorder is None else recorder.clips)
        for name in (() if policy.classes == ALL else policy.classes)
        if find_label(name, labels) is None
    ]


def _unknown_class(loaded: LoadedSettings, path: Path, name: str, labels: Sequence[str]) -> Problem:
    near = did_you_mean(name, [*map(slug, labels), *labels])
    listed = f"list all with: ast-stream model info {loaded.settings.model.checkpoint}"
    return loaded.problem(path, f"unknown class '{name}'{near}{' ' if near else '; '}{listed}")


def check_folders(loaded: LoadedSettings) -> list[Problem]:
    """Return why the folders of the configuration cannot be made; who may write is not asked."""
    settings, problems = loaded.settings, []
    for key, folder in (("runtime_dir", settings.runtime_dir), ("state_dir", settings.state_dir)):
        place = pathlib.Path(folder or "/")
        parents = (place, *place.absolute().parents)
        nearest = next(parent for parent in parents if os.path.lexists(parent))
        if not nearest.is_dir():
            text = f"expected a folder, but {nearest} is not one"
            problems.append(loaded.problem((key,), text))
    return problems


def check_page(loaded: LoadedSettings) -> list[Problem]:
    """Return which files of the page are missing; who may read them is not asked."""
    web = loaded.settings.web
    if web.listen is None:
        return []
    files: list[tuple[Path, str | None]] = [
        (("web", "certificate"), web.certificate),
        (("web", "private_key"), web.private_key),
    ]
    if web.behind_proxy is not None:
        files.append((("web", "behind_proxy", "token_file"), web.behind_proxy.token_file))
    problems = []
    for path, name in files:
        if name is None:
            continue
        try:
            pathlib.Path(name).stat()
        except FileNotFoundError as error:
            problems.append(loaded.problem(path, f"{name}: {error.strerror}"))
        except OSError:
            continue  # whoever checks may not see into the folder of the service's user
    return problems


def check_sources(loaded: LoadedSettings) -> list[Problem]:
    """Return why this machine cannot capture the configured streams, as far as that can be seen."""
    problems = []
    for index, stream in enumerate(loaded.settings.streams):
        path: Path = ("streams", index, "source")
        if (problem := stream.source.problem()) is not None:
            key, text = problem
            problems.append(loaded.problem((*path, key), text))
        if (problem := stream.wire.problem()) is not None:
            key, text = problem
            problems.append(loaded.problem(("streams", index, "wire", key), text))
    return problems


def wire_warnings(loaded: LoadedSettings) -> list[Problem]:
    """Return which streams are coded for a worker on this very box."""
    audio = loaded.settings.transport.audio
    is_here = audio is None or audio.startswith("ipc://")
    if loaded.settings.pool is not None or not is_here:
        return []
    text = "opus on the way to a worker on the same box costs sound and time, and saves nothing"
    return [
        loaded.problem(("streams", index, "wire", "codec"), text)
        for index, stream in enumerate(loaded.settings.streams)
        if stream.wire.codec == "opus"
    ]


def _check_model(loaded: LoadedSettings, hop_s: float, window_s: float) -> list[Problem]:
    problems = []
    if hop_s > window_s:
        problems.append(
            loaded.problem(
                ("model", "hop_s"),
                f"expected at most the window of {window_s:g} s, got {hop_s:g}: "
                "audio between the windows would not be scored",
            )
        )
    min_context_s = loaded.settings.model.min_context_s
    path: Path = ("model", "min_context_s")
    # the default is made to fit a short window; only a value somebody wrote is a mistake
    if path in loaded.lines and min_context_s is not None and min_context_s > window_s:
        text = f"expected at most the window of {window_s:g} s, got {min_context_s:g}"
        problems.append(loaded.problem(path, text))
    return problems


def _check_durations(
    loaded: LoadedSettings,
    path: Path,
    effective: EffectiveDetection,
    hop_s: float,
    frame_s: float | None,
) -> list[Problem]:
    """Return what is wrong with the durations at `path`; what a class inherits is reported once."""
    is_default = path[-1] == "defaults"
    problems = []
    confirm_s = effective.confirm_s or 0.0
    step_s, steps = (hop_s, "hops") if frame_s is None else (frame_s, "frames")
    confirm_hops = math.ceil(confirm_s / step_s - 1e-6)
    if confirm_hops > MAX_CONFIRM_HOPS and (is_default or (*path, "confirm_s") in loaded.lines):
        problems.append(
            loaded.problem(
                (*path, "confirm_s"),
                f"expected at most {MAX_CONFIRM_HOPS} {steps} of {step_s:g} s "
                f"({MAX_CONFIRM_HOPS * step_s:g} s), got {confirm_s:g}",
            )
        )
    own = [key for key in ("min_duration_s", "max_duration_s") if (*path, key) in loaded.lines]
    if effective.min_duration_s > effective.max_duration_s and (is_default or own):
        problems.append(
            loaded.problem(
                (*path, own[0] if own else "min_duration_s"),
                f"expected min_duration_s to be at most max_duration_s, got "
                f"{effective.min_duration_s:g} and {effective.max_duration_s:g}: "
                "no sound could ever make an event",
            )
        )
    return problems
