"""Soundscapes with made-up scores and events, for figures that are worked out by hand."""

from __future__ import annotations

import numpy as np

from ast_stream.detect.parameters import DecisionParameters, ModelFacts, resolve_parameters
from ast_stream.evaluation.scoring import ScoredSoundscape, SoundscapeTruth
from ast_stream.messages.event import EndReason, Event, EventType
from ast_stream.settings.detection import DetectionSettings
from ast_stream.soundscape.mixing import ReferenceEvent
from ast_stream.units import seconds_to_samples

WINDOW_S, HOP_S = 2.56, 0.5
LABELS = ("Bark", "Siren")
HIGH, LOW = 0.9, 0.1


def reference(label: str, onset_s: float, offset_s: float, clip: str = "") -> ReferenceEvent:
    return ReferenceEvent(label, "generated", onset_s, offset_s, -20.0, 12.0, clip)


def event(
    kind: EventType, label: str, onset_s: float, at_s: float, end_s: float = 0.0, peak: float = 0.9
) -> Event:
    reason: EndReason | None = "quiet" if kind == "end" else None
    return Event(
        type=kind,
        id=f"{label}-{onset_s}",
        stream="soundscape",
        epoch="evaluation",
        index=LABELS.index(label),
        label=label,
        score=0.9,
        peak=peak,
        mean=None,
        onset_sample=seconds_to_samples(onset_s),
        offset_sample=seconds_to_samples(end_s) if kind == "end" else None,
        uncertainty_s=0.2,
        at_sample=seconds_to_samples(at_s),
        reason=reason,
    )


def begin_and_end(
    label: str, onset_s: float, end_s: float, known_s: float, ended_s: float, peak: float = 0.9
) -> list[Event]:
    return [
        event("begin", label, onset_s, known_s, peak=peak),
        event("end", label, onset_s, ended_s, end_s, peak),
    ]


def parameters(rise_s: float = 0.6) -> DecisionParameters:
    """What a checkpoint with threshold 0.5 and these rise times is decided by."""
    n = len(LABELS)
    facts = ModelFacts(
        LABELS, WINDOW_S, [0.5] * n, [rise_s] * n, [rise_s] * n, [0.1] * n, [0.75] * n
    )
    return resolve_parameters(DetectionSettings(), facts, HOP_S)


def ideal_soundscape(
    truth: list[ReferenceEvent],
    rise_s: float = 0.6,
    duration_s: float = 60.0,
    events: list[Event] | None = None,
) -> ScoredSoundscape:
    """Scores of an ideal model: high while a window holds `rise_s` of a sound, else low."""
    times = np.arange(HOP_S, duration_s + HOP_S / 2, HOP_S)
    scores = np.full((len(times), len(LABELS)), LOW, np.float32)
    for sound in truth:
        held = np.minimum(times, sound.offset_s) - np.maximum(times - WINDOW_S, sound.onset_s)
        scores[held >= rise_s, LABELS.index(sound.label)] = HIGH
    return ScoredSoundscape(
        SoundscapeTruth(duration_s, truth), times, scores, events or [], parameters(rise_s)
    )
