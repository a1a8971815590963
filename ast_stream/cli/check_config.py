"""`ast-stream check-config` and `ast-stream schema`: configurations checked and explained."""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from ast_stream.alerts.actions.base import action_problems
from ast_stream.alerts.rule_files import RuleFiles
from ast_stream.alerts.rules.schema import rule_file_json_schema
from ast_stream.cli.output import aligned, say
from ast_stream.cli.pool_checks import pool_problems, pool_warnings
from ast_stream.detect.parameters import DecisionParameters, model_facts, resolve_parameters
from ast_stream.errors import (
    AstStreamError,
    CheckpointError,
    ConfigError,
    Problem,
    StartupError,
    UsageError,
    Warned,
)
from ast_stream.forward.outputs import output_problems
from ast_stream.labels import find_label, slug
from ast_stream.model.audioset import short_window_warning
from ast_stream.settings import paths, storage
from ast_stream.settings.check import (
    check_against_model,
    check_cascade,
    check_folders,
    check_page,
    check_sources,
    wire_warnings,
)
from ast_stream.settings.fleet import box_identity
from ast_stream.settings.load import LoadedSettings, examine_file
from ast_stream.settings.recorder import ALL
from ast_stream.settings.schema import Settings
from ast_stream.settings.streams import Source
from ast_stream.settings.workers import capture_processes, of_worker, worker_names
from ast_stream.transport.authenticator import key_problems, key_warnings
from ast_stream.units import samples_to_seconds, seconds_to_samples
from ast_stream.worker.capacity import describe_load, load_warnings

if TYPE_CHECKING:
    from ast_stream.model.description import Description


_Found = TypeVar("_Found")

MAX_LISTED_CLASSES = 40  # of larger models only the classes with settings of their own
_ANY_HOST = ("0.0.0.0", "::", "*")  # not an address to connect to
_COLUMNS = ("class", "onset", "offset", "confirm", "hold", "min", "refractory", "max")


def check_config(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The configuration (YAML).")],
    model: Annotated[
        bool, typer.Option(help="Check the class names and durations against the checkpoint, too.")
    ] = True,
    speed: Annotated[
        bool, typer.Option(help="Measure the model, to say how many streams this machine can hold.")
    ] = True,
    targets: Annotated[
        bool,
        typer.Option("--targets", help="Print what Prometheus scrapes instead (file_sd, JSON)."),
    ] = False,
) -> None:
    """Validate a configuration and print what it means; exit 78 if anything is wrong.

    Every problem is listed with its file and line, those of its rule files too, and what cannot
    work on this machine: missing files, keys, libraries and environment variables. Warnings name
    what works, but probably not as intended. Nothing is started or fetched.

    Example: ast-stream check-config configs/default.yaml
    """
    loaded, problems = examine_file(file)
    if loaded is None or (targets and problems):
        raise ConfigError(problems)
    if targets:
        typer.echo(json.dumps(scrape_targets(loaded.settings), indent=2))
        return
    warnings: list[str] = []
    # without problems only: what the loader has refused, it would refuse again
    lines = [] if problems else _attempt(problems, lambda: describe(loaded.settings))
    problems += [*check_folders(loaded), *check_sources(loaded), *check_page(loaded)]
    problems += [*action_problems(loaded), *output_problems(loaded), *_port_problems(loaded)]
    transport = loaded.settings.transport
    problems += [loaded.problem(path, text) for path, text in key_problems(transport)]
    warnings += [str(loaded.problem(path, text)) for path, text in key_warnings(transport)]
    problems += [loaded.problem(path, text) for path, text in pool_problems(loaded.settings)]
    warnings += [str(loaded.problem(path, text)) for path, text in pool_warnings(loaded.settings)]
    warnings += map(str, wire_warnings(loaded))
    if loaded.settings.alerts.rules:
        lines += _attempt(problems, lambda: _describe_rules(loaded, warnings, knows_model=model))
    descriptions: list[Description] = []
    if not model:
        lines.append("checkpoint   not read: class names and durations are unchecked")
    elif _is_elsewhere(loaded.settings.model.checkpoint):
        lines.append("checkpoint   not on this machine: class names and durations are unchecked")
    else:
        reference = loaded.settings.model.checkpoint
        found = _attempt(problems, lambda: [_description(loaded, reference, "model", "checkpoint")])
        descriptions += found
        for description in descriptions:
            for part in (_describe_cascade, _describe_verifiers, describe_model):
                lines += _attempt(problems, partial(part, loaded, description))
    if problems:
        problems += [Warned(str(file), None, "", text) for text in warnings]
        raise ConfigError(
            sorted(
                problems, key=lambda problem: (problem.is_warning, problem.file, problem.line or 0)
            )
        )
    for description in descriptions:
        window_s = loaded.settings.model.window_s or description.window_s
        if (short := short_window_warning(window_s, description.dims)) is not None:
            warnings.append(f"model.window_s: {short}")
        if speed:
            _add_load(loaded.settings, description, lines, warnings)
    say(f"{file}: no problems" + (f", {len(warnings)} to think about" if warnings else ""))
    say("\n".join([*lines, *(f"warning: {text}" for text in warnings)]))


