"""Measure whether events of one class at several microphones can be told to be one sound.

    python scripts/measure_merging.py CLIPS.csv [--store HEARD.json]

CLIPS.csv is what scripts/bundled_clips.py writes; the weights of the bundled checkpoint have not
seen its fold 4. Four microphones hear one scene. A sound that is shared reaches two to four of
them: each through a room of its own, later (50 ms for 17 m) and fainter the farther away it is,
over a background of its own. A lone sound reaches one. Each recording sounds once in every repeat
as a shared sound, and every second one as a lone sound, too; sounds of no class are among them.
Seconds without sound lie between, so that it is known which sound an event came from.

How often chance brings independent events together is not left to these streams, where nothing
else sounds meanwhile: events of shared and of lone sounds are put at random times of many hours,
as often as a table says, and merged as rules do.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ast_stream.alerts.triggers.same_sound import occurrences
from ast_stream.dataset.clips import load_recordings, read_data
from ast_stream.dataset.tables import Columns
from ast_stream.detect.detector import Detector, hops_of_recording
from ast_stream.evaluation.matching import Detection, detections, match
from ast_stream.evaluation.scoring import (
    FOREGROUNDS_PER_SOUNDSCAPE,
    SEED_BASE,
    SEEDS_APART,
    score_soundscape,
)
from ast_stream.model.tagger import Tagger, load_tagger
from ast_stream.settings.detection import ClassSettings, DetectionSettings
from ast_stream.soundscape.backgrounds import generated_backgrounds
from ast_stream.soundscape.mixing import MAX_FOREGROUND_S, ReferenceEvent, Soundscape, to_pcm
from ast_stream.soundscape.soundbank import Foreground, recorded_foregrounds
from ast_stream.soundscape.synthesis import ACTIVE_DBFS, Random, Signal, in_a_room
from ast_stream.units import samples_to_seconds, seconds_to_ns, seconds_to_samples

PAGE = Path("docs/design/merging.md")
BEGIN, END = "<!-- figures: scripts/measure_merging.py -->", "<!-- end of figures -->"
CLIPS = Path("runs/bundled/clips.csv")  # where scripts/train_bundled.sh puts it
MICROPHONES = 4
SPEED_M_S = 343.0
NEAREST_M = (2.0, 10.0)
MOST_LATER_S = 0.2
FAINTEST_DB = 0.0  # SNR of what still reaches a microphone
BACKGROUND_SPREAD_DB = 4.0
GAP_S = (4.0, 8.0)
LONE_RATIO = 0.5
SEED = 60  # of the scenes: none that anything else was chosen on
WITHIN_S = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
RATES = (1, 6, 30, 120, 600)  # lone sounds of a class, per microphone and hour
SHARED_RATE = 10  # shared sounds of a class per hour
CHANCE_HOURS = 2000.0
CHANCE_SOUNDS = 400_000
SHOWN = 8  # sounds of a class that has a row of its own, found at two microphones at least


@dataclass(frozen=True)
class Arrival:
    """How a sound reaches one microphone: seconds from the start, dBFS and dB."""

    onset_s: float
    level_dbfs: float
    snr_db: float


@dataclass(frozen=True)
class Sounded:
    """One sound of a scene.

    Attributes:
        arrivals: by the number of the microphone.
    """

    name: str
    labels: tuple[str, ...]
    duration_s: float
    arrivals: dict[int, Arrival]


@dataclass(frozen=True)
class HeardEvent:
    """One event of one microphone.

    Attributes:
        sound: number of the sound of its class that it found; None: it is false.
        beside: number of the sound, of whatever class, that it overlaps; None: only background.
    """

    microphone: int
    label: str
    onset_s: float
    offset_s: float
    peak: float
    known_s: float
    sound: int | None
    beside: int | None


@dataclass
class Scene:
    """What sounded, and what was heard."""

    ratio: float
    duration_s: float
    sounds: list[Sounded] = field(default_factory=list)
    events: list[HeardEvent] = field(default_factory=list)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Scene:
        """Return what `asdict` made of one."""
        sounds = [
            Sounded(
                one["name"],
                tuple(one["labels"]),
                one["duration_s"],
                {int(number): Arrival(**its) for number, its in one["arrivals"].items()},
            )
            for one in data["sounds"]
        ]
        events = [HeardEvent(**one) for one in data["events"]]
        return cls(data["ratio"], data["duration_s"], sounds, events)


def hear(options: argparse.Namespace) -> list[Scene]:
    """Return all scenes, heard by the detector."""
    torch.set_num_threads(options.threads)
    tagger = load_tagger(options.model, device="cpu", precision=options.precision)
    clips = [clip for clip in read_data(options.clips, Columns()) if clip.fold == options.fold]
    recordings = load_recordings(clips, tagger.labels, min_clips=1)
    foregrounds = recorded_foregrounds(recordings, tagger.labels)
    if options.most:
        foregrounds = foregrounds[:: max(1, len(foregrounds) // options.most)]
    rng = np.random.default_rng(SEED_BASE + SEEDS_APART * SEED + options.seed)
    found: list[Scene] = []
    for repeat in range(options.repeats):
        is_lone = np.arange(len(foregrounds)) % round(1 / LONE_RATIO) == repeat % 2
        turns = [(one, True) for one in foregrounds]
        turns += [(one, False) for one, lone in zip(foregrounds, is_lone, strict=True) if lone]
        order = [turns[int(number)] for number in rng.permutation(len(turns))]
        for start in range(0, len(order), FOREGROUNDS_PER_SOUNDSCAPE):
            part = order[start : start + FOREGROUNDS_PER_SOUNDSCAPE]
            found += _hear_part(rng, tagger, part, options.ratio)
            text = f"repeat {repeat}: {_hours(found):.2f} h, {len(found[-1].events)} events"
            print(text, file=sys.stderr, flush=True)
    return found


def _hours(scenes: Sequence[Scene]) -> float:
    return sum(scene.duration_s for scene in scenes) / 3600


def _hear_part(
    rng: Random, tagger: Tagger, turns: Sequence[tuple[Foreground, bool]], ratios: Sequence[float]
) -> list[Scene]:
    """Return one scene as it is heard with each ratio of the checkpoint's thresholds."""
    onset_s = rng.uniform(*GAP_S)
    sounds: list[Sounded] = []
    dry: list[Signal] = []
    for foreground, is_shared in turns:
        begin, end = foreground.active_span
        end = min(end, begin + seconds_to_samples(MAX_FOREGROUND_S))
        dry.append(foreground.waveform[begin:end].astype(np.float64) / max(foreground.rms, 1e-6))
        duration_s = samples_to_seconds(end - begin)
        arrivals = _shared(rng, onset_s) if is_shared else _lone(rng, onset_s)
        labels = tuple(tagger.labels[index] for index in dict.fromkeys(foreground.classes))
        sounds.append(Sounded(foreground.name, labels, duration_s, arrivals))
        onset_s += duration_s + rng.uniform(*GAP_S)
    scenes = [Scene(ratio, onset_s, sounds) for ratio in ratios]
    for microphone in range(MICROPHONES):
        pcm = to_pcm(_stream(rng, tagger.labels, microphone, sounds, dry, onset_s))
        for scene in scenes:
            scene.events += _events(tagger, scene.ratio, microphone, Soundscape(pcm, []), sounds)
    return scenes


