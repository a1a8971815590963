"""What a fine-tuned checkpoint says of kept classes that nothing was held out for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ast_stream.model.checkpoint import Checkpoint
from ast_stream.model.metadata import Metadata
from ast_stream.soundscape.soundbank import Soundbank

BY_LABEL = (
    "onset_thresholds",
    "confirm_s",
    "smoothing_s",
    "onset_fits",
    "rise_on_s",
    "rise_off_s",
    "rise_on_spread_s",
    "rise_off_spread_s",
    "score_maps",
)


def inherited(start: Checkpoint | None, labels: Sequence[str], held: Soundbank) -> Metadata:
    """Return what the start says of those of `labels` that have no held-out examples."""
    if start is None:
        return Metadata()
    measured = {held.labels[index] for sound in held.foregrounds for index in sound.classes}
    kept = [label for label in labels if label in start.labels and label not in measured]
    facts: dict[str, Any] = {name: _of(start.metadata, name, kept) for name in BY_LABEL}
    facts["default_onset_threshold"] = start.metadata.default_onset_threshold
    facts["background"] = [one for one in start.metadata.background if one in labels]
    return Metadata().model_copy(update=facts)


def _of(metadata: Metadata, name: str, labels: Sequence[str]) -> dict[str, Any]:
    return {label: value for label, value in getattr(metadata, name).items() if label in labels}
