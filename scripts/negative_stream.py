"""Write a stream of recordings one after another, as a room is heard: pauses, levels, faint noise.

    python scripts/negative_stream.py OUT.wav [--gap 0.3..4] [--dbfs -45..-15] [--minutes M] \
        [--table clips.csv --label Speech --fold 4] [RECORDING_OR_FOLDER ...]

What `calibrate --negatives Speech=OUT.wav` and `evaluate --negatives Speech=OUT.wav` hear: talk,
music or sounds without a class. Each recording is heard once, and again in another order, at
another level, and half of the times through a telephone's band, until the minutes are full.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from ast_stream.audio.activity import Waveform, active_rms
from ast_stream.dataset.clips import read_data, read_waveform
from ast_stream.errors import AstStreamError
from ast_stream.soundscape.backgrounds import background_recordings
from ast_stream.soundscape.mixing import to_pcm
from ast_stream.soundscape.synthesis import band_limited
from ast_stream.units import SAMPLE_RATE

FLOOR_DBFS = (-75.0, -55.0)
TELEPHONE_HZ = (300.0, 3400.0)
FADE_S = 0.01


def main() -> None:
    """Read the recordings, write the stream."""
    parser = argparse.ArgumentParser(description="Write a stream of recordings with pauses.")
    parser.add_argument("out", type=Path)
    parser.add_argument("recordings", type=Path, nargs="*")
    parser.add_argument("--table", type=Path, help="of recordings, as `train` reads it")
    parser.add_argument("--label", help="of the recordings to take from it; -: without a label")
    parser.add_argument("--fold", help="to take from it")
    parser.add_argument("--gap", default="0.3..4")
    parser.add_argument("--dbfs", default="-45..-15")
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--telephone", type=float, default=0.5, help="probability")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        paths = [path for path, _ in background_recordings(arguments.recordings)]
        if arguments.table is not None:
            wanted = () if arguments.label == "-" else (arguments.label,)
            paths += [
                clip.path
                for clip in read_data(arguments.table)
                if clip.labels == wanted and arguments.fold in (None, clip.fold)
            ]
        waveforms = [waveform for path in paths if active_rms(waveform := read_waveform(path))]
    except AstStreamError as error:
        sys.exit(str(error))
    if not waveforms:
        sys.exit("expected recordings with sound, got none")
    stream = _stream(
        np.random.default_rng(arguments.seed),
        waveforms,
        _range(arguments.gap),
        _range(arguments.dbfs),
        arguments.minutes * 60,
        arguments.telephone,
    )
    soundfile.write(arguments.out, to_pcm(stream), SAMPLE_RATE, subtype="PCM_16")
    print(
        f"{arguments.out}: {len(stream) / SAMPLE_RATE / 60:.1f} min of {len(waveforms)} recordings"
    )


def _stream(
    rng: np.random.Generator,
    waveforms: list[Waveform],
    gap_s: tuple[float, float],
    dbfs: tuple[float, float],
    least_s: float,
    telephone_prob: float,
) -> npt.NDArray[np.float64]:
    parts: list[npt.NDArray[np.float64]] = []
    n_samples = 0
    while not parts or n_samples < least_s * SAMPLE_RATE:
        for index in rng.permutation(len(waveforms)):
            sound = _faded(waveforms[int(index)].astype(np.float64))
            if rng.random() < telephone_prob:
                sound = band_limited(sound.astype(np.float32), *TELEPHONE_HZ).astype(np.float64)
            sound *= 10 ** (rng.uniform(*dbfs) / 20) / max(
                active_rms(sound.astype(np.float32)), 1e-6
            )
            gap = np.zeros(round(rng.uniform(*gap_s) * SAMPLE_RATE))
            parts += [sound, gap]
            n_samples += len(sound) + len(gap)
            if least_s and n_samples >= least_s * SAMPLE_RATE:
                break
    stream = np.concatenate(parts)
    floor = 10 ** (rng.uniform(*FLOOR_DBFS) / 20)
    return stream + floor * rng.standard_normal(len(stream))


def _faded(sound: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    n_fade = min(round(FADE_S * SAMPLE_RATE), len(sound) // 2)
    ramp = np.linspace(0, 1, n_fade)
    sound[:n_fade] *= ramp
    sound[len(sound) - n_fade :] *= ramp[::-1]
    return sound


def _range(text: str) -> tuple[float, float]:
    low, _, high = text.partition("..")
    return float(low), float(high or low)


if __name__ == "__main__":
    main()
