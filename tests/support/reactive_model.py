"""A tiny random AST whose scores really go up and down with a recording made for it.

Random weights alone hardly react to sound, so the classifier is scaled until the scores of each
class cross one half several times during the recording.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tiny_model import tiny_checkpoint

from ast_stream.detect import Detector
from ast_stream.messages.audio import Pcm16
from ast_stream.messages.event import Scores
from ast_stream.model.checkpoint import Checkpoint, save_checkpoint
from ast_stream.model.metadata import FrameDecisions
from ast_stream.model.tagger import Tagger
from ast_stream.units import SAMPLE_RATE

LOGIT_SPREAD = 4.0  # standard deviation of the logits over the recording, after scaling
_HOP = 4_000


def tones_and_noise(duration_s: float, seed: int = 11) -> Pcm16:
    """Return quiet noise with a loud tone of changing pitch every two to four seconds."""
    rng = np.random.default_rng(seed)
    audio = rng.normal(0, 60, round(duration_s * SAMPLE_RATE))
    start = SAMPLE_RATE
    while start < len(audio):
        time = np.arange(int(rng.integers(8_000, 24_000))) / SAMPLE_RATE
        tone = 9_000 * np.sin(2 * np.pi * rng.uniform(300, 5_000) * time)
        tone = tone[: len(audio) - start]
        audio[start : start + len(tone)] += tone
        start += len(tone) + int(rng.integers(2 * SAMPLE_RATE, 4 * SAMPLE_RATE))
    return audio.astype(np.int16)


def save_reactive(directory: Path, seed: int = 0) -> Path:
    """Write the checkpoint to `directory` and return that."""
    checkpoint = tiny_checkpoint(seed, background=["Background"])
    tagger = Tagger(checkpoint, device="cpu", precision="fp32", attention="math")
    pcm = tones_and_noise(20.0).astype(np.float32) / 32_768
    starts = range(0, len(pcm) - tagger.window_samples, _HOP)
    logits = tagger.logits(
        np.stack([pcm[start : start + tagger.window_samples] for start in starts])
    )
    gain = torch.from_numpy(LOGIT_SPREAD / logits.std(axis=0))
    middle = torch.from_numpy((logits.max(axis=0) + logits.min(axis=0)) / 2)
    state = dict(checkpoint.state_dict)
    state["head.weight"] = state["head.weight"] * gain[:, None]
    state["head.bias"] = (state["head.bias"] - middle) * gain
    save_checkpoint(directory, replace(checkpoint, state_dict=state))
    return directory


def framed_checkpoint() -> Checkpoint:
    """Return one that decides by frames, whose scores go up and down in the same way."""
    checkpoint = tiny_checkpoint(4, frames=FrameDecisions(), background=["Background"])
    tagger = Tagger(checkpoint, device="cpu", precision="fp32", attention="math")
    seen: list[Scores] = []
    detector = Detector(tagger, hop_s=0.25, on_scores=seen.append)
    detector.open("mic", "ab" * 16)
    detector.push("mic", 0, tones_and_noise(20.0))
    detector.run()
    scores = np.stack([each.scores for each in seen])
    logits = np.log(scores / (1 - scores))
    gain = torch.from_numpy(LOGIT_SPREAD / logits.std(axis=0))
    middle = torch.from_numpy(logits.mean(axis=0))
    state = dict(checkpoint.state_dict)
    state["frame_head.weight"] = state["frame_head.weight"] * gain[:, None]
    state["frame_head.bias"] = (state["frame_head.bias"] - middle) * gain
    return replace(checkpoint, state_dict=state)
