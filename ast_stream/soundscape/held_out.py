"""Material kept from training, to choose thresholds by and to measure on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ast_stream.audio.activity import Waveform
from ast_stream.dataset.clips import Recording
from ast_stream.soundscape.takes import (
    Take,
    generated_backgrounds,
    recorded_takes,
    synthesised_takes,
)


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
