"""All figures of one evaluation: clips, streams with sounds, alarms in noise, negative audio."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

import numpy as np

from ast_stream.evaluation.clip_figures import ClipReport, clip_report, names_right
from ast_stream.evaluation.intervals import Interval, bootstrap_ratio
from ast_stream.evaluation.scoring import EvaluatedModel, MeasureSettings, ScoredMaterial
from ast_stream.evaluation.stream_figures import (
    FalseAlarms,
    Measured,
    SoundscapeReport,
    measure_streams,
    negatives_report,
)


@dataclass(frozen=True)
class ModelFigures:
    """One model, and how it names the clips that it was measured on.

    Attributes:
        folds: of those clips; empty where they have none.
        accuracy, mean_average_precision: None without clips.
    """

    name: str
    hash: str
    window_s: float
    hop_s: float
    folds: tuple[str, ...]
    n_clips: int
    accuracy: float | None
    mean_average_precision: float | None


@dataclass(frozen=True)
class ClipFigures:
    """How clips are named, each by a model that it was not trained on.

    Attributes:
        accuracy: of all clips together; interval over the clips.
        mean_accuracy, mean_average_precision: means over the models.
        pooled: accuracy by class, average precision and confusion over all clips together.
    """

    accuracy: Interval
    mean_accuracy: float
    mean_average_precision: float
    pooled: ClipReport


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All figures; None if there was no data for one.

    Attributes:
        alarms: generated alarms at one SNR.
        negatives, negatives_by_label: events of streams without any.
        negatives_by_expected: the same of streams that hold one class, of all the others.
    """

    labels: tuple[str, ...]
    models: tuple[ModelFigures, ...]
    clips: ClipFigures | None
    streams: Measured | None
    alarms: SoundscapeReport | None
    negatives: FalseAlarms | None
    negatives_by_label: dict[str, FalseAlarms]
    negatives_by_expected: dict[str, FalseAlarms]


def evaluate(
    subjects: Sequence[EvaluatedModel], material: ScoredMaterial, settings: MeasureSettings
) -> Evaluation:
    """Return the figures of a scored evaluation."""
    labels, seed = material.labels, settings.seed
    by_model = [
        clip_report(foregrounds, scores, labels)
        for foregrounds, scores in zip(material.clip_foregrounds, material.clip_scores, strict=True)
    ]
    reports = iter(by_model)
    models = tuple(
        _model_figures(subject, next(reports) if subject.foregrounds else None, settings)
        for subject in subjects
    )
    negatives, negatives_by_label = None, dict[str, FalseAlarms]()
    if material.negatives:
        negatives, negatives_by_label = negatives_report(material.negatives, labels)
    return Evaluation(
        labels=labels,
        models=models,
        clips=_clip_figures(material, by_model, seed) if by_model else None,
        streams=measure_streams(material.mixed, labels, seed) if material.mixed else None,
        alarms=measure_streams(material.alarms, labels, seed).report if material.alarms else None,
        negatives=negatives,
        negatives_by_label=negatives_by_label,
        negatives_by_expected=_by_expected(material, labels),
    )


def _by_expected(material: ScoredMaterial, labels: Sequence[str]) -> dict[str, FalseAlarms]:
    expected = {negative.expected_label for negative in material.negatives} - {None}
    return {
        label: negatives_report(
            [negative for negative in material.negatives if negative.expected_label == label],
            labels,
        )[0]
        for label in labels
        if label in expected
    }


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return the figures as JSON: NaN is null, infinity (never) is the string "inf"."""
    streams = None if evaluation.streams is None else evaluation.streams.report
    plain = {
        "labels": evaluation.labels,
        "models": evaluation.models,
        "clips": evaluation.clips,
        "streams": streams,
        "alarms": evaluation.alarms,
        "negatives": evaluation.negatives,
        "negatives_by_label": evaluation.negatives_by_label,
        "negatives_by_expected": evaluation.negatives_by_expected,
    }
    result: dict[str, Any] = jsonable(plain)
    return result


def jsonable(value: Any) -> Any:
    """Return dataclasses, arrays and mappings as JSON values."""
    if is_dataclass(value) and not isinstance(value, type):
        return {name: jsonable(field) for name, field in vars(value).items()}
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return jsonable(value.tolist())
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, float):
        return _finite(value)
    return value if isinstance(value, int | str | None) else str(value)


def _finite(value: float) -> float | str | None:
    if math.isnan(value):
        return None
    return "inf" if math.isinf(value) else round(value, 6)


def _clip_figures(
    material: ScoredMaterial, by_model: Sequence[ClipReport], seed: int
) -> ClipFigures:
    foregrounds = [foreground for part in material.clip_foregrounds for foreground in part]
    scores = np.concatenate(material.clip_scores)
    is_right = names_right(foregrounds, scores).tolist()
    names = [foreground.name or str(number) for number, foreground in enumerate(foregrounds)]
    return ClipFigures(
        accuracy=bootstrap_ratio(is_right, [1.0] * len(foregrounds), names, seed),
        mean_accuracy=float(np.mean([report.accuracy for report in by_model])),
        mean_average_precision=float(
            np.mean([report.mean_average_precision for report in by_model])
        ),
        pooled=clip_report(foregrounds, scores, material.labels),
    )


def _model_figures(
    subject: EvaluatedModel, clips: ClipReport | None, settings: MeasureSettings
) -> ModelFigures:
    tagger = subject.tagger
    return ModelFigures(
        name=tagger.checkpoint.origin,
        hash=tagger.hash,
        window_s=tagger.window_s,
        hop_s=settings.hop_s or tagger.hop_s,
        folds=subject.folds,
        n_clips=len(subject.foregrounds),
        accuracy=clips.accuracy if clips else None,
        mean_average_precision=clips.mean_average_precision if clips else None,
    )
