"""Material kept from training, and the scored streams made of it: for thresholds and figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ast_stream.audio.activity import Waveform
from ast_stream.detect.detector import Detector
from ast_stream.messages import Scores
from ast_stream.model.tagger import Tagger
from ast_stream.training.material.clips import Recording
from ast_stream.training.material.streams import (
    Laying,
    ScoredStrip,
    lay_backgrounds,
    lay_takes,
    score_strip,
)
from ast_stream.training.material.takes import (
    Take,
    generated_backgrounds,
    recorded_takes,
    synthesised_takes,
)

N_STRIPS = 2  # each holds every take once, at other levels and over other backgrounds


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What was kept from training to choose thresholds and to measure."""

    labels: tuple[str, ...]
    recordings: tuple[Take, ...]
    generated: tuple[Take, ...]
    backgrounds: tuple[Waveform, ...]


def held_out(
    labels: tuple[str, ...],
    recordings: Sequence[Recording],
    seed: int,
    n_generated: int,
    n_backgrounds: int,
) -> HeldOut:
    """Return takes and backgrounds that no training with another seed has seen."""
    return HeldOut(
        labels=labels,
        recordings=tuple(recorded_takes(recordings, labels)),
        generated=tuple(synthesised_takes(seed, labels, n_generated)),
        backgrounds=tuple(generated_backgrounds(seed, n_backgrounds)),
    )


def scored_streams(
    tagger: Tagger, held: HeldOut, negatives_s: float, seed: int = 0
) -> tuple[list[ScoredStrip], list[ScoredStrip]]:
    """Return scored streams with the held-out sounds at 6 to 20 dB, and without any."""
    takes = [*held.recordings, *held.generated]
    with_sounds = [
        score_strip(
            _detector_of(tagger),
            lay_takes(
                np.random.default_rng((seed, number)),
                takes,
                held.backgrounds,
                held.labels,
                Laying(),
            ),
        )
        for number in range(N_STRIPS if takes else 0)
    ]
    rng = np.random.default_rng((seed, 99))
    negatives = lay_backgrounds(rng, held.backgrounds, negatives_s)
    return with_sounds, [score_strip(_detector_of(tagger), negatives)]


def _detector_of(tagger: Tagger) -> Callable[[Callable[[Scores], None]], Detector]:
    return lambda on_scores: Detector(tagger, max_streams=1, on_scores=on_scores)
