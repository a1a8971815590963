from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ast_stream.recorder.held_audio import HeldAudio, Hole

WHOLE = np.arange(1, 1001, dtype=np.int16)


@given(
    st.lists(st.integers(0, 120), min_size=1, max_size=6),
    st.lists(st.integers(0, 120), max_size=4),
    st.integers(-50, 900),
    st.integers(0, 300),
)
def test_what_is_cut_is_what_was_put_in(
    behind: list[int], before: list[int], start: int, length: int
) -> None:
    held = HeldAudio(500)
    for n in behind:
        held.append(WHOLE[held.end : held.end + min(n, 1000 - held.end)])
    for n in before:
        first = max(0, held.start - n)
        held.prepend(WHOLE[first : held.start])
    found = held.cut(start, start + length)
    assert held.start <= found.start <= found.stop <= held.end
    np.testing.assert_array_equal(found.pcm, WHOLE[found.start : found.stop])
    wanted = range(max(start, held.start), min(start + length, held.end))
    assert len(found.pcm) == len(wanted)


def test_what_is_missing_is_silence_and_named_within_the_cut() -> None:
    held = HeldAudio(100)
    held.append(WHOLE[100:200])
    held.append_hole(250, "too old")
    held.append(WHOLE[250:300], withheld=[(260, 270)])
    held.note(Hole(110, 120, "overflow"))
    found = held.cut(115, 265)
    assert found.holes == [Hole(115, 120, "overflow"), Hole(200, 250, "too old")]
    assert found.withheld == [(260, 265)]
    assert not found.pcm[:5].any()
    assert not found.pcm[85:135].any()
    np.testing.assert_array_equal(found.pcm[5:85], WHOLE[120:200])
    assert found.has_sound
    assert not held.cut(205, 245).has_sound
    assert not held.cut(260, 270).has_sound


def test_what_nothing_needs_any_more_is_let_go() -> None:
    held = HeldAudio(0)
    for start in range(0, 1000, 100):
        held.append(WHOLE[start : start + 100])
    held.forget(350)
    assert (held.start, held.end) == (300, 1000)
    np.testing.assert_array_equal(held.cut(350, 420).pcm, WHOLE[350:420])
