"""How late the detector tells of sounds: what rules reckon with, against the decision stage."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rule_bodies import at, engine_of, event, news, rules_from
from tiny_model import TINY_DIMS, tiny_checkpoint

from ast_stream.alerts.model_facts import (
    CheckpointFacts,
    DetectionTiming,
    decision_parameters,
    detection_timing,
    detector_facts,
    model_facts,
)
from ast_stream.alerts.rule_files import RuleFiles, RulesInForce, configured_timing
from ast_stream.detect.decision import Decision, SlotNames
from ast_stream.errors import ConfigError
from ast_stream.labels import slug
from ast_stream.messages.event import Event
from ast_stream.model.checkpoint import save_checkpoint
from ast_stream.model.metadata import FrameDecisions, Metadata, StoredOnsetFit
from ast_stream.settings.detection import DEFAULT_CONFIRM_S, DetectionSettings
from ast_stream.settings.load import load_file
from ast_stream.settings.model import ModelSettings
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE

DURATION_S = 500.0
CHANGES_PER_S = 0.3  # sounds that begin or end, of each class
SETTINGS: list[dict[str, Any]] = [
    {},
    {"defaults": {"confirm_s": 2.0, "hold_s": 0.3}},
    {"defaults": {"confirm_s": 0.0, "hold_s": 3.1}},
    {"defaults": {"min_duration_s": 1.2, "hold_s": 1.0}},
    {"defaults": {"max_duration_s": 5.0}, "classes": {"Siren": {"hold_s": 5.0, "confirm_s": 3.0}}},
]


ONE_SAMPLE_NS = NS_PER_SECOND // SAMPLE_RATE
WINDOW_S = 2.56
LABELS = ("Bark", "Siren", "Speech", "Knock", "Cough", "Snoring")
MEASURED = Metadata(
    window_s=WINDOW_S,
    hop_s=0.5,
    rise_on_s={"Bark": 0.31, "Siren": 0.9, "Speech": 0.44, "Knock": 0.21, "Cough": 0.36},
    rise_off_s={"Bark": 0.27, "Siren": 0.7, "Speech": 0.5, "Knock": 0.11, "Cough": -0.2},
    onset_fits={
        "Siren": StoredOnsetFit(
            rise_s=0.9, before_s=0.1, first_s=-0.1, lowest_s=0.4, highest_s=1.3, within_s=0.2
        )
    },
    confirm_s={"Bark": 0.75, "Siren": 2.0, "Speech": 1.0, "Knock": 0.3, "Cough": 0.5},
    smoothing_s={"Speech": 0.5},
)
FRAMES = FrameDecisions(confirm_s={"Bark": 0.3, "Siren": 2.0, "Speech": 0.5}, delay_s=0.32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that decides by windows, and of which much was measured; Snoring was not."""
    folder = tmp_path_factory.mktemp("measured")
    tiny = tiny_checkpoint(dims=replace(TINY_DIMS, n_classes=len(LABELS), max_frames=256))
    save_checkpoint(folder, replace(tiny, labels=list(LABELS), metadata=MEASURED))
    return folder


@pytest.fixture(scope="module")
def known(checkpoint: Path) -> CheckpointFacts:
    return model_facts(ModelSettings(checkpoint=str(checkpoint)))


def by_frames(known: CheckpointFacts) -> CheckpointFacts:
    """Return the facts as they are if the checkpoint has a frame head."""
    metadata = known.metadata.model_copy(update={"frames": FRAMES})
    return replace(known, metadata=metadata, frame_s=0.16)


def events_of(known: CheckpointFacts, detection: DetectionSettings, hop_s: float) -> list[Event]:
    """Return what the decision stage makes of sounds that come and go, seen by random scores."""
    parameters = decision_parameters(known, detection, hop_s)
    names = SlotNames(1)
    slot = names.add("porch", "e" * 32)
    decision = Decision(parameters, names)
    random = np.random.default_rng(3)
    hop, n_classes = parameters.geometry.hop, len(parameters.labels)
    is_loud = np.zeros(n_classes, bool)
    found = []
    for number in range(1, round(DURATION_S * SAMPLE_RATE / hop)):
        is_loud ^= random.random(n_classes) < CHANGES_PER_S * hop / SAMPLE_RATE
        scores = np.clip(is_loud * 0.95 + random.normal(0, 0.15, n_classes), 0, 1)
        found += decision.step(
            np.array([slot]),
            np.array([number * hop]),
            scores[None].astype(np.float32),
            context_starts=np.array([0]),
            first_scored=np.array([-1]),
            audio_ends=np.array([number * hop]),
        )
    return found