def describe_checkpoint(loaded: LoadedSettings) -> list[str]:
    """Return what the settings and the rules mean for their checkpoint, which is on this machine.

    Raises:
        ConfigError: they do not fit each other.
    """
    description = _description(loaded, loaded.settings.model.checkpoint, "model", "checkpoint")
    lines = [*describe_model(loaded, description), *_describe_verifiers(loaded, description)]
    if loaded.settings.alerts.rules:
        lines += _describe_rules(loaded, [], knows_model=True)
    return lines


def _attempt(problems: list[Problem], step: Callable[[], Iterable[_Found]]) -> list[_Found]:
    """Return what `step` finds, or add to `problems` what it cannot use."""
    try:
        return list(step())
    except ConfigError as error:
        problems += [problem for problem in error.problems if problem not in problems]
        return []


def _describe_rules(
    loaded: LoadedSettings, warnings: list[str], *, knows_model: bool
) -> Iterator[str]:
    """Yield a line about the rule files; whom they do not reach is added to `warnings`."""
    files = RuleFiles(loaded, knows_model=knows_model)
    rules = files.load()
    warnings += [
        str(Problem(lint.file, lint.line, "", lint.text)) for lint in files.warnings(rules)
    ]
    yield f"rules        {len(rules.rules)} in {', '.join(loaded.settings.alerts.rules)}"


def schema(
    of: Annotated[
        Literal["settings", "rules"], typer.Argument(help="The configuration, or rule files.")
    ] = "settings",
) -> None:
    """Print the JSON Schema of configurations or rule files, for editors and other programs.

    Example: ast-stream schema > ast-stream.schema.json
    """
    typer.echo(json.dumps(json_schema() if of == "settings" else rule_file_json_schema(), indent=2))


def json_schema() -> dict[str, object]:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Settings.model_json_schema(),
        "title": "Configuration of ast-stream",
    }


def describe(settings: Settings) -> Iterator[str]:
    """Yield lines that say what the settings mean on this machine, without the model."""
    for stream in settings.streams:
        labels = "".join(f", {key}={value}" for key, value in stream.labels.items())
        source = f"{_source(stream.source)}, ring {stream.ring_s:g} s"
        if stream.wire.codec == "opus":
            source += f", sent as Opus, {stream.wire.bit_rate / 1000:g} kbit/s"
        yield f"stream       {stream.name}: {source}{labels}"
    for name in worker_names(settings):
        own = of_worker(settings, name)
        if name is not None:
            streams = ", ".join(stream.name for stream in own.streams)
            yield f"worker       {name}: {streams} on {own.model.device}"
        yield f"audio        {paths.audio_endpoint(own)}"
        yield f"feed         {paths.feed_endpoint(own)}"
        yield f"query        {paths.query_endpoint(own)}"
        yield f"state        {own.state_dir}"
    if settings.recorder is not None:
        yield from _describe_recorder(settings)
    if settings.forward:
        identity = box_identity(settings)
        yield f"box          {identity.box} of {identity.site}"
        for output in settings.forward:
            yield f"forward      {output.name}: {', '.join(output.kinds)} to {output.receiver}"
    if settings.alerts.rules:
        yield f"admin        {paths.admin_endpoint(settings)}"
    if settings.web.listen is not None:
        who = "after a login" if settings.web.needs_login else "without login"
        yield f"page         {settings.web.origin}, {who}"
    if settings.metrics.listen is not None:
        shown = (
            f"{target['labels']['process']} {target['targets'][0]}"
            for target in scrape_targets(settings)
        )
        yield f"metrics      {', '.join(shown)}"


def _describe_recorder(settings: Settings) -> Iterator[str]:
    recorder = settings.recorder
    assert recorder is not None
    for policy in recorder.clips:
        classes = policy.classes if policy.classes == ALL else ", ".join(policy.classes)
        streams = "" if policy.streams == ALL else f" on {', '.join(policy.streams)}"
        score = f" from a score of {policy.min_score:g} on" if policy.min_score else ""
        what = {
            "event": "each event",
            "alert": "events that an alert names",
            "best": "the best event of each alert",
            "never": "no event",
        }
        rolls = (
            ""
            if policy.when == "never"
            else f", {policy.pre_s:g} s before, {policy.post_s:g} s after"
        )
        yield f"clips        {what[policy.when]} of {classes}{streams}{score}{rolls}"
    own = settings.retention.clips
    days = "" if own.max_days is None else f" and {own.max_days:g} days"
    if recorder.keeps_sound:
        kept = (
            f"{recorder.format}, at most {own.max_mib} MiB{days}, {own.min_free_mib} MiB stay free"
        )
        yield f"recorder     {kept}, in {storage.clips(settings).folder}"
    yield f"history      {storage.history_database(settings).path}"


