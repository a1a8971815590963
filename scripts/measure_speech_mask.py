"""Measure what `privacy: speech` withholds: of speech among other sounds, and of other sounds.

    python scripts/measure_speech_mask.py CLIPS.csv [--fold 4] [--snr 20 12]

CLIPS.csv is what scripts/bundled_clips.py writes; the weights of the bundled checkpoint have not
seen its fold 4. Each clip of speech lies above rain, wind or an engine of the same fold, each other
clip above faint noise; six seconds before and behind it let everything be judged. A line for each
says how many of its active 10 ms are withheld.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ast_stream.audio.activity import active_frames, active_rms
from ast_stream.audio.pcm import SampleBuffer
from ast_stream.dataset.clips import read_clips, read_waveform
from ast_stream.detect import Detector
from ast_stream.model.tagger import Tagger, load_tagger
from ast_stream.privacy.speech import SpeechMask
from ast_stream.units import FRAME_SHIFT, FULL_SCALE, SAMPLE_RATE

BACKGROUNDS = ("Rain", "Wind", "Engine")
AROUND = 6 * SAMPLE_RATE
LEVEL = 0.03  # RMS of a sound's active part
NOISE = 1e-4  # RMS below other sounds
BLOCK = 1600

Waveform = npt.NDArray[np.float32]


def withheld_active(tagger: Tagger, sound: Waveform, background: Waveform) -> tuple[int, int]:
    """Return how many active 10 ms of a sound are withheld, and how many it has.

    Args:
        sound: shape (n,).
        background: shape (n + 2 * AROUND,).
    """
    mixed = background.copy()
    mixed[AROUND : AROUND + len(sound)] += sound
    pcm = (np.clip(mixed, -1, 1) * (FULL_SCALE - 1)).astype(np.int16)
    audio = SampleBuffer(len(pcm) + SAMPLE_RATE)
    masks: list[SpeechMask] = []
    detector = Detector(
        tagger, on_scores=lambda found: masks[0].add_scores(found.end_sample, found.scores)
    )
    masks.append(SpeechMask(tagger.labels, detector.parameters.geometry.window, audio.capacity))
    detector.open("a", "ab" * 8)
    for start in range(0, len(pcm), BLOCK):
        audio.append(pcm[start : start + BLOCK])
        masks[0].hear(audio)
        detector.push("a", start, pcm[start : start + BLOCK])
        detector.run()
    flags = np.zeros(len(pcm), np.bool_)
    for begin, end in masks[0].withheld(0, len(pcm)):
        flags[begin:end] = True
    active = active_frames(sound)
    frames = flags[AROUND : AROUND + len(active) * FRAME_SHIFT].reshape(-1, FRAME_SHIFT)
    is_withheld: npt.NDArray[np.bool_] = np.logical_and.reduce(frames, axis=1)
    return int((is_withheld & active).sum()), int(active.sum())


def looped(waveform: Waveform, n_samples: int, rms: float) -> Waveform:
    """Return a sound again and again, scaled by the level of its active part."""
    scaled: Waveform = np.resize(waveform, n_samples) * np.float32(rms / active_rms(waveform))
    return scaled


def line(name: str, counts: Sequence[tuple[int, int]]) -> str:
    """Return what is withheld of all clips of one kind."""
    hidden, active = (sum(numbers) for numbers in zip(*counts, strict=True))
    return f"{name}: {hidden / active:.1%} of {active / 100:.0f} s in {len(counts)} clips"


def main() -> None:
    """Print a line for each SNR, and for each class besides speech."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--fold", default="4")
    parser.add_argument("--snr", type=float, nargs="+", default=[20.0, 12.0], help="dB")
    parser.add_argument("--most", type=int, default=8, help="clips of each other class")
    options = parser.parse_args()
    by_class: dict[str, list[Path]] = {}
    for clip in read_clips(options.clips):
        if clip.fold == options.fold:
            by_class.setdefault(clip.labels[0], []).append(clip.path)
    tagger = load_tagger("bundled", device="cpu", precision="fp32")
    rooms = [read_waveform(path) for name in BACKGROUNDS for path in by_class[name]]
    for snr_db in options.snr:
        counts = list(_above(tagger, by_class["Speech"], rooms, snr_db))
        print(line(f"Speech, {snr_db:g} dB above {', '.join(BACKGROUNDS)}", counts), flush=True)
    noise = np.random.default_rng(0)
    for name in sorted(set(by_class) - {"Speech"}):
        counts = []
        for path in by_class[name][: options.most]:
            sound = read_waveform(path)
            sound *= LEVEL / active_rms(sound)
            faint = noise.standard_normal(len(sound) + 2 * AROUND, np.float32) * np.float32(NOISE)
            counts.append(withheld_active(tagger, sound, faint))
        print(line(name, counts), flush=True)


def _above(
    tagger: Tagger, paths: Sequence[Path], rooms: Sequence[Waveform], snr_db: float
) -> Iterator[tuple[int, int]]:
    for path, room in zip(paths, itertools.cycle(rooms)):
        speech = read_waveform(path)
        speech *= LEVEL / active_rms(speech)
        rms = LEVEL / 10 ** (snr_db / 20)
        yield withheld_active(tagger, speech, looped(room, len(speech) + 2 * AROUND, rms))


if __name__ == "__main__":
    main()
