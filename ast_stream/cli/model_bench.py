"""The model timed side by side: ours in each precision, and transformers where it is installed.

One round runs each way once, in turn, so that what else the machine does meets all of them; the
figures are medians over the rounds, and ratios are medians of the ratios within a round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ast_stream.model.ast import AudioSpectrogramTransformer
from ast_stream.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ast_stream.model.dims import AUDIOSET_NORMALIZATION, AstDims
from ast_stream.model.metadata import Metadata
from ast_stream.model.runners import DTYPES, Precision, cpu_has_bf16, resolve_device
from ast_stream.model.tagger import Tagger
from ast_stream.model.torchaudio_guard import import_torchaudio
from ast_stream.units import SAMPLE_RATE

AST_BASE = "ast-base"
_PEAK = 0.1  # of the noise that is scored

Waveforms = npt.NDArray[np.float32]
Run = Callable[[Waveforms], npt.NDArray[np.float32]]


@dataclass(eq=False)
class Way:
    """One way to get logits from waveforms.

    Attributes:
        name: e.g. "transformers sdpa fp32".
        run: waveforms (B, n_samples) in, logits (B, n_classes) out, features included.
        max_error: largest difference of a score from the first way's.
        wall_s: of each round, for the whole batch.
    """

    name: str
    run: Run
    max_error: float = 0.0
    wall_s: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Timing:
    """What one way took for one batch size.

    Attributes:
        ms: a window, median over the rounds.
        low_ms, high_ms: of the rounds, the fastest and the slowest.
        times_as_fast: as the first way, median over the rounds.
        max_error: largest difference of a score from the first way's.
    """

    name: str
    batch: int
    ms: float
    low_ms: float
    high_ms: float
    times_as_fast: float
    max_error: float


def time_model(
    reference: str,
    batches: Sequence[int],
    n_rounds: int,
    device: str,
    on_round: Callable[[], None],
) -> list[Timing]:
    """Return the timings of all ways on this machine, those of transformers first.

    Args:
        reference: a checkpoint, or `AST_BASE`: random weights in the shape of the published
            models (10 s, stride 10, 527 classes), which take the same time.
        on_round: called after each round.

    Raises:
        CheckpointError, StartupError: as `load_tagger`.
    """
    with _folder(reference) as (checkpoint, folder):
        where = resolve_device(device)
        ways = [*_transformers(folder, where), *_ours(checkpoint, where)]
        noise = np.random.default_rng(0).standard_normal(
            (max(batches), round(checkpoint.window_s * SAMPLE_RATE)), np.float32
        )
        return [
            timing
            for batch in batches
            for timing in _timings(ways, noise[:batch] * np.float32(_PEAK), n_rounds, on_round)
        ]


def _timings(
    ways: Sequence[Way], waveforms: Waveforms, n_rounds: int, on_round: Callable[[], None]
) -> Iterator[Timing]:
    expected = None
    for way in ways:  # also warms each up
        way.wall_s = []
        scores = 1 / (1 + np.exp(-way.run(waveforms)))
        expected = scores if expected is None else expected
        way.max_error = float(np.abs(scores - expected).max())
    for _round in range(n_rounds):
        for way in ways:
            began_s = time.perf_counter()
            way.run(waveforms)
            way.wall_s.append(time.perf_counter() - began_s)
        on_round()
    for way in ways:
        ms = [1000 * wall_s / len(waveforms) for wall_s in way.wall_s]
        ratios = [one / own for one, own in zip(ways[0].wall_s, way.wall_s, strict=True)]
        yield Timing(
            name=way.name,
            batch=len(waveforms),
            ms=statistics.median(ms),
            low_ms=min(ms),
            high_ms=max(ms),
            times_as_fast=statistics.median(ratios),
            max_error=way.max_error,
        )


def _ours(checkpoint: Checkpoint, device: torch.device) -> Iterator[Way]:
    for precision in _precisions(device):
        tagger = Tagger(checkpoint, str(device), precision)
        yield Way(f"ast-stream {tagger.attention} {precision}", tagger.logits)


def _precisions(device: torch.device) -> Iterator[Precision]:
    yield "fp32"
    if device.type == "cuda":
        yield "fp16"
    elif cpu_has_bf16():
        yield "bf16"


def _transformers(folder: Path, device: torch.device) -> Iterator[Way]:
    """Yield transformers' model and its features in each precision; none without the package."""
    try:
        import_torchaudio()
        from transformers import ASTFeatureExtractor, ASTForAudioClassification
        from transformers.utils import logging
    except ImportError:
        return
    hub_logging: Any = logging
    hub_logging.disable_progress_bar()
    extractor: Any = ASTFeatureExtractor.from_pretrained(folder)
    for precision in _precisions(device):
        dtype = DTYPES[precision]
        model: Any = ASTForAudioClassification.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa"
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

        yield Way(f"transformers sdpa {precision}", run)


@contextmanager
def _folder(reference: str) -> Iterator[tuple[Checkpoint, Path]]:
    """Yield a checkpoint, and a folder of it that transformers can load."""
    checkpoint = _random_base() if reference == AST_BASE else load_checkpoint(reference)
    # what transformers has no layer for is left out for both
    plain = replace(checkpoint, metadata=Metadata(), state_dict=_without_frames(checkpoint))
    with TemporaryDirectory(prefix="ast-stream-bench-") as name:
        save_checkpoint(Path(name), plain)
        yield plain, Path(name)


def _without_frames(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    shapes = AudioSpectrogramTransformer(checkpoint.dims).state_dict()
    return {name: checkpoint.state_dict[name] for name in shapes}


def _random_base() -> Checkpoint:
    dims = AstDims(n_classes=527)
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(0)
    state_dict = AudioSpectrogramTransformer(dims).state_dict()
    torch.random.set_rng_state(generator_state)
    labels = [f"class_{index:03d}" for index in range(dims.n_classes)]
    return Checkpoint(
        dims, state_dict, labels, AUDIOSET_NORMALIZATION, Metadata(), "AST-base, random weights"
    )