def _shared(rng: Random, onset_s: float) -> dict[int, Arrival]:
    """Return how a sound reaches two to four microphones, at least one of them well."""
    level_dbfs, snr_db = rng.uniform(-35, -15), rng.uniform(6, 20)
    nearest_m = float(np.exp(rng.uniform(*np.log(NEAREST_M))))
    number = int(rng.integers(2, MICROPHONES + 1))
    chosen = [int(one) for one in rng.permutation(MICROPHONES)[:number]]
    arrivals = {chosen[0]: Arrival(onset_s, level_dbfs, snr_db)}
    for microphone in chosen[1:]:
        while True:
            later_s = rng.uniform(0, MOST_LATER_S)
            fainter_db = 20 * np.log10(1 + later_s * SPEED_M_S / nearest_m)
            own_db = snr_db - fainter_db + rng.uniform(-BACKGROUND_SPREAD_DB, BACKGROUND_SPREAD_DB)
            if own_db >= FAINTEST_DB:
                break
        arrivals[microphone] = Arrival(onset_s + later_s, level_dbfs - fainter_db, own_db)
    return arrivals


def _lone(rng: Random, onset_s: float) -> dict[int, Arrival]:
    arrival = Arrival(onset_s, rng.uniform(-35, -15), rng.uniform(6, 20))
    return {int(rng.integers(MICROPHONES)): arrival}


