"""`ast-stream review`: judge events, and improve the detector by the verdicts."""

from __future__ import annotations

import getpass
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ast_stream.cli.options import config_option, json_option, require_packages
from ast_stream.cli.output import aligned, json_line, say
from ast_stream.errors import UsageError
from ast_stream.history.database import History
from ast_stream.history.records import VERDICTS, EventQuery, Verdict, VerdictRecord
from ast_stream.labels import find_label, slug
from ast_stream.runtime.files import make_folder
from ast_stream.settings import storage
from ast_stream.settings.load import load_settings
from ast_stream.settings.schema import Settings
from ast_stream.units import format_time
from ast_stream.verdicts.export import TABLE
from ast_stream.verdicts.export import export as export_clips
from ast_stream.verdicts.reviewed_events import history_path, reviewed_events

if TYPE_CHECKING:
    from ast_stream.detect.verifiers import VerifiersFile
    from ast_stream.model.tagger import Tagger

Config = Annotated[Path, config_option()]
Classes = Annotated[
    list[str] | None, typer.Option("--class", help="Only this class; may be repeated.")
]

app = typer.Typer(no_args_is_help=True, epilog="Example: ast-stream review fit -c config.yaml")


@app.command("list")
def list_events(
    config: Config,
    classes: Classes = None,
    verdict: Annotated[Verdict | None, typer.Option(help="Only with this verdict.")] = None,
    open_only: Annotated[
        bool, typer.Option("--open", help="Only events with a clip that nobody has judged.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many events.")] = 50,
    as_json: Annotated[bool, json_option("One JSON object for each event.")] = False,
) -> None:
    """List events of the history, the newest first, with their verdicts.

    Example: ast-stream review list -c config.yaml --class bark --open
    """
    settings = load_settings(config)
    query = EventQuery(
        classes=tuple(slug(label) for label in classes or ()),
        verdicts=() if verdict is None else (verdict,),
        has_clip=True if open_only else None,
        has_verdict=False if open_only else None,
        limit=limit,
    )
    folder = storage.clips(settings).folder
    rows = []
    with History.open_read_only(history_path(settings)) as history:
        for event in history.events(query):
            said = history.verdicts(event.id)[-1:]
            paths = [str(folder / clip.path) for clip in history.clips(event.id)]
            label = said[0].label if said else None
            if as_json:
                say(
                    json_line(
                        {
                            "id": event.id,
                            "time": format_time(event.onset_ns),
                            "stream": event.stream,
                            "class": event.class_,
                            "label": event.label,
                            "peak": event.peak,
                            "verdict": event.verdict,
                            "verdict_label": label,
                            "clips": paths,
                        }
                    )
                )
            verdict_text = f"{event.verdict or '-'}{f' ({label})' if label else ''}"
            rows.append(
                [event.id, format_time(event.onset_ns), event.stream, event.label,
                 f"{event.peak:.2f}", verdict_text, paths[0] if paths else "no clip"]
            )  # fmt: skip
    if not as_json:
        for line in aligned(rows) if rows else ["no such event"]:
            say(line)


@app.command("set")
def set_verdict(
    event_id: Annotated[str, typer.Argument(help="As `review list` shows it.")],
    verdict: Annotated[str, typer.Argument(help="right, wrong, other or unsure.")],
    config: Config,
    label: Annotated[
        str | None, typer.Option(help="What it really was, with `other`; any label.")
    ] = None,
    by: Annotated[str | None, typer.Option(help="Who judged. (default: this user)")] = None,
    note: Annotated[str, typer.Option(help="Anything worth remembering.")] = "",
) -> None:
    """Say of an event whether it was right; the newest verdict counts.

    Example: ast-stream review set 3f8a wrong -c config.yaml
    """
    chosen = next((known for known in VERDICTS if known == verdict), None)
    if chosen is None:
        raise UsageError(f"verdict: expected {', '.join(VERDICTS)}, got {verdict!r}")
    path = history_path(load_settings(config))
    record = VerdictRecord(event_id, chosen, label, by or getpass.getuser(), time.time_ns(), note)
    with History.open_beside(path) as history:
        history.add_verdict(record)