def scrape_targets(settings: Settings) -> list[dict[str, Any]]:
    """Return the metrics endpoints of all processes in Prometheus' file_sd format.

    Raises:
        UsageError: they show none.
    """
    if settings.metrics.listen is None:
        raise UsageError("metrics.listen: expected host:port, got none: no process shows metrics")
    return [
        {"targets": [_target(host, port)], "labels": {"process": kind}}
        for kind, (host, port) in _metrics_addresses(settings)
    ]


def _target(host: str, port: int) -> str:
    name = socket.gethostname() if host in _ANY_HOST else host
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"


def _port_problems(loaded: LoadedSettings) -> Iterator[Problem]:
    """Yield which addresses two parts of this box would listen at."""
    settings = loaded.settings
    taken = [(f"the metrics of {kind}", where) for kind, where in _metrics_addresses(settings)]
    if settings.web.listen is not None:
        host, _, port = settings.web.listen.rpartition(":")
        page = (host.strip("[]"), int(port))
        for name, where in taken:
            if _overlap(page, where):
                text = f"expected an address of its own, got {settings.web.listen}, taken by {name}"
                yield loaded.problem(("web", "listen"), text)
        taken.append(("the page", page))
    for key in ("audio", "rings", "feed", "query", "admin"):
        endpoint = getattr(settings.transport, key) or ""
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        # another box may have the same port: only the very same address is surely twice
        for name, where in taken if endpoint.startswith("tcp://") else ():
            if (host.strip("[]"), port) == (where[0], str(where[1])):
                text = f"expected an endpoint of its own, got {endpoint}, taken by {name}"
                yield loaded.problem(("transport", key), text)


def _overlap(one: tuple[str, int], other: tuple[str, int]) -> bool:
    hosts = {one[0], other[0]}
    return one[1] == other[1] and (len(hosts) == 1 or not hosts.isdisjoint(_ANY_HOST))


def _metrics_addresses(settings: Settings) -> Iterator[tuple[str, tuple[str, int]]]:
    """Yield kind of process, and host and port of its metrics, of all that a box runs."""
    if settings.metrics.listen is None:
        return
    captures = capture_processes(settings).values()
    leaders = {f"capture {streams[0].name}" for streams in captures}
    for name in paths.processes(settings):
        kind = name.partition(" ")[0]
        is_absent = {
            "alerts": not settings.alerts.rules,
            "recorder": settings.recorder is None,
            "web": settings.web.listen is None,
            "forward": not settings.forward,
            "capture": name not in leaders,
        }
        if is_absent.get(kind, False):
            continue
        address = paths.metrics_address(settings, name)
        assert address is not None
        yield kind, address


def describe_model(loaded: LoadedSettings, checkpoint: Description) -> Iterator[str]:
    """Yield lines that say what the settings mean for a checkpoint.

    Raises:
        ConfigError: they ask for something that the checkpoint cannot do.
    """
    model = loaded.settings.model
    window_s = model.window_s or checkpoint.window_s
    frame_s = checkpoint.frame_s
    problems: list[Problem] = []
    if window_s > checkpoint.window_s:
        text = f"expected at most {checkpoint.window_s:g} s, as trained, got {window_s:g}"
        problems.append(loaded.problem(("model", "window_s"), text))
    try:
        check_against_model(
            loaded, checkpoint.labels, hop_s=model.hop_s, window_s=window_s, frame_s=frame_s
        )
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    facts = model_facts(checkpoint.labels, window_s, checkpoint.metadata, frame_s)
    parameters = resolve_parameters(loaded.settings.detection, facts, model.hop_s)
    yield f"checkpoint   {checkpoint.origin}: {len(checkpoint.labels)} classes"
    yield (
        f"window       {window_s:g} s every {model.hop_s:g} s "
        f"({seconds_to_samples(model.hop_s)} samples)"
    )
    if frame_s is not None:
        wait_s = samples_to_seconds(parameters.geometry.longest_wait)
        yield f"frames       {frame_s:g} s; each is decided within {wait_s:g} s"
    yield ""
    yield from _class_table(loaded, parameters, frame_s or model.hop_s)


