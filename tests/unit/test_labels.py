from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ast_stream.labels import (
    did_you_mean,
    find_label,
    is_stream_name,
    near_name,
    problem_with_labels,
    slug,
)

AUDIOSET = Path(__file__).parents[1] / "golden" / "audioset_slugs.tsv"


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("Bark", "bark"),
        ("Baby cry, infant cry", "baby_cry_infant_cry"),
        ("Vehicle horn, car horn, honking", "vehicle_horn_car_horn_honking"),
        ("Whoosh, swoosh, swish", "whoosh_swoosh_swish"),
        ("Café", "cafe"),
        ("Straße", "strasse"),
        ("Bow\u2013wow", "bow_wow"),
        ("狗叫", "class_tz6hkegy"),
        ("Dog 狗叫", "dog_guc4bkn7"),
    ],
)
def test_slug_of_a_label(label: str, expected: str) -> None:
    assert slug(label) == expected


@given(st.text(max_size=40))
def test_slug_is_one_level_of_a_topic_and_its_own_slug(label: str) -> None:
    made = slug(label)
    assert 1 <= len(made) <= 64
    assert set(made) <= set("abcdefghijklmnopqrstuvwxyz0123456789_")
    assert slug(made) == made


def test_the_topics_of_audioset_stay_as_they_are() -> None:
    rows = [line.split("\t") for line in AUDIOSET.read_text("utf-8").splitlines()]
    assert len(rows) == 527
    assert [slug(label) for label, _ in rows] == [topic for _, topic in rows]


@pytest.mark.parametrize(
    "labels",
    [
        ["狗叫", "海浪", "警笛"],
        ["🐕", "🐈", "♪", "♫"],
        ["हिन्दी", "हिन्दू"],
        ["!!!", "???"],
        ["Siren 1号", "Siren 2号"],
        ["a" * 300 + "b", "a" * 300 + "c"],
    ],
)
def test_labels_that_ascii_cannot_tell_apart_have_different_topics(labels: list[str]) -> None:
    assert len({slug(label) for label in labels}) == len(labels)
    assert problem_with_labels(labels) is None


@pytest.mark.parametrize("label", ["Ängstlich 狗叫", "が", "Éclair №"])
def test_a_topic_does_not_depend_on_case_nor_normal_form(label: str) -> None:
    forms = [unicodedata.normalize(form, label) for form in ("NFC", "NFD")]
    assert {slug(form) for form in (*forms, label.upper(), label.lower())} == {slug(label)}
    assert find_label(forms[1], [forms[0]]) == forms[0]


def test_a_label_is_found_by_itself_and_by_its_topic() -> None:
    labels = ["Baby cry, infant cry", "狗叫"]
    assert find_label("Baby cry, infant cry", labels) == labels[0]
    assert find_label("baby_cry_infant_cry", labels) == labels[0]
    assert find_label("class_tz6hkegy", labels) == "狗叫"
    assert find_label("Baby cry", labels) is None
    assert find_label("海浪", labels) is None


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (["C", "C++"], "got 'c' for both 'C' (class 0) and 'C++' (class 1)"),
        (["a", "b", "a"], "expected different labels, got 'a' for classes 0 and 2"),
        (["a", ""], "expected a name for class 1, got none"),
        ([" a"], "expected no spaces around the name of class 0, got ' a'"),
        (["a\tb"], "expected printable text for class 0, got 'a\\tb' with U+0009"),
        (["\x9b2J"], "U+009B"),
        (["\udc80"], "expected printable text for class 0, got '\\udc80' with U+DC80"),
    ],
)
def test_labels_that_cannot_be_classes_of_one_model(labels: list[str], problem: str) -> None:
    assert problem in str(problem_with_labels(labels))


@pytest.mark.parametrize("name", ["a", "porch", "cam-1", "0", "x" * 63, "a-"])
def test_good_stream_names(name: str) -> None:
    assert is_stream_name(name)


@pytest.mark.parametrize("name", ["", "-a", "Porch", "a_b", "a/b", "a b", "é", "x" * 64, "a\n"])
def test_bad_stream_names(name: str) -> None:
    assert not is_stream_name(name)


def test_near_name_is_found_whatever_its_case() -> None:
    assert near_name("treshold", ["threshold", "hold_s"]) == "threshold"
    assert near_name("BARK", ["Bark", "Meow"]) == "Bark"


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    assert near_name("xyzzy", ["threshold", "hold_s"]) is None
    assert did_you_mean("xyzzy", ["threshold"]) == ""
    assert did_you_mean("treshold", ["threshold"]) == "; did you mean 'threshold'?"
