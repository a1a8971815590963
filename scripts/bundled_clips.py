"""Write the table that the bundled checkpoint is trained on, from a folder of free recordings.

    python scripts/bundled_clips.py SOUNDS/clips.csv OUT/clips.csv [--songs SONGS/songs.csv]

The recordings are found by links in a folder `clips` beside the table. SOUNDS/clips.csv has the
columns file, label, fold, group, author, title, licence, url, active_s and suspect. Classes are the
labels with enough independent recordings; recordings of other sounds get no label: they are sounds
that the model must not name. Recordings of one group stay in one fold. Songs that
scripts/render_music.py wrote are in a fold of their own, so that they judge nothing.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
from collections import defaultdict
from pathlib import Path

MIN_GROUPS = 20  # independent recordings that make a class
# with fewer, but asked for: what ESC-50 has of them comes from few people
ALWAYS = {
    "Blender": False,
    "Dishes, pots, and pans": False,
    "Cutlery, silverware": False,
    "Gunshot, gunfire": True,
}
# heard as one sound by people and by the teacher alike, or too vague to be reported
MERGED = {
    "Machine gun": "Gunshot, gunfire",
    "Thunder": "Thunderstorm",
    "Bird": "Chirp, tweet",
    "Train horn": "Train",
    "Railroad car, train wagon": "Train",
    "Choir": "Music",
    "Bass drum": "Music",
    "Snare drum": "Music",
    "Hi-hat": "Music",
    "Jet engine": "Fixed-wing aircraft, airplane",
    "Propeller, airscrew": "Fixed-wing aircraft, airplane",
    "Engine starting": "Engine",
    "Motorcycle": "Engine",
    "Truck": "Engine",
    "Bus": "Engine",
    "Honk": "Vehicle horn, car horn, honking",
    "Applause": "Clapping",
    "Piano": "Music",
    "Guitar": "Music",
    "Acoustic guitar": "Music",
    "Flute": "Music",
    "Violin, fiddle": "Music",
    "Double bass": "Music",
    "Saxophone": "Music",
    "Cello": "Music",
    "Clarinet": "Music",
    "Chatter": "Speech",
    "Hubbub, speech noise, speech babble": "Speech",
}
NO_CLASS = "-"  # as `train` reads it
# of these nobody can say whether they hold one of the classes: no examples, and no negatives
AMBIGUOUS = {
    "Animal", "Bee, wasp, etc.", "Bell", "Bicycle bell", "Boat, Water vehicle", "Cheering", "Crowd",
    "Explosion", "Foghorn", "Glass", "Howl", "Insect", "Jackhammer", "Rattle",
    "Rustling leaves", "Singing bowl", "Sink (filling or washing)", "Steam whistle", "Telephone",
    "Traffic noise, roadway noise", "Water", "Waterfall", "Whistling", "Wind chime", "Wood",
}  # fmt: skip
SONGS = "songs"
FOLDS = ("1", "2", "3", "4")
MIN_ACTIVE_S = 0.05


def main() -> None:
    """Read one table, write the other, and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("sounds", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--songs", type=Path, help="table of generated recordings")
    arguments = parser.parse_args()
    with arguments.sounds.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if float(row["active_s"]) >= MIN_ACTIVE_S]
    labels_of = [_labels(row["label"]) for row in rows]
    classes = _classes(rows, labels_of)
    fold_of = _folds(rows)
    links = arguments.out.parent / "clips"
    links.mkdir(parents=True, exist_ok=True)
    for folder in sorted(path for path in arguments.sounds.parent.iterdir() if path.is_dir()):
        _link(links / folder.name, folder)
    n_labelled = n_negative = 0
    with arguments.out.open("w", newline="", encoding="utf-8") as file:
        columns = ("file", "label", "fold", "author", "title", "licence", "url")
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for row, labels in zip(rows, labels_of, strict=True):
            kept = [label for label in labels if label in classes]
            # what the teacher does not hear at all may be something else: it is no example, and
            # no negative either
            if row["suspect"] == "1" and row["source"] != "ESC-50":
                continue
            if not kept and AMBIGUOUS & set(row["label"].split(";")):
                continue
            if labels and not kept:
                n_negative += 1
            n_labelled += bool(kept)
            writer.writerow(
                {
                    "file": row["file"], "label": ";".join(kept) or NO_CLASS,
                    "fold": fold_of[row["group"]],
                    "author": row["author"], "title": row["title"], "licence": row["licence"],
                    "url": row["url"],
                }
            )  # fmt: skip
        if arguments.songs is not None:
            _link(links / SONGS, arguments.songs.parent)
            with arguments.songs.open(newline="", encoding="utf-8") as songs:
                for row in csv.DictReader(songs):
                    writer.writerow(row | {"file": f"{SONGS}/{row['file']}"})
    print(f"{len(classes)} classes, {n_labelled} clips of them, {n_negative} of other sounds")
    print("; ".join(sorted(classes)))


def _link(link: Path, folder: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(folder.resolve())


def _labels(text: str) -> list[str]:
    merged = (MERGED.get(label, label) for label in text.split(";"))
    return list(dict.fromkeys(label for label in merged if label))


def _classes(rows: list[dict[str, str]], labels_of: list[list[str]]) -> set[str]:
    """Return the labels with enough recordings, AudioSet names of ESC-50, and a few more."""
    groups: dict[str, set[str]] = defaultdict(set)
    in_esc50 = set()
    for row, labels in zip(rows, labels_of, strict=True):
        for label in labels:
            groups[label].add(row["group"])
            if row["source"] == "ESC-50" and row["audioset_name"] == "1":
                in_esc50.add(label)
    enough = {label for label, of_label in groups.items() if len(of_label) >= MIN_GROUPS}
    return enough | in_esc50 | {label for label, is_class in ALWAYS.items() if is_class}


def _folds(rows: list[dict[str, str]]) -> dict[str, str]:
    """Return the fold of each group: ESC-50's own, for others one by a hash of its name."""
    folds: dict[str, str] = {}
    for row in rows:
        if row["fold"]:
            folds[row["group"]] = row["fold"]
    for row in rows:
        digest = hashlib.sha256(row["group"].encode()).digest()
        folds.setdefault(row["group"], FOLDS[digest[0] % len(FOLDS)])
    return folds


if __name__ == "__main__":
    main()
