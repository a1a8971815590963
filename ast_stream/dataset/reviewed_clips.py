"""Reviewed clips, as `ast-stream review export` writes them, beside other labelled recordings."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

from ast_stream.dataset.annotations import LabelledClip, refusal
from ast_stream.dataset.tables import Columns, read_table

TABLE = "clips.csv"
EVENT = "event"  # column: id of the event that a clip is of
TRAINED_ON = "verdicts"  # key of a checkpoint's provenance
GROUP = "group"  # column: what stays on one side of a split


def read_reviewed(folder: Path, known_labels: Collection[str]) -> list[LabelledClip]:
    """Return the clips of a folder: confirmed examples with their labels, all others with none.

    What is a class only for the person who wrote its label is a sound that must not be named.

    Raises:
        ConfigError: it is not such a folder, or its table cannot be understood.
    """
    table = folder / TABLE
    if not table.is_file():
        raise refusal(folder, f"expected a folder with {TABLE} of 'ast-stream review export'")
    clips = read_table(table, Columns())
    if not clips:
        raise refusal(table, "expected reviewed clips, got none")
    return [
        replace(clip, labels=tuple(label for label in clip.labels if label in known_labels))
        for clip in clips
    ]


def event_digest(clip: LabelledClip) -> str | None:
    """Return what stands for the reviewed event of a clip in a provenance; None: it is of none."""
    event_id = clip.row.get(EVENT)
    return hashlib.sha256(event_id.encode()).hexdigest()[:12] if event_id else None


def event_digests(clips: Iterable[LabelledClip]) -> list[str]:
    """Return the digests of all reviewed events among clips, sorted."""
    return sorted({digest for digest in map(event_digest, clips) if digest is not None})
