"""Facts about the detector that rules need: its classes, thresholds and delays; no torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ast_stream.detect.parameters import DecisionParameters, resolve_parameters
from ast_stream.detect.parameters import model_facts as checkpoint_facts
from ast_stream.errors import CheckpointError
from ast_stream.labels import problem_with_labels, slug
from ast_stream.model.audioset import with_audioset_defaults
from ast_stream.model.dims import default_window_s
from ast_stream.model.hf_config import CONFIG, Config, read_dims, read_labels
from ast_stream.model.metadata import Metadata, read_metadata
from ast_stream.settings.detection import DetectionSettings
from ast_stream.settings.model import ModelSettings
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE, samples_to_seconds, seconds_to_ns

UNKNOWN_WINDOW_S = 10.24
_BUNDLED = Path(__file__).parent.parent / "model" / "bundled"
_ANY_OTHER = "(any other class)"


@dataclass(frozen=True)
class DetectionTiming:
    """How late the detector reports sounds; rules reason about sounds, not about messages.

    Attributes:
        latency_ns: an event's begin arrives at most this long after its onset, once a window is
            full.
        smear_ns: while an event is open, its sound is only certain to have lasted until this long
            before now: a window of W still shows a sound that ended nearly W ago, and the end is
            published after the hold.
        classes: latency and smear by slug where they are known; other classes, and rules about
            any class, use the first two.
    """

    latency_ns: int = 0
    smear_ns: int = 0
    classes: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, window_s: float, hop_s: float, *, confirm_s: float = 0.75, hold_s: float = 0.75
    ) -> DetectionTiming:
        """Return the timing of windows of `window_s` every `hop_s`, with rises as unmeasured."""
        rise_s = min(0.5, window_s / 4)
        return cls(
            latency_ns=seconds_to_ns(rise_s + hop_s / 2 + confirm_s),
            smear_ns=seconds_to_ns(window_s - rise_s + hop_s + hold_s),
        )

    def of_classes(self, slugs: Iterable[str] | None) -> DetectionTiming:
        """Return the largest of some classes; None: any class."""
        found = [] if slugs is None else [self.classes.get(name) for name in slugs]
        known = [timing for timing in found if timing is not None]
        if not known or len(known) < len(found):
            return DetectionTiming(self.latency_ns, self.smear_ns)
        latencies, smears = zip(*known, strict=True)
        return DetectionTiming(max(latencies), max(smears))


@dataclass(frozen=True)
class CheckpointFacts:
    """What rules need to know of the checkpoint, read without torch.

    Attributes:
        labels: None where the checkpoint is no folder, as for hub ids: names cannot be checked.
        metadata: thresholds and rise times; empty where they are not known.
        frame_s: seconds from one frame to the next; None: windows decide.
    """

    labels: tuple[str, ...] | None
    window_s: float
    metadata: Metadata = field(default_factory=Metadata)
    frame_s: float | None = None


def model_facts(model: ModelSettings) -> CheckpointFacts:
    """Return labels, window and measurements of the configured checkpoint.

    Raises:
        CheckpointError: what is beside its weights cannot be used.
    """
    folder = _BUNDLED if model.checkpoint == "bundled" else Path(model.checkpoint).expanduser()
    if not (folder / CONFIG).exists():
        return CheckpointFacts(None, model.window_s or UNKNOWN_WINDOW_S)
    config = Config(folder / CONFIG)
    named = config.get("id2label") or config.get("label2id") or ()
    n_classes = len(named) if isinstance(named, Sized) else 0
    labels = read_labels(config, n_classes) if n_classes else None
    problem = problem_with_labels(labels or ())
    if problem is not None:
        raise CheckpointError(f"{config.path}: {problem}")
    dims = read_dims(config, max(1, n_classes))
    metadata = with_audioset_defaults(read_metadata(folder), labels or ())
    window_s = model.window_s or metadata.window_s or default_window_s(dims.max_frames)
    frame_s = None if metadata.frames is None else dims.time_patch_s
    return CheckpointFacts(None if labels is None else tuple(labels), window_s, metadata, frame_s)


@dataclass(frozen=True)
class DetectorFacts:
    """What the detector in use does; classes by slug.

    Attributes:
        thresholds: score at which an event may begin.
        without_events: classes that make no events: background, or switched off.
        apart_s: two sounds of the class whose onsets are closer than this become one event.
        shortest_s: no event is shorter.
        longest_s: longer sounds are cut into several events.
        without_watcher: classes of which no small model of a cascade says anything.
    """

    thresholds: Mapping[str, float]
    without_events: Collection[str]
    window_s: float
    hop_s: float
    apart_s: Mapping[str, float]
    shortest_s: Mapping[str, float]
    longest_s: Mapping[str, float]
    without_watcher: frozenset[str] = frozenset()

    def pause_s(self, name: str) -> float:
        """Return the shortest pause in a sound that is detected; a shorter one counts as sound."""
        return round(max(0.0, self.apart_s[name] - self.shortest_s[name]), 2)

    def known(self, slugs: Collection[str] | None) -> list[str]:
        """Return those of some classes that the detector has; None if no class is named."""
        return sorted(name for name in slugs or () if name in self.apart_s)


def decision_parameters(
    known: CheckpointFacts, detection: DetectionSettings, hop_s: float
) -> DecisionParameters:
    """Return the decision parameters of a checkpoint, as the worker has them.

    Where its classes are not known: of the classes that the settings name, and of one that stands
    for all others.

    Raises:
        UsageError: settings that this checkpoint cannot fulfil.
    """
    labels = known.labels or (*detection.classes, _ANY_OTHER)
    facts = checkpoint_facts(labels, known.window_s, known.metadata, known.frame_s)
    return resolve_parameters(detection, facts, hop_s)


def detection_timing(parameters: DecisionParameters) -> DetectionTiming:
    """Return how late the begin and the end of each class are published, at most.

    An onset is set half a hop and the rise before the first window that saw the sound, see
    `ast_stream.detect.boundaries`; the begin comes when the sound is confirmed and, where
    `min_duration_s` asks for it, long enough, which may be seen only after a pause. An offset is
    set as long before the first window that no longer sees it; the end comes after the hold.
    Frames, where these decide, wait for the window that decides them.
    """
    p, hop = parameters, parameters.geometry.hop
    wait = p.geometry.longest_wait
    click = np.maximum(0, p.geometry.window - p.rise_on - p.rise_off)  # seen of a mere click
    held = _whole_hops(p.hold, hop)
    long_enough = np.where(p.min_duration > 0, _whole_hops(click + p.min_duration, hop) + held, 0)
    latency = p.longest_rise + hop // 2 + np.maximum(p.confirm_hops * hop, long_enough) + wait
    smear = p.geometry.window - p.rise_off + hop // 2 + held + wait
    enabled = np.flatnonzero(p.is_enabled) if p.is_enabled.any() else np.arange(len(p.labels))
    return DetectionTiming(
        _samples_to_ns(int(latency[enabled].max())),
        _samples_to_ns(int(smear[enabled].max())),
        {
            slug(label): (_samples_to_ns(int(latency[n])), _samples_to_ns(int(smear[n])))
            for n, label in enumerate(p.labels)
            if label != _ANY_OTHER
        },
    )


def unwatched(model: ModelSettings, labels: Iterable[str]) -> frozenset[str]:
    """Return the slugs of those classes of which no small model of a cascade says anything.

    None of them where it is not known what the small model knows.

    Raises:
        CheckpointError: what is beside its weights cannot be used.
    """
    slugs = frozenset(map(slug, labels))
    if model.cascade is None:
        return slugs
    small = model_facts(ModelSettings(checkpoint=model.cascade.checkpoint)).labels
    return frozenset() if small is None else slugs - frozenset(map(slug, small))


def detector_facts(
    parameters: DecisionParameters, without_watcher: frozenset[str] = frozenset()
) -> DetectorFacts:
    """Return what lints need of the detector's settings.

    Args:
        without_watcher: as `DetectorFacts` has it.
    """
    p, slugs = parameters, [slug(label) for label in parameters.labels]
    # a sound is seen until the window holds less than rise_off of it, and its event is held on;
    # one that is shorter than rise_on is not seen, so these lie between onsets
    apart = p.geometry.window - p.rise_off + p.hold + p.refractory
    return DetectorFacts(
        thresholds={
            name: round(float(p.onset_threshold[index]), 4) for index, name in enumerate(slugs)
        },
        without_events=[name for index, name in enumerate(slugs) if not p.is_enabled[index]],
        window_s=samples_to_seconds(p.geometry.window),
        hop_s=samples_to_seconds(p.geometry.hop),
        apart_s=_by_class(slugs, apart),
        shortest_s=_by_class(slugs, np.maximum(p.rise_on, p.min_duration)),
        longest_s=_by_class(slugs, p.max_duration),
        without_watcher=without_watcher,
    )


def _by_class(slugs: Sequence[str], samples: npt.NDArray[np.int64]) -> dict[str, float]:
    """Return seconds by class, rounded down to 10 ms so that nothing is claimed too much."""
    return {
        name: math.floor(samples_to_seconds(int(value)) * 100 + 1e-6) / 100
        for name, value in zip(slugs, samples, strict=True)
    }


def _whole_hops(samples: npt.NDArray[np.int64], hop: int) -> npt.NDArray[np.int64]:
    return -(-samples // hop) * hop


def _samples_to_ns(samples: int) -> int:
    return samples * NS_PER_SECOND // SAMPLE_RATE
