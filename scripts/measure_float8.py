"""Measure on a CPU how far fp8 moves the scores of a checkpoint: the numbers of a GPU, emulated.

    .venv/bin/python scripts/measure_float8.py --recordings FOLDER [--model bundled] [--at-most 100]

The operator that multiplies in fp8 on GPUs exists on CPUs, too, where it is slow. It rounds weights
and activations alike; sums are exact in fp32 here, while a GPU keeps some 14 bits of them. So this
says what fp8 costs in accuracy, and nothing of its speed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ast_stream.benchmarks.model import beginnings
from ast_stream.model.ast import AudioSpectrogramTransformer
from ast_stream.model.checkpoint import load_checkpoint
from ast_stream.model.float8 import use_float8
from ast_stream.model.tagger import Tagger
from ast_stream.units import SAMPLE_RATE

AT_ONCE = 10

Scores = npt.NDArray[np.float32]


def ways(
    build: Callable[[], AudioSpectrogramTransformer],
) -> Iterator[tuple[str, AudioSpectrogramTransformer]]:
    """Yield the model in the ways that are compared, the reference first."""
    yield "fp32", build()
    yield "fp16", build().half()
    for name, n_plain in (("fp8, all blocks but the first", 1), ("fp8, all blocks", 0)):
        model = build().half()
        use_float8(model, n_plain)
        yield name, model


@torch.inference_mode()
def scored(model: AudioSpectrogramTransformer, tagger: Tagger, windows: Tensor) -> Scores:
    """Return the scores of windows, shape (n, n_classes)."""
    dtype = next(model.parameters()).dtype
    logits = torch.cat([model(part.to(dtype)).float() for part in windows.split(AT_ONCE)])
    scores: Scores = tagger.calibrated(logits).sigmoid().numpy()
    return scores


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--recordings", type=Path, required=True, help="their beginnings are scored"
    )
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--at-most", type=int, default=100, help="recordings, from all over it")
    options = parser.parse_args()
    checkpoint = load_checkpoint(options.model)
    tagger = Tagger(checkpoint, "cpu", "fp32")
    n_samples = round(checkpoint.window_s * SAMPLE_RATE)
    waveforms = beginnings(options.recordings, n_samples, options.at_most)
    windows = tagger.windows(torch.from_numpy(waveforms))
    print(f"{len(waveforms)} recordings, {options.model}; emulated on a CPU")
    print("| way | largest difference | 99.9 % | mean | top 5 kept |\n|---|---:|---:|---:|---:|")
    expected: Scores | None = None
    for name, model in ways(checkpoint.build_model):
        found = scored(model, tagger, windows)
        expected = found if expected is None else expected
        apart = np.abs(found - expected)
        pairs = zip(*(np.argsort(each)[:, -5:] for each in (expected, found)), strict=True)
        top_5 = np.mean([np.isin(theirs, ours).mean() for theirs, ours in pairs])
        print(
            f"| {name} | {apart.max():.4f} | {np.quantile(apart, 0.999):.4f} | {apart.mean():.5f} "
            f"| {top_5:.1%} |"
        )


if __name__ == "__main__":
    main()
