"""Where the span of confirmation comes from: the class, the defaults, the checkpoint, in order."""

from __future__ import annotations

import pytest

from ast_stream.detect.parameters import DecisionParameters, model_facts, resolve_parameters
from ast_stream.errors import UsageError
from ast_stream.model.metadata import Metadata
from ast_stream.settings.detection import ClassSettings, DetectionDefaults, DetectionSettings

CHECKPOINT = Metadata(confirm_s={"Rain": 3.0})


def _parameters(settings: DetectionSettings, hop_s: float = 0.5) -> DecisionParameters:
    return resolve_parameters(settings, model_facts(["Rain", "Bark"], 2.56, CHECKPOINT), hop_s)


def test_a_class_is_confirmed_as_the_checkpoint_says() -> None:
    parameters = _parameters(DetectionSettings())
    assert parameters.confirm_hops.tolist() == [6, 2]
    assert parameters.confirm_hits.tolist() == [4, 2]


def test_settings_win_over_the_checkpoint() -> None:
    for_all = DetectionSettings(defaults=DetectionDefaults(confirm_s=1.0))
    assert _parameters(for_all).confirm_hops.tolist() == [2, 2]
    of_rain = DetectionSettings(classes={"rain": ClassSettings(confirm_s=0.5)})
    assert _parameters(of_rain).confirm_hops.tolist() == [1, 2]


def test_a_short_hop_shortens_the_confirmation_of_a_checkpoint_but_refuses_that_of_a_person() -> (
    None
):
    assert _parameters(DetectionSettings(), hop_s=0.04).confirm_hops.tolist() == [64, 19]
    asked = DetectionSettings(defaults=DetectionDefaults(confirm_s=3.0))
    with pytest.raises(UsageError, match=r"at most 2\.56 s at a hop of 0\.04 s, got 3"):
        _parameters(asked, hop_s=0.04)
