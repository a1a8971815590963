"""Stored features and logits still come out; see golden/make_golden.py for how they were made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ast_stream import load_tagger
from ast_stream.model.fbank import AUDIOSET_NORMALIZATION, Fbank

GOLDEN = Path(__file__).parent / "golden"
PARITY = 1e-4  # other processors round differently; see test_fbank


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "expected.npz") as stored:
        return dict(stored)


def test_golden_features_come_out(expected: dict[str, np.ndarray]) -> None:
    fbank = Fbank().frames(torch.from_numpy(expected["clip"])).numpy()[::8]
    difference = np.abs(fbank - expected["fbank"]) / (2 * AUDIOSET_NORMALIZATION.std)
    assert difference.max() < PARITY


def test_golden_logits_come_out(expected: dict[str, np.ndarray]) -> None:
    tagger = load_tagger(str(GOLDEN / "tiny"), device="cpu", precision="fp32", attention="math")
    logits = tagger.logits(expected["clip"])[0]
    np.testing.assert_allclose(logits, expected["logits"], atol=PARITY, rtol=0)
