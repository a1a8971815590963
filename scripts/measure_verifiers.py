"""Measure what verifiers turn off and what they lose, on streams of known truth.

    .venv/bin/python scripts/measure_verifiers.py CLIPS.csv --test-fold 4 --store heard.npz
    .venv/bin/python scripts/measure_verifiers.py --stored heard.npz

The recordings of CLIPS.csv are divided in two halves, by the column `group` if there is one, so
that no recording, source or speaker is in both. Streams are those of `ast-stream evaluate`, made of
each half several times: other orders, levels and backgrounds. Events are true if they find a sound
of their class. The verdicts are the first ones of each class, right and wrong.

* other sounds: fitted to one half, judged on the streams of the other, both ways.
* the same sounds: fitted to every second repeat, judged on the repeats between.

Figures are written into the page.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ast_stream.calibration.folds import single
from ast_stream.dataset.tables import Columns
from ast_stream.detect.decision import Opinion
from ast_stream.detect.detector import Detector, hops_of_recording
from ast_stream.detect.second_opinion import Embedding
from ast_stream.detect.verifiers import event_vector
from ast_stream.evaluation.intervals import bootstrap_ratio
from ast_stream.evaluation.matching import Detection, detections, match
from ast_stream.evaluation.scoring import (
    SEED_BASE,
    SEEDS_APART,
    EvaluatedModel,
    MeasureSettings,
    mixed_soundscapes,
    mixed_spec,
    score_soundscape,
)
from ast_stream.messages.event import Event
from ast_stream.model.tagger import Tagger
from ast_stream.settings.detection import ClassSettings, DetectionSettings
from ast_stream.soundscape.mixing import Soundscape
from ast_stream.soundscape.soundbank import Foreground
from ast_stream.verdicts.fitting import Examples, fit_verifier, problem_with

PAGE = Path("docs/design/verifiers.md")
BEGIN, END = "<!-- figures: scripts/measure_verifiers.py -->", "<!-- end of figures -->"
HALVES = ("A", "B")
SEED = 40  # of the streams: none that anything was chosen on
RATIOS = (1.0, 0.6)  # of the checkpoint's thresholds
SHOWN = 10  # judged events of a class that has a row of its own, at least, of both kinds
NO_LEAK, KNOWN = "other sounds", "the same sounds"


class Everything:
    """Keeps what verifiers would see of all events."""

    def __init__(self) -> None:
        self.vectors: dict[str, npt.NDArray[np.float32]] = {}

    def concerns(self, index: int) -> bool:
        """Ask about all classes."""
        return True

    def judge(self, begin: Event, embedding: Embedding) -> Opinion:
        """Let everything pass."""
        self.vectors[begin.id] = event_vector(embedding)
        return Opinion()


@dataclass(frozen=True, eq=False)
class Heard:
    """Events of streams; arrays of shape (n,), but for the vectors (n, width).

    Attributes:
        half: which half of the recordings the stream was made of.
        repeat, number: which time, and which part of it.
        ratio: of the thresholds that events were decided by.
        hours: of all streams.
    """

    label: npt.NDArray[np.str_]
    is_right: npt.NDArray[np.bool_]
    half: npt.NDArray[np.str_]
    repeat: npt.NDArray[np.int64]
    number: npt.NDArray[np.int64]
    ratio: npt.NDArray[np.float64]
    vectors: npt.NDArray[np.float32]
    hours: npt.NDArray[np.float64]

    def only(self, chosen: npt.NDArray[Any]) -> Heard:
        """Return a part of the events."""
        kept = {name: values[chosen] for name, values in vars(self).items() if name != "hours"}
        return Heard(**kept, hours=self.hours)

    @property
    def stream(self) -> npt.NDArray[np.int64]:
        """A number for each stream."""
        return self.repeat * 1_000 + self.number


def halves_of(foregrounds: Sequence[Foreground], groups: dict[str, str]) -> dict[str, list[int]]:
    """Return which foregrounds are in each half; of each class half of the groups."""
    own = [groups.get(one.name.split("/clips/")[-1], one.name) for one in foregrounds]
    of_class: dict[int, set[str]] = defaultdict(set)
    for one, group in zip(foregrounds, own, strict=True):
        for index in one.classes:
            of_class[index].add(group)
    side: dict[str, str] = {}
    for index in sorted(of_class):
        n_placed = 0
        for group in sorted(of_class[index], key=_digest):
            if group not in side:
                side[group] = HALVES[n_placed % 2]
                n_placed += 1
    return {
        half: [number for number, group in enumerate(own) if side.get(group, "A") == half]
        for half in HALVES
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read_groups(table: Path) -> dict[str, str]:
    """Return the group of each file of a table that has such a column."""
    with table.open(newline="", encoding="utf-8") as file:
        return {row["file"]: row.get("group") or row["file"] for row in csv.DictReader(file)}


def hear(options: argparse.Namespace) -> Heard:
    """Return all events of all streams."""
    torch.set_num_threads(options.threads)
    (subject,) = single([options.model], options.clips, Columns(), options.test_fold)
    halves = halves_of(subject.foregrounds, read_groups(options.groups or options.clips))
    rows: list[tuple[Any, ...]] = []
    hours = 0.0
    for half in HALVES:
        for repeat, number, soundscape in streams(subject, half, halves[half], options):
            for ratio in RATIOS:
                rows += [
                    (label, is_right, half, repeat, number, ratio, vector)
                    for label, is_right, vector in events_of(subject.tagger, ratio, soundscape)
                ]
            hours += soundscape.duration_s / 3600
            print(f"half {half}, repeat {repeat}: {hours:.2f} h, {len(rows)} events",
                  file=sys.stderr)  # fmt: skip
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    names = [name for name in Heard.__dataclass_fields__ if name != "hours"]
    return Heard(**dict(zip(names, columns, strict=True)), hours=np.array(hours))


def streams(
    subject: EvaluatedModel, half: str, chosen: Sequence[int], options: argparse.Namespace
) -> Iterator[tuple[int, int, Soundscape]]:
    """Yield the streams of one half of the recordings, repeat after repeat."""
    low, high = options.snr
    settings = MeasureSettings(snr_db=(low, high))
    spec = mixed_spec(subject.tagger.window_s, settings)
    base = SEED_BASE + SEEDS_APART * (SEED + HALVES.index(half))
    foregrounds = [subject.foregrounds[number] for number in chosen]
    for repeat in range(options.repeats):
        seeds = base, 1, 0, repeat
        made = mixed_soundscapes(subject, "mixed", foregrounds, spec, settings, seeds)
        for number, soundscape in enumerate(made):
            yield repeat, number, soundscape


def events_of(
    tagger: Tagger, ratio: float, soundscape: Soundscape
) -> Iterator[tuple[str, bool, npt.NDArray[np.float32]]]:
    """Yield the events of a stream: label, whether it is right, and what a verifier sees."""
    everything = Everything()
    scored = score_soundscape(
        lambda on_scores: Detector(
            tagger,
            thresholds(tagger, ratio),
            max_streams=1,
            hops_at_once=hops_of_recording(tagger),
            on_scores=on_scores,
            opinion=everything,
        ),
        soundscape,
    )
    for label in tagger.labels:
        ends = [event for event in scored.events if event.type == "end" and event.label == label]
        found = detections(scored, label)
        sounds = [sound for sound in soundscape.truth if sound.label == label]
        false = {_key(one) for one in match(sounds, found).false_alarms}
        for end, one in zip(ends, found, strict=True):
            if end.id in everything.vectors:
                yield label, _key(one) not in false, everything.vectors[end.id]


def _key(one: Detection) -> tuple[float, float, float]:
    return one.onset_s, one.offset_s, one.known_s


def thresholds(tagger: Tagger, ratio: float) -> DetectionSettings | None:
    """Return settings with a part of the checkpoint's thresholds; None: with all of them."""
    if ratio == 1:
        return None
    known = tagger.frames or tagger.metadata
    off = {*tagger.metadata.off, *tagger.metadata.background}
    return DetectionSettings(
        classes={
            label: ClassSettings(
                onset_threshold=round(
                    ratio * known.onset_thresholds.get(label, known.default_onset_threshold), 4
                )
            )
            for label in tagger.labels
            if label not in off
        }
    )


