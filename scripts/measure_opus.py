"""Measure what Opus on the wire changes: scores, events, onsets, bytes and time.

    python scripts/measure_opus.py CLIPS.csv [--fold 4] [--sounds 160] [--json FIGURES.json]

CLIPS.csv is what scripts/bundled_clips.py writes; the weights of the bundled checkpoint have not
seen its fold 4. The streams are those of `ast-stream evaluate`: every sound over a background, some
close together. Each stream is scored as PCM and as every bit rate leaves it, through the same
detector, and each is compared with PCM. Figures are stored (`--json`) after every stream.
"""

from __future__ import annotations

import argparse
import ctypes
import ctypes.util
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ast_stream.audio import opus
from ast_stream.calibration.folds import single
from ast_stream.dataset.clips import read_clips, read_waveform
from ast_stream.dataset.tables import Columns
from ast_stream.evaluation.matching import match_soundscape
from ast_stream.evaluation.scoring import (
    SEED_BASE,
    MeasureSettings,
    ScoredSoundscape,
    blocks_of,
    mixed_soundscapes,
    mixed_spec,
    score_blocks,
)
from ast_stream.machine_clock import Moment
from ast_stream.messages.audio import OPUS_PACKET_SAMPLES, AudioBlock, OpusPackets, Pcm16
from ast_stream.soundscape.mixing import Soundscape, to_pcm
from ast_stream.units import FULL_SCALE, SAMPLE_RATE

PAGE = Path("docs/design/opus.md")
BEGIN, END = "<!-- figures: scripts/measure_opus.py -->", "<!-- end of figures -->"
PCM, LATER = "PCM", "PCM, 5 ms later"  # the latter shows what any change does
LATER_SAMPLES = SAMPLE_RATE // 200
BIT_RATES = (12_000, 16_000, 24_000, 32_000, 48_000)
BLOCK = SAMPLE_RATE // 10
LIKELY = 0.1  # scores from here on are of classes that are heard at all
_ZMTP_FRAME = 2  # bytes before a short frame; 9 before one of 256 bytes or more
_LONG_FRAME, _ZMTP_LONG_FRAME = 256, 9
_QUANTILES = (0.5, 0.9, 0.99)
_HISTOGRAM = np.linspace(0, 1, 1001)  # of differences of scores


@dataclass
class Way:
    """What streams came to that were sent in one way.

    Attributes:
        differences, likely: counts of |score - that of PCM|, in thousandths; of all windows and
            classes, and of those where either says `LIKELY` or more.
        found: of each sound in turn, whether an event of its class found it.
        onset_shifts: of sounds that both ways found, in seconds.
        n_bytes: of blocks of 100 ms, with their headers and ZeroMQ's frames.
        coding_s, decoding_s: processor time of one side each.
    """

    differences: list[int] = field(default_factory=lambda: [0] * (len(_HISTOGRAM) - 1))
    likely: list[int] = field(default_factory=lambda: [0] * (len(_HISTOGRAM) - 1))
    largest: float = 0.0
    total: float = 0.0
    n_scores: int = 0
    found: list[bool] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    n_false: int = 0
    onset_shifts: list[float] = field(default_factory=list)
    audio_s: float = 0.0
    n_bytes: int = 0
    coding_s: float = 0.0
    decoding_s: float = 0.0