def _stream(
    rng: Random,
    labels: Sequence[str],
    microphone: int,
    sounds: Sequence[Sounded],
    dry: Sequence[Signal],
    duration_s: float,
) -> Signal:
    """Return what one microphone hears, shape (n_samples,)."""
    mix = np.zeros(seconds_to_samples(duration_s))
    seed = SEED_BASE + SEEDS_APART * SEED + int(rng.integers(SEEDS_APART))
    backgrounds = generated_backgrounds(seed, len(sounds), labels=labels)
    ends = [one.arrivals[min(one.arrivals)].onset_s + one.duration_s for one in sounds]
    starts = [0, *(seconds_to_samples(end_s + GAP_S[0] / 2) for end_s in ends[:-1])]
    stops = [*starts[1:], len(mix)]
    for one, signal, start, stop in zip(sounds, dry, starts, stops, strict=True):
        arrival = one.arrivals.get(microphone)
        below_dbfs = rng.uniform(-55, -30)
        if arrival is not None:
            below_dbfs = arrival.level_dbfs - arrival.snr_db
        background = np.resize(backgrounds[int(rng.integers(len(backgrounds)))], stop - start)
        mix[start:stop] += background * 10 ** ((below_dbfs - ACTIVE_DBFS) / 20)
        if arrival is not None:
            wet = in_a_room(rng, signal) * 10 ** (arrival.level_dbfs / 20)
            onset = seconds_to_samples(arrival.onset_s)
            wet = wet[: len(mix) - onset]
            mix[onset : onset + len(wet)] += wet
    return mix


def _events(
    tagger: Tagger,
    ratio: float,
    microphone: int,
    soundscape: Soundscape,
    sounds: Sequence[Sounded],
) -> Iterator[HeardEvent]:
    """Yield the events of one microphone."""
    scored = score_soundscape(
        lambda on_scores: Detector(
            tagger,
            _thresholds(tagger, ratio),
            max_streams=1,
            hops_at_once=hops_of_recording(tagger),
            on_scores=on_scores,
        ),
        soundscape,
    )
    here = [
        (number, _reference(one, one.arrivals[microphone]))
        for number, one in enumerate(sounds)
        if microphone in one.arrivals
    ]
    for label in sorted({event.label for event in scored.events}):
        of_class = [entry for entry in here if label in sounds[entry[0]].labels]
        for one in detections(scored, label):
            yield HeardEvent(
                microphone,
                label,
                round(one.onset_s, 4),
                round(one.offset_s, 4),
                round(one.confidence, 4),
                round(one.known_s, 4),
                sound=_found(of_class, one),
                beside=_found(here, one),
            )


def _reference(sound: Sounded, arrival: Arrival) -> ReferenceEvent:
    offset_s = arrival.onset_s + sound.duration_s
    return ReferenceEvent("", "", arrival.onset_s, offset_s, arrival.level_dbfs, arrival.snr_db)