@pytest.mark.slow
@pytest.mark.parametrize("hop_s", [0.25, 0.5])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("has_frames", [False, True], ids=["windows", "frames"])
def test_no_begin_or_end_is_published_later_than_rules_expect(
    known: CheckpointFacts, has_frames: bool, settings: dict[str, Any], hop_s: float
) -> None:
    known = by_frames(known) if has_frames else known
    detection = DetectionSettings.model_validate(settings)
    timing = detection_timing(decision_parameters(known, detection, hop_s))
    found = events_of(known, detection, hop_s)
    latest: dict[tuple[str, str], int] = {}
    for message in found:
        sample = message.onset_sample if message.type == "begin" else message.offset_sample
        if sample is not None and message.reason in (None, "quiet"):
            key = (message.type, message.slug)
            latest[key] = max(latest.get(key, 0), message.at_sample - sample)
    assert len([event for event in found if event.type == "end"]) > 100
    for (kind, name), samples in latest.items():
        bound_ns = timing.classes[name][0 if kind == "begin" else 1]
        late_ns = samples * NS_PER_SECOND // SAMPLE_RATE
        assert late_ns <= bound_ns, (kind, name)
        # and the bound is not just large: what is waited for in vain delays alerts
        if kind == "end":
            assert late_ns > bound_ns - 3 * hop_s * NS_PER_SECOND, (kind, name)