@dataclass
class Judged:
    """Events of one class that a verifier judged, and what it thought; shape (n,)."""

    label: str
    is_right: npt.NDArray[np.bool_]
    is_withheld: npt.NDArray[np.bool_]
    stream: npt.NDArray[np.int64]


def judge(verdicts: Heard, test: Heard, n_right: int, n_wrong: int) -> Iterator[Judged]:
    """Yield what verifiers, each fitted to the first verdicts of its class, think of others."""
    for label in sorted(set(verdicts.label.tolist())):
        own = np.flatnonzero(verdicts.label == label)
        own = own[np.argsort(verdicts.stream[own], kind="stable")]
        right, wrong = own[verdicts.is_right[own]], own[~verdicts.is_right[own]]
        if len(right) < n_right or len(wrong) < n_wrong:
            continue
        chosen = verdicts.only(np.concatenate([right[:n_right], wrong[:n_wrong]]))
        examples = Examples(chosen.vectors, chosen.is_right, chosen.stream)
        if problem_with(label, examples.n_right, examples.n_wrong) is not None:
            continue
        verifier = fit_verifier(label, examples)
        others = test.only(test.label == label)
        if len(others.label):
            is_withheld = verifier.scores(others.vectors) < verifier.threshold
            yield Judged(label, others.is_right, is_withheld, others.stream)


