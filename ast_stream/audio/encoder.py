"""Samples as the bytes of a file, made in memory."""

from __future__ import annotations

import os
from collections.abc import Mapping

import soundfile

from ast_stream.messages.audio import Pcm16
from ast_stream.units import SAMPLE_RATE


def encode_pcm(
    pcm: Pcm16, container: str, subtype: str, tags: Mapping[str, str] | None = None
) -> bytes:
    """Return a file of one channel at `SAMPLE_RATE`.

    libsndfile writes to a descriptor. For an object of Python, soundfile would make machine code
    at run time (a callback of cffi), which services that run with MemoryDenyWriteExecute may not.

    Args:
        pcm: int16 (n_samples,).
        container, subtype: as soundfile names them.
        tags: text by the names that libsndfile has for it, such as title.
    """
    descriptor = os.memfd_create("encoded", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "r+b") as content:
        with soundfile.SoundFile(
            descriptor, "w", SAMPLE_RATE, 1, subtype=subtype, format=container, closefd=False
        ) as file:
            for name, text in (tags or {}).items():
                setattr(file, name, text)
            file.write(pcm)
        content.seek(0)
        return content.read()
