"""`ast-stream scan`: the events of recordings, through the same detector as live sound."""

from __future__ import annotations

import csv
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import typer

from ast_stream.audio.containers import recordings_in
from ast_stream.audio.recording import RecordingError, RecordingReader
from ast_stream.cli.options import config_option, json_option, with_option_groups
from ast_stream.cli.output import json_line
from ast_stream.cli.scan_archive import ArchiveOptions, scan_archive, show_progress
from ast_stream.cli.terminal import ProgressView
from ast_stream.errors import AudioError, UsageError
from ast_stream.labels import printable
from ast_stream.messages.event import Scores
from ast_stream.model.loading import load_model
from ast_stream.runtime.temporary import nameless_file
from ast_stream.settings.detection import DetectionSettings
from ast_stream.settings.explain import with_options
from ast_stream.settings.load import load_settings
from ast_stream.settings.model import ModelSettings
from ast_stream.units import SAMPLE_RATE
from ast_stream.urls import mask

if TYPE_CHECKING:
    from ast_stream.scanner import OnRead, ScannedEvent, Scanner

STDIN = "-"
_NO_ARCHIVE = ArchiveOptions()
CSV_HEADER = "file,class,label,onset_s,offset_s,score,peak,uncertainty_s,mean"


def make_scanner(
    model: ModelSettings,
    detection: DetectionSettings,
    collector: ScoreCollector | None = None,
    channel: int | None = None,
) -> tuple[Scanner, list[str]]:
    """Return a scanner with the model and detection of a configuration, and its labels."""
    from ast_stream.detect.cascade import load_cascade  # imports torch
    from ast_stream.detect.verifiers import load_verifiers
    from ast_stream.scanner import Scanner

    tagger = load_model(model)
    scanner = Scanner(
        tagger,
        detection,
        hop_s=model.hop_s,
        min_context_s=model.min_context_s,
        on_scores=None if collector is None else collector.add,
        channel="mix" if channel is None else channel,
        cascade=load_cascade(model),
        opinion=load_verifiers(model, tagger.hash, tagger.labels),
    )
    return scanner, list(tagger.labels)


@with_option_groups
def scan(
    files: Annotated[
        list[str] | None, typer.Argument(help="Recordings, folders of recordings, or - for stdin.")
    ] = None,
    as_json: Annotated[
        bool, json_option("One JSON object for each event; of a shard, for its progress.")
    ] = False,
    labels: Annotated[
        Literal["audacity", "rttm", "csv"] | None, typer.Option(help="Write labels in this format.")
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(help="Also save times, scores and labels as .npz (one file).")
    ] = None,
    config: Annotated[Path | None, config_option("Use its model and detection settings.")] = None,
    model: Annotated[str | None, typer.Option(help="Checkpoint.")] = None,
    hop: Annotated[float | None, typer.Option(help="Seconds between windows.")] = None,
    window: Annotated[float | None, typer.Option(help="Length of a window in seconds.")] = None,
    channel: Annotated[
        int | None, typer.Option(min=0, help="Use this channel, counted from 0, not the mean.")
    ] = None,
    archive: ArchiveOptions = _NO_ARCHIVE,
) -> None:
    """Find the events in recordings, faster than real time.

    Example: ast-stream scan night.flac --labels audacity > night.txt

    An archive: ast-stream scan /data/archive --shard 0/8 --out /data/events
    """
    if archive.progress is not None:
        show_progress(archive.progress, as_json=as_json)
        return
    if archive.is_asked:
        if labels or scores is not None:
            raise UsageError(
                "scan: --shard and --out write Parquet: expected neither --labels nor --scores "
                "(--with-scores adds the scores)"
            )
        settings = _settings(config, model, hop, window)
        scan_archive(files or [], archive, *settings, channel=channel, as_json=as_json)
        return
    if not files:
        raise UsageError("scan: expected recordings, folders or -, got none")
    if as_json and labels:
        raise UsageError("scan: expected --json or --labels, got both")
    collector = None if scores is None else ScoreCollector(scores)
    scanner, names = make_scanner(*_settings(config, model, hop, window), collector, channel)
    form = "json" if as_json else labels or "text"
    if form == "csv":
        print(CSV_HEADER)
    with _recordings(files) as recordings:
        if scores is not None and len(recordings) != 1:
            raise UsageError(f"scan: --scores: expected one recording, got {len(recordings)}")
        if labels == "audacity" and len(recordings) != 1:
            raise UsageError(
                f"scan: --labels audacity: expected one recording, got {len(recordings)}; a label "
                "track names none: --labels csv does"
            )
        failed = _scan_all(scanner, recordings, form)
    if collector is not None and not (failed and collector.is_empty):
        collector.save(names)  # also of a part of a recording
    if failed:
        raise AudioError(
            f"scan: {failed} of {len(recordings)} recordings could not be read to their end"
        )


def _scan_all(scanner: Scanner, recordings: list[tuple[str, Path]], form: str) -> int:
    """Print the events of all recordings and return how many could not be read to their end."""
    failed = 0
    with ProgressView() as progress:
        for name, path in recordings:
            shown = printable(name)
            file = name if form == "json" else shown  # JSON can say every name, to open it by
            try:
                for event in scanner.scan(path, file, shown_as(shown, progress)):
                    with progress.paused():
                        print(line_of(event, form), flush=True)
                problem = f"warning: {scanner.warning}" if scanner.warning else None
            except RecordingError as error:
                failed += 1
                problem = error.text
            if problem is not None:
                with progress.paused():
                    # a URL in place of a file may hold a password
                    print(printable(mask(f"scan: {name}: {problem}")), file=sys.stderr)
    return failed