def trials(heard: Heard, kind: str) -> Iterator[tuple[Heard, Heard]]:
    """Yield what verdicts are taken from, and what is judged."""
    for half in HALVES:
        own = heard.only(heard.half == half)
        if kind == NO_LEAK:
            yield own, heard.only(heard.half != half)
        else:
            yield own.only(own.repeat % 2 == 0), own.only(own.repeat % 2 == 1)


def text_of(heard: Heard, commands: Sequence[str]) -> str:
    """Return the figures as Markdown."""
    lines = [
        f"{float(heard.hours):.1f} hours of streams, each heard with the checkpoint's thresholds "
        f"and with {RATIOS[1]:g} of them, as where a box is to miss little. Intervals: 95 %, "
        "streams resampled.",
        "",
        "| sounds | thresholds | verdicts a class | classes | false events off "
        "| true events lost |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    by_class: list[str] = []
    for kind in (KNOWN, NO_LEAK):
        for ratio in RATIOS:
            for n_right, n_wrong in ((10, 10), (30, 10), (20, 20)):
                judged = [
                    one
                    for verdicts, test in trials(heard.only(heard.ratio == ratio), kind)
                    for one in judge(verdicts, test, n_right, n_wrong)
                ]
                if not judged:
                    continue
                labels = {one.label for one in judged}
                lines.append(
                    f"| {kind} | {ratio:g} | {n_right} right, {n_wrong} wrong | {len(labels)} | "
                    f"{_share(judged, is_right=False)} | {_share(judged, is_right=True)} |"
                )
                if (n_right, n_wrong) == (10, 10):
                    by_class += _class_rows(kind, ratio, judged)
    lines += [
        "",
        "By class, at ten of each:",
        "",
        "| sounds | thresholds | class | false events off | true events lost |",
        "|---|---:|---|---:|---:|",
        *by_class,
    ]
    return "\n".join([*lines, "", "```", *commands, "```"])


def _class_rows(kind: str, ratio: float, judged: Sequence[Judged]) -> Iterator[str]:
    for label in sorted({one.label for one in judged}):
        its = [one for one in judged if one.label == label]
        n_right = sum(int(one.is_right.sum()) for one in its)
        n_wrong = sum(int((~one.is_right).sum()) for one in its)
        if min(n_right, n_wrong) >= SHOWN:
            off, lost = (_share(its, is_right=kind) for kind in (False, True))
            yield f"| {kind} | {ratio:g} | {label} | {off} | {lost} |"


def _share(judged: Sequence[Judged], *, is_right: bool) -> str:
    """Return how many events of a kind are withheld, with the interval over streams."""
    hits: list[float] = []
    clusters: list[tuple[str, int]] = []
    for one in judged:
        own = one.is_right == is_right
        hits += one.is_withheld[own].astype(float).tolist()
        clusters += [(one.label, stream) for stream in one.stream[own].tolist()]
    if not hits:
        return ""
    interval = bootstrap_ratio(hits, [1.0] * len(hits), clusters, seed=0)
    bounds = ""
    if np.isfinite(interval.low) and np.isfinite(interval.high):
        bounds = f" ({interval.low:.0%} to {interval.high:.0%})"
    return f"{interval.value:.1%} of {len(hits)}{bounds}"


def main() -> None:
    """Hear the streams, or take what was heard, and write the figures into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", type=Path, nargs="?")
    parser.add_argument("--stored", type=Path, help="hear nothing: take these events")
    parser.add_argument("--store", type=Path, help="keep the events here")
    parser.add_argument("--groups", type=Path, help="table with the columns file and group")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--test-fold", action="append", default=[])
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--snr", type=float, nargs=2, default=(3.0, 18.0))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    if options.stored is not None:
        with np.load(options.stored) as stored:
            commands = stored["commands"].tolist()
            heard = Heard(**{name: stored[name] for name in Heard.__dataclass_fields__})
    elif options.clips is None:
        parser.error("expected CLIPS or --stored")
    else:
        commands = [" ".join(["scripts/measure_verifiers.py", *sys.argv[1:]])]
        heard = hear(options)
        if options.store is not None:
            np.savez_compressed(options.store, commands=np.array(commands), **vars(heard))
    text = text_of(heard, commands)
    print(text)
    if options.page.is_file() and BEGIN in (page := options.page.read_text()):
        before, _, rest = page.partition(BEGIN)
        options.page.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
