"""The model timed side by side: ours in each precision, and transformers where it is installed.

One round runs each way once, in turn, so that what else the machine does meets all of them; the
figures are medians over the rounds, and ratios are medians of the ratios within a round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ast_stream.audio.containers import recordings_in
from ast_stream.audio.recording import read_mono
from ast_stream.benchmarks.report import Spread, TableColumn, seconds_in_turn, times_as_fast
from ast_stream.errors import UsageError
from ast_stream.model.ast import AudioSpectrogramTransformer
from ast_stream.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ast_stream.model.dims import AUDIOSET_NORMALIZATION, AstDims
from ast_stream.model.metadata import Metadata
from ast_stream.model.runners import (
    Precision,
    cpu_has_bf16,
    cpu_has_int8,
    dtype_of,
    gpu_has_fp8,
    resolve_device,
)
from ast_stream.model.tagger import Tagger
from ast_stream.model.torchaudio_guard import import_torchaudio
from ast_stream.runtime.temporary import temporary_folder
from ast_stream.units import FULL_SCALE, SAMPLE_RATE

AST_BASE = "ast-base"
BASE_DIMS = AstDims(n_classes=527)
MAX_RECORDINGS = 200
_PEAK = 0.1  # of the noise that is scored

COLUMNS = (
    TableColumn("variant", "{name}", is_figure=False),
    TableColumn("batch", "{batch}"),
    TableColumn("ms per window", "{ms:.2f}"),
    TableColumn("min", "{low_ms:.2f}"),
    TableColumn("max", "{high_ms:.2f}"),
    TableColumn("speed-up", "{times_as_fast:.2f}"),
    TableColumn("difference", "{max_error:.1e}"),
    TableColumn("top 5", "{top_5:.1%}"),
)

Waveforms = npt.NDArray[np.float32]
Run = Callable[[Waveforms], npt.NDArray[np.float32]]


@dataclass(eq=False)
class Way:
    """One way to get logits from waveforms.

    Attributes:
        name: e.g. "transformers sdpa fp32".
        run: waveforms (B, n_samples) in, logits (B, n_classes) out, features included.
        max_error: largest difference of a score from the first way's.
        top_5: share of the first way's five highest classes that are among this one's.
    """

    name: str
    run: Run
    max_error: float = 0.0
    top_5: float = 1.0


@dataclass(frozen=True)
class WayTiming:
    """What one way took for one batch size.

    Attributes:
        ms: a window, median over the rounds.
        low_ms, high_ms: of the rounds, the fastest and the slowest.
        times_as_fast: as the first way, median over the rounds.
        max_error, top_5: how far the scores are from the first way's, see `Way`.
    """

    name: str
    batch: int
    ms: float
    low_ms: float
    high_ms: float
    times_as_fast: float
    max_error: float
    top_5: float


def time_model(
    reference: str,
    batches: Sequence[int],
    n_rounds: int,
    device: str,
    on_round: Callable[[], None],
    recordings: Path | None = None,
    n_recordings: int = MAX_RECORDINGS,
    *,
    with_eager: bool = False,
) -> list[WayTiming]:
    """Return the timings of all ways on this machine, those of transformers first.

    Args:
        reference: a checkpoint, or `AST_BASE`: random weights in the shape of the published
            models (10 s, stride 10, 527 classes), which take the same time.
        on_round: called after each round.
        recordings: a folder; the beginnings of recordings in it are scored. None: noise is, which
            takes as long, but says little of how far scores differ.
        n_recordings: at most, from all over the folder.
        with_eager: time transformers' eager attention in fp32 as well.

    Raises:
        CheckpointError, StartupError: as `load_tagger`.
        UsageError: there is no recording in the folder.
        RecordingError: one cannot be read.
    """
    with _folder(reference) as (checkpoint, folder):
        where = resolve_device(device)
        ways = [*_transformers(folder, where, with_eager), *_ours(checkpoint, where)]
        shape = (max(batches), round(checkpoint.window_s * SAMPLE_RATE))
        if recordings is None:
            generator = np.random.default_rng(0)
            waveforms = generator.standard_normal(shape, np.float32) * np.float32(_PEAK)
        else:
            waveforms = beginnings(recordings, shape[1], n_recordings)
        _compare(ways, waveforms)
        repeated = np.resize(waveforms, shape)
        return [
            timing
            for batch in batches
            for timing in _timings(ways, repeated[:batch], n_rounds, on_round)
        ]


def beginnings(folder: Path, n_samples: int, n_recordings: int = MAX_RECORDINGS) -> Waveforms:
    """Return the beginnings of recordings from all over a folder, shape (n, n_samples)."""
    paths = recordings_in(folder)
    if not paths:
        raise UsageError(f"--recordings: expected a folder with recordings, got {folder}")
    paths = paths[:: -(-len(paths) // n_recordings)]
    waveforms = np.zeros((len(paths), n_samples), np.float32)
    for waveform, path in zip(waveforms, paths, strict=True):
        pcm = next(read_mono(path, block_s=n_samples / SAMPLE_RATE), np.zeros(0, np.int16))
        waveform[: len(pcm)] = pcm[:n_samples] / np.float32(FULL_SCALE)
    return waveforms


def _compare(ways: Sequence[Way], waveforms: Waveforms) -> None:
    """Note how far the scores of each way are from those of the first; also warms each up."""
    expected: npt.NDArray[np.float32] | None = None
    for way in ways:
        logits = np.concatenate([way.run(waveform[None]) for waveform in waveforms])
        scores = 1 / (1 + np.exp(-logits))
        expected = scores if expected is None else expected
        way.max_error = float(np.abs(scores - expected).max())
        theirs, own = (np.argsort(rows)[:, -5:] for rows in (expected, scores))
        way.top_5 = float(
            np.mean([np.isin(*pair).mean() for pair in zip(theirs, own, strict=True)])
        )


def _timings(
    ways: Sequence[Way], waveforms: Waveforms, n_rounds: int, on_round: Callable[[], None]
) -> Iterator[WayTiming]:
    for way in ways:
        way.run(waveforms)  # what is first done for a batch of this size is not timed
    runs = [partial(way.run, waveforms) for way in ways]
    seconds = seconds_in_turn(runs, n_rounds, on_round)
    for way, of_way in zip(ways, seconds, strict=True):
        ms = Spread.of([1000 * wall_s / len(waveforms) for wall_s in of_way])
        yield WayTiming(
            name=way.name,
            batch=len(waveforms),
            ms=ms.median,
            low_ms=ms.low,
            high_ms=ms.high,
            times_as_fast=times_as_fast(of_way, seconds[0]),
            max_error=way.max_error,
            top_5=way.top_5,
        )


def _ours(checkpoint: Checkpoint, device: torch.device) -> Iterator[Way]:
    precisions = list(_precisions(device))
    if device.type == "cpu" and cpu_has_int8():
        precisions.append("int8")
    if device.type == "cuda" and gpu_has_fp8(device):
        precisions.append("fp8")
    for precision in precisions:
        tagger = Tagger(checkpoint, str(device), precision)
        yield Way(f"ast-stream {tagger.attention} {precision}", tagger.logits)


def _precisions(device: torch.device) -> Iterator[Precision]:
    yield "fp32"
    if device.type == "cuda":
        yield "fp16"
    elif cpu_has_bf16():
        yield "bf16"


def _transformers(folder: Path, device: torch.device, with_eager: bool) -> Iterator[Way]:
    """Yield transformers' model and its features, its default first; none without the package."""
    try:
        import_torchaudio()
        from transformers import ASTFeatureExtractor, ASTForAudioClassification
        from transformers.utils import logging
    except ImportError:
        return
    hub_logging: Any = logging
    hub_logging.disable_progress_bar()
    extractor: Any = ASTFeatureExtractor.from_pretrained(folder)
    kinds = [("sdpa", precision) for precision in _precisions(device)]
    if with_eager:
        kinds.append(("eager", "fp32"))
    for attention, precision in kinds:
        dtype = dtype_of(precision)
        model: Any = ASTForAudioClassification.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention
        )
        model = model.to(device).eval()

        def run(
            waveforms: Waveforms, model: Any = model, dtype: torch.dtype = dtype
        ) -> npt.NDArray[np.float32]:
            inputs = extractor(list(waveforms), sampling_rate=SAMPLE_RATE, return_tensors="pt")
            with torch.inference_mode():
                values = inputs["input_values"].to(device, dtype)
                logits: npt.NDArray[np.float32] = model(values).logits.float().cpu().numpy()
            return logits

        yield Way(f"transformers {attention} {precision}", run)


@contextmanager
def _folder(reference: str) -> Iterator[tuple[Checkpoint, Path]]:
    """Yield a checkpoint, and a folder of it that transformers can load."""
    checkpoint = random_base() if reference == AST_BASE else load_checkpoint(reference)
    # what transformers has no layer for is left out for both
    plain = replace(checkpoint, metadata=Metadata(), state_dict=_without_frames(checkpoint))
    with temporary_folder("bench") as place:
        save_checkpoint(place, plain)
        yield plain, place


def _without_frames(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    shapes = AudioSpectrogramTransformer(checkpoint.dims).state_dict()
    return {name: checkpoint.state_dict[name] for name in shapes}


def random_base(dims: AstDims = BASE_DIMS) -> Checkpoint:
    """Return a checkpoint in the shape of the published models, with random weights."""
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(0)
    state_dict = AudioSpectrogramTransformer(dims).state_dict()
    torch.random.set_rng_state(generator_state)
    labels = [f"class_{index:03d}" for index in range(dims.n_classes)]
    return Checkpoint(
        dims, state_dict, labels, AUDIOSET_NORMALIZATION, Metadata(), "AST-base, random weights"
    )
