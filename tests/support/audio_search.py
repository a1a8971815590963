"""Search bytes for a waveform that is known: as samples, as base64 of them, or by correlation."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ast_stream.messages.audio import Pcm16

FOUND_AT = 0.5  # correlation; of two different pieces of noise it is below 0.1
MIN_RUN = 3  # equal pieces of 8 bytes beside each other: fewer are chance
_TYPES = ("<i2", ">i2", "<f4", "<f2")
_TEMPLATE = 2048  # samples that are correlated at a time, of every so many
_EVERY = 4096
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{64,}")


def planted_noise(duration_s: float, seed: int = 5) -> Pcm16:
    """Return loud white noise: no part of it is like another."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 4000, round(duration_s * 16_000))
    return np.clip(noise, -32_768, 32_767).astype(np.int16)


class AudioSearch:
    """Looks for a waveform.

    Args:
        planted: shape (n_samples,), int16.
    """

    def __init__(self, planted: Pcm16) -> None:
        self._planted = planted
        samples = planted.astype(np.float64) / 32_768
        self._pieces = np.sort(
            np.concatenate(
                [
                    _pieces(planted.astype("<i2"), 4),
                    _pieces(planted.astype(">i2"), 4),
                    _pieces(samples.astype("<f4"), 2),
                    _pieces(planted.astype("<f4"), 2),
                ]
            )
        )
        self._templates = [
            _normalised(samples[start : start + _TEMPLATE])
            for start in range(0, len(planted) - _TEMPLATE, _EVERY)
        ]

    def find(self, data: bytes) -> str | None:
        """Return as what the waveform is in the data; None: it is not."""
        for what, part in (("as it is", data), *(("base64", part) for part in _decoded(data))):
            if self._has_samples(part):
                return f"samples, {what}"
        return self._correlated(data)

    def _has_samples(self, data: bytes) -> bool:
        n_equal = 0
        for offset in range(min(8, len(data))):
            words = np.frombuffer(data, "<i8", (len(data) - offset) // 8, offset)
            places = np.searchsorted(self._pieces, words).clip(max=len(self._pieces) - 1)
            is_equal = self._pieces[places] == words
            n_equal += int((is_equal[1:] & is_equal[:-1]).sum())
        return n_equal >= MIN_RUN

    def _correlated(self, data: bytes) -> str | None:
        """Return how a scaled copy is in the data."""
        for type_ in _TYPES:
            size = np.dtype(type_).itemsize
            for offset in range(size):
                count = max(0, len(data) - offset) // size
                if count < _TEMPLATE:
                    continue
                with np.errstate(all="ignore"):
                    found = np.frombuffer(data, type_, count, offset).astype(np.float64)
                    found[~np.isfinite(found) | (np.abs(found) > 1e6)] = 0
                if self._peak(found) > FOUND_AT:
                    return f"correlated, as {type_} from byte {offset}"
        return None

    def _peak(self, found: npt.NDArray[np.float64]) -> float:
        """Return the largest correlation of any part of the waveform with any part of `found`."""
        size = 1 << (len(found) + _TEMPLATE - 1).bit_length()
        spectrum = np.fft.rfft(found, size)
        energy = np.cumsum(np.concatenate([[0.0], found * found]))
        window = energy[_TEMPLATE:] - energy[:-_TEMPLATE]
        scale = np.sqrt(np.maximum(window, 1e-9 * (energy[-1] + 1e-30)))
        peak = 0.0
        for template in self._templates:
            against = np.fft.irfft(spectrum * np.conj(np.fft.rfft(template, size)), size)
            peak = max(peak, float(np.max(np.abs(against[: len(scale)]) / scale)))
        return peak


def _pieces(samples: npt.NDArray[np.generic], per_piece: int) -> npt.NDArray[np.int64]:
    """Return every run of samples that takes 8 bytes, as an integer."""
    runs = np.lib.stride_tricks.sliding_window_view(samples, per_piece)
    found = np.frombuffer(np.ascontiguousarray(runs).tobytes(), "<i8")
    return found[found != 0]


def _normalised(template: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    scaled: npt.NDArray[np.float64] = template / np.sqrt(np.sum(template * template))
    return scaled


def _decoded(data: bytes) -> Iterator[bytes]:
    """Yield what base64 in the data stands for."""
    for match in _BASE64.finditer(data):
        text = match[0].translate(bytes.maketrans(b"-_", b"+/"))
        for skipped in range(4):
            part = text[skipped : skipped + (len(text) - skipped) // 4 * 4]
            try:
                yield base64.b64decode(part, validate=True)
            except (binascii.Error, ValueError):
                continue
