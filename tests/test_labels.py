from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ast_stream.labels import did_you_mean, is_stream_name, near_name, slug


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("Bark", "bark"),
        ("Baby cry, infant cry", "baby_cry_infant_cry"),
        ("Vehicle horn, car horn, honking", "vehicle_horn_car_horn_honking"),
        ("Whoosh, swoosh, swish", "whoosh_swoosh_swish"),
        ("Café", "cafe"),
        ("♪", "class"),
    ],
)
def test_slug_of_a_label(label: str, expected: str) -> None:
    assert slug(label) == expected


@given(st.text(max_size=40))
def test_slug_is_one_level_of_a_topic_and_its_own_slug(label: str) -> None:
    made = slug(label)
    assert made
    assert set(made) <= set("abcdefghijklmnopqrstuvwxyz0123456789_")
    assert slug(made) == made


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