def _describe_cascade(loaded: LoadedSettings, large: Description) -> Iterator[str]:
    """Yield a line about the small model, if there is one on this machine."""
    cascade = loaded.settings.model.cascade
    if cascade is None:
        return
    if _is_elsewhere(cascade.checkpoint):
        yield "cascade      its checkpoint is not on this machine: unchecked"
        return
    small = _description(loaded, cascade.checkpoint, "model", "cascade", "checkpoint")
    check_cascade(loaded, large.labels, small.labels, small.window_s)
    n_shared = sum(find_label(label, small.labels) is not None for label in large.labels)
    known = f"{n_shared} of {len(large.labels)} classes"
    yield f"cascade      {small.origin} hears all and knows {known}"


def _describe_verifiers(loaded: LoadedSettings, large: Description) -> Iterator[str]:
    """Yield a line about the verifiers, if there are any."""
    chosen = loaded.settings.model.verifiers
    if chosen is None:
        return
    from ast_stream.detect.verifiers import VerifiersFile, problem_with_labels

    try:
        description = VerifiersFile.read(Path(chosen.file)).description
    except StartupError as error:
        raise ConfigError([loaded.problem(("model", "verifiers", "file"), str(error))]) from error
    problem = problem_with_labels(description, large.labels)
    if problem is not None:
        raise ConfigError([loaded.problem(("model", "verifiers", "file"), problem)])
    labels = ", ".join(class_.label for class_ in description.classes)
    yield f"verifiers    of {labels} ({chosen.action}); fitted for {description.checkpoint}"


def _description(loaded: LoadedSettings, reference: str, *path: str) -> Description:
    """Return the checkpoint that the key at `path` of the configuration names."""
    from ast_stream.model.description import describe

    try:
        return describe(reference)
    except CheckpointError as error:
        raise ConfigError([loaded.problem(path, str(error))]) from error


def _add_load(
    settings: Settings, description: Description, lines: list[str], warnings: list[str]
) -> None:
    """Measure the model, say what the machine can hold, and warn where that is not enough."""
    if settings.model.cascade is not None:
        lines += ["", "load         not measured: with a cascade it depends on how much sounds"]
        return
    from ast_stream.cli.doctor_checks import median_ms
    from ast_stream.model.loading import load_model

    try:
        tagger = load_model(settings.model)
        batch = min(tagger.full_batch, len(settings.streams) or tagger.full_batch)
        ms_per_window = median_ms(tagger, batch) / batch
    except AstStreamError as error:  # the daemon may run on another machine, with a GPU
        lines += ["", f"load         not measured: {error}"]
        return
    window_s = settings.model.window_s or description.window_s
    lines += ["", f"load         {describe_load(settings, ms_per_window)}"]
    warnings += load_warnings(settings, ms_per_window, window_s)


def _is_elsewhere(reference: str) -> bool:
    from ast_stream.model.hub import is_hub_id

    return is_hub_id(reference) and not Path(reference).expanduser().exists()


def _source(source: Source) -> str:
    text = source.describe()
    if source.channel != "mix":
        text += f", channel {source.channel} (of 0, 1, …)"
    return text


def _class_table(
    loaded: LoadedSettings, parameters: DecisionParameters, step_s: float
) -> Iterator[str]:
    named = {slug(name) for name in loaded.settings.detection.classes}
    indices = range(len(parameters.labels))
    listed = [
        index
        for index in indices
        if len(indices) <= MAX_LISTED_CLASSES or slug(parameters.labels[index]) in named
    ]
    if listed:
        yield from aligned([_COLUMNS, *(_row(parameters, index, step_s) for index in listed)])
    if others := set(indices) - set(listed):
        n_off = sum(not parameters.is_enabled[index] for index in others)
        yield (
            f"{'and ' if listed else ''}{len(others)} classes without settings of their own"
            + (f", {n_off} of which make no events" if n_off else "")
        )


def _row(parameters: DecisionParameters, index: int, step_s: float) -> tuple[str, ...]:
    def duration(samples: int) -> str:
        seconds = samples_to_seconds(samples)
        return f"{seconds:g} s ({math.ceil(seconds / step_s - 1e-6)} {steps})" if seconds else "-"

    steps = "frames" if parameters.geometry.is_of_frames else "hops"

    label = parameters.labels[index]
    if not parameters.is_enabled[index]:
        return (label, "makes no events", *[""] * (len(_COLUMNS) - 2))
    spans = (
        parameters.hold, parameters.min_duration, parameters.refractory, parameters.max_duration
    )  # fmt: skip
    return (
        label,
        f"{parameters.onset_threshold[index]:.2f}",
        f"{parameters.offset_threshold[index]:.2f}",
        f"{parameters.confirm_hits[index]} of {parameters.confirm_hops[index]} {steps}",
        *(duration(int(span[index])) for span in spans),
    )
