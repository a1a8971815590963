"""Measure what a cascade loses and saves, on streams of known truth, and write it into its page.

    .venv/bin/python scripts/measure_cascade.py CLIPS.csv --small CHECKPOINT --test-fold 4

The streams are those of `ast-stream evaluate`, with more time between the sounds. All ways to hear
them hear the very same ones: the large model alone, the small one alone, and cascades of both.
Figures are stored (`--json`) after every stream, for hours may be more than there are; the page is
written from one or several such files (`--stored`), which are added up.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import betaincinv
from torch import Tensor

from ast_stream.audio.recording import read_mono
from ast_stream.calibration.folds import single
from ast_stream.calibration.scores import negative_recordings
from ast_stream.dataset.tables import Columns
from ast_stream.detect.cascade import Cascade
from ast_stream.evaluation.matching import Detection, detections, match_soundscape
from ast_stream.evaluation.scoring import (
    SEED_BASE,
    SEEDS_APART,
    EvaluatedModel,
    MeasureSettings,
    NegativeRecording,
    ScoredSoundscape,
    mixed_soundscapes,
    mixed_spec,
    score_blocks,
    score_soundscape,
)
from ast_stream.evaluation.stream_figures import detection_delays, onset_errors
from ast_stream.model.tagger import Tagger, load_tagger
from ast_stream.settings.model import CascadeSettings
from ast_stream.soundscape.mixing import Soundscape
from ast_stream.soundscape.soundbank import generated_foregrounds

PAGE = Path("docs/design/cascade.md")
BEGIN, END = "<!-- figures: scripts/measure_cascade.py -->", "<!-- end of figures -->"
ALONE, SMALL, DEFAULT = "large alone", "small alone", "cascade"
ALIKE = ("large", "small", "gap_s", "hop_s")
RATIOS = (1.0, 0.8, 0.6, 0.5, 0.3, 0.1)
AROUND_S = (0.5, 2.5)
NEAR_S = 0.5  # an event of the large model this near confirms one of the small
WAYS: dict[str, dict[str, Any] | None] = {
    ALONE: None,
    SMALL: None,
    DEFAULT: {},
    "  `ask_ratio: 1`": {"ask_ratio": 1.0},
    "  `change_db: 3`": {"change_db": 3.0},
    "  `change_db: null`": {"change_db": None},
    "  `steady_hops: 2`": {"steady_hops": 2},
    "  `steady_hops: 3`": {"steady_hops": 3},
}


class Remembered:
    """A model that remembers its answers by window: all ways to hear a stream ask the same."""

    def __init__(self, model: Callable[[Tensor], npt.NDArray[np.float32]]) -> None:
        self._model = model
        self._known: dict[bytes, npt.NDArray[np.float32]] = {}

    def __call__(self, windows: Tensor) -> npt.NDArray[np.float32]:
        """Return what the model says of windows."""
        keys = [hashlib.blake2b(window.numpy(), digest_size=16).digest() for window in windows]
        new = [row for row, key in enumerate(keys) if key not in self._known]
        if new:
            found = self._model(windows[new])
            self._known |= {keys[row]: found[number] for number, row in enumerate(new)}
        return np.stack([self._known[key] for key in keys])

    def forget(self) -> None:
        """Free the memory."""
        self._known.clear()


@dataclass
class Tally:
    """What one way to hear the streams came to.

    Attributes:
        found: of each sound in turn, whether an event of its class found it.
    """

    n_windows: int = 0
    n_asked: int = 0
    n_false: int = 0
    hours: float = 0.0
    found: list[bool] = field(default_factory=list)
    onset_errors: list[float] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)

    def add(self, scored: ScoredSoundscape, labels: Sequence[str]) -> None:
        """Take what was made of one stream."""
        self.n_windows += scored.n_windows
        self.n_asked += scored.n_windows if scored.n_asked is None else scored.n_asked
        self.hours += scored.layout.duration_s / 3600
        for label in labels:
            if scored.expected_label == label:
                continue
            matches = match_soundscape(scored, label)
            self.n_false += len(matches.false_alarms)
            self.found += [bool(one.detections) for one in matches.sounds]
            self.onset_errors += onset_errors(matches.sounds)
            self.delays += detection_delays(matches.sounds)

    def row(self, alone: Tally) -> dict[str, Any]:
        """Return the figures, beside those of the large model alone."""
        both = list(zip(alone.found, self.found, strict=True))
        return {
            "windows": self.n_windows,
            "asked": self.n_asked,
            "sounds": len(self.found),
            "found": sum(self.found),
            "lost": sum(before and not now for before, now in both),
            "gained": sum(now and not before for before, now in both),
            "found_alone": sum(alone.found),
            "false": self.n_false,
            "hours": self.hours,
            "onset_error_s": _median(np.abs(self.onset_errors)),
            "time_to_detect_s": _median(self.delays),
        }

    def plus(self, other: Tally) -> Tally:
        """Return what both came to."""
        return Tally(*(one + two for one, two in zip(astuple(self), astuple(other), strict=True)))


@dataclass
class Verdicts:
    """Events of the small model alone that the large one confirms, true and false ones.

    Attributes:
        true_ratios, false_ratios: of each event the highest score of the large model up to each of
            `AROUND_S` before and after it, in multiples of its threshold.
    """

    n_true: int = 0
    n_true_confirmed: int = 0
    n_false: int = 0
    n_false_confirmed: int = 0
    true_ratios: list[list[float]] = field(default_factory=list)
    false_ratios: list[list[float]] = field(default_factory=list)

    def add(
        self, small: ScoredSoundscape, cascade: ScoredSoundscape, labels: Sequence[str]
    ) -> None:
        """Take what both made of one stream."""
        for label in labels:
            if small.expected_label == label:
                continue
            matches = match_soundscape(small, label)
            false = {id(one) for one in matches.false_alarms}
            confirming = detections(cascade, label)
            every = {id(one): one for sound in matches.sounds for one in sound.detections}
            every |= {id(one): one for one in matches.false_alarms}
            for key, one in every.items():
                is_confirmed = any(_are_near(one, other) for other in confirming)
                ratio = [_ratio_around(one, cascade, near_s) for near_s in AROUND_S]
                if key in false:
                    self.n_false += 1
                    self.n_false_confirmed += is_confirmed
                    self.false_ratios.append(ratio)
                else:
                    self.n_true += 1
                    self.n_true_confirmed += is_confirmed
                    self.true_ratios.append(ratio)


def _are_near(one: Detection, other: Detection) -> bool:
    return max(one.onset_s - other.offset_s, other.onset_s - one.offset_s) <= NEAR_S


def _ratio_around(one: Detection, scored: ScoredSoundscape, near_s: float) -> float:
    """Return the highest score of its class around an event, in multiples of the threshold."""
    parameters = scored.parameters
    assert parameters is not None
    index = parameters.labels.index(one.label)
    times = scored.times_s
    is_around = (times >= one.onset_s - near_s) & (times <= one.offset_s + near_s)
    score = scored.scores[is_around, index].max(initial=0.0)
    return round(float(score / parameters.onset_threshold[index]), 3)


def _plus(one: Verdicts, other: Verdicts) -> Verdicts:
    return Verdicts(*(a + b for a, b in zip(astuple(one), astuple(other), strict=True)))


def _median(values: Sequence[float] | npt.NDArray[np.float64]) -> float | None:
    """Return the median; None without values, or where most sounds were missed."""
    median = float(np.median(values)) if len(values) else math.inf
    return round(median, 3) if math.isfinite(median) else None


class Measurement:
    """Hears streams in every way and adds up."""

    def __init__(
        self, subject: EvaluatedModel, small: Tagger, ways: Sequence[str], hop_s: float | None
    ) -> None:
        self.large, self.small, self._hop_s = subject.tagger, small, hop_s
        decides_by = "window_scores" if self.large.frames is None else "frame_logits"
        self._memories = [
            _remember(self.large, decides_by), _remember(small, "window_scores")
        ]  # fmt: skip
        # classes that both know and that make events in both
        off = {*self.large.metadata.off, *self.large.metadata.background}
        off |= {*small.metadata.off, *small.metadata.background}
        self.labels = [
            label for label in self.large.labels if label in small.labels and label not in off
        ]
        self.large_labels = [
            label
            for label in self.large.labels
            if label not in {*self.large.metadata.off, *self.large.metadata.background}
        ]
        self.subjects = {
            name: replace(subject, tagger=small)
            if name == SMALL
            else replace(subject, cascade=self._cascade(WAYS[name]))
            for name in ways
        }
        self.tallies: dict[str, dict[str, Tally]] = {}
        self.verdicts: dict[str, Verdicts] = {}

    def _cascade(self, chosen: dict[str, Any] | None) -> Cascade | None:
        if chosen is None:
            return None
        return Cascade(self.small, CascadeSettings(checkpoint="small", **chosen))

    def hear_recording(self, recording: NegativeRecording) -> None:
        """Hear a recording without events, but perhaps of one class."""

        def score(subject: EvaluatedModel) -> ScoredSoundscape:
            scored = score_blocks(subject.detector(self._hop_s), read_mono(recording.path), [])
            return replace(scored, expected_label=recording.expected_label)

        self.hear(recording.path.stem, score)

    def hear_soundscape(self, soundscape: Soundscape) -> None:
        """Hear a stream of known sounds."""
        self.hear("sounds", lambda one: score_soundscape(one.detector(self._hop_s), soundscape))

    def hear(self, kind: str, score: Callable[[EvaluatedModel], ScoredSoundscape]) -> None:
        """Hear a stream in every way, and add up what comes of it."""
        tallies = self.tallies.setdefault(kind, {})
        scored = {name: score(subject) for name, subject in self.subjects.items()}
        for name, one in scored.items():
            tallies.setdefault(name, Tally()).add(one, self.large_labels)
        if SMALL in scored and DEFAULT in scored:
            verdicts = self.verdicts.setdefault(kind, Verdicts())
            verdicts.add(scored[SMALL], scored[DEFAULT], self.labels)
        for memory in self._memories:
            memory.forget()
        asked = tallies[DEFAULT].n_asked / max(1, tallies[DEFAULT].n_windows)
        row = tallies[DEFAULT].row(tallies[ALONE])
        print(
            f"{kind}: {row['hours']:.2f} h, asked {asked:.1%}, lost {row['lost']} of "
            f"{row['found_alone']}",
            file=sys.stderr,
        )


def _remember(tagger: Tagger, name: str) -> Remembered:
    memory = Remembered(getattr(tagger, name))
    setattr(tagger, name, memory)
    return memory


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return all figures."""
    torch.set_num_threads(options.threads)
    (subject,) = single([options.model], options.clips, Columns(), options.test_fold)
    small = load_tagger(options.small, use_frames=False)
    ways = [name for name in WAYS if not options.quick or name in (ALONE, SMALL, DEFAULT)]
    measurement = Measurement(subject, small, ways, options.hop)
    low, high = options.gap
    settings = MeasureSettings(gap_s=(low, high), seed=options.seed)
    base = SEED_BASE + SEEDS_APART * options.seed
    generated = generated_foregrounds(base, tuple(subject.tagger.labels), options.generated)
    foregrounds = [*subject.foregrounds, *generated]
    if options.sounds:
        order = np.random.default_rng(base).permutation(len(foregrounds))[: options.sounds]
        foregrounds = [foregrounds[int(index)] for index in order]
    spec = mixed_spec(subject.tagger.window_s, settings)

    def figures() -> dict[str, Any]:
        return {
            "commands": [" ".join(["scripts/measure_cascade.py", *sys.argv[1:]])],
            "large": _facts(subject.tagger),
            "small": _facts(small),
            "gap_s": [low, high],
            "hop_s": options.hop or subject.tagger.hop_s,
            "kinds": {
                kind: {name: asdict(one) for name, one in tallies.items()}
                for kind, tallies in measurement.tallies.items()
            },
            "verdicts": {kind: asdict(one) for kind, one in measurement.verdicts.items()},
        }

    for repeat in range(options.repeats):
        seeds = base, 1, 0, repeat
        for soundscape in mixed_soundscapes(subject, "mixed", foregrounds, spec, settings, seeds):
            measurement.hear_soundscape(soundscape)
            _store(options.json, figures())
    for recording in negative_recordings(options.negatives, subject.tagger.labels):
        measurement.hear_recording(recording)
    return figures()


