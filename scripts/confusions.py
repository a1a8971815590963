"""Name the worst confusions in streams of known sounds, and cut out examples to listen to.

    ast-stream evaluate clips.csv --test-fold 4 --model M --write-streams STREAMS
    python scripts/confusions.py STREAMS OUT --model M [--worst 5]

Each false event is put down to the sound that lies nearest to it, if one is within two seconds, and
else to the background. OUT gets, for each of the worst confusions, up to three WAV files of the
event with two seconds around it, a label track for Audacity beside each (what sounded, and what was
said), and a table of all confusions, confusions.csv.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import soundfile

from ast_stream.audio.recording import read_mono
from ast_stream.errors import AstStreamError
from ast_stream.evaluation.matching import Detection, match_soundscape
from ast_stream.evaluation.scoring import detector_of, score_blocks
from ast_stream.labels import slug
from ast_stream.model.tagger import load_tagger
from ast_stream.soundscape.mixing import ReferenceEvent
from ast_stream.units import SAMPLE_RATE, seconds_to_samples

NEAR_S = 2.0
AROUND_S = 2.0
EXAMPLES = 3
BACKGROUND = "background"


class Confusion(NamedTuple):
    """A false event and the sound that it is put down to."""

    recording: Path
    sound: ReferenceEvent | None
    event: Detection


def main() -> None:
    """Score the streams, count, write."""
    parser = argparse.ArgumentParser(description="Name the worst confusions, and cut out examples.")
    parser.add_argument("streams", type=Path, help="folder that --write-streams wrote")
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--worst", type=int, default=5)
    arguments = parser.parse_args()
    try:
        found = _confusions(arguments.streams, arguments.model)
    except AstStreamError as error:
        sys.exit(str(error))
    by_pair: dict[tuple[str, str], list[Confusion]] = defaultdict(list)
    for one in found:
        by_pair[one.sound.label if one.sound else BACKGROUND, one.event.label].append(one)
    ranked = sorted(by_pair.items(), key=lambda item: (-len(item[1]), item[0]))
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / "confusions.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("sound", "said", "events"))
        rows.writerows((*pair, len(events)) for pair, events in ranked)
    for number, ((sounded, said), events) in enumerate(ranked[: arguments.worst], 1):
        print(f"{number}. {sounded} -> {said}: {len(events)}")
        loudest = sorted(events, key=lambda one: -one.event.confidence)[:EXAMPLES]
        for place, one in enumerate(loudest, 1):
            name = f"{number}-{slug(sounded)}-as-{slug(said)}-{place}"
            _cut(one, arguments.out / name)


def _confusions(folder: Path, model: str) -> list[Confusion]:
    tables = sorted(folder.glob("*.tsv"))
    if not tables:
        sys.exit(f"{folder}: expected streams that evaluate --write-streams wrote, got none")
    make_detector = detector_of(load_tagger(model), None)
    found = []
    for table in tables:
        with table.open(newline="", encoding="utf-8") as file:
            truth = [
                ReferenceEvent(
                    row["event_label"], "", float(row["onset"]), float(row["offset"]), 0.0, 0.0
                )
                for row in csv.DictReader(file, delimiter="\t")
            ]
        recording = table.with_suffix(".wav")
        scored = score_blocks(make_detector, read_mono(recording), truth)
        assert scored.parameters is not None
        for label in scored.parameters.labels:
            for event in match_soundscape(scored, label).false_alarms:
                found.append(Confusion(recording, _nearest(truth, event), event))
    return found


def _nearest(truth: list[ReferenceEvent], event: Detection) -> ReferenceEvent | None:
    def distance_s(sound: ReferenceEvent) -> float:
        return max(sound.onset_s - event.offset_s, event.onset_s - sound.offset_s, 0.0)

    nearest = min(truth, key=distance_s, default=None)
    return nearest if nearest is not None and distance_s(nearest) <= NEAR_S else None


def _cut(one: Confusion, path: Path) -> None:
    """Write what was heard around a false event, and a label track beside it."""
    first_s = max(0.0, one.event.onset_s - AROUND_S)
    last_s = one.event.offset_s + AROUND_S
    samples, _ = soundfile.read(
        one.recording, start=seconds_to_samples(first_s), stop=seconds_to_samples(last_s)
    )
    soundfile.write(path.with_suffix(".wav"), samples, SAMPLE_RATE, subtype="PCM_16")
    labels = [(one.event.onset_s, one.event.offset_s, f"said: {one.event.label}")]
    if one.sound is not None:
        labels.append((one.sound.onset_s, one.sound.offset_s, f"is: {one.sound.label}"))
    lines = [
        f"{max(0.0, onset_s - first_s):.3f}\t{min(offset_s, last_s) - first_s:.3f}\t{text}\n"
        for onset_s, offset_s, text in labels
    ]
    path.with_suffix(".txt").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
