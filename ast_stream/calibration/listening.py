"""Everything a calibration listens to, checked first, then scored: sounds and sound-free audio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ast_stream.calibration.judges import Judge
from ast_stream.calibration.streams import (
    LogitStream,
    OnHeard,
    background_streams,
    laid_s,
    plain_tagger,
    recorded_stream,
    sound_streams,
)
from ast_stream.dataset.clips import load_recordings
from ast_stream.errors import ConfigError, Problem
from ast_stream.model.checkpoint import Checkpoint
from ast_stream.soundscape.backgrounds import background_recordings, generated_backgrounds
from ast_stream.soundscape.soundbank import Foreground, generated_foregrounds, recorded_foregrounds

FIRST_SEED = 3_000_000  # generated material differs from that of any training or evaluation
SEEDS_EACH = 10_000  # a calibration uses so many seeds from its first on
MOST_BEDS = 250  # generated backgrounds that sounds are laid over


@dataclass(frozen=True, eq=False)
class Listening:
    """What is heard.

    Attributes:
        sounds: each judge with its takes, recorded and generated.
        negatives: recordings without any event, and their lengths in seconds.
        generated_s: seconds of generated audio without any event.
    """

    checkpoint: Checkpoint
    sounds: list[tuple[Judge, list[Foreground]]]
    negatives: list[tuple[Path, float]]
    generated_s: float
    hop_s: float
    seed: int
    device: str = "cpu"

    @property
    def expected_s(self) -> float:
        """About how many seconds will be scored."""
        takes = [take for _, takes in self.sounds for take in takes]
        recorded_s = sum(length_s for _, length_s in self.negatives)
        return laid_s(takes, self.checkpoint.window_s) + recorded_s + self.generated_s

    def score_sounds(self, on_heard: OnHeard) -> list[LogitStream]:
        """Return the streams with sounds, as their judges score them."""
        first = FIRST_SEED + self.seed * SEEDS_EACH
        if not self.sounds:
            return []
        most_takes = max(len(takes) for _, takes in self.sounds)
        backgrounds = generated_backgrounds(first, min(MOST_BEDS, most_takes))
        streams: list[LogitStream] = []
        for number, (judge, takes) in enumerate(self.sounds):
            streams += sound_streams(
                plain_tagger(judge.checkpoint, self.device),
                self.hop_s,
                takes,
                backgrounds,
                judge.checkpoint.labels,
                first + number,
                on_heard,
            )
        return streams

    def score_negatives(self, on_heard: OnHeard) -> list[LogitStream]:
        """Return the streams without events, as the checkpoint scores them."""
        tagger = plain_tagger(self.checkpoint, self.device)
        first = FIRST_SEED + self.seed * SEEDS_EACH + 1
        streams = [
            recorded_stream(tagger, self.hop_s, path, on_heard) for path, _ in self.negatives
        ]
        streams += background_streams(
            tagger, self.hop_s, self.generated_s, first, on_heard=on_heard
        )
        return streams


def takes_of(
    judges: Sequence[Judge], labels: Sequence[str], n_generated: int, seed: int
) -> list[tuple[Judge, list[Foreground]]]:
    """Return the takes of each judge: its recordings, and its part of the generated ones.

    Args:
        n_generated: takes of every class that has a generator, over all judges.

    Raises:
        ConfigError: every problem of every clip, together.
    """
    clips = [clip for judge in judges for clip in judge.clips]
    recordings = load_recordings(clips, labels, min_clips=1) if clips else []
    by_clip = {id(one.clip): one for one in recordings}
    generated = generated_foregrounds(FIRST_SEED + seed * SEEDS_EACH, labels, n_generated)
    shares = [
        [
            *recorded_foregrounds([by_clip[id(clip)] for clip in judge.clips], labels),
            *generated[number :: len(judges)],
        ]
        for number, judge in enumerate(judges)
    ]
    return [(judge, takes) for judge, takes in zip(judges, shares, strict=True) if takes]


def negative_recordings(paths: Sequence[Path]) -> list[tuple[Path, float]]:
    """Return the recordings of files and folders, with their lengths in seconds.

    Raises:
        ConfigError: everything missing, unreadable or empty, together.
    """
    problems: list[Problem] = []
    found: list[tuple[Path, float]] = []
    for path in dict.fromkeys(paths):
        try:
            found += background_recordings([path])
        except ConfigError as error:
            problems += error.problems
    problems += [
        Problem(str(file), None, "", "expected sound, got an empty file")
        for file, length_s in found
        if not length_s
    ]
    if problems:
        raise ConfigError(problems)
    return found
