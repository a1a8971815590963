"""What the page of one event is made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ast_stream.history.records import EventRecord
from ast_stream.history.score_blocks import ScoreSpan
from ast_stream.units import NS_PER_SECOND
from ast_stream.web.event_pages import way_of
from ast_stream.web.event_scores import AROUND_S, MAX_POINTS, event_scores, moments_around
from ast_stream.web.stored_data import clip_file

T0_NS = 1_700_000_000 * NS_PER_SECOND
EVENT = EventRecord(
    id="id1",
    stream="porch",
    class_="bark",
    label="Bark",
    index=0,
    state="end",
    score=0.5,
    peak=0.9,
    mean=0.6,
    onset_ns=T0_NS,
    offset_ns=T0_NS + 2 * NS_PER_SECOND,
    onset_sample=0,
    offset_sample=32_000,
    at_sample=16_000,
    uncertainty_s=0.25,
    duration_reliable=True,
    reason="quiet",
    watcher_score=None,
    verifier_score=None,
    captured_ns=T0_NS + NS_PER_SECOND,
    scored_ns=T0_NS + 1_250_000_000,
    published_ns=T0_NS + 1_300_000_000,
    updated_ns=T0_NS + 4 * NS_PER_SECOND,
    epoch="e",
    model="m",
    labels={},
)


def span(first_s: float, rows: list[list[float]], **changes: Any) -> ScoreSpan:
    ends = 8_000 * np.arange(len(rows))
    times_ns = T0_NS + round(first_s * NS_PER_SECOND) + ends * 62_500
    labels = ("Siren", "Bark", "Rain")
    one = ScoreSpan(
        "porch", "e", "m", labels, 8_000, ends, times_ns, np.array(rows, dtype=np.float16)
    )
    return replace(one, **changes)


def test_the_class_of_the_event_is_first_then_the_likeliest_others() -> None:
    found = event_scores(EVENT, [span(-1.0, [[0.25, 0.5, 0.75], [0.0, 1.0, 0.5]])])
    assert found.times_s == [-1.0, -0.5]
    assert found.series == [("Bark", [0.5, 1.0]), ("Rain", [0.75, 0.5]), ("Siren", [0.25, 0.0])]
    assert found.to_json(2.0)["series"][0] == {"label": "Bark", "scores": [0.5, 1.0]}


def test_the_line_is_broken_where_windows_are_missing() -> None:
    found = event_scores(EVENT, [span(0.0, [[0, 0.5, 0]]), span(5.0, [[0, 0.25, 0]])])
    assert found.times_s == [0.0, 4.999, 5.0]
    assert found.series[0] == ("Bark", [0.5, None, 0.25])


def test_scores_of_another_model_are_left_out() -> None:
    assert event_scores(EVENT, [span(0.0, [[0, 0, 0]], labels=None)]).series == []
    assert event_scores(EVENT, [span(0.0, [[0, 0, 0]], labels=("A", "B", "C"))]).series == []
    assert event_scores(EVENT, []).times_s == []


def test_of_a_long_event_so_many_points_are_drawn_as_can_be_seen() -> None:
    found = event_scores(EVENT, [span(0.0, [[0, 0.5, 0]] * (MAX_POINTS + 1))])
    assert MAX_POINTS / 2 <= len(found.times_s) <= MAX_POINTS


def test_scores_are_asked_for_around_the_event() -> None:
    since_ns, until_ns = moments_around(EVENT)
    assert (T0_NS - since_ns) / NS_PER_SECOND == AROUND_S
    assert (until_ns - T0_NS) / NS_PER_SECOND == 2 + AROUND_S
    assert moments_around(replace(EVENT, offset_ns=None))[1] < until_ns


def test_where_the_time_went_adds_up() -> None:
    way = way_of(EVENT)
    assert [round(part["seconds"], 3) for part in way] == [1.0, 0.25, 0.05]
    assert sum(part["width"] for part in way) == pytest.approx(100)
    assert way_of(replace(EVENT, scored_ns=None)) == []


@pytest.mark.parametrize(
    "path", ["../secret", "/etc/passwd", "a/../../secret", "link", "a", "gone.flac", "a\0b", ""]
)
def test_no_path_leads_out_of_the_clips(tmp_path: Path, path: str) -> None:
    folder = tmp_path / "clips"
    (folder / "a").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    assert clip_file(folder, path) is None


def test_a_clip_is_found(tmp_path: Path) -> None:
    (tmp_path / "porch").mkdir()
    (tmp_path / "porch" / "a.flac").write_text("sound")
    assert clip_file(tmp_path, "porch/a.flac") == tmp_path / "porch" / "a.flac"
