"""A strip as files that people can listen to and other tools can read."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import soundfile

from ast_stream.errors import AstStreamError
from ast_stream.model.metadata import write_json
from ast_stream.soundscape.streams import Strip
from ast_stream.units import SAMPLE_RATE

TRUTH_COLUMNS = ("filename", "onset", "offset", "event_label")  # as DCASE's tools read it


def write_strip(folder: Path, name: str, strip: Strip, settings: Mapping[str, Any]) -> None:
    """Write `name`.wav, its ground truth `name`.tsv (seconds), and `name`.json: what was laid.

    Args:
        folder: made where it is missing.
        settings: goes into the JSON: seed and ranges that made the strip.

    Raises:
        AstStreamError: the folder or a file cannot be written.
    """
    path = wav = folder / f"{name}.wav"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(wav, strip.pcm, SAMPLE_RATE, subtype="PCM_16")
        path = folder / f"{name}.tsv"
        _write_truth(path, wav.name, strip)
        path = folder / f"{name}.json"
        description = {
            "settings": dict(settings),
            "duration_s": strip.duration_s,
            "sounds": [asdict(sound) for sound in strip.truth],
            "background": [asdict(part) for part in strip.bed],
        }
        write_json(path, description)
    except (OSError, soundfile.SoundFileError) as error:
        raise AstStreamError(f"{path}: cannot be written: {error}") from error


def _write_truth(path: Path, wav: str, strip: Strip) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, delimiter="\t", lineterminator="\n")
        rows.writerow(TRUTH_COLUMNS)
        for sound in strip.truth:
            rows.writerow([wav, f"{sound.onset_s:.4f}", f"{sound.offset_s:.4f}", sound.label])
