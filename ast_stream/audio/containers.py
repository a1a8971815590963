"""Containers of audio: which files are recordings, and how much of their headers is true.

Writers that were killed leave lengths of 0, writers to a pipe lengths that mean "unknown", copies
that broke off lengths beyond the end of the file. libsndfile believes most of them. Here WAV (also
RF64, BW64, RIFX), AIFF, W64, CAF, AU and VOC are laid out from their chunks, and the pages of Ogg
and the packets of MPEG transport streams are counted and checked.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import soundfile

# libsndfile names most formats by their suffix; raw samples have no header to read them by, and
# what it says of a damaged SDS goes to standard output
SNDFILE_SUFFIXES = frozenset(
    f".{name.lower()}" for name in soundfile.available_formats() if name not in ("RAW", "SDS")
) | {".aif", ".aifc", ".bwf", ".oga", ".opus", ".snd"}
FFMPEG_SUFFIXES = frozenset(
    {".3gp", ".aac", ".ac3", ".amr", ".ape", ".avi", ".m4a", ".m4b", ".mka", ".mkv", ".mov"}
) | {".mp2", ".mp4", ".mpg", ".mts", ".ogv", ".webm", ".wma", ".wv"}
RECORDING_SUFFIXES = SNDFILE_SUFFIXES | FFMPEG_SUFFIXES

_W64_RIFF = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
_W64_TAIL = b"\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
_UNKNOWN_32 = ((1 << 31) - 4096, (1 << 31) + 64, (1 << 32) - 4096)  # what tools write to pipes
_MAX_CHUNKS = 10_000
_TS_BYTES = 188  # of a packet
_TS_AUDIO = frozenset(bytes([stream_id]) for stream_id in (*range(0xC0, 0xE0), 0xBD))
_TS_TAIL_PACKETS = 5_000  # checked at the end
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
METADATA = (b"TAG", b"ID3", b"APETAGEX", b"LYRICSBEGIN")  # not of any container


class BytesFile(Protocol):
    """A file of bytes that can be read from anywhere."""

    size: int

    def peek(self, at: int, n_bytes: int) -> bytes:
        """Return up to `n_bytes` bytes from `at` on."""


@dataclass
class Layout:
    """Where a recording's samples lie, as far as it is known without decoding.

    Attributes:
        has_data_chunk: the samples are one chunk of known beginning.
        patches: bytes to put in place of others, by position, so that all samples are read.
        declared_ratio: length by the header, by that of what is there; None: the header fits, or
            does not say.
        n_bytes_missing: bytes that a container declares beyond the end of the file.
        n_bytes_behind: bytes behind the samples that are no metadata.
        is_chained: several streams one after another.
        damage: places where something is missing.
        contradiction: why the samples cannot be what the header says; None: they can.
    """

    has_data_chunk: bool = False
    patches: dict[int, bytes] = field(default_factory=dict)
    declared_ratio: float | None = None
    n_bytes_missing: int = 0
    n_bytes_behind: int = 0
    is_chained: bool = False
    damage: list[str] = field(default_factory=list)
    contradiction: str | None = None


def layout_of(file: BytesFile) -> Layout:
    """Return the layout of a recording; an empty one if nothing is known about it."""
    head = file.peek(0, 16)
    if head[8:12] == b"WAVE" and head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64"):
        return _riff(file, head[:4])
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return _avi(file)
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return _aiff(file)
    if head == _W64_RIFF:
        return _w64(file)
    if head[:4] == b"caff":
        return _caf(file)
    if head[:4] == b".snd":
        return _au(file)
    if head[4:8] == b"ftyp":
        return _mp4(file)
    if head[:4] == b"\x1aE\xdf\xa3":
        return _matroska(file)
    if head == b"Creative Voice F":
        return _voc(file)
    if (n_prefix := _transport_prefix(file)) is not None:
        return _transport_stream(file, n_prefix)
    return _ogg(file) if head[:4] == b"OggS" else Layout()


def is_metadata(file: BytesFile, at: int) -> bool:
    """Return whether the file ends, from `at` on, with tags or zeros."""
    while at < file.size:
        head = file.peek(at, 32)
        if head.startswith(b"TAG"):
            at += 128
        elif head.startswith(b"ID3"):
            at += 10 + sum((byte & 127) << 7 * place for place, byte in enumerate(head[9:5:-1]))
        elif head.startswith(b"APETAGEX"):
            at += 32 + int.from_bytes(head[12:16], "little")
        elif head.startswith(b"LYRICSBEGIN"):
            return True
        else:
            return not any(file.peek(at, 1 << 20))
    return True


class _Chunk(NamedTuple):
    name: bytes
    start: int  # of its contents
    n_bytes: int  # as its header says


class _Form(NamedTuple):
    """How a family of formats writes the header of a chunk."""

    n_header: int
    parse: Callable[[bytes], tuple[bytes, int]]
    is_name: Callable[[bytes], bool]
    align: int


def _printable(name: bytes) -> bool:
    return all(32 <= byte < 127 for byte in name)


def _form(order: str) -> _Form:
    return _Form(8, lambda head: struct.unpack(f"{order}4sI", head), _printable, 2)


_CAF = _Form(12, lambda head: struct.unpack(">4sQ", head), _printable, 1)
_W64 = _Form(
    24,
    lambda head: (head[:16], int.from_bytes(head[16:], "little") - 24),
    lambda name: name[4:] == _W64_TAIL or name[:4] == b"junk",
    8,
)


def _riff(file: BytesFile, kind: bytes) -> Layout:
    order = ">" if kind == b"RIFX" else "<"
    form = _form(order)
    ds64: _Chunk | None = None
    for chunk in _chunks(file, 12, form):
        if chunk.name == b"fmt " and (text := _contradiction(file.peek(chunk.start, 26), order)):
            return Layout(contradiction=text)
        if chunk.name == b"ds64":
            ds64 = chunk
        if chunk.name == b"data":
            break
    else:
        return Layout(has_data_chunk=True)
    declared, rest = chunk.n_bytes, file.size - chunk.start
    is_unknown = _is_unknown_32(declared)
    if ds64 is not None and declared == 0xFFFFFFFF:
        declared = int.from_bytes(file.peek(ds64.start + 8, 8), "little")
        is_unknown = declared >= 1 << 62
    if is_unknown or _is_unclosed(file, chunk.start, declared, form):
        if ds64 is not None:
            return Layout(True, {ds64.start + 8: rest.to_bytes(8, "little")})
        # what libsndfile itself takes for a file that was never closed, whatever its length
        return Layout(True, {4: struct.pack(f"{order}I", 8), chunk.start - 4: bytes(4)})
    if rest - declared >= 1 << 32:  # the length of a file beyond 4 GB has run over
        return Layout(True, {4: struct.pack(f"{order}I", 8), chunk.start - 4: bytes(4)})
    return _compared(file, chunk.start, declared, form)


def _contradiction(chunk: bytes, order: str) -> str | None:
    """Return why the format chunk of a WAV of plain samples contradicts itself, if it does."""
    if len(chunk) < 16:
        return None
    tag, n_channels, _, _, n_bytes, n_bits = struct.unpack_from(f"{order}HHIIHH", chunk)
    if tag == 0xFFFE and len(chunk) == 26:
        tag = struct.unpack_from(f"{order}H", chunk, 24)[0]
    expected = n_channels * -(-n_bits // 8)
    if tag not in (1, 3) or n_bytes in (0, expected):  # 0: the writer left it out
        return None
    return (
        f"expected {expected} bytes for one sample of {n_channels} channels with {n_bits} bits, "
        f"got {n_bytes}: its header contradicts itself"
    )


def _avi(file: BytesFile) -> Layout:
    """Compare the first RIFF of an AVI, which may be followed by more, with the file."""
    size = int.from_bytes(file.peek(4, 4), "little")
    is_known = size > 0 and not _is_unknown_32(size)
    return Layout(n_bytes_missing=max(0, 8 + size - file.size) if is_known else 0)


def _aiff(file: BytesFile) -> Layout:
    form = _form(">")
    common: _Chunk | None = None
    for chunk in _chunks(file, 12, form):
        if chunk.name == b"COMM":
            common = chunk
        if chunk.name == b"SSND":
            break
    else:
        return Layout(has_data_chunk=True)
    start = chunk.start + 8  # offset and size of a block come first
    declared, rest = max(0, chunk.n_bytes - 8), file.size - start
    is_unknown = _is_unknown_32(chunk.n_bytes)
    if common is not None and (is_unknown or _is_unclosed(file, start, declared, form)):
        channels, _, bits = struct.unpack(">HIH", file.peek(common.start, 8))
        n_frames = rest // max(1, channels * -(-bits // 8))
        size = min(rest + 8, 0xFFFFFFFF)
        patches = {
            4: struct.pack(">I", min(file.size - 8, 0xFFFFFFFF)),
            common.start + 2: struct.pack(">I", min(n_frames, 0xFFFFFFFF)),
            chunk.start - 4: struct.pack(">I", size),
        }
        return Layout(True, patches)
    return _compared(file, start, declared, form)


def _w64(file: BytesFile) -> Layout:
    for chunk in _chunks(file, 40, _W64):
        if chunk.name[:4] == b"data":
            break
    else:
        return Layout(has_data_chunk=True)
    rest = file.size - chunk.start
    if not 0 < chunk.n_bytes < 1 << 62 and _is_unclosed(file, chunk.start, 0, _W64):
        patches = {
            16: file.size.to_bytes(8, "little"),
            chunk.start - 8: (rest + 24).to_bytes(8, "little"),
        }
        return Layout(True, patches)
    return _compared(file, chunk.start, chunk.n_bytes, _W64)


def _caf(file: BytesFile) -> Layout:
    for chunk in _chunks(file, 8, _CAF):
        if chunk.name == b"data":
            break
    else:
        return Layout(has_data_chunk=True)
    start = chunk.start + 4  # a count of edits comes first
    rest = file.size - start
    declared = chunk.n_bytes - 4
    if chunk.n_bytes >= 1 << 62 or _is_unclosed(file, start, max(0, declared), _CAF):
        return Layout(True, {chunk.start - 8: (rest + 4).to_bytes(8, "big")})
    return _compared(file, start, declared, _CAF)


def _au(file: BytesFile) -> Layout:
    start, declared = struct.unpack(">II", file.peek(4, 8).ljust(8, b"\0"))
    rest = file.size - start
    if declared == 0 and rest > 0:
        return Layout(True, {8: b"\xff\xff\xff\xff"})
    if declared == 0xFFFFFFFF or rest <= 0:
        return Layout(True)
    ratio = declared / rest if declared > rest else None
    return Layout(True, declared_ratio=ratio, n_bytes_behind=max(0, rest - declared))


def _voc(file: BytesFile) -> Layout:
    """Walk the blocks of a VOC: the last must end where the file does, or before it."""
    at = int.from_bytes(file.peek(20, 2), "little")
    for _ in range(_MAX_CHUNKS):
        head = file.peek(at, 4)
        if len(head) < 4 or head[0] == 0:
            break
        at += 4 + int.from_bytes(head[1:], "little")
    return Layout(n_bytes_missing=max(0, at - file.size))


def _transport_prefix(file: BytesFile) -> int | None:
    """Return the bytes before each packet of an MPEG transport stream (4 in m2ts); None: no TS."""
    for n_prefix in (0, 4):
        n_packet = n_prefix + _TS_BYTES
        if all(file.peek(n_prefix + n * n_packet, 1) == b"G" for n in range(4)):
            return n_prefix
    return None


def _transport_stream(file: BytesFile, n_prefix: int) -> Layout:
    """Check that the last packet of a transport stream is whole, and so its last audio unit."""
    n_packet = n_prefix + _TS_BYTES
    n_rest = file.size % n_packet
    n_missing = n_packet - n_rest if n_rest else 0
    last = file.size - n_rest
    left: dict[int, int] = {}  # bytes of the audio unit of each track that are still to come
    for at in range(max(0, last - _TS_TAIL_PACKETS * n_packet), last, n_packet):
        packet = file.peek(at + n_prefix, _TS_BYTES)
        track = int.from_bytes(packet[1:3], "big") & 0x1FFF
        payload = packet[5 + packet[4] :] if packet[3] & 0x20 else packet[4:]
        if not packet[3] & 0x10:
            continue
        if packet[1] & 0x40:  # a unit begins
            is_audio = payload[:3] == b"\0\0\1" and (payload[3:4] in _TS_AUDIO)
            n_unit = int.from_bytes(payload[4:6], "big") if is_audio else 0
            left[track] = 6 + n_unit if n_unit else 0  # 0: of any length
        if track in left:
            left[track] -= len(payload)
    return Layout(n_bytes_missing=max([n_missing, *left.values()]))


def _mp4(file: BytesFile) -> Layout:
    """Walk the boxes of an mp4, m4a or mov: the last must end where the file does."""
    at = 0
    for _ in range(_MAX_CHUNKS):
        head = file.peek(at, 16)
        if len(head) < 8 or not _printable(head[4:8]):
            break
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        if size < 8:  # 0: to the end of the file
            break
        at += size
    return Layout(n_bytes_missing=max(0, at - file.size))


def _matroska(file: BytesFile) -> Layout:
    """Compare the one segment of a mkv or webm, which follows its header, with the file."""
    at = 4
    for _ in range(2):
        first = file.peek(at, 8)
        n_size = 9 - first[0].bit_length() if first and first[0] else 9
        if n_size > 8 or len(first) < n_size:
            return Layout()
        size = int.from_bytes(first[:n_size], "big") & ((1 << 7 * n_size) - 1)
        end = at + n_size + size
        if size == (1 << 7 * n_size) - 1:  # a live stream does not know
            return Layout()
        if at > 4:
            return Layout(n_bytes_missing=max(0, end - file.size))
        if file.peek(end, 4) != b"\x18\x53\x80\x67":
            return Layout()
        at = end + 4
    return Layout()


def _compared(file: BytesFile, start: int, declared: int, form: _Form) -> Layout:
    """Return the layout of samples that begin at `start`, of a length that the header says."""
    rest = file.size - start
    if declared > rest:
        ratio = declared / rest if rest > 0 else None
        return Layout(True, declared_ratio=ratio)
    behind = start + declared
    is_clean = _are_chunks(file, behind, form) or is_metadata(file, behind)
    return Layout(True, n_bytes_behind=0 if is_clean else file.size - behind)


def _is_unknown_32(n_bytes: int) -> bool:
    first, last, from_here = _UNKNOWN_32
    return first <= n_bytes <= last or n_bytes >= from_here


def _is_unclosed(file: BytesFile, start: int, declared: int, form: _Form) -> bool:
    """Return whether a length of 0 was never filled in: what follows are no other chunks."""
    return declared == 0 and start < file.size and not _are_chunks(file, start, form)


def _are_chunks(file: BytesFile, at: int, form: _Form) -> bool:
    """Return whether nothing but whole chunks follows."""
    for place in {at, -(-at // form.align) * form.align}:  # some writers do not fill up
        end = place
        for chunk in _chunks(file, place, form):
            end = chunk.start + chunk.n_bytes
        if end >= file.size - 1 and end <= file.size + form.align:
            return True
    return False


def _chunks(file: BytesFile, at: int, form: _Form) -> Iterator[_Chunk]:
    """Yield the chunks from `at` on, up to the first that is not valid."""
    for _ in range(_MAX_CHUNKS):
        head = file.peek(at, form.n_header)
        if len(head) < form.n_header:
            return
        name, n_bytes = form.parse(head)
        if not form.is_name(name):
            return
        chunk = _Chunk(name, at + form.n_header, n_bytes)
        yield chunk
        at = -(-(chunk.start + max(0, n_bytes)) // form.align) * form.align


def _ogg(file: BytesFile) -> Layout:
    """Walk the pages of an Ogg file: their checksums show where something is missing."""
    layout = Layout()
    rate, time_s, at, has_data = 0, 0.0, 0, False
    while at < file.size:
        page = _ogg_page(file, at)
        if page is None:
            following = _next_page(file, at + 1)
            if following < file.size:
                layout.damage.append(f"damaged at {time_s:.2f} s")
            elif not is_metadata(file, at):
                layout.damage.append(f"its end is missing: it is cut off at {time_s:.2f} s")
            at = following
            continue
        begins = bool(page[5] & 2)
        layout.is_chained |= begins and has_data
        has_data |= not begins
        if begins and not rate:
            rate = _ogg_rate(page[27 + page[26] :])
        granule = int.from_bytes(page[6:14], "little", signed=True)
        if granule > 0 and rate and not layout.is_chained:
            time_s = granule / rate
        at += len(page)
    return layout


def _ogg_page(file: BytesFile, at: int) -> bytes | None:
    """Return a page, or None if none begins there that is whole and as it was written."""
    head = file.peek(at, 27 + 255)
    if len(head) < 27 or not head.startswith(b"OggS"):
        return None
    n_header = 27 + head[26]
    n_page = n_header + sum(head[27:n_header])
    page = file.peek(at, n_page)
    return page if len(page) == n_page and _ogg_sum(page) == page[22:26] else None


def _ogg_sum(page: bytes) -> bytes:
    """Return the checksum of a page: that of zlib, but with bits in the other direction."""
    mirrored = (page[:22] + bytes(4) + page[26:]).translate(_MIRRORED)
    total = zlib.crc32(mirrored, 0xFFFFFFFF) ^ 0xFFFFFFFF
    return total.to_bytes(4, "big").translate(_MIRRORED)


def _next_page(file: BytesFile, at: int) -> int:
    while at < file.size:
        part = file.peek(at, 1 << 16)
        found = part.find(b"OggS")
        if found >= 0:
            return at + found
        at += max(1, len(part) - 3)
    return file.size


def _ogg_rate(packet: bytes) -> int:
    """Return how many units of an Ogg position make a second, 0 if unknown."""
    if packet.startswith(b"OpusHead"):
        return 48_000
    if packet.startswith(b"\x01vorbis"):
        return int.from_bytes(packet[12:16], "little")
    if packet.startswith(b"Speex   "):
        return int.from_bytes(packet[36:40], "little")
    if packet.startswith(b"\x7fFLAC"):
        return int.from_bytes(packet[27:30], "big") >> 4
    return 0


def recordings_in(folder: Path) -> list[Path]:
    """Return the recordings in a folder and its sub-folders, by name.

    What has the suffix of a recording is among them, also where it cannot be read, and what begins
    like one: the reader says what is wrong with it. Hidden files and folders are left out.
    Symbolic links are followed, each folder once.
    """
    return sorted(_walk(folder, set()))


def is_recording(path: Path) -> bool:
    """Return whether a file has the suffix of a recording, or begins like one."""
    if path.suffix.lower() in RECORDING_SUFFIXES:
        return True
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return _begins_like_recording(file.read(16))
    except OSError:
        return False


def _walk(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    try:
        where = folder.stat()
        entries = sorted(folder.iterdir())
    except OSError:
        yield folder  # the reader says why it cannot be read
        return
    if (where.st_dev, where.st_ino) in seen:
        return
    seen.add((where.st_dev, where.st_ino))
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(entry, seen)
        elif is_recording(entry):
            yield entry


def _begins_like_recording(head: bytes) -> bool:
    if head[:4] in (b"fLaC", b"OggS", b"caff", b".snd", b"wvpk", b"MAC ", b"\x1aE\xdf\xa3"):
        return True
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64"):
        return head[8:12] in (b"WAVE", b"AVI ")
    if head[:4] == b"FORM":
        return head[8:12] in (b"AIFF", b"AIFC")
    if head[:3] == b"ID3" or head[4:8] == b"ftyp" or head[:4] == b"riff":
        return head[8:12] not in (b"heic", b"avif", b"mif1", b"crx ")  # pictures in such a box
    is_layer_3 = len(head) > 2 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2
    return is_layer_3 and head[1] & 0x18 != 0x08 and 0x10 <= head[2] < 0xF0
