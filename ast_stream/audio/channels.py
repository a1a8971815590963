"""Which channel of a source is heard, and whether what it gives can be the sound of a room.

A live room is never digital silence: a sound card that gives one value for seconds is muted or
unplugged. Nor do the channels of a microphone cancel each other: where their mean is far quieter
than unrelated channels would make it, one of them has its polarity reversed.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from ast_stream.audio.source import Pcm, SourceError
from ast_stream.units import FULL_SCALE

FAULT_AFTER_S = 10.0  # shorter silences are pauses of a programme or padding of a recording
_CANCELLED = 10 ** (-12 / 10)  # power of the mean, by that of the mean of unrelated channels
_FLOOR = 10 ** (-90 / 10)  # mean square of full scale: below it, polarity cannot be told
_LOOK_S = 1.0
_OPPOSITE = -0.8  # correlation of two channels that cancel each other
_MOST_PAIRS = 4

Choice = Literal["mix"] | int
Samples = npt.NDArray[np.float32]


class Channels:
    """Takes one channel of each block, or leaves all of them to be averaged, and looks for faults.

    Args:
        choice: "mix", or the number of a channel, counted from 0.

    Attributes:
        fault: why what comes cannot be the sound of a room, or None.
    """

    def __init__(self, choice: Choice = "mix") -> None:
        self.fault: str | None = None
        self._choice = choice
        self._has_sound = False
        self._opposite_text = ""  # which channels
        self._judged_s = self._lost_s = 0.0  # with sound, and of it where the channels cancelled
        self.restart()

    def restart(self) -> None:
        """Forget what the source gave before it was opened again, but not the fault it had."""
        self._silent = self._cancelled = 0  # frames in a row
        self._looked = 0  # frames since it was last asked whether the channels cancel
        self._energies = np.zeros(2)  # of the channels' mean, and of a channel in the mean

    @property
    def summary(self) -> str | None:
        """What is wrong with a recording that was taken to its end, or None."""
        if self._lost_s and self._lost_s >= self._judged_s / 2:
            return (
                f"{self._opposite_text} cancel each other when averaged, in {self._lost_s:.0f} of "
                f"{self._judged_s:.0f} s with sound: opposite polarity; choose one channel"
            )
        return None if self._has_sound else "nothing but digital silence"

    def take(self, pcm: Pcm, rate: int) -> Pcm:
        """Return what is heard of a block, shape (n_frames, 1) or as it was.

        Args:
            pcm: shape (n_frames, n_channels), int16, or float32 in [-1, 1].
            rate: frames per second.

        Raises:
            SourceError: the source has no such channel.
        """
        n_channels = pcm.shape[1]
        if self._choice != "mix" and self._choice >= n_channels:
            raise SourceError("channel_absent", _no_such_channel(self._choice, n_channels))
        if len(pcm) == 0:
            return pcm
        taken = pcm if self._choice == "mix" else pcm[:, self._choice : self._choice + 1]
        self._look(_as_float(pcm), rate)
        return taken

    def _look(self, pcm: Samples, rate: int) -> None:
        if self._is_constant(pcm):
            self._silent += len(pcm)
            if self._silent >= FAULT_AFTER_S * rate:
                self.fault = self._silence(pcm, self._silent / rate)
            return
        self._has_sound = True
        if self._silent >= FAULT_AFTER_S * rate or self._choice != "mix" or pcm.shape[1] == 1:
            self.fault = None
        self._silent = 0
        if self._choice != "mix" or pcm.shape[1] == 1:
            return
        mean = pcm.mean(axis=1)
        self._energies += np.sum(mean * mean), np.sum(pcm * pcm) / pcm.shape[1]
        self._looked += len(pcm)
        if self._looked >= _LOOK_S * rate:
            self._judge(pcm, rate)
            self._looked, self._energies = 0, np.zeros(2)

    def _judge(self, pcm: Samples, rate: int) -> None:
        """Tell whether the channels cancelled each other since the last time."""
        mean, each = (self._energies / self._looked).tolist()
        if each < _FLOOR:
            return  # a pause
        self._judged_s += self._looked / rate
        if mean >= each / pcm.shape[1] * _CANCELLED:
            self._cancelled, self.fault = 0, None
            return
        self._cancelled += self._looked
        self._lost_s += self._looked / rate
        self._opposite_text = _opposite(pcm)
        if self._cancelled >= FAULT_AFTER_S * rate:
            self.fault = (
                f"{self._opposite_text} cancel each other when averaged, for "
                f"{self._cancelled / rate:.0f} s now: opposite polarity; "
                f"set `channel` of the source, e.g. channel: 0"
            )

    def _is_constant(self, pcm: Samples) -> bool:
        heard = pcm if self._choice == "mix" else pcm[:, self._choice]
        return bool(np.all(heard == heard[0]))

    def _silence(self, pcm: Samples, silent_s: float) -> str:
        silence = f"digital silence for {silent_s:.0f} s"
        n_channels = pcm.shape[1]
        if self._choice != "mix" and n_channels > 1:
            others = [at for at in range(n_channels) if not np.all(pcm[:, at] == pcm[0, at])]
            hint = f", while there is sound in {_listed(others)}" if others else ""
            return f"{silence} in channel {self._choice} of 0 to {n_channels - 1}{hint}"
        if n_channels > 1:
            return f"{silence} in all {n_channels} channels: muted or unplugged"
        return f"{silence}: muted, unplugged, or channels of opposite phase that cancel"


def _no_such_channel(wanted: int, n_channels: int) -> str:
    there = "only channel 0" if n_channels == 1 else f"channels 0 to {n_channels - 1}"
    return f"channel {wanted} is wanted (counted from 0), and the source has {there}"


def _as_float(pcm: Pcm) -> Samples:
    if pcm.dtype == np.int16:
        return pcm.astype(np.float32) / np.float32(FULL_SCALE)
    return np.nan_to_num(pcm, nan=0.0, posinf=1.0, neginf=-1.0).astype(np.float32)


def _opposite(samples: Samples) -> str:
    """Return which channels are opposite to each other, in words."""
    n_channels = samples.shape[1]
    if n_channels == 2:
        return "channels 0 and 1"
    product = samples.T @ samples
    norm = np.sqrt(np.maximum(np.diag(product), np.finfo(np.float32).tiny))
    opposite = np.argwhere(np.triu(product / np.outer(norm, norm) < _OPPOSITE, k=1))
    pairs = ", ".join(f"{one} and {other}" for one, other in opposite[:_MOST_PAIRS])
    return f"channels {pairs}" if pairs else f"the {n_channels} channels"


def _listed(channels: list[int]) -> str:
    word = "channel" if len(channels) == 1 else "channels"
    return f"{word} {', '.join(map(str, channels))}"
