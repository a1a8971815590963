"""Stored features and logits still come out; see golden/make_golden.py for how they were made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ast_stream import load_tagger
from ast_stream.model.dims import AUDIOSET_NORMALIZATION
from ast_stream.model.fbank import Fbank

GOLDEN = Path(__file__).parents[2] / "golden"
PARITY = 1e-4  # other processors round differently; see test_fbank


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "expected.npz") as stored:
        return dict(stored)


def test_golden_features_come_out(expected: dict[str, np.ndarray]) -> None:
    golden = expected["fbank"]
    fbank = Fbank().frames(torch.from_numpy(expected["clip"])).numpy()[::8]
    # float32 Fourier transforms are exact to about 2^-24 of a frame's largest amplitude: in bins
    # 80 dB below it, torchaudio itself gives other values on another processor
    below_peak = golden.max(axis=1, keepdims=True) - golden  # nats of energy
    rounding = 2 * 2.0**-24 * np.exp(below_peak / 2)
    allowed = PARITY + rounding / (2 * AUDIOSET_NORMALIZATION.std)
    assert (np.abs(fbank - golden) / (2 * AUDIOSET_NORMALIZATION.std) < allowed).all()
    assert np.median(allowed) < 1.1 * PARITY


def test_golden_logits_come_out(expected: dict[str, np.ndarray]) -> None:
    tagger = load_tagger(str(GOLDEN / "tiny"), device="cpu", precision="fp32", attention="math")
    logits = tagger.logits(expected["clip"])[0]
    np.testing.assert_allclose(logits, expected["logits"], atol=PARITY, rtol=0)