def latency_of(label: str, confirm_s: float | None = None) -> float:
    """Seconds from onset to begin: the longest rise, half a hop of 0.5 s, and confirmation."""
    fit = MEASURED.onset_fits.get(label)
    rise_s = max(MEASURED.rise(label, WINDOW_S).on_s, fit.highest_s if fit else 0)
    measured_s = MEASURED.confirm_s.get(label, DEFAULT_CONFIRM_S)
    hops = -(-(measured_s if confirm_s is None else confirm_s) // 0.5)
    return rise_s + 0.25 + 0.5 * hops


def test_what_was_measured_of_the_checkpoint_is_used(known: CheckpointFacts) -> None:
    timing = detection_timing(decision_parameters(known, DetectionSettings(), 0.5))
    for label in LABELS:
        assert timing.classes[slug(label)][0] == pytest.approx(
            latency_of(label) * NS_PER_SECOND, abs=ONE_SAMPLE_NS
        )
    assert timing.classes["siren"][0] == timing.latency_ns
    assert timing.of_classes(["bark", "siren"]).latency_ns == timing.latency_ns
    assert timing.of_classes(["bark"]).smear_ns == timing.classes["bark"][1]
    assert timing.of_classes(["bark", "unheard"]) == timing.of_classes(None)


def test_class_that_is_switched_off_makes_nothing_wait(known: CheckpointFacts) -> None:
    detection = DetectionSettings.model_validate({"classes": {"Siren": {"enabled": False}}})
    timing = detection_timing(decision_parameters(known, detection, 0.5))
    slowest_s = max(latency_of(label) for label in LABELS if label != "Siren")
    assert slowest_s < latency_of("Siren")
    assert timing.latency_ns == pytest.approx(slowest_s * NS_PER_SECOND, abs=ONE_SAMPLE_NS)


def test_settings_of_a_checkpoint_that_is_elsewhere_count_all_the_same() -> None:
    unread = model_facts(ModelSettings(checkpoint="someone/ast-model"))
    given = {"defaults": {"hold_s": 1.0}, "classes": {"Bark": {"hold_s": 9.0}}}
    parameters = decision_parameters(unread, DetectionSettings.model_validate(given), 0.5)
    timing = detection_timing(parameters)
    assert set(timing.classes) == {"bark"}
    # window less rise, half a hop, and the hold
    assert timing.smear_ns == timing.classes["bark"][1] == 18_990_000_000


def test_lints_know_what_the_detector_distinguishes_for_each_class(known: CheckpointFacts) -> None:
    given = {"classes": {"Bark": {"hold_s": 2.0, "refractory_s": 1.0}}}
    detection = DetectionSettings.model_validate(given)
    facts = detector_facts(decision_parameters(known, detection, 0.5))
    off = MEASURED.rise_off_s
    assert facts.apart_s["bark"] == pytest.approx(WINDOW_S - off["Bark"] + 2.0 + 1.0, abs=0.011)
    assert facts.apart_s["siren"] == pytest.approx(WINDOW_S - off["Siren"] + 0.75, abs=0.011)
    assert facts.shortest_s["siren"] == pytest.approx(MEASURED.rise_on_s["Siren"], abs=0.011)
    assert (facts.window_s, facts.hop_s, facts.longest_s["bark"]) == (WINDOW_S, 0.5, 600.0)


def test_reload_with_another_timing_moves_what_is_pending() -> None:
    rules = rules_from("alert: long, match: {class: Bark}, for: 10s")
    engine = engine_of(rules, DetectionTiming(0, 5 * NS_PER_SECOND))
    engine.on_message("event/", event("begin", "a", "Bark", 0, 0))
    assert engine.replace_rules(rules, DetectionTiming(0, 2 * NS_PER_SECOND)) == []
    assert news(engine.advance(at(13))) == [(12.0, "long", "firing")]


class _Loop:
    """Notes what is put in force."""

    def __init__(self) -> None:
        self.timings: list[DetectionTiming] = []

    def replace_rules(self, rules: object, timing: DetectionTiming) -> None:
        self.timings.append(timing)


def in_force(
    folder: Path, checkpoint: Path, detection: dict[str, Any]
) -> tuple[RulesInForce, _Loop]:
    write(folder, checkpoint, detection)
    rule = {"alert": "a", "match": {"class": "Bark"}, "for": "10s"}
    content = {"groups": [{"name": "g", "rules": [rule]}]}
    (folder / "rules.yaml").write_text(json.dumps(content))
    loaded, loop = load_file(folder / "config.yaml"), _Loop()
    files = RuleFiles(loaded)
    rules = RulesInForce(
        loaded.settings,
        files,
        files.load(),
        configured_timing(loaded),
        loop,  # type: ignore[arg-type]
        [],
    )
    return rules, loop


def write(folder: Path, checkpoint: Path, detection: dict[str, Any], **model: Any) -> None:
    config = {
        "streams": [{"name": "porch", "source": {"type": "stdin"}}],
        "alerts": {"rules": ["rules.yaml"]},
        "detection": detection,
        "model": {"checkpoint": str(checkpoint)} | model,
    }
    (folder / "config.yaml").write_text(json.dumps(config))


def test_detection_settings_that_are_read_again_change_the_timing_of_rules(
    tmp_path: Path, checkpoint: Path
) -> None:
    rules, loop = in_force(tmp_path, checkpoint, {})
    write(tmp_path, checkpoint, {"defaults": {"confirm_s": 3.0, "hold_s": 4.0}})
    rules.apply(load_file(tmp_path / "config.yaml"))
    (timing,) = loop.timings
    assert timing.of_classes(["bark"]) == configured_timing(
        load_file(tmp_path / "config.yaml")
    ).of_classes(["bark"])
    assert timing.classes["bark"][0] == pytest.approx(
        latency_of("Bark", 3.0) * NS_PER_SECOND, abs=ONE_SAMPLE_NS
    )
    # another hop needs a restart of the worker: until then the old one holds
    write(tmp_path, checkpoint, {}, hop_s=1.0)
    rules.apply(load_file(tmp_path / "config.yaml"))
    assert loop.timings[1].classes["bark"][0] == pytest.approx(
        latency_of("Bark") * NS_PER_SECOND, abs=ONE_SAMPLE_NS
    )


def test_detection_settings_that_the_model_cannot_fulfil_change_nothing(
    tmp_path: Path, checkpoint: Path
) -> None:
    rules, loop = in_force(tmp_path, checkpoint, {})
    write(tmp_path, checkpoint, {"classes": {"Barc": {"hold_s": 4.0}}})
    with pytest.raises(ConfigError, match="unknown class 'Barc'; did you mean 'Bark'"):
        rules.apply(load_file(tmp_path / "config.yaml"))
    assert loop.timings == []
    assert len(rules) == 1
