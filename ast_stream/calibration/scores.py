"""The logits that calibration uses: sounds at known times over backgrounds, sound-free audio.

Logits and not scores, because checkpoints whose scores are pooled may each have a scaling of their
own. Everything is checked first, then scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ast_stream.audio.activity import Waveform
from ast_stream.audio.recording import read_mono
from ast_stream.calibration.folds import UnseenClips
from ast_stream.dataset.clips import load_recordings
from ast_stream.detect.detector import Detector, hops_of_recording
from ast_stream.detect.parameters import FrameSteps
from ast_stream.errors import ConfigError, Problem
from ast_stream.evaluation.scoring import NegativeRecording, blocks_of, score_blocks, soundscape_s
from ast_stream.labels import did_you_mean, find_label
from ast_stream.messages.audio import Pcm16
from ast_stream.messages.event import Scores
from ast_stream.model.checkpoint import Checkpoint
from ast_stream.model.tagger import Tagger
from ast_stream.settings.detection import DetectionDefaults, DetectionSettings
from ast_stream.soundscape.backgrounds import (
    BACKGROUND_S,
    background_recordings,
    generated_backgrounds,
)
from ast_stream.soundscape.mixing import (
    ReferenceEvent,
    SoundscapeSpec,
    mix_backgrounds,
    mix_soundscape,
)
from ast_stream.soundscape.soundbank import Foreground, generated_foregrounds, recorded_foregrounds
from ast_stream.units import SAMPLE_RATE, samples_to_seconds

SNR_DB = (0.0, 20.0)
CLEAR_OF_WINDOW_S = 0.4  # sounds lie so much more than a window apart: each is judged alone
REPEATS = 2  # each foreground is heard so often, at other levels and over other backgrounds
PIECE_S = 1800.0  # generated audio is made and scored in pieces: a day would not fit into memory
_CLOSEST = 1e-7  # of a float32 score to 0 or 1, beyond which it no longer tells the logit

OnProgress = Callable[[float], None]
"""Called with the seconds of audio that were scored."""


FIRST_SEED = 3_000_000  # generated material differs from that of any training or evaluation
SEEDS_EACH = 10_000  # a calibration uses so many seeds from its first on
MAX_BACKGROUNDS = 250  # generated backgrounds that sounds are placed over


@dataclass(frozen=True, eq=False)
class LogitStream:
    """The scores of a stream, and its reference events.

    Attributes:
        times_s: end of each window, shape (n_windows,), a hop apart; or of each frame, where a
            frame head decides: then all that is said of windows here is of frames.
        logits: before any Platt scaling, shape (n_windows, n_classes), float32.
        truth: the sounds in it, in order; none for negative audio.
        expected_label: of negative audio, the one class that may be heard in it.
    """

    times_s: npt.NDArray[np.float64]
    logits: npt.NDArray[np.float32]
    truth: tuple[ReferenceEvent, ...]
    duration_s: float
    expected_label: str | None = None

    @property
    def ends(self) -> npt.NDArray[np.int64]:
        """End of each window as a sample index."""
        ends: npt.NDArray[np.int64] = np.round(self.times_s * SAMPLE_RATE).astype(np.int64)
        return ends


def with_label(truth: Iterable[ReferenceEvent], label: str) -> list[ReferenceEvent]:
    """Return the sounds of one label."""
    return [sound for sound in truth if sound.label == label]


def hours_of(streams: Iterable[LogitStream]) -> float:
    """Return how much audio some streams hold."""
    return sum(stream.duration_s for stream in streams) / 3600


def plain_tagger(checkpoint: Checkpoint, device: str = "cpu", *, use_frames: bool = True) -> Tagger:
    """Return the checkpoint ready to score, without its Platt scalings."""
    metadata = checkpoint.metadata.model_copy(update={"score_maps": {}})
    if metadata.frames is not None:
        frames = metadata.frames.model_copy(update={"score_maps": {}})
        metadata = metadata.model_copy(update={"frames": frames})
    plain = replace(checkpoint, metadata=metadata)
    return Tagger(plain, device, "fp32", "math", use_frames=use_frames)


def frame_steps(checkpoint: Checkpoint) -> FrameSteps | None:
    """Return the frames that decide; None: windows do."""
    frames = checkpoint.metadata.frames
    return None if frames is None else FrameSteps(checkpoint.dims.time_patch_s, frames.delay_s)


def score_stream(
    tagger: Tagger,
    hop_s: float,
    blocks: Iterable[Pcm16],
    truth: Sequence[ReferenceEvent] = (),
    on_progress: OnProgress = lambda seconds: None,
) -> LogitStream:
    """Score int16 audio at 16 kHz through the same detector as live.

    Args:
        tagger: of a checkpoint without Platt scalings.
    """
    plain = DetectionSettings(defaults=DetectionDefaults(smoothing_s=0.0))

    def make_detector(on_scores: Callable[[Scores], None]) -> Detector:
        return Detector(
            tagger,
            plain,
            hop_s=hop_s,
            max_streams=1,
            hops_at_once=hops_of_recording(tagger),
            on_scores=on_scores,
        )

    def reported() -> Iterator[Pcm16]:
        for block in blocks:
            yield block
            on_progress(samples_to_seconds(len(block)))

    scored = score_blocks(make_detector, reported(), list(truth))
    return LogitStream(
        scored.times_s, _logits(scored.scores), tuple(truth), scored.layout.duration_s
    )


def sound_streams(
    tagger: Tagger,
    hop_s: float,
    foregrounds: Sequence[Foreground],
    backgrounds: Sequence[Waveform],
    labels: Sequence[str],
    seed: int,
    on_progress: OnProgress = lambda seconds: None,
) -> Iterator[LogitStream]:
    """Yield `REPEATS` streams with every foreground once, at 0 to 20 dB over its background."""
    for number in range(REPEATS if foregrounds else 0):
        rng = np.random.default_rng((seed, number))
        soundscape = mix_soundscape(
            rng, foregrounds, backgrounds, labels, spec_for(tagger.window_s)
        )
        yield score_stream(tagger, hop_s, blocks_of(soundscape.pcm), soundscape.truth, on_progress)


def mixed_s(foregrounds: Sequence[Foreground], window_s: float) -> float:
    """Return about how many seconds `sound_streams` makes of some foregrounds."""
    return REPEATS * soundscape_s(foregrounds, spec_for(window_s).gap_s)


def spec_for(window_s: float) -> SoundscapeSpec:
    """Return how sounds are placed for windows of this length: no window holds two of them."""
    shortest_s, longest_s = SoundscapeSpec.gap_s
    more_s = max(0.0, window_s + CLEAR_OF_WINDOW_S - shortest_s)
    return SoundscapeSpec(snr_db=SNR_DB, gap_s=(shortest_s + more_s, longest_s + more_s))


def background_streams(
    tagger: Tagger,
    hop_s: float,
    duration_s: float,
    seed: int,
    backgrounds: Sequence[Waveform] | None = None,
    on_progress: OnProgress = lambda seconds: None,
) -> Iterator[LogitStream]:
    """Yield streams of generated noise, hum, music and speech without any event.

    Args:
        backgrounds: what they are made of; None: new ones for every half hour, so that more hours
            are really more to hear.
    """
    number = 0
    while duration_s > 0:
        piece_s = min(PIECE_S, duration_s)
        count = max(1, round(piece_s / BACKGROUND_S))
        sources = backgrounds or generated_backgrounds(seed + number, count, labels=tagger.labels)
        rng = np.random.default_rng((seed, number, 99))
        soundscape = mix_backgrounds(rng, sources, piece_s)
        yield score_stream(tagger, hop_s, blocks_of(soundscape.pcm), (), on_progress)
        duration_s -= piece_s
        number += 1


def _logits(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    exact = np.clip(scores.astype(np.float64), _CLOSEST, 1 - _CLOSEST)
    logits: npt.NDArray[np.float32] = (np.log(exact) - np.log1p(-exact)).astype(np.float32)
    return logits


@dataclass(frozen=True, eq=False)
class CalibrationAudio:
    """What is heard.

    Attributes:
        sounds: each checkpoint with its foregrounds, recorded and generated.
        negatives: recordings without any event.
        generated_s: seconds of generated audio without any event.
        use_frames: decide by frames if the checkpoint has a frame head.
    """

    checkpoint: Checkpoint
    sounds: list[tuple[UnseenClips, list[Foreground]]]
    negatives: list[NegativeRecording]
    generated_s: float
    hop_s: float
    seed: int
    device: str = "cpu"
    use_frames: bool = True

    @property
    def expected_s(self) -> float:
        """About how many seconds will be scored."""
        foregrounds = [foreground for _, foregrounds in self.sounds for foreground in foregrounds]
        recorded_s = sum(recording.duration_s for recording in self.negatives)
        return mixed_s(foregrounds, self.checkpoint.window_s) + recorded_s + self.generated_s

    def score_sounds(self, on_progress: OnProgress) -> list[LogitStream]:
        """Return the streams with sounds, as their checkpoints score them."""
        first = FIRST_SEED + self.seed * SEEDS_EACH
        if not self.sounds:
            return []
        max_foregrounds = max(len(foregrounds) for _, foregrounds in self.sounds)
        backgrounds = generated_backgrounds(
            first, min(MAX_BACKGROUNDS, max_foregrounds), labels=self.checkpoint.labels
        )
        streams: list[LogitStream] = []
        for number, (unseen_set, foregrounds) in enumerate(self.sounds):
            streams += sound_streams(
                plain_tagger(unseen_set.checkpoint, self.device, use_frames=self.use_frames),
                self.hop_s,
                foregrounds,
                backgrounds,
                unseen_set.checkpoint.labels,
                first + number,
                on_progress,
            )
        return streams

    def score_negatives(self, on_progress: OnProgress) -> list[LogitStream]:
        """Return the streams without events, as the checkpoint scores them."""
        tagger = plain_tagger(self.checkpoint, self.device, use_frames=self.use_frames)
        first = FIRST_SEED + self.seed * SEEDS_EACH + 1
        streams = [
            replace(
                score_stream(tagger, self.hop_s, read_mono(recording.path), (), on_progress),
                expected_label=recording.expected_label,
            )
            for recording in self.negatives
        ]
        streams += background_streams(
            tagger, self.hop_s, self.generated_s, first, on_progress=on_progress
        )
        return streams


def foregrounds_of(
    unseen_sets: Sequence[UnseenClips], labels: Sequence[str], n_generated: int, seed: int
) -> list[tuple[UnseenClips, list[Foreground]]]:
    """Return the foregrounds of each checkpoint: recordings, and its part of the generated.

    Args:
        n_generated: foregrounds of every class that has a generator, over all checkpoints.

    Raises:
        ConfigError: every problem of every clip, together.
    """
    clips = [clip for unseen_set in unseen_sets for clip in unseen_set.clips]
    recordings = load_recordings(clips, labels, min_clips=1) if clips else []
    by_clip = {id(recording.clip): recording for recording in recordings}
    generated = generated_foregrounds(FIRST_SEED + seed * SEEDS_EACH, labels, n_generated)
    parts = [
        [
            *recorded_foregrounds([by_clip[id(clip)] for clip in unseen_set.clips], labels),
            *generated[number :: len(unseen_sets)],
        ]
        for number, unseen_set in enumerate(unseen_sets)
    ]
    return [
        (unseen_set, foregrounds)
        for unseen_set, foregrounds in zip(unseen_sets, parts, strict=True)
        if foregrounds
    ]


def negative_recordings(names: Sequence[str], labels: Sequence[str]) -> list[NegativeRecording]:
    """Return the recordings of files and folders.

    Args:
        names: paths; LABEL=PATH where one of `labels` may be heard.

    Raises:
        ConfigError: everything missing, unreadable or empty, together.
    """
    problems: list[Problem] = []
    found: list[NegativeRecording] = []
    for name in dict.fromkeys(names):
        label, path = _labelled_path(name, labels)
        try:
            found += [
                NegativeRecording(file, duration_s, label)
                for file, duration_s in background_recordings([path])
            ]
        except ConfigError as error:
            problems += error.problems
    problems += [
        Problem(str(recording.path), None, "", "expected sound, got an empty file")
        for recording in found
        if not recording.duration_s
    ]
    if problems:
        raise ConfigError(problems)
    return found


def _labelled_path(name: str, labels: Sequence[str]) -> tuple[str | None, Path]:
    """Return the label, None without one, and the path of `[LABEL=]PATH`.

    A name that is there as it stands is a path, whatever is in it.
    """
    text, separator, path = name.partition("=")
    if not separator or Path(name).expanduser().exists():
        return None, Path(name).expanduser()
    label = find_label(text, labels)
    if label is None:
        near = did_you_mean(text, labels)
        said = f"expected LABEL=PATH with a class of the model, or a path, got {name!r}{near}"
        raise ConfigError([Problem("--negatives", None, "", said)])
    return label, Path(path).expanduser()
