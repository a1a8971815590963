"""From what a checkpoint says of itself to what the decision stage must know; needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

from ast_stream.detect.onset_fits import OnsetFit
from ast_stream.detect.parameters import ModelFacts
from ast_stream.model.metadata import Metadata
from ast_stream.settings.schema import DEFAULT_CONFIRM_S


def model_facts(labels: Sequence[str], window_s: float, metadata: Metadata) -> ModelFacts:
    """Return what the decision stage must know of a checkpoint."""
    rises = [metadata.rise(label, window_s) for label in labels]
    return ModelFacts(
        labels=labels,
        window_s=window_s,
        onset_thresholds=[metadata.onset_threshold(label) for label in labels],
        rise_on_s=[rise.on_s for rise in rises],
        rise_off_s=[rise.off_s for rise in rises],
        rise_on_spread_s=[rise.on_spread_s for rise in rises],
        confirm_s=[metadata.confirm_s.get(label, DEFAULT_CONFIRM_S) for label in labels],
        smoothing_s=[metadata.smoothing_s.get(label, 0.0) for label in labels],
        onset_fits=(
            [_fit(metadata, label) for label in labels]
            if metadata.window_s in (None, window_s)
            else ()
        ),
        fitted_hop_s=metadata.hop_s,
        background=metadata.background,
    )


def _fit(metadata: Metadata, label: str) -> OnsetFit | None:
    stored = metadata.onset_fits.get(label)
    return None if stored is None else OnsetFit(**stored.model_dump())