def _found(sounds: Sequence[tuple[int, ReferenceEvent]], one: Detection) -> int | None:
    """Return the number of the first sound that a detection finds, if it finds one."""
    matched = match([sound for _, sound in sounds], [one]).sounds
    hits = (number for (number, _), its in zip(sounds, matched, strict=True) if its.detections)
    return next(hits, None)


def _thresholds(tagger: Tagger, ratio: float) -> DetectionSettings | None:
    """Return settings with a part of the checkpoint's thresholds; None: with all of them."""
    if ratio == 1:
        return None
    known = tagger.frames or tagger.metadata
    off = {*tagger.metadata.off, *tagger.metadata.background}
    thresholds = {
        label: known.onset_thresholds.get(label, known.default_onset_threshold)
        for label in tagger.labels
        if label not in off
    }
    return DetectionSettings(
        classes={
            label: ClassSettings(onset_threshold=round(ratio * one, 4))
            for label, one in thresholds.items()
        }
    )


@dataclass(frozen=True)
class ChanceEvent:
    """One event of a simulated hour: which sound it is of, and at which microphone."""

    onset_ns: int
    sound: int
    microphone: int


def first_events(scene: Scene, number: int, label: str) -> dict[int, HeardEvent]:
    """Return the first event of a sound at each microphone that found it."""
    first: dict[int, HeardEvent] = {}
    for event in sorted(scene.events, key=lambda one: one.onset_s):
        if event.sound == number and event.label == label:
            first.setdefault(event.microphone, event)
    return first


def shared_sounds(scenes: Sequence[Scene]) -> Iterator[tuple[str, Sounded, dict[int, HeardEvent]]]:
    """Yield each shared sound: a label of it, it, and its first events by microphone."""
    for scene in scenes:
        for number, sound in enumerate(scene.sounds):
            for label in sound.labels if len(sound.arrivals) > 1 else ():
                yield label, sound, first_events(scene, number, label)


def pair_lines(scenes: Sequence[Scene]) -> Iterator[str]:
    """Yield how far apart the onsets of one sound are at the microphones that found it."""
    apart: dict[str, list[float]] = defaultdict(list)
    n_found: Counter[str] = Counter()
    n_twice: Counter[str] = Counter()
    for label, _, first in shared_sounds(scenes):
        n_found[label] += bool(first)
        n_twice[label] += len(first) > 1
        onsets = [event.onset_s for event in first.values()]
        apart[label] += [abs(a - b) for a, b in itertools.combinations(onsets, 2)]
    every = [one for its in apart.values() for one in its]
    yield (
        "| class | found | by two or more | onsets of two microphones: median apart | "
        + " | ".join(f"within {within_s:g} s" for within_s in WITHIN_S)
        + " |"
    )
    yield "|---|---:|---:|---:|" + "---:|" * len(WITHIN_S)
    rows = [("all", sum(n_found.values()), sum(n_twice.values()), every)]
    rows += [
        (label, n_found[label], n_twice[label], apart[label])
        for label in sorted(apart)
        if n_twice[label] >= SHOWN
    ]
    for label, found, twice, its in rows:
        shares = " | ".join(f"{np.mean(np.array(its) <= one):.0%}" for one in WITHIN_S)
        yield f"| {label} | {found} | {twice} | {np.median(its):.2f} s | {shares} |"


def chance_lines(scenes: Sequence[Scene], most: int) -> Iterator[str]:
    """Yield what merging makes of sounds at random times, by their number in an hour."""
    shared, lone = _library(scenes, is_shared=True), _library(scenes, is_shared=False)
    yield (
        "| lone sounds of the class per microphone and hour | | "
        + " | ".join(f"{within_s:g} s" for within_s in WITHIN_S)
        + " |"
    )
    yield "|---:|---|" + "---:|" * len(WITHIN_S)
    for rate in RATES:
        hours = min(CHANCE_HOURS, most / (MICROPHONES * rate + SHARED_RATE))
        events, n_twice = _at_random(np.random.default_rng(rate), shared, lone, rate, hours)
        missed, wrong, wrong_shared = zip(
            *(_merged(events, seconds_to_ns(one), n_twice) for one in WITHIN_S), strict=True
        )
        for text, shares in (
            ("missed: a sound at two or more microphones is not one", missed),
            ("wrong: a lone sound is part of another", wrong),
            ("wrong: a shared sound takes another in", wrong_shared),
        ):
            shown = " | ".join(f"{share:.1%}" for share in shares)
            yield f"| {rate} | {text} | {shown} |"


