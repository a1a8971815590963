"""Write the golden files: features by torchaudio, logits by transformers, of a tiny model.

Run from the repository's root: `PYTHONPATH=.:tests/support python tests/golden/make_golden.py`.
Made with torch 2.13.0, torchaudio 2.11.0, transformers 5.23.0.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_model import TINY_DIMS, tiny_checkpoint

from ast_stream.model.checkpoint import save_checkpoint
from ast_stream.model.metadata import Metadata
from ast_stream.model.selfcheck import golden_clip
from ast_stream.model.torchaudio_guard import import_kaldi
from ast_stream.units import SAMPLE_RATE

HERE = Path(__file__).parent
GOLDEN_DIMS = replace(TINY_DIMS, hidden_size=16, n_heads=2, intermediate_size=32)
SEED = 5


def main() -> None:
    """Write `tiny/`, a checkpoint, and `expected.npz`, what it and its features must give."""
    kaldi = import_kaldi()
    from transformers import ASTFeatureExtractor, ASTForAudioClassification

    checkpoint = replace(tiny_checkpoint(SEED, GOLDEN_DIMS), metadata=Metadata())
    save_checkpoint(HERE / "tiny", checkpoint)
    clip = golden_clip(SEED, SAMPLE_RATE)
    fbank = kaldi.fbank(
        torch.from_numpy(clip)[None],
        sample_frequency=SAMPLE_RATE,
        htk_compat=True,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=128,
        dither=0.0,
    )
    model: Any = ASTForAudioClassification.from_pretrained(HERE / "tiny")
    extractor: Any = ASTFeatureExtractor.from_pretrained(HERE / "tiny")
    inputs = extractor(clip, sampling_rate=SAMPLE_RATE, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**inputs).logits[0]
    np.savez_compressed(
        HERE / "expected.npz", clip=clip, fbank=fbank[::8].numpy(), logits=logits.numpy()
    )


if __name__ == "__main__":
    main()