def _store(path: Path | None, figures: dict[str, Any]) -> None:
    """Write the figures so far: a run of hours may be stopped."""
    if path is not None:
        path.write_text(json.dumps(_with(figures, math.inf, None), allow_nan=False) + "\n")


def _with(value: Any, old: float | None, new: float | None) -> Any:
    """Return figures in which the delays `old` are `new`: JSON has no infinity, null is never."""
    if isinstance(value, dict):
        return {
            key: [new if one == old else one for one in inner]
            if key == "delays"
            else _with(inner, old, new)
            for key, inner in value.items()
        }
    return value


def _facts(tagger: Tagger) -> dict[str, Any]:
    return {
        "hash": tagger.hash,
        "classes": len(tagger.labels),
        "gflop": round(tagger.dims.gflop, 4),
        "window_s": tagger.window_s,
        "test_folds": tagger.metadata.provenance.get("test_folds"),
    }


def text_of(figures: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    large, small = figures["large"], figures["small"]
    low, high = figures["gap_s"]
    lines = [
        f"Large: {large['classes']} classes, {large['gflop']:.3f} GFLOP a window; small: "
        f"{small['classes']} classes, {small['gflop']:.3f} GFLOP. {low:g} to {high:g} s between "
        "most sounds.",
        "",
        "| | hours | windows asked about | sounds found | lost of those found alone | gained "
        "| false an hour | onset error, median | time to detect, median |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for kind, tallies in figures["kinds"].items():
        alone = Tally(**tallies[ALONE])
        for name, tally in tallies.items():
            row = Tally(**tally).row(alone)
            share = row["asked"] / max(1, row["windows"])
            lost = _share_with_bounds(row["lost"], row["found_alone"])
            found = f"{row['found']} of {row['sounds']}" if row["sounds"] else ""
            shown = name.strip() if kind == "sounds" else f"{kind}: {name.strip()}"
            lines.append(
                f"| {shown} | {row['hours']:.1f} | {share:.1%} | {found} | "
                f"{lost if name != ALONE else ''} | {row['gained'] if row['sounds'] else ''} | "
                f"{row['false'] / row['hours']:.2f} | {_seconds(row['onset_error_s'])} | "
                f"{_seconds(row['time_to_detect_s']) or ('never' if row['sounds'] else '')} |"
            )
    lines += [
        "",
        "| events of the small model alone | true | of these confirmed | false | of these turned "
        "off |",
        "|---|---:|---:|---:|---:|",
    ]
    for kind, one in figures["verdicts"].items():
        n_off = one["n_false"] - one["n_false_confirmed"]
        lines.append(
            f"| {kind} | {one['n_true']} | {_share(one['n_true_confirmed'], one['n_true'])} | "
            f"{one['n_false']} | {_share(n_off, one['n_false'])} |"
        )
    lines += ["", *_opinions(figures["verdicts"])]
    return "\n".join([*lines, "", "```", *figures["commands"], "```"])


def _opinions(verdicts: dict[str, dict[str, Any]]) -> list[str]:
    """Return what would be confirmed if the large model need not have an event of its own."""
    true = [ratios for one in verdicts.values() for ratios in one["true_ratios"]]
    false = [ratios for one in verdicts.values() for ratios in one["false_ratios"]]
    lines = [
        f"| events of the small model alone that count: {len(true)} true, {len(false)} false "
        "| true ones refused | false ones turned off |",
        "|---|---:|---:|",
    ]
    n_true, n_false = (
        sum(one[f"{name}_confirmed"] for one in verdicts.values()) for name in ("n_true", "n_false")
    )
    lines.append(
        f"| with an event of the large one | {_share_with_bounds(len(true) - n_true, len(true))} "
        f"| {_share(len(false) - n_false, len(false))} |"
    )
    for number, near_s in enumerate(AROUND_S):
        for least in RATIOS:
            refused = sum(ratios[number] < least for ratios in true)
            off = sum(ratios[number] < least for ratios in false)
            lines.append(
                f"| its score reaches {least:g} of its threshold, {near_s:g} s around | "
                f"{_share_with_bounds(refused, len(true))} | {_share(off, len(false))} |"
            )
    return lines


def together(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of several runs, added up."""
    first, *others = parts
    for part in others:
        if [part[key] for key in ALIKE] != [first[key] for key in ALIKE]:
            raise SystemExit(f"expected runs that are alike in {', '.join(ALIKE)}, got others")
        for kind, rows in part["kinds"].items():
            known = first["kinds"].setdefault(kind, {})
            for name, tally in rows.items():
                before = Tally(**known[name]) if name in known else Tally()
                known[name] = asdict(before.plus(Tally(**tally)))
        for kind, one in part["verdicts"].items():
            before_it = Verdicts(**first["verdicts"].get(kind, {}))
            first["verdicts"][kind] = asdict(_plus(before_it, Verdicts(**one)))
        first["commands"] += part["commands"]
    return first


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} s"


def _share_with_bounds(part: int, whole: int) -> str:
    """Return a share with its 95 % confidence interval (Clopper and Pearson)."""
    if not whole:
        return ""
    low = betaincinv(part, whole - part + 1, 0.025) if part else 0.0  # by Clopper and Pearson
    high = betaincinv(part + 1, whole - part, 0.975) if part < whole else 1.0
    return f"{part / whole:.1%} ({100 * low:.1f} to {100 * high:.1f})"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else ""


def main() -> None:
    """Measure, print the figures, and write them into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", type=Path, nargs="?")
    parser.add_argument("--small", help="checkpoint of the small model")
    parser.add_argument(
        "--stored", type=Path, nargs="+", help="measure nothing: take these figures"
    )
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--test-fold", action="append", default=[])
    parser.add_argument("--gap", type=float, nargs=2, default=(30.0, 90.0))
    parser.add_argument("--sounds", type=int, default=0, help="so many of the sounds; 0: all")
    parser.add_argument("--generated", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--negatives", action="append", default=[])
    parser.add_argument("--hop", type=float, help="seconds between windows; none: the model's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="without variants of the settings")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    if options.stored:
        figures = together(
            [_with(json.loads(path.read_text()), None, math.inf) for path in options.stored]
        )
    elif options.clips is None or options.small is None:
        parser.error("expected CLIPS and --small, or --stored")
    else:
        figures = measure(options)
    _store(options.json, figures)
    text = text_of(figures)
    print(text)
    if options.page.is_file() and BEGIN in (page := options.page.read_text()):
        before, _, rest = page.partition(BEGIN)
        options.page.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
