"""All time between the first and the last record is accounted for, to the sample."""

from __future__ import annotations

import random
from itertools import pairwise

from coverage_spans import BEGAN_NS, span
from hypothesis import given
from hypothesis import strategies as st

from ast_stream.coverage.spans import Kind, Span
from ast_stream.coverage.timeline import NOT_RECORDED, UNDECIDED_NS, Coverage, Stretch
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE, samples_to_ns

HOUR_NS = 3600 * NS_PER_SECOND


def coverage(
    spans: list[Span],
    *,
    now_ns: int | None = None,
    is_expected: bool = False,
    since_ns: int | None = None,
    until_ns: int | None = None,
) -> Coverage:
    now_ns = BEGAN_NS + 100 * HOUR_NS if now_ns is None else now_ns
    return Coverage.of(
        "porch", spans, now_ns, is_expected=is_expected, since_ns=since_ns, until_ns=until_ns
    )


def assert_complete(found: Coverage) -> None:
    first, last = found.stretches[0], found.stretches[-1]
    assert samples_to_ns(found.total) == last.stop_ns - first.time_ns
    at = first.time_ns
    for stretch in found.stretches:
        assert stretch.time_ns == at
        at = stretch.stop_ns
    assert sum(found.samples.values()) == found.total


def test_time_between_two_epochs_is_missing() -> None:
    later = span(0, 16_000, epoch="bbbbbbbb", late_ns=samples_to_ns(16_000 + 12_345))
    found = coverage([span(0, 16_000), later])
    assert_complete(found)
    assert found.samples["missing"] == 12_345
    assert found.reasons == {"missing": {NOT_RECORDED: 12_345}}
    assert found.heard == 32_000 / 44_345


def test_any_ledger_adds_up_to_the_time_from_its_first_to_its_last_sample() -> None:
    rng = random.Random(8)
    kinds: list[Kind] = ["listened", "gated", "degraded", "missing", "gap"]
    for _ in range(100):
        spans, time_ns = [], BEGAN_NS
        for epoch in range(rng.randint(1, 5)):
            at = rng.choice([0, rng.randint(0, 10**6)])
            for _ in range(rng.randint(1, 6)):
                n_samples = rng.randint(1, 10**6)
                one = span(at, at + n_samples, rng.choice(kinds), epoch=f"{epoch:08}")
                spans.append(one.model_copy(update={"time_ns": time_ns}))
                at += n_samples
                time_ns = spans[-1].stop_ns
            time_ns += samples_to_ns(rng.choice([0, 0, rng.randint(1, 10**6)]))
        found = coverage(spans)
        assert_complete(found)
        for kind in set(kinds) - {"missing"}:
            assert found.samples[kind] == sum(o.samples for o in spans if o.kind == kind)
        length_ns = found.stretches[-1].stop_ns - BEGAN_NS
        cuts = sorted(BEGAN_NS + rng.randint(0, length_ns) for _ in range(2))
        parts = [
            coverage(spans, until_ns=cuts[0]),
            coverage(spans, since_ns=cuts[0], until_ns=cuts[1]),
            coverage(spans, since_ns=cuts[1]),
        ]
        assert sum(part.total for part in parts) == found.total


def test_streams_that_should_be_heard_are_missing_until_now_and_others_to_their_last_record() -> (
    None
):
    spans = [span(0, 16_000)]
    now_ns = spans[0].stop_ns + HOUR_NS
    assert coverage(spans, now_ns=now_ns).samples["missing"] == 0
    found = coverage(spans, now_ns=now_ns, is_expected=True)
    assert_complete(found)
    assert found.samples["missing"] == 3600 * SAMPLE_RATE
    fresh = coverage(spans, now_ns=spans[0].stop_ns + UNDECIDED_NS, is_expected=True)
    assert fresh.samples["missing"] == 0  # it may still come out of the ring
    asked = coverage(spans, now_ns=now_ns, until_ns=spans[0].stop_ns + samples_to_ns(77))
    assert asked.samples["missing"] == 77
    assert coverage(spans, now_ns=now_ns, until_ns=now_ns + HOUR_NS).total == (
        16_000 + 3600 * SAMPLE_RATE
    )


def test_clock_that_is_set_within_an_epoch_makes_no_time_and_takes_none() -> None:
    for late_ns in (HOUR_NS, -HOUR_NS, 20_000_000, -20_000_000):
        found = coverage([span(0, 16_000), span(16_000, 32_000, late_ns=late_ns)])
        assert found.samples == {
            "listened": 32_000,
            "gated": 0,
            "degraded": 0,
            "missing": 0,
            "gap": 0,
        }


def test_hole_that_the_ledger_itself_has_is_missing() -> None:
    found = coverage([span(0, 1_000), span(1_500, 2_000)])
    assert_complete(found)
    assert found.samples["missing"] == 500


def change(at_s: float, reason: str) -> Span:
    """A change of the configuration, so long after the first sample."""
    first = span(0, 1)
    update = {"kind": "off", "epoch": f"change-{at_s}", "reason": reason}
    time_ns = first.time_ns + round(at_s * NS_PER_SECOND)
    return first.model_copy(update=update | {"time_ns": time_ns})


