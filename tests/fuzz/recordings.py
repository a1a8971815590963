"""Decoders of recordings, and of what comes through standard input."""

from __future__ import annotations

import io
import os
import select
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from fuzz.decoder import Broken, Decoder
from fuzz.mutation import Case

from ast_stream.audio.containers import BytesFile, _ogg_sum, is_recording, layout_of
from ast_stream.audio.recording import RecordingReader
from ast_stream.capture.sources.stdin import StandardInput, container_of, wav_format
from ast_stream.settings.streams import StdinSource

RATE = 8_000
_SECONDS = 0.5
_MAX_SECONDS = 3 * 3600.0  # of silence and sound that so small a file may become
_KINDS: dict[str, tuple[tuple[str, str], ...]] = {
    "WAV": (
        ("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("WAV", "PCM_U8"),
        ("WAVEX", "PCM_16"),
    ),
    "WAV, compressed": (
        ("WAV", "IMA_ADPCM"), ("WAV", "MS_ADPCM"), ("WAV", "ULAW"), ("WAV", "GSM610"),
    ),
    "RF64": (("RF64", "PCM_16"),),
    "W64": (("W64", "PCM_16"),),
    "AIFF": (("AIFF", "PCM_16"), ("AIFF", "FLOAT")),
    "CAF": (("CAF", "PCM_16"), ("CAF", "ALAC_16")),
    "AU": (("AU", "PCM_16"),),
    "VOC": (("VOC", "PCM_U8"),),
    "FLAC": (("FLAC", "PCM_16"),),
    "MP3": (("MP3", "MPEG_LAYER_III"),),
    "other formats of libsndfile": (
        ("NIST", "PCM_16"), ("IRCAM", "PCM_16"), ("AVR", "PCM_16"), ("SVX", "PCM_16"),
        ("PAF", "PCM_16"), ("MAT5", "PCM_16"), ("HTK", "PCM_16"),
        ("PVF", "PCM_16"), ("XI", "DPCM_16"), ("WVE", "ALAW"), ("MPC2K", "PCM_16"),
    ),
}  # fmt: skip
_VIDEO = {
    "MP4": ("mp4", "aac"), "Matroska": ("matroska", "libopus"), "AAC": ("adts", "aac"),
    "MPEG-TS": ("mpegts", "mp2"), "AVI": ("avi", "mp2"), "FLV": ("flv", "mp3"),
}  # fmt: skip
_STDIN_FORMATS = ("wav", "s16le", "s24le", "f32le", "u8")


def decoders(scratch: Path) -> Iterator[Decoder]:
    """Yield the decoders; `scratch` is a folder that they may use."""
    folder = scratch / "recordings"
    folder.mkdir()
    read = _Reader(folder / "recording").decode
    for name, kinds in _KINDS.items():
        yield Decoder(f"recording: {name}", [(_written(*kind),) for kind in kinds], read, 0.06)
    ogg = [(_written("OGG", "VORBIS"),), (_written("OGG", "OPUS"),)]
    chained = (ogg[0][0] * 2,)
    yield Decoder("recording: Ogg", [*ogg, chained], read, 0.06, repair=_with_page_sums)
    for name, kind in _VIDEO.items():
        yield Decoder(f"recording: {name}", [(_muxed(*kind),)], read, 0.04)
    yield Decoder("headers of recordings", _all_seeds(), _layout)
    for form in _STDIN_FORMATS:
        yield Decoder(f"standard input: {form}", _stdin_seeds(form), _standard_input(form), 0.2)


def tone(seconds: float = _SECONDS) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Return a tone of 440 Hz."""
    times = np.arange(round(seconds * RATE)) / RATE
    return (0.5 * np.sin(2 * np.pi * 440 * times)).astype(np.float32)


def wav(seconds: float = _SECONDS) -> bytes:
    """Return a WAV with a tone."""
    return _written("WAV", "PCM_16", seconds)


def _written(kind: str, subtype: str, seconds: float = _SECONDS) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, tone(seconds), RATE, subtype, format=kind)
    return file.getvalue()


def _muxed(kind: str, codec: str) -> bytes:
    file, rate = io.BytesIO(), 48_000
    pcm = np.repeat((tone() * 32_767).astype(np.int16), 6)[None, :]
    with av.open(file, "w", format=kind) as container:
        stream: Any = container.add_stream(codec, rate=rate, layout="mono")
        resampler = av.AudioResampler(stream.format, "mono", rate, frame_size=stream.frame_size)
        frame = av.AudioFrame.from_ndarray(pcm, "s16", "mono")
        frame.sample_rate = rate
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return file.getvalue()


class _Reader:
    def __init__(self, path: Path) -> None:
        self._path = path

    def decode(self, case: Case) -> object:
        self._path.write_bytes(case[0] if case else b"")
        is_recording(self._path)
        with RecordingReader(self._path) as reader:
            n_frames = max(1, round(reader.rate))
            while len(pcm := reader.read(n_frames)):
                if pcm.shape[1] != reader.n_channels or not np.isfinite(pcm).all():
                    raise Broken("frames that are none of this recording")
                if reader.position_s > _MAX_SECONDS:
                    raise Broken("a small file does not end")
            reader.check()
            return reader.rate


class _Bytes:
    def __init__(self, content: bytes) -> None:
        self.size = len(content)
        self._content = content

    def peek(self, at: int, n_bytes: int) -> bytes:
        return self._content[max(0, at) : max(0, at) + n_bytes] if at >= 0 else b""


def _layout(case: Case) -> object:
    """Lay out a recording, and its ring of patches."""
    content = case[0] if case else b""
    file: BytesFile = _Bytes(content)
    layout = layout_of(file)
    if any(at < 0 for at in layout.patches):
        raise Broken("a patch before the beginning of the file")
    for is_end in (False, True):
        container_of(content[:4_096], is_end=is_end)
    wav_format(content[:65_536])
    return layout.has_data_chunk


def _all_seeds() -> list[Case]:
    # what is no WAV is refused as one: their layouts are reached by changing them all the same
    return [(_written(*kind),) for kind in (*_KINDS["WAV"], *_KINDS["RF64"])]


def _with_page_sums(case: Case) -> Case:
    """Return Ogg pages with the checksums that they should have."""
    content = bytearray(case[0] if case else b"")
    at = content.find(b"OggS")
    while at >= 0:
        n_header = 27 + content[at + 26] if at + 26 < len(content) else len(content)
        page = content[at : at + n_header + sum(content[at + 27 : at + n_header])]
        if len(page) >= 27:
            content[at + 22 : at + 26] = _ogg_sum(bytes(page))
        at = content.find(b"OggS", at + 4)
    return (bytes(content), *case[1:])


def _stdin_seeds(form: str) -> list[Case]:
    if form == "wav":
        streamed = bytearray(wav(0.02))
        streamed[40:44] = struct.pack("<I", 0xFFFFFFFF)
        return [
            (wav(0.02)[:200], wav(0.02)[200:]),
            (bytes(streamed),),
            (_written("RF64", "PCM_24", 0.02),),
        ]
    return [(bytes(range(240)), bytes(range(16)))]


def _standard_input(form: str) -> Callable[[Case], object]:
    def decode(case: Case) -> object:
        reading, writing = os.pipe()
        try:
            with closing(_Source(form, reading)) as source:
                for piece in case[:8]:
                    os.write(writing, piece[:32_768])
                    source.take()
                os.close(writing)
                writing = -1
                source.take()
                return source.n_frames
        finally:
            os.close(reading)
            if writing >= 0:
                os.close(writing)

    return decode


class _Source:
    def __init__(self, form: str, descriptor: int) -> None:
        settings = StdinSource.model_validate({"type": "stdin", "format": form, "channels": 2})
        self._source = StandardInput(settings, descriptor)
        self._source.open()
        self._is_over = False
        self.n_frames = 0

    def take(self) -> None:
        for _ in range(200):
            if self._is_over:
                return
            block = self._source.read(0.0)
            if block is None:
                if not _has_bytes(self._source):
                    return
                continue
            self.n_frames += len(block.pcm)
            self._is_over = block.is_last

    def close(self) -> None:
        self._source.close()


def _has_bytes(source: StandardInput) -> bool:
    descriptor: Any = source._descriptor
    return bool(select.select([descriptor], [], [], 0.0)[0])
