"""Write random songs of many instruments, played by FluidSynth from a General MIDI soundfont.

    python scripts/render_music.py OUT --soundfont FluidR3_GM.sf2 [--songs 160] [--seconds 12]

OUT gets a WAV file per song, 16 kHz mono, and songs.csv with the columns that `train` reads. What a
soundfont under a free licence (FluidR3_GM: MIT) plays may be trained on; it is generated, and
judges nothing. Songs have chords, a bass, a melody that glides now and then, drums, or some of
these.
"""

from __future__ import annotations

import argparse
import csv
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ast_stream.soundscape.synthesis import Random
from ast_stream.units import SAMPLE_RATE

TICKS = 480  # of a beat
MAJOR, MINOR = (0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10)
PROGRESSIONS = ((0, 3, 4, 0), (0, 5, 3, 4), (0, 4, 5, 3), (5, 3, 0, 4), (0, 0, 3, 0), (1, 4, 0, 0))
CHORD_PROGRAMS = (0, 1, 4, 6, 11, 16, 19, 24, 25, 27, 29, 48, 50, 52, 61, 88, 89, 91)
MELODY_PROGRAMS = (0, 4, 9, 11, 12, 13, 21, 22, 40, 42, 56, 57, 60, 64, 65, 68, 71, 73, 75, 80, 81)
BASS_PROGRAMS = (32, 33, 35, 36, 38, 43, 58)
DRUMS = 9  # channel
KICK, SNARE, HAT, CRASH = 36, 38, 42, 49
BEND_CENTRE = 8192
TIMEOUT_S = 120


@dataclass
class Song:
    """MIDI events with their times in ticks."""

    events: list[tuple[int, bytes]] = field(default_factory=list)

    def program(self, channel: int, program: int) -> None:
        """Choose the instrument of a channel."""
        self.events.append((0, bytes((0xC0 | channel, program))))

    def note(self, channel: int, pitch: int, at: int, length: int, velocity: int) -> None:
        """Add one note."""
        pitch = min(max(pitch, 12), 108)
        self.events.append((at, bytes((0x90 | channel, pitch, velocity))))
        self.events.append((at + length, bytes((0x80 | channel, pitch, 0))))

    def glide(self, channel: int, at: int, length: int, start: int) -> None:
        """Bend into a note from `start` and back to its pitch."""
        for number in range(9):
            bend = round(BEND_CENTRE + start * (1 - number / 8))
            place = at + length * number // 16
            self.events.append((place, bytes((0xE0 | channel, bend & 127, bend >> 7))))

    def midi(self, beats_per_minute: float) -> bytes:
        """Return the song as a Standard MIDI File of format 0."""
        tempo = round(60e6 / beats_per_minute)
        track = b"\x00\xff\x51\x03" + tempo.to_bytes(3, "big")
        now = 0
        for at, message in sorted(self.events, key=lambda event: event[0]):
            track += _variable_length(at - now) + message
            now = at
        track += b"\x00\xff\x2f\x00"
        head = b"MThd" + struct.pack(">IHHH", 6, 0, 1, TICKS)
        return head + b"MTrk" + struct.pack(">I", len(track)) + track