def _settings(
    config: Path | None, checkpoint: str | None, hop_s: float | None, window_s: float | None
) -> tuple[ModelSettings, DetectionSettings]:
    """Return the configuration's model and detection, with what the command line says instead."""
    settings = None if config is None else load_settings(config)
    model = ModelSettings() if settings is None else settings.model
    detection = DetectionSettings() if settings is None else settings.detection
    options = {
        "checkpoint": ("scan: --model", checkpoint),
        "hop_s": ("scan: --hop", hop_s),
        "window_s": ("scan: --window", window_s),
    }
    return with_options(model, options), detection


@contextmanager
def _recordings(names: list[str]) -> Iterator[list[tuple[str, Path]]]:
    """Yield the recordings as (name, path); what comes through a pipe becomes a temporary file.

    It has no name: whatever ends the process, nothing of it is left.

    Raises:
        UsageError: a folder without recordings, nothing on standard input, a full disk.
    """
    with ExitStack() as copies:
        found: list[tuple[str, Path]] = []
        for name in names:
            if not name:
                raise UsageError("scan: expected recordings, folders or -, got an empty name")
            path = Path(name)
            if name == STDIN:
                if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
                    raise UsageError("scan: -: expected a recording on standard input, got none")
                found.append((name, _copied(sys.stdin.buffer, copies, name)))
            elif path.is_fifo():  # as the shell's <(command) gives
                with path.open("rb") as pipe:
                    found.append((name, _copied(pipe, copies, name)))
            elif path.is_dir():
                inside = recordings_in(path)
                if not inside:
                    raise UsageError(f"scan: {name}: expected recordings in it, got none")
                found += [(str(recording), recording) for recording in inside]
            else:
                found.append((name, path))
        yield found


def _copied(source: BinaryIO, copies: ExitStack, name: str) -> Path:
    try:
        copy, path = copies.enter_context(nameless_file())
        shutil.copyfileobj(source, copy, 1 << 20)
        copy.flush()
    except OSError as error:
        where = f"cannot be kept in {tempfile.gettempdir()} (TMPDIR names another folder)"
        raise UsageError(f"scan: {name}: {where}: {error.strerror}") from error
    return path


def shown_as(name: str, progress: ProgressView) -> OnRead:
    """Return what shows how far a recording is read, in place of the one before."""
    for task in list(progress.task_ids):
        progress.remove_task(task)
    bar = progress.add_task(os.path.basename(name), total=None)

    def on_read(reader: RecordingReader) -> None:
        progress.update(bar, completed=reader.position_s, total=reader.duration_s)

    return on_read


class ScoreCollector:
    """Keeps what the decision stage saw of one recording, for a file that can be written.

    Raises:
        UsageError: it cannot; better known before hours are scanned than after.
    """

    def __init__(self, path: Path) -> None:
        if path.is_dir():
            raise UsageError(f"scan: --scores: expected a file, got the folder {path}")
        if not path.parent.is_dir():
            raise UsageError(f"scan: --scores: cannot write {path}: there is no such folder")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise UsageError(f"scan: --scores: cannot write {path}: Permission denied")
        self._path = path
        self._ends: list[int] = []
        self._rows: list[npt.NDArray[np.float32]] = []

    def add(self, scores: Scores) -> None:
        self._ends.append(scores.end_sample)
        self._rows.append(scores.scores)

    @property
    def is_empty(self) -> bool:
        return not self._rows

    def save(self, labels: list[str]) -> None:
        """Write times_s (end of each window), scores (hops, classes) and labels as .npz.

        Raises:
            UsageError: the file cannot be written.
        """
        scores = np.array(self._rows, np.float32).reshape(len(self._rows), len(labels))
        times_s = np.array(self._ends, np.float64) / SAMPLE_RATE
        try:
            with self._path.open("wb") as file:
                np.savez_compressed(file, times_s=times_s, scores=scores, labels=np.array(labels))
        except OSError as error:
            raise UsageError(
                f"scan: --scores: cannot write {self._path}: {error.strerror}"
            ) from error


def line_of(event: ScannedEvent, form: str) -> str:
    """Return an event as a line of the given format; "text" is for people."""
    match form:
        case "json":
            return json_line(event.as_json())
        case "audacity":
            return f"{event.onset_s:.6f}\t{event.offset_s:.6f}\t{event.label}"
        case "rttm":
            name = Path(event.file).stem.replace(" ", "_")
            return (
                f"SPEAKER {name} 1 {event.onset_s:.3f} {event.offset_s - event.onset_s:.3f} "
                f"<NA> <NA> {event.slug} {event.mean:.4f} <NA>"
            )
        case "csv":
            line = io.StringIO()
            row = event.as_json()
            csv.writer(line, lineterminator="").writerow(row[key] for key in CSV_HEADER.split(","))
            return line.getvalue()
    return (
        f"{event.onset_s:9.2f} {event.offset_s:9.2f}  {event.label:<40} "
        f"peak {event.peak:.2f}  mean {event.mean:.2f}  {event.file}"
    )
