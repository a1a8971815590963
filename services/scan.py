"""`ast-stream scan`: the events of recordings, through the same detector as live sound."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ast_stream.audio.media import Recording
from ast_stream.audio.resample import Resampler
from ast_stream.detect.detector import Detector
from ast_stream.errors import AudioError, CaptureError, UsageError
from ast_stream.messages import Event, Pcm16, Scores
from ast_stream.settings.load import load_settings
from ast_stream.settings.schema import DetectionSettings, FileSource, ModelSettings
from services.live import console
from services.loading import load_model
from services.scan_output import FORMATS, HEADERS, ScoreCollector, event_fields

STREAM = "scan"
BLOCK_S = 1.0
SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
READ_TIMEOUT_S = 10.0


class Scanner:
    """Finds the events of one recording after another.

    Args:
        model, detection: as in a configuration.
    """

    def __init__(self, model: ModelSettings, detection: DetectionSettings) -> None:
        tagger = load_model(model)
        self.labels: list[str] = list(tagger.labels)
        self.collector: ScoreCollector | None = None
        self._detector = Detector(
            tagger,
            detection,
            hop_s=model.hop_s,
            min_context_s=model.min_context_s,
            max_streams=1,
            on_scores=self._collect,
        )

    def scan(self, path: Path, progress: Progress) -> Iterator[Event]:
        """Yield the events of a recording as they end; memory does not grow with its length.

        Raises:
            AudioError: it cannot be read; events up to the damage have been yielded.
        """
        return (event for event in self.messages(path, progress) if event.type == "end")

    def messages(self, path: Path, progress: Progress) -> Iterator[Event]:
        """Yield begin, updates and end of every event of a recording; as `scan`."""
        detector = self._detector
        epoch = "0" * 32  # event ids of a scan are the same each time
        detector.open(STREAM, epoch)
        try:
            position = 0
            for pcm in _read(path, progress):
                detector.push(STREAM, position, pcm)
                position += len(pcm)
                yield from detector.run()
            yield from detector.flush(STREAM)
        finally:
            if STREAM in detector.streams:
                detector.close(STREAM, "shutdown")

    def _collect(self, scores: Scores) -> None:
        if self.collector is not None:
            self.collector.add(scores)


def scan(
    files: Annotated[
        list[str], typer.Argument(help="Recordings, folders of recordings, or - for stdin.")
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object for each event.")
    ] = False,
    labels: Annotated[
        Literal["audacity", "rttm", "csv"] | None, typer.Option(help="Write labels in this format.")
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(help="Also save times, scores and labels as .npz (one file).")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Take model and detection from here.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Checkpoint.")] = None,
    hop: Annotated[float | None, typer.Option(help="Seconds between windows.")] = None,
    window: Annotated[float | None, typer.Option(help="Length of a window in seconds.")] = None,
) -> None:
    """Find the events in recordings, faster than real time.

    Example: ast-stream scan night.flac --labels audacity > night.txt
    """
    if as_json and labels:
        raise UsageError("scan: expected --json or --labels, got both")
    scanner = Scanner(*_settings(config, model, hop, window))
    if scores is not None:
        scanner.collector = ScoreCollector()
    form = "json" if as_json else labels or "text"
    if form in HEADERS:
        print(HEADERS[form])
    with _recordings(files) as recordings:
        if scores is not None and len(recordings) != 1:
            raise UsageError(f"scan: --scores: expected one recording, got {len(recordings)}")
        failed = _scan_all(scanner, recordings, form)
    if failed:
        raise AudioError(f"scan: {failed} of {len(recordings)} recordings could not be read")
    if scores is not None and scanner.collector is not None:
        scanner.collector.save(scores, scanner.labels)


def _scan_all(scanner: Scanner, recordings: list[tuple[str, Path]], form: str) -> int:
    """Print the events of all recordings and return how many could not be read."""
    failed = 0
    with _progress() as progress:
        for name, path in recordings:
            try:
                for event in scanner.scan(path, progress):
                    print(FORMATS[form](event_fields(_printable(name), event)), flush=True)
            except (AudioError, CaptureError) as error:
                failed += 1
                text = _printable(f"scan: {error}")
                progress.console.print(text, style="red", soft_wrap=True, markup=False)
    return failed


def _settings(
    config: Path | None, checkpoint: str | None, hop_s: float | None, window_s: float | None
) -> tuple[ModelSettings, DetectionSettings]:
    """Return the configuration's model and detection, with what the command line says instead."""
    settings = None if config is None else load_settings(config)
    model = ModelSettings() if settings is None else settings.model
    detection = DetectionSettings() if settings is None else settings.detection
    chosen = {"checkpoint": checkpoint, "hop_s": hop_s, "window_s": window_s}
    given = {key: value for key, value in chosen.items() if value is not None}
    try:
        return ModelSettings.model_validate(model.model_dump() | given), detection
    except ValueError as error:
        raise UsageError(
            f"scan: --hop and --window: expected multiples of 0.01 s: {error}"
        ) from error


@contextmanager
def _recordings(names: list[str]) -> Iterator[list[tuple[str, Path]]]:
    """Yield the recordings as (name, path); standard input becomes a temporary file."""
    with tempfile.TemporaryDirectory(prefix="ast-stream-scan-") as folder:
        found: list[tuple[str, Path]] = []
        for name in names:
            path = Path(name)
            if name == "-":
                path = Path(folder) / "stdin"
                with path.open("wb") as copy:
                    shutil.copyfileobj(sys.stdin.buffer, copy)
                found.append((name, path))
            elif path.is_dir():
                inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
                if not inside:
                    raise UsageError(
                        f"scan: {name}: expected {', '.join(SUFFIXES)} files, got none"
                    )
                found += [(str(one), one) for one in inside]
            else:
                found.append((name, path))
        yield found


def _read(path: Path, progress: Progress) -> Iterator[Pcm16]:
    """Yield a recording as mono int16 at 16 kHz."""
    recording = Recording(FileSource(type="file", path=str(path), pace="fast", block_s=BLOCK_S))
    recording.open()
    task = progress.add_task(_printable(path.name), total=recording.duration_s)
    try:
        resampler = Resampler(recording.rate)
        is_last = False
        while not is_last:
            block = recording.read(READ_TIMEOUT_S)
            assert block is not None, "an unpaced recording is always ready"
            yield resampler.push(block.pcm)
            progress.advance(task, len(block.pcm) / block.rate)
            is_last = block.is_last
        yield resampler.flush()
    finally:
        progress.remove_task(task)
        recording.close()


def _printable(text: str) -> str:
    """Return `text` with what is no UTF-8 (in names of files) written out."""
    return text.encode(errors="backslashreplace").decode()


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console(),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