def test_time_between_removal_and_return_of_a_stream_is_off_and_counts_for_nothing() -> None:
    later = span(0, 1_600, epoch="bbbbbbbb")
    later = later.model_copy(update={"time_ns": later.time_ns + 12 * NS_PER_SECOND})
    spans = [span(0, 1_600), change(2, "removed"), change(10, "added"), later]
    found = coverage(spans)
    assert found.off == 8 * SAMPLE_RATE + 1
    # until it was removed, and from its return on, it should have been listened to
    assert found.samples["missing"] == round((1.9 + 2) * SAMPLE_RATE) - 1
    assert found.total + found.off == round(12.1 * SAMPLE_RATE)
    assert found.to_json()["samples"]["off"] == found.off


def test_stream_that_was_removed_is_off_until_now_even_if_it_was_expected() -> None:
    now_ns = BEGAN_NS + HOUR_NS
    found = coverage([span(0, 1_600), change(0.1, "removed")], now_ns=now_ns, is_expected=True)
    assert found.heard == 1.0
    assert found.off == round(3599.9 * SAMPLE_RATE)


def test_json_says_the_same_by_kind_by_reason_and_by_range() -> None:
    spans = [span(0, 1_600), span(1_600, 4_800, "gap", reason="overflow"), span(4_800, 6_400)]
    body = coverage(spans).to_json()
    assert body["samples"] == {
        "listened": 3_200,
        "gated": 0,
        "degraded": 0,
        "missing": 0,
        "gap": 3_200,
        "total": 6_400,
        "off": 0,
        "elsewhere": 0,
    }
    assert body["seconds"]["gap"] == 0.2
    assert body["heard"] == 0.5
    assert body["reasons"] == {"gap": {"overflow": 3_200}}
    assert body["spans"][1] == {
        "kind": "gap",
        "time": body["spans"][1]["time"],
        "samples": 3_200,
        "seconds": 0.2,
        "epoch": "aaaaaaaa",
        "start": 1_600,
        "reason": "overflow",
    }
    assert coverage([]).to_json()["from"] is None


# of each epoch: seconds that it lasts, seconds without a record in front of it, and by how many
# seconds the wall clock is set in between
EPOCHS = st.lists(
    st.tuples(st.integers(1, 90), st.integers(0, 60), st.integers(-120, 120)),
    min_size=2,
    max_size=8,
)


def recorded(epochs: list[tuple[int, int, int]]) -> list[Span]:
    """Return the ledger of epochs, whose wall times are as the clock was set."""
    spans, at_s, ahead_s = [], 0, 0
    for number, (lasts_s, pause_s, set_s) in enumerate(epochs):
        at_s, ahead_s = at_s + pause_s, ahead_s + set_s
        late_ns = (at_s + ahead_s) * NS_PER_SECOND
        spans.append(span(0, lasts_s * SAMPLE_RATE, epoch=f"{number:08}", late_ns=late_ns))
        at_s += lasts_s
    return spans


def n_common(one: Stretch | Span, other: Stretch | Span) -> int:
    """Return for how many nanoseconds two of them speak of the same time."""
    return min(one.stop_ns, other.stop_ns) - max(one.time_ns, other.time_ns)


@given(EPOCHS)
def test_no_time_is_missing_twice_or_where_there_is_a_record_however_the_clock_leaps(
    epochs: list[tuple[int, int, int]],
) -> None:
    spans = recorded(epochs)
    found = coverage(spans, is_expected=True).stretches
    heard = [stretch for stretch in found if stretch.kind == "listened"]
    assert [(one.epoch, one.time_ns, one.samples) for one in heard] == [
        (one.epoch, one.time_ns, one.samples) for one in spans
    ]
    missing = [stretch for stretch in found if stretch.kind == "missing"]
    for number, one in enumerate(missing):
        others: list[Stretch | Span] = [*missing[:number], *spans]
        assert all(n_common(one, other) <= 0 for other in others)
    # nor is any left out
    every = sorted((one.time_ns, one.stop_ns) for one in found)
    reached_ns = every[0][1]
    for start_ns, stop_ns in every[1:]:
        assert start_ns <= reached_ns
        reached_ns = max(reached_ns, stop_ns)


@given(EPOCHS)
def test_a_clock_that_is_not_set_leaves_each_pause_missing_as_it_was(
    epochs: list[tuple[int, int, int]],
) -> None:
    spans = recorded([(lasts_s, pause_s, 0) for lasts_s, pause_s, _ in epochs])
    found = [one for one in coverage(spans).stretches if one.kind == "missing"]
    pauses = [(a.stop_ns, b.time_ns) for a, b in pairwise(spans) if a.stop_ns < b.time_ns]
    assert [(one.time_ns, one.stop_ns) for one in found] == pauses


def test_a_clock_that_leaps_an_hour_ahead_and_back_makes_no_hour_missing() -> None:
    spans = recorded([(60, 0, 0), (60, 0, 3600), (3600, 0, -3600)])
    found = coverage(spans)
    # the minute that was recorded with the wrong time is missing at the right one, and no more
    assert found.samples["missing"] == 60 * SAMPLE_RATE
    inside = coverage(spans, since_ns=BEGAN_NS + 600 * NS_PER_SECOND, until_ns=BEGAN_NS + HOUR_NS)
    assert inside.heard == 1.0
    assert inside.total == 3000 * SAMPLE_RATE