Pattern = list[tuple[int, float]]
"""Microphone and onset of each event of one sound, seconds from its start."""


def _library(scenes: Sequence[Scene], *, is_shared: bool) -> list[Pattern]:
    found: list[Pattern] = []
    for scene in scenes:
        for number, sound in enumerate(scene.sounds):
            if (len(sound.arrivals) > 1) != is_shared:
                continue
            start_s = min(arrival.onset_s for arrival in sound.arrivals.values())
            for label in sound.labels:
                pattern = [
                    (event.microphone, event.onset_s - start_s)
                    for event in scene.events
                    if event.sound == number and event.label == label
                ]
                found += [pattern] if pattern else []
    return found


def _at_random(
    rng: Random, shared: Sequence[Pattern], lone: Sequence[Pattern], rate: float, hours: float
) -> tuple[list[ChanceEvent], dict[int, bool]]:
    """Return events of sounds at random times, and which sounds two microphones have.

    Negative numbers are those of lone sounds.
    """
    events: list[ChanceEvent] = []
    has_two: dict[int, bool] = {}
    for sign, patterns, per_hour in ((1, shared, SHARED_RATE), (-1, lone, rate * MICROPHONES)):
        for number in range(1, int(rng.poisson(per_hour * hours)) + 1):
            pattern = patterns[int(rng.integers(len(patterns)))]
            at_s = rng.uniform(0, hours * 3600)
            # a lone sound is at any microphone, wherever it was heard
            moved = int(rng.integers(MICROPHONES))
            has_two[sign * number] = len({one for one, _ in pattern}) > 1
            events += [
                ChanceEvent(
                    seconds_to_ns(at_s + onset_s), sign * number, (one + moved) % MICROPHONES
                )
                for one, onset_s in pattern
            ]
    return sorted(events, key=lambda one: one.onset_ns), has_two


def _merged(
    events: Sequence[ChanceEvent], within_ns: int, has_two: dict[int, bool]
) -> tuple[float, float, float]:
    """Return the shares of sounds that are not merged, and of those that are merged with others."""
    first: dict[int, dict[int, int]] = defaultdict(dict)  # which occurrence has a sound's first
    mixed: set[int] = set()
    for number, found in enumerate(occurrences(events, within_ns)):
        sounds = {event.sound for event in found}
        if len(sounds) > 1:
            mixed |= sounds
        for event in found:
            first[event.sound].setdefault(event.microphone, number)
    twice = [sound for sound, is_twice in has_two.items() if is_twice and sound > 0]
    missed = sum(len(set(first[sound].values())) > 1 for sound in twice)
    n_lone = sum(sound < 0 for sound in has_two)
    n_shared = len(has_two) - n_lone
    n_lone_mixed = sum(sound < 0 for sound in mixed)
    return (
        missed / max(1, len(twice)),
        n_lone_mixed / max(1, n_lone),
        (len(mixed) - n_lone_mixed) / max(1, n_shared),
    )


@dataclass
class Alerts:
    """What one way to alert comes to.

    Attributes:
        n_alerts: of all kinds.
        n_false: without a sound of the class.
        found_shared, found_lone: sounds that had one.
    """

    n_alerts: int = 0
    n_false: int = 0
    n_false_by: Counter[str] = field(default_factory=Counter)
    found_shared: int = 0
    found_lone: int = 0
    twice: int = 0


