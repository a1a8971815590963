from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from tiny_model import TINY_DIMS, TINY_LABELS, tiny_checkpoint

from ast_stream.alerts.model_facts import model_facts
from ast_stream.model.audioset import (
    MUSIC,
    NO_SOURCE,
    OFF,
    PARENTS,
    VARIANTS,
    short_window_warning,
    window_remark,
)
from ast_stream.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ast_stream.model.description import describe
from ast_stream.model.dims import AstDims
from ast_stream.model.metadata import METADATA, Metadata
from ast_stream.settings.model import ModelSettings

SLUGS = Path(__file__).parents[2] / "golden" / "audioset_slugs.tsv"
AUDIOSET = [line.split("\t")[0] for line in SLUGS.read_text("utf-8").splitlines()]
TEN_SECONDS = AstDims(n_classes=1, max_frames=1024)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A checkpoint with AudioSet's classes and nothing beside its weights, as published."""
    dims = replace(TINY_DIMS, n_classes=len(AUDIOSET))
    checkpoint: Checkpoint = replace(tiny_checkpoint(dims=dims), labels=AUDIOSET)
    save_checkpoint(tmp_path / "published", checkpoint)
    (tmp_path / "published" / METADATA).unlink()
    return tmp_path / "published"


def test_every_class_that_is_left_off_is_audiosets_and_for_one_reason() -> None:
    assert set(AUDIOSET) >= OFF
    groups = (NO_SOURCE, PARENTS, VARIANTS, MUSIC)
    assert not any(one & other for one, other in combinations(groups, 2))
    assert len(AUDIOSET) - len(OFF) == 198


def test_what_the_bundled_checkpoint_reports_is_reported_by_audiosets_too() -> None:
    bundled = describe("bundled")
    assert not OFF & set(bundled.labels)


def test_a_published_checkpoint_leaves_rooms_parents_variants_and_kinds_of_music_off(
    published: Path,
) -> None:
    off = load_checkpoint(str(published)).metadata.off
    assert off == [label for label in AUDIOSET if label in OFF]
    assert {"Silence", "Inside, small room", "Animal", "Dog", "Guitar", "Happy music"} <= set(off)
    assert not {"Speech", "Bark", "Music", "Smoke detector, smoke alarm", "Doorbell"} & set(off)
    assert describe(str(published)).metadata.off == off
    assert model_facts(ModelSettings(checkpoint=str(published))).metadata.off == off


@pytest.mark.parametrize(
    ("chosen", "off"), [({"off": []}, []), ({"onset_thresholds": {"Dog": 0.3}}, [])]
)
def test_where_somebody_has_chosen_nothing_is_left_off_beside(
    published: Path, chosen: dict[str, object], off: list[str]
) -> None:
    (published / METADATA).write_text(json.dumps(chosen))
    assert load_checkpoint(str(published)).metadata.off == off
    (published / METADATA).write_text('{"licence": "bsd-3-clause"}')  # that is no choice
    assert load_checkpoint(str(published)).metadata.off != off


def test_a_checkpoint_with_other_classes_stays_as_it_is(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, tiny_checkpoint())
    (tmp_path / METADATA).unlink()
    loaded = load_checkpoint(str(tmp_path))
    assert loaded.labels == TINY_LABELS
    assert loaded.metadata == Metadata()


def test_windows_much_shorter_than_trained_are_warned_of() -> None:
    said = short_window_warning(2.0, TEN_SECONDS)
    assert said is not None
    assert "windows of 2 s, where the checkpoint was trained on 10 s" in said
    assert "45.9 at 10 s, 39.7 at 2 s, 36.6 at 1 s" in said
    assert short_window_warning(10.0, TEN_SECONDS) is None
    assert short_window_warning(8.0, TEN_SECONDS) is None
    assert short_window_warning(2.56, AstDims(n_classes=1, max_frames=256)) is None


def test_what_shorter_windows_cost_is_said_of_audiosets_checkpoints_before_anyone_tries() -> None:
    said = window_remark(10.0, TEN_SECONDS, AUDIOSET)
    assert said == (
        "shorter windows cost it much: a mAP of 45.9 at 10 s, 39.7 at 2 s, 36.6 at 1 s is reported"
    )
    assert window_remark(10.0, TEN_SECONDS, TINY_LABELS) is None