@app.command("export")
def export(
    out: Annotated[Path, typer.Argument(help="Folder for the table and the sounds.")],
    config: Config,
) -> None:
    """Write reviewed clips as a training set, for `train --verdicts` and `calibrate --verdicts`.

    OUT/clips.csv has a row for each: with the class, or another label, or - for a sound that must
    not be named. Its column fold is the day, its column group what must not be split.

    Example: ast-stream review export reviewed/ -c config.yaml
    """
    settings = load_settings(config)
    with History.open_read_only(history_path(settings)) as history:
        reviewed = reviewed_events(history)
        done = export_clips(reviewed, history, storage.clips(settings).folder, out)
    n_clips = done.n_right + done.n_other + done.n_wrong
    say(
        f"{out / TABLE}: {n_clips} clips: {done.n_right} right, {done.n_other} of another class, "
        f"{done.n_wrong} wrong"
    )
    if done.without_clip:
        say(f"left out: {done.without_clip} reviewed events without a clip")
    if done.ambiguous:
        say(f"left out: {done.ambiguous} wrong ones beside an event that nobody has judged")
    for text in done.unreadable:
        say(f"left out: {text}")
    if not n_clips:
        raise UsageError("review export: expected reviewed events with a clip, got none")


@app.command("fit")
def fit(
    config: Config,
    classes: Classes = None,
    out: Annotated[
        Path | None,
        typer.Option(help="File to write. (default: a new one in the state folder)"),
    ] = None,
    max_lost: Annotated[
        float,
        typer.Option(min=0.001, max=0.5, help="Ratio of right events that may be withheld."),
    ] = 0.03,
    as_json: Annotated[bool, json_option("The comparison as one JSON object.")] = False,
) -> None:
    """Fit verifiers to verdicts, and show what they would have done on days not fitted to.

    A class needs 20 reviewed events with a clip, 8 of them right and 8 wrong. Nothing is put in
    force: a file is written, and the lines to put into the configuration are printed.

    Example: ast-stream review fit -c config.yaml
    """
    require_packages("review fit", "scipy")
    from ast_stream.model.loading import load_model
    from ast_stream.verdicts.rescoring import ClipRescoring
    from ast_stream.verdicts.verifying import file_of, fit_all, output_path, rescore_all, table_of

    settings = load_settings(config)
    with History.open_read_only(history_path(settings)) as history:
        reviewed = reviewed_events(history)
    tagger = load_model(settings.model)
    in_force = _in_force(settings, tagger)
    labels = _labels(classes, tagger)
    rescoring = ClipRescoring(
        tagger, settings.model, settings.detection, storage.clips(settings).folder
    )
    wanted = [event for event in reviewed if not labels or event.event.label in labels]
    rescored = rescore_all(wanted, rescoring, lambda: None)
    results = fit_all(rescored, labels, max_lost, in_force)
    now = datetime.now(UTC)
    file = file_of(
        results,
        tagger,
        {
            "fitted": format_time(time.time_ns()),
            "max_lost": max_lost,
            "history": str(history_path(settings)),
            "events": {
                label: [example.reviewed.event.id for example in its]
                for label, its in rescored.by_label.items()
            },
        },
    )
    if out is None:
        folder = storage.verifiers(settings).folder
        make_folder(folder, 0o750)
        out = output_path(folder, now.strftime("%Y%m%dT%H%M%SZ"))
    file.write(out)
    rows = table_of(results)
    if as_json:
        say(json_line({"file": str(out), "table": rows, "remarks": rescored.remarks()}))
        return
    for line in aligned(rows):
        say(line)
    for text in [
        *rescored.remarks(),
        *(result.problem for result in results if result.problem is not None),
    ]:
        say(f"note: {text}")
    say("")
    say("Each day was judged by a verifier fitted to the others; 'in force' is what the")
    say("configuration names now, which may have been fitted to these very events.")
    say(f"{out}: written. To put it in force:")
    say("")
    say("model:")
    say(f"  verifiers: {{file: {out.resolve()}, action: drop}}   # or tag: only a score")


def _in_force(settings: Settings, tagger: Tagger) -> VerifiersFile | None:
    from ast_stream.detect.verifiers import load_verifiers

    verifiers = load_verifiers(settings.model, tagger.hash, tagger.labels)
    return None if verifiers is None else verifiers.file


def _labels(classes: list[str] | None, tagger: Tagger) -> list[str]:
    """Return the labels of the classes asked for.

    Raises:
        UsageError: the model does not have one of them.
    """
    labels = []
    for name in classes or ():
        label = find_label(name, tagger.labels)
        if label is None:
            raise UsageError(f"--class: expected a class of the model, got {name!r}")
        labels.append(label)
    return labels