def sent(pcm: Pcm16, bit_rate: int | None, way: Way) -> Pcm16:
    """Return samples as they are in ring and worker; count what that costs."""
    way.audio_s += len(pcm) / SAMPLE_RATE
    if bit_rate is None:
        for start in range(0, len(pcm), BLOCK):
            way.n_bytes += wire_bytes(_block(start, pcm[start : start + BLOCK], None))
        return pcm
    began_s = time.process_time()
    encoder = opus.OpusEncoder(bit_rate)
    coded = [
        one for at in range(0, len(pcm), BLOCK) for one in encoder.push(pcm[at : at + BLOCK])
    ]  # fmt: skip
    coded += encoder.flush()
    way.coding_s += time.process_time() - began_s
    blocks, start, run = [], 0, 0
    for first in range(0, len(coded), BLOCK // OPUS_PACKET_SAMPLES):
        parts = coded[first : first + BLOCK // OPUS_PACKET_SAMPLES]
        run = start if parts[0].begins_run else run
        sound = opus.joined(parts)
        packets = tuple(packet for part in parts for packet in part.packets)
        blocks.append(_block(start, sound, OpusPackets(run, packets, opus.checksum(sound))))
        start += len(sound)
    way.n_bytes += sum(map(wire_bytes, blocks))
    began_s = time.process_time()
    reader = opus.OpusReader()
    read = [reader.read(block) for block in blocks]
    way.decoding_s += time.process_time() - began_s
    for block, got in zip(blocks, read, strict=True):
        if got is None or not np.array_equal(block.pcm, got):
            raise SystemExit(f"both sides differ at sample {block.start_sample}")
    return opus.joined(coded)


def _block(start: int, pcm: Pcm16, packets: OpusPackets | None) -> AudioBlock:
    moment = Moment(1_795_600_000_000_000_000, 86_400_000_000_000)
    ring = "tcp://192.168.1.17:5561"
    return AudioBlock("porch", "0" * 32, start, moment, pcm, ring, clock="0" * 40, opus=packets)


def wire_bytes(block: AudioBlock) -> int:
    """Return how many bytes a block is for TCP, without keys."""
    return sum(
        len(frame) + (_ZMTP_FRAME if len(frame) < _LONG_FRAME else _ZMTP_LONG_FRAME)
        for frame in block.encode()
    )


def compare(way: Way, scored: ScoredSoundscape, with_pcm: ScoredSoundscape) -> None:
    """Add how scores differ from those of PCM."""
    apart = np.abs(scored.scores - with_pcm.scores)
    is_likely = np.maximum(scored.scores, with_pcm.scores) >= LIKELY
    for counts, values in ((way.differences, apart), (way.likely, apart[is_likely])):
        for index, count in enumerate(np.histogram(values, _HISTOGRAM)[0].tolist()):
            counts[index] += count
    way.largest = max(way.largest, float(apart.max()))
    way.total += float(apart.sum())
    way.n_scores += apart.size


def match_events(
    way: Way, scored: ScoredSoundscape, with_pcm: ScoredSoundscape, labels: Sequence[str]
) -> None:
    """Add which sounds were found, what else was, and by how much onsets moved."""
    for label in labels:
        matches, before = match_soundscape(scored, label), match_soundscape(with_pcm, label)
        way.n_false += len(matches.false_alarms)
        for sound, known in zip(matches.sounds, before.sounds, strict=True):
            way.found.append(bool(sound.detections))
            way.classes.append(label)
            if sound.detections and known.detections:
                shift = sound.detections[0].onset_s - known.detections[0].onset_s
                way.onset_shifts.append(round(shift, 4))


class Measurement:
    """Sends streams in all ways."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.set_num_threads(options.threads)
        opus.APPLICATION = options.application
        (self.subject,) = single([options.model], options.clips, Columns(), options.fold)
        metadata = self.subject.tagger.metadata
        off = {*metadata.off, *metadata.background}
        self.labels = [label for label in self.subject.tagger.labels if label not in off]
        self.ways = {PCM: Way(), LATER: Way()} | {str(rate): Way() for rate in options.bit_rate}

    def hear(self, soundscape: Soundscape) -> None:
        """Send one stream in all ways and score each."""
        scored: dict[str, ScoredSoundscape] = {}
        for name, way in self.ways.items():
            pcm = sent(soundscape.pcm, None if name in (PCM, LATER) else int(name), way)
            if name == LATER:
                pcm = np.concatenate([np.zeros(LATER_SAMPLES, np.int16), pcm])[: len(pcm)]
            make = self.subject.detector(None)
            scored[name] = score_blocks(make, blocks_of(pcm), soundscape.truth)
            compare(way, scored[name], scored[PCM])
            match_events(way, scored[name], scored[PCM], self.labels)
        print(f"{self.ways[PCM].audio_s / 60:.0f} min", file=sys.stderr, flush=True)


def text_of(figures: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    ways = {name: Way(**one) for name, one in figures["ways"].items()}
    pcm = ways[PCM]
    hours = pcm.audio_s / 3600
    lines = [
        f"{len(pcm.found)} sounds of {len(set(pcm.classes))} classes in {hours:.1f} h.",
        "",
        "| | MB a day | scores differ: mean | 99 % | largest | 99 % of scores from "
        f"{LIKELY:g} on | sounds found | lost | gained | false events | "
        "onset moved: median, 90 %, 99 % |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, way in ways.items():
        lost = sum(a and not b for a, b in zip(pcm.found, way.found, strict=True))
        gained = sum(b and not a for a, b in zip(pcm.found, way.found, strict=True))
        a_day = way.n_bytes / way.audio_s * 86_400 / 1e6
        apart = "| | | | " if name == PCM else (
            f"| {way.total / way.n_scores:.4f} | {_quantile(way.differences, 0.99):.3f} | "
            f"{way.largest:.2f} | {_quantile(way.likely, 0.99):.3f} "
        )  # fmt: skip
        shifts = np.abs(way.onset_shifts) if way.onset_shifts else np.zeros(1)
        moved = ", ".join(f"{np.quantile(shifts, one):.2f}" for one in _QUANTILES)
        lines.append(
            f"| {_title(name)} | {a_day:.0f} {apart}| {sum(way.found)} | {lost or ''} "
            f"| {gained or ''} | {way.n_false} | {'' if name == PCM else moved + ' s'} |"
        )
    return "\n".join([*lines, "", *_by_class(ways), "", "```", figures["command"], "```"])


def _by_class(ways: dict[str, Way]) -> list[str]:
    """Return which classes lose or gain sounds at which bit rate."""
    lines = []
    for name, way in ways.items():
        changes: dict[str, list[int]] = {}
        for label, before, now in zip(way.classes, ways[PCM].found, way.found, strict=True):
            if before != now:
                changes.setdefault(label, [0, 0])[now] += 1
        if changes:
            shown = ", ".join(
                f"{label} -{lost} +{gained}" for label, (lost, gained) in sorted(changes.items())
            )
            lines.append(f"* {_title(name)}: {shown}.")
    return lines


def _title(name: str) -> str:
    return name if name in (PCM, LATER) else f"{int(name) // 1000} kbit/s"


def _quantile(counts: Sequence[int], q: float) -> float:
    """Return a quantile of differences that were counted, its upper bound."""
    sums = np.cumsum(counts)
    return float(_HISTOGRAM[1 + int(np.searchsorted(sums, q * sums[-1]))])


def cost_text(figures: dict[str, Any]) -> str:
    """Return the processor time of both sides."""
    lines = []
    for name, one in figures["ways"].items():
        if name not in (PCM, LATER):
            way = Way(**one)
            coding, decoding = (1e3 * s / way.audio_s for s in (way.coding_s, way.decoding_s))
            lines.append(
                f"{_title(name)}: capture {coding:.1f} ms, worker {decoding:.1f} ms "
                "of a processor for a second of audio"
            )
    return "\n".join(lines)


def decoders_text(clips: Sequence[Pcm16]) -> str:
    """Return how many packets other decoders than PyAV's libopus give otherwise, as Markdown."""
    packets = [coded for pcm in clips for coded in _coded(pcm)]
    lines = [
        f"| {len(packets)} packets of {len(clips)} recordings, 32 kbit/s | differ at most, in "
        "steps of int16 | packets that differ, rounded as usual | rounded as said |",
        "|---|--:|--:|--:|",
    ]
    for name, begin in _other_decoders().items():
        n_plain = n_said = 0
        largest, decode = 0.0, begin()
        for coded, values in packets:
            if coded.begins_run:
                decode = begin()
            other = [decode(packet.data) for packet in coded.packets][-1]
            largest = max(largest, float(np.abs(other - values).max()))
            n_plain += not np.array_equal(np.rint(other), np.rint(values))
            got = opus.rounded(other, coded.packets[-1].rounding)[: len(coded.pcm)]
            n_said += not np.array_equal(got, coded.pcm)
        lines.append(f"| {name} | {largest:.3f} | {n_plain} | {n_said} |")
    return "\n".join(lines)


Decode = Callable[[bytes], npt.NDArray[np.float64]]
"""Returns the 320 values of the next packet, in int16 steps."""


def _coded(pcm: Pcm16) -> list[tuple[opus.CodedSamples, npt.NDArray[np.float64]]]:
    """Return packets, with what PyAV's libopus makes of each before it is rounded."""
    encoder, found, decoder = opus.OpusEncoder(32_000), [], opus.PacketDecoder()
    for coded in [*encoder.push(pcm), *encoder.flush()]:
        decoder = opus.PacketDecoder() if coded.begins_run else decoder
        values = [_steps(decoder)(packet.data) for packet in coded.packets][-1]
        found.append((coded, values))
    return found


def _steps(decoder: opus.PacketDecoder) -> Decode:
    return lambda data: opus.in_steps(decoder.decode(data))


def _other_decoders() -> dict[str, Callable[[], Decode]]:
    found: dict[str, Callable[[], Decode]] = {
        "FFmpeg's own decoder": lambda: _steps(opus.PacketDecoder("opus"))
    }
    if (path := ctypes.util.find_library("opus")) is not None:
        library = ctypes.CDLL(path)
        library.opus_get_version_string.restype = ctypes.c_char_p
        library.opus_decoder_create.restype = ctypes.c_void_p
        found[f"the system's {library.opus_get_version_string().decode()}"] = lambda: (
            _system_decoder(library)
        )
    return found


def _system_decoder(library: ctypes.CDLL) -> Decode:
    error = ctypes.c_int()
    state = ctypes.c_void_p(library.opus_decoder_create(SAMPLE_RATE, 1, ctypes.byref(error)))
    n_samples = OPUS_PACKET_SAMPLES
    values = np.zeros(n_samples, np.float32)  # the few states of a run of this script are not freed

    def decode(data: bytes) -> npt.NDArray[np.float64]:
        to = values.ctypes.data_as(ctypes.c_void_p)
        n_got = library.opus_decode_float(state, data, len(data), to, n_samples, 0)
        if n_got != n_samples:
            raise SystemExit(f"expected {n_samples} samples of a packet, got {n_got}")
        return values.astype(np.float64) * FULL_SCALE

    return decode


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return all figures."""
    measurement = Measurement(options)
    subject, settings = measurement.subject, MeasureSettings(seed=options.seed)
    foregrounds = list(subject.foregrounds)
    order = np.random.default_rng(options.seed).permutation(len(foregrounds))
    chosen = [foregrounds[int(index)] for index in order[: options.sounds or None]]
    spec, seeds = mixed_spec(subject.tagger.window_s, settings), (SEED_BASE, 7, options.seed, 0)
    figures: dict[str, Any] = {"command": " ".join(["scripts/measure_opus.py", *sys.argv[1:]])}
    for soundscape in mixed_soundscapes(subject, "mixed", chosen, spec, settings, seeds):
        measurement.hear(soundscape)
        figures["ways"] = {name: asdict(way) for name, way in measurement.ways.items()}
        if options.json is not None:
            options.json.write_text(json.dumps(figures) + "\n")
    return figures


def main() -> None:
    """Measure, print the figures, and write them into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", type=Path, nargs="?", default=Path("../sounds/clips.csv"))
    parser.add_argument("--fold", action="append", default=None)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--bit-rate", type=int, nargs="+", default=BIT_RATES)
    parser.add_argument("--application", default=opus.APPLICATION, help="lowdelay, or audio")
    parser.add_argument("--sounds", type=int, default=0, help="so many of the sounds; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--decoders", action="store_true", help="compare decoders instead, on a few clips"
    )
    parser.add_argument("--stored", type=Path, help="measure nothing: take these figures")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    options.fold = options.fold or ["4"]
    if options.decoders:
        paths = [clip.path for clip in read_clips(options.clips) if clip.fold in options.fold]
        clips = [to_pcm(read_waveform(path).astype(np.float64)) for path in paths[::20]]
        print(decoders_text(clips))
        return
    figures = json.loads(options.stored.read_text()) if options.stored else measure(options)
    text = text_of(figures)
    print(text, cost_text(figures), sep="\n\n")
    if options.page.is_file() and BEGIN in (page := options.page.read_text()):
        before, _, rest = page.partition(BEGIN)
        options.page.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