def compose(rng: Random, seconds: float) -> bytes:
    """Return a random song as a MIDI file."""
    song, beats_per_minute = Song(), rng.uniform(55, 170)
    scale, root = (MAJOR, MINOR)[int(rng.integers(2))], int(rng.integers(48, 60))
    n_bars = int(np.ceil(seconds * beats_per_minute / 60 / 4)) + 1
    progression = PROGRESSIONS[int(rng.integers(len(PROGRESSIONS)))]
    has_chords, has_melody, has_bass, has_drums = rng.random(4) < (0.7, 0.8, 0.5, 0.45)
    if not (has_chords or has_melody):
        has_chords = True
    song.program(0, int(rng.choice(CHORD_PROGRAMS)))
    song.program(1, int(rng.choice(MELODY_PROGRAMS)))
    song.program(2, int(rng.choice(BASS_PROGRAMS)))
    form, glide_prob = str(rng.choice(("held", "strummed", "arpeggio"))), rng.choice((0, 0, 0.4))
    drums = _drum_pattern(rng)
    degree = int(rng.integers(0, 7))
    for bar in range(n_bars):
        chord, at = progression[bar % len(progression)], bar * 4 * TICKS
        if has_chords:
            _play_chord(
                song, rng, [_pitch(root, scale, chord + step) for step in (0, 2, 4)], at, form
            )
        if has_bass:
            for beat in range(0, 4, int(rng.choice((1, 2, 4)))):
                pitch = _pitch(root - 24, scale, chord)
                song.note(2, pitch, at + beat * TICKS, TICKS * 3 // 4, int(rng.integers(70, 110)))
        if has_melody:
            degree = _play_melody(song, rng, root + 12, scale, at, degree, float(glide_prob))
        if has_drums:
            for place, pitch in drums:
                song.note(DRUMS, pitch, at + place * TICKS // 4, 60, int(rng.integers(50, 115)))
    return song.midi(beats_per_minute)


def _play_chord(song: Song, rng: Random, pitches: list[int], at: int, form: str) -> None:
    velocity = int(rng.integers(50, 100))
    if form == "held":
        for pitch in pitches:
            song.note(0, pitch, at, 4 * TICKS - 20, velocity)
    elif form == "strummed":
        for beat in range(4):
            for pitch in pitches:
                song.note(0, pitch, at + beat * TICKS, TICKS // 2, velocity)
    else:
        for place in range(8):
            pitch = pitches[place % 3] + 12 * (place // 3 % 2)
            song.note(0, pitch, at + place * TICKS // 2, TICKS // 2, velocity)


def _play_melody(
    song: Song,
    rng: Random,
    root: int,
    scale: tuple[int, ...],
    at: int,
    degree: int,
    glide_prob: float,
) -> int:
    """Add one bar, and return the degree of its last note."""
    place = 0
    while place < 4 * TICKS:
        length = int(rng.choice((TICKS // 2, TICKS // 2, TICKS, TICKS, 2 * TICKS)))
        degree = int(np.clip(degree + rng.integers(-3, 4), -4, 11))
        if rng.random() < 0.85:
            pitch = _pitch(root, scale, degree)
            song.note(1, pitch, at + place, length - 10, int(rng.integers(70, 120)))
            if rng.random() < glide_prob:
                song.glide(1, at + place, length, int(rng.integers(-8192, 8191)))
        place += length
    return degree


def _drum_pattern(rng: Random) -> list[tuple[int, int]]:
    """Return sixteenths of a bar and drums."""
    pattern = [(0, KICK), (8, KICK), (4, SNARE), (12, SNARE)]
    pattern += [(place, HAT) for place in range(0, 16, int(rng.choice((1, 2, 4))))]
    pattern += [(int(rng.integers(16)), KICK) for _ in range(int(rng.integers(3)))]
    return pattern + ([(0, CRASH)] if rng.random() < 0.2 else [])


def _pitch(root: int, scale: tuple[int, ...], degree: int) -> int:
    octave, step = divmod(degree, 7)
    return root + 12 * octave + scale[step]


def _variable_length(value: int) -> bytes:
    groups = [value & 127]
    while value := value >> 7:
        groups.append(value & 127 | 128)
    return bytes(reversed(groups))


def main() -> None:
    """Compose, play, write the table."""
    parser = argparse.ArgumentParser(description="Write random songs of many instruments.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--soundfont", type=Path, required=True)
    parser.add_argument("--songs", type=int, default=160)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--label", default="Music")
    parser.add_argument("--fold", default="generated")
    parser.add_argument("--licence", default="MIT", help="of the soundfont")
    parser.add_argument("--url", default="https://packages.debian.org/stable/fluid-soundfont-gm")
    parser.add_argument("--fluidsynth", default="fluidsynth")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(arguments.songs):
        path = arguments.out / f"song-{number:03}.wav"
        midi = compose(np.random.default_rng((arguments.seed, number)), arguments.seconds)
        try:
            _play(midi, path, arguments)
        except (OSError, subprocess.SubprocessError) as error:
            sys.exit(f"{arguments.fluidsynth}: cannot play {path.name}: {error}")
        author = f"generated with {arguments.soundfont.stem}"
        rows.append((path.name, arguments.label, arguments.fold, author, path.stem,
                     arguments.licence, arguments.url))  # fmt: skip
    with (arguments.out / "songs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("file", "label", "fold", "author", "title", "licence", "url"))
        writer.writerows(rows)
    print(f"{arguments.out}: {len(rows)} songs")


def _play(midi: bytes, path: Path, arguments: argparse.Namespace) -> None:
    """Let FluidSynth write `path`, cut to the length and mixed to one channel."""
    import soundfile

    with tempfile.TemporaryDirectory() as folder:
        song, wav = Path(folder) / "song.mid", Path(folder) / "song.wav"
        song.write_bytes(midi)
        command = [arguments.fluidsynth, "-ni", "-q", "-g", "0.6", "-r", str(SAMPLE_RATE)]
        subprocess.run(
            [*command, "-F", str(wav), str(arguments.soundfont), str(song)],
            check=True, capture_output=True, timeout=TIMEOUT_S,
        )  # fmt: skip
        samples, _ = soundfile.read(wav, dtype="float32", always_2d=True)
    mono = samples[: round(arguments.seconds * SAMPLE_RATE)].mean(axis=1)
    soundfile.write(path, mono, SAMPLE_RATE, subtype="PCM_16")


if __name__ == "__main__":
    main()
