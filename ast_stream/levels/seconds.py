"""Whole seconds of many streams: audio in as it comes, levels out when a second is complete."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ast_stream.audio.pcm import SampleBuffer
from ast_stream.levels.analysis import SECOND, SEGMENT, SETTLING, Levels, analyse, settled
from ast_stream.machine_clock import Moment
from ast_stream.messages.audio import Pcm16
from ast_stream.messages.levels import BAND_NAMES, LevelsMessage
from ast_stream.sample_clock import SampleClock

_DIGITS = 2
NEEDED = SETTLING + 2 * SECOND  # samples up to the end of a second, which its levels depend on


@dataclass(frozen=True, eq=False)
class SecondOfSound:
    """The levels of one second; seconds begin at multiples of 16000 samples of an epoch."""

    stream: str
    epoch: str
    start_sample: int
    levels: Levels
    clock: SampleClock

    def message(
        self, labels: Mapping[str, str], seen_from: Moment, calibration_db: float | None
    ) -> LevelsMessage:
        """Return the message about it.

        Args:
            labels: of its stream.
            seen_from: when that is published.
            calibration_db: sound pressure level of full scale, dB; None: not known.
        """
        add_db = calibration_db or 0.0
        levels = self.levels
        names = ("laeq", "laf_max", "laf_min", "l10", "l50", "l90")
        weighted = {name: round(getattr(levels, name) + add_db, _DIGITS) for name in names}
        return LevelsMessage(
            stream=self.stream,
            labels=dict(labels),
            epoch=self.epoch,
            start_sample=self.start_sample,
            time_ns=self.clock.time_ns(self.start_sample, seen_from),
            calibrated=calibration_db is not None,
            third_octaves={
                name: round(level + add_db, _DIGITS)
                for name, level in zip(BAND_NAMES, levels.third_octaves.tolist(), strict=True)
            },
            **weighted,
        )


class _RecentAudio:
    """The newest audio of one stream.

    Attributes:
        after: seconds that end up to here are not given out.
        settled: end of the last second that was analysed, and where its time weighting ended.
    """

    def __init__(self, epoch: str, clock: SampleClock, start: int, after: int) -> None:
        self.epoch = epoch
        self.clock = clock
        self.after = after
        self.audio = SampleBuffer(NEEDED, start)
        self.settled: tuple[int, float] | None = None

    def settled_at(self, end: int) -> float | None:
        """Return the time weighting at the end of a second, if known."""
        return self.settled[1] if self.settled is not None and self.settled[0] == end else None


@dataclass(frozen=True, eq=False)
class _Whole:
    """A second that waits to be analysed: NEEDED samples up to its end."""

    stream: str
    heard: _RecentAudio
    end: int
    pcm: Pcm16


class LevelSeconds:
    """Collects the audio of streams, and analyses their seconds together.

    A second is known once the one before it and an eighth are, without a gap: after a start or a
    gap the first is given out 2.2 to 3.2 s later.

    Attributes:
        whole: seconds that wait for `run`.
    """

    def __init__(self) -> None:
        self._heard: dict[str, _RecentAudio] = {}
        self.whole: list[_Whole] = []

    def begin(
        self, stream: str, epoch: str, clock: SampleClock, start_sample: int, after: int
    ) -> None:
        """Expect the audio of an epoch.

        Args:
            clock: of the epoch.
            start_sample: the first that will come.
            after: give out only seconds that end behind this sample: those before it were.
        """
        self._heard[stream] = _RecentAudio(epoch, clock, start_sample, after)

    def forget(self, stream: str) -> None:
        """Forget a stream."""
        self._heard.pop(stream, None)

    def hear(self, stream: str, start_sample: int, pcm: Pcm16) -> None:
        """Process the next samples of a stream; after a gap the filters settle again."""
        heard = self._heard[stream]
        if start_sample != heard.audio.end:
            heard.audio.restart(start_sample)
        while len(pcm):
            left = SECOND - heard.audio.end % SECOND
            heard.audio.append(pcm[:left])
            pcm = pcm[left:]
            end = heard.audio.end
            if end % SECOND == 0 and end - heard.audio.oldest >= NEEDED and end > heard.after:
                self._take(stream, heard)

    def run(self) -> list[SecondOfSound]:
        """Analyse the seconds that have become whole; return them in order for each stream."""
        found: list[SecondOfSound] = []
        while self.whole:
            batch: dict[str, _Whole] = {}
            later: list[_Whole] = []
            for whole in self.whole:
                if whole.stream in batch:
                    later.append(whole)
                else:
                    batch[whole.stream] = whole
            self.whole = later
            found += _analysed(list(batch.values()))
        return found

    def _take(self, stream: str, heard: _RecentAudio) -> None:
        end = heard.audio.end
        _, pcm = heard.audio.read(end - NEEDED, end)
        self.whole.append(_Whole(stream, heard, end, pcm))


def _analysed(batch: list[_Whole]) -> list[SecondOfSound]:
    """Analyse one second of each of several streams."""
    befores = [whole.heard.settled_at(whole.end - SECOND) for whole in batch]
    unknown = [row for row, before in enumerate(befores) if before is None]
    if unknown:
        segments = np.stack([batch[row].pcm[: SETTLING + SECOND] for row in unknown])
        for row, before in zip(unknown, settled(segments).tolist(), strict=True):
            befores[row] = before
    segments = np.stack([whole.pcm[-SEGMENT:] for whole in batch])
    levels, ends = analyse(segments, np.array(befores, np.float64))
    for whole, end in zip(batch, ends.tolist(), strict=True):
        whole.heard.settled = (whole.end, end)
    return [
        SecondOfSound(whole.stream, whole.heard.epoch, whole.end - SECOND, its, whole.heard.clock)
        for whole, its in zip(batch, levels, strict=True)
    ]