def alerts_of(
    scenes: Sequence[Scene],
    microphones: int,
    *,
    within_s: float | None,
    heard_by: int = 1,
    min_score: float = 0.0,
) -> Alerts:
    """Return what becomes of the events of some microphones; `within_s` None: nothing is merged."""
    total = Alerts()
    for scene in scenes:
        events = [
            event
            for event in scene.events
            if event.microphone < microphones and event.peak >= min_score
        ]
        found: Counter[tuple[str, int]] = Counter()
        for label in sorted({event.label for event in events}):
            of_label = sorted(
                (event for event in events if event.label == label), key=lambda one: one.onset_s
            )
            merged: list[list[HeardEvent]] = [[one] for one in of_label]
            if within_s is not None:
                onsets = [Timed(seconds_to_ns(one.onset_s), one) for one in of_label]
                groups = occurrences(onsets, seconds_to_ns(within_s))
                merged = [[timed.event for timed in group] for group in groups]
            for group in merged:
                if len({one.microphone for one in group}) < heard_by:
                    continue
                total.n_alerts += 1
                sounds = {one.sound for one in group} - {None}
                found.update((label, sound) for sound in sounds if sound is not None)
                if not sounds:
                    total.n_false += 1
                    total.n_false_by[_cause(scene, group)] += 1
        for _, sound in found:
            is_shared = len(scene.sounds[sound].arrivals) > 1
            total.found_shared += is_shared
            total.found_lone += not is_shared
        total.twice += sum(number > 1 for number in found.values())
    return total


@dataclass(frozen=True)
class Timed:
    """An event with its onset as rules have it."""

    onset_ns: int
    event: HeardEvent


def _cause(scene: Scene, group: Sequence[HeardEvent]) -> str:
    beside = {one.beside for one in group} - {None}
    if not beside:
        return "background"
    is_shared = any(one is not None and len(scene.sounds[one].arrivals) > 1 for one in beside)
    return "shared" if is_shared else "lone"


def alert_lines(by_ratio: dict[float, list[Scene]], within_s: float) -> Iterator[str]:
    """Yield alerts, found sounds and false alerts of several ways."""
    yield (
        "| microphones | thresholds | alerts | number | shared sounds found | lone sounds found "
        "| false alerts an hour | beside a shared sound | beside a lone one | beside none |"
    )
    yield "|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|"
    for microphones in (3, 4):
        for ratio, scenes in sorted(by_ratio.items(), reverse=True):
            hours = _hours(scenes)
            ways: list[tuple[str, float | None, int, float]] = [
                ("of each microphone", None, 1, 0.0),
                ("one for a sound", within_s, 1, 0.0),
                ("`heard_by: 2`", within_s, 2, 0.0),
                ("`heard_by: 3`", within_s, 3, 0.0),
            ]
            wanted = alerts_of(scenes, microphones, within_s=within_s, heard_by=2).found_shared
            score = _score_for(scenes, microphones, within_s, wanted)
            ways.append((f"one for a sound, `score: {score:.2f}`", within_s, 1, score))
            for name, within, heard_by, min_score in ways:
                one = alerts_of(
                    scenes, microphones, within_s=within, heard_by=heard_by, min_score=min_score
                )
                causes = " | ".join(
                    f"{one.n_false_by[cause] / hours:.1f}"
                    for cause in ("shared", "lone", "background")
                )
                n_shared, n_lone = _reached(scenes, microphones)
                yield (
                    f"| {microphones} | {ratio:g} | {name} | {one.n_alerts} "
                    f"| {one.found_shared} of {n_shared} | {one.found_lone} of {n_lone} "
                    f"| {one.n_false / hours:.1f} | {causes} |"
                )


