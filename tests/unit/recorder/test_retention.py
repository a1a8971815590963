from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ast_stream.recorder.retention import StoredClip, make_room, too_old


def stored(
    name: str, class_: str, peak: float, start: int, n_bytes: int = 100, *, waits: bool = False
) -> StoredClip:
    return StoredClip(name, name, 0, True, class_, peak, start, 0, 1, n_bytes, waits)


def names(found: object) -> list[str]:
    return [clip.path for clip in found]  # type: ignore[attr-defined]


def test_the_class_that_takes_the_most_makes_room_and_the_oldest_first() -> None:
    clips = [stored(f"bark{n}", "bark", 0.5, n) for n in range(5)]
    clips += [stored("siren", "siren", 0.1, 0)]
    assert names(make_room(clips, 201, keep_best=1)) == ["bark0", "bark1", "bark2"]


def test_the_best_of_each_class_go_last_and_the_worst_of_them_first() -> None:
    clips = [stored("old-best", "bark", 0.9, 0), stored("worse", "bark", 0.6, 1)]
    clips += [stored("common", "bark", 0.3, 2), stored("good", "siren", 0.8, 3)]
    order = names(make_room(clips, 10_000, keep_best=2))
    assert order == ["common", "worse", "good", "old-best"]


def test_what_waits_for_a_decision_is_not_among_the_best() -> None:
    clips = [stored("waits", "bark", 0.99, 5, waits=True), stored("kept", "bark", 0.5, 1)]
    assert names(make_room(clips, 1, keep_best=1)) == ["waits"]


def test_clips_from_before_a_time_are_too_old_however_good() -> None:
    clips = [stored("a", "bark", 1.0, 10), stored("b", "bark", 0.1, 20)]
    assert names(too_old(clips, 20)) == ["a"]


CLIP = st.builds(
    stored,
    st.uuids().map(str),
    st.sampled_from(["bark", "siren", "knock"]),
    st.floats(0, 1),
    st.integers(0, 100),
    st.integers(1, 1000),
    waits=st.booleans(),
)


@given(st.lists(CLIP, max_size=20), st.integers(0, 8000), st.integers(0, 5))
def test_there_is_room_or_nothing_is_left(
    clips: list[StoredClip], n_bytes: int, keep_best: int
) -> None:
    gone = list(make_room(clips, n_bytes, keep_best))
    assert len(set(names(gone))) == len(gone)
    assert sum(clip.size_bytes for clip in gone) >= n_bytes or len(gone) == len(clips)