def _score_for(scenes: Sequence[Scene], microphones: int, within_s: float, wanted: int) -> float:
    """Return the highest score at which as many shared sounds are found."""
    scores = np.arange(0.99, 0.0, -0.01)
    enough = (
        float(score)
        for score in scores
        if alerts_of(scenes, microphones, within_s=within_s, min_score=float(score)).found_shared
        >= wanted
    )
    return next(enough, 0.0)


def _reached(scenes: Sequence[Scene], microphones: int) -> tuple[int, int]:
    """Return how many shared and lone sounds, by label, reach any of the first microphones."""
    shared = lone = 0
    for scene in scenes:
        for sound in scene.sounds:
            if any(number < microphones for number in sound.arrivals):
                shared += len(sound.labels) * (len(sound.arrivals) > 1)
                lone += len(sound.labels) * (len(sound.arrivals) == 1)
    return shared, lone


def best_line(scenes: Sequence[Scene]) -> str:
    """Return whether the best and the first are what they are taken for."""
    n = n_best = n_first = chance = 0.0
    for _, sound, first in shared_sounds(scenes):
        if len(first) < 2:
            continue
        n += 1
        chance += 1 / len(first)
        loudest = max(first, key=lambda one: sound.arrivals[one].snr_db)
        nearest = min(first, key=lambda one: sound.arrivals[one].onset_s)
        n_best += max(first.values(), key=lambda one: one.peak).microphone == loudest
        n_first += min(first.values(), key=lambda one: one.onset_s).microphone == nearest
    return (
        f"Of {n:.0f} sounds that two or more found, the event with the highest score is of the "
        f"microphone with the best SNR in {n_best / n:.0%}, the earliest onset is of the nearest "
        f"microphone in {n_first / n:.0%}; by chance it would be {chance / n:.0%}."
    )


def text_of(
    scenes: Sequence[Scene],
    commands: Sequence[str],
    within_s: float,
    chance_sounds: int = CHANCE_SOUNDS,
) -> str:
    """Return the figures as Markdown."""
    by_ratio: dict[float, list[Scene]] = defaultdict(list)
    for scene in scenes:
        by_ratio[scene.ratio].append(scene)
    whole = by_ratio[max(by_ratio)]
    lines = [
        f"{_hours(whole):.1f} hours of {MICROPHONES} microphones, "
        f"{sum(len(scene.sounds) for scene in whole)} sounds.",
        "",
        *pair_lines(whole),
        "",
        best_line(whole),
        "",
        f"Merged at random times, {SHARED_RATE} shared sounds an hour:",
        "",
        *chance_lines(whole, chance_sounds),
        "",
        f"Alerts, `within: {within_s:g}s`:",
        "",
        *alert_lines(by_ratio, within_s),
    ]
    return "\n".join([*lines, "", "```", *commands, "```"])


def main() -> None:
    """Hear the scenes, or take what was heard, and write the figures into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", type=Path, nargs="?", default=CLIPS)
    parser.add_argument("--stored", type=Path, nargs="+", help="hear nothing: take these scenes")
    parser.add_argument("--store", type=Path, help="keep the scenes here")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--fold", default="4")
    parser.add_argument("--ratio", type=float, nargs="+", default=[1.0, 0.6], help="of thresholds")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--most", type=int, default=0, help="recordings, of those of the fold")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--within", type=float, default=1.0, help="s, of the table of alerts")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    if options.stored:
        stored = [json.loads(path.read_text()) for path in options.stored]
        commands = [command for one in stored for command in one["commands"]]
        scenes = [Scene.from_json(scene) for one in stored for scene in one["scenes"]]
    else:
        commands = [" ".join(["scripts/measure_merging.py", *sys.argv[1:]])]
        scenes = hear(options)
        if options.store is not None:
            data = {"commands": commands, "scenes": [asdict(scene) for scene in scenes]}
            options.store.write_text(json.dumps(data))
    text = text_of(scenes, commands, options.within)
    print(text)
    if options.page.is_file() and BEGIN in (page := options.page.read_text()):
        before, _, rest = page.partition(BEGIN)
        options.page.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
