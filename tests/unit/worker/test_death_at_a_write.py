"""A worker that dies behind any of its writes leaves files that agree with each other.

Everywhere it dies once, and the next one goes on with the same capture process or, where both died,
with a new one. Then what was published of lost samples is what the ledger says, to the sample, and
the events are those of a run that nothing disturbed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from deadly_writes import DiedError, Writes, counted_writes
from reactive_model import framed_checkpoint, tones_and_noise
from worker_harness import BLOCK, HOP_S, Site, site

from ast_stream.coverage.spans import HEARD, Span
from ast_stream.messages.audio import Pcm16
from ast_stream.model.checkpoint import save_checkpoint
from ast_stream.model.tagger import Tagger, load_tagger
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE, seconds_to_samples

HOP = seconds_to_samples(HOP_S)
CHANGE_S = 4.0  # a new capture process, or a hole in the audio
BEFORE_S, BEHIND_S = 1.3, 1.5  # of the change, in which it dies
LAST_S = 8.0
BEHIND_KILL_S = 0.4  # until the next worker, and the next capture process, is there
Range = tuple[int, int, int, str]
"""Number of the epoch, first sample, sample behind the last one, and reason."""


@pytest.fixture
def writes() -> Iterator[Writes]:
    """Count the writes of the worker."""
    with counted_writes() as writes:
        yield writes


@pytest.fixture(scope="module")
def framed(tmp_path_factory: pytest.TempPathFactory) -> Tagger:
    """Give a tagger that decides by frames."""
    folder = tmp_path_factory.mktemp("framed")
    save_checkpoint(folder, framed_checkpoint())
    return load_tagger(str(folder), device="cpu", precision="fp32", attention="math")


@pytest.fixture(params=["windows", "frames"])
def any_tagger(request: pytest.FixtureRequest, tagger: Tagger, framed: Tagger) -> Tagger:
    """Give a tagger that decides by windows, and one that decides by frames."""
    return tagger if request.param == "windows" else framed


@dataclass(frozen=True)
class Left:
    """What a box has left behind; epochs by their number.

    Attributes:
        events: messages, as far as they are the same in every run.
        ids: and types of all of them.
        published, accounted: lost samples by the gap records, and by the ledger.
        heard: up to which sample the ledger says that each epoch was heard.
    """

    events: list[tuple[object, ...]]
    ids: list[tuple[str, str]]
    published: list[Range]
    accounted: list[Range]
    heard: dict[int, int]
    spans: list[Span]


def left_of(box: Site, epochs: list[str]) -> Left:
    """End the worker, and return what the box has left behind."""
    box.tick(30, seconds=0.1)  # a worker that has just resumed reads the ring first
    box.worker.finish()
    number = {epoch: at for at, epoch in enumerate(epochs)}
    names = ("at_sample", "type", "class", "onset_sample", "offset_sample", "reason")
    spans = box.spans()
    heard: dict[int, int] = {}
    for span in spans:
        if span.kind in HEARD:
            heard[number[span.epoch]] = span.stop_sample
    return Left(
        events=[
            (number[body["epoch"]], *(body[name] for name in names)) for body in box.messages()
        ],
        ids=[(body["id"], body["type"]) for body in box.messages()],
        published=published(box, epochs),
        accounted=accounted(box, epochs),
        heard=heard,
        spans=spans,
    )


def published(box: Site, epochs: list[str]) -> list[Range]:
    """Return the samples that gap records say are lost."""
    return joined(
        (epochs.index(gap["epoch"]), gap["start"], gap["start"] + gap["samples"], gap["reason"])
        for gap in box.messages("gap")
    )


def accounted(box: Site, epochs: list[str]) -> list[Range]:
    """Return the samples that the ledger says are lost."""
    return joined(
        (epochs.index(span.epoch), span.start_sample, span.stop_sample, span.reason)
        for span in box.spans()
        if span.reason is not None and span.kind != "off"
    )


def joined(ranges: Iterator[Range]) -> list[Range]:
    """Return ranges in order, those as one that touch and have the same reason."""
    found: list[Range] = []
    for epoch, start, stop, reason in sorted(ranges):
        if found and found[-1][::2] == (epoch, start) and found[-1][3] == reason:
            found[-1] = (epoch, found[-1][1], stop, reason)
        else:
            found.append((epoch, start, stop, reason))
    return found


Change = Callable[[Site, list[str]], None]


def nothing(box: Site, epochs: list[str]) -> None:
    """Change nothing."""


def hole(box: Site, epochs: list[str]) -> None:
    """Lose samples at the source."""
    box.capture().ring.skip(3 * HOP, "overflow")
    box.now_s += 3 * HOP / SAMPLE_RATE


def new_capture(box: Site, epochs: list[str]) -> None:
    """Put another capture process in the place of the one that died."""
    box.now_s += BEHIND_KILL_S
    box.start_capture()
    epochs.append(box.capture().epoch)


def live(
    tagger: Tagger,
    pcm: Pcm16,
    writes: Writes,
    dies_behind: int | None,
    change: Change,
    after: Change,
) -> Left:
    """Run a box, with a change, around which the worker dies behind a write; return what is left.

    Args:
        dies_behind: number of the write; None: it does not die.
        after: what happens before there is another worker.
    """
    with site(tagger) as box:
        box.start_capture()
        epochs = [box.capture().epoch]
        box.start_worker("mic")
        play(box, pcm[: seconds_to_samples(CHANGE_S - BEFORE_S)])
        writes.begin(dies_behind)
        until = seconds_to_samples(CHANGE_S + BEHIND_S)
        for at in range(seconds_to_samples(CHANGE_S - BEFORE_S), until, BLOCK):
            if at == seconds_to_samples(CHANGE_S):
                change(box, epochs)
            try:
                box.play(pcm[at : at + BLOCK])
            except DiedError:
                go_on(box, epochs, after)
        writes.is_counting = False
        play(box, pcm[until:])
        return left_of(box, epochs)


def go_on(box: Site, epochs: list[str], after: Change) -> None:
    """Start another worker after something else has happened."""
    box.kill_worker()
    after(box, epochs)
    box.start_worker("mic")


def play(box: Site, pcm: Pcm16) -> None:
    """Play whole blocks."""
    for at in range(0, len(pcm), BLOCK):
        box.play(pcm[at : at + BLOCK])


def assert_agreeing(left: Left, where: str = "") -> None:
    """Gap records and ledger say the same, of every sample once; and no event is open."""
    assert left.published == left.accounted, where
    stops: dict[str, int] = {}
    for span in left.spans:
        assert span.start_sample == stops.get(span.epoch, 0), (where, left.spans)
        stops[span.epoch] = span.stop_sample
    counts = Counter((event_id, kind) for event_id, kind in left.ids if kind != "update")
    assert set(counts.values()) <= {1}, where
    begun = {event_id for event_id, kind in counts if kind == "begin"}
    assert begun == {event_id for event_id, kind in counts if kind == "end"}, where


@pytest.fixture(scope="module")
def pcm() -> Pcm16:
    return tones_and_noise(LAST_S)


CHANGES = {"nothing": nothing, "hole": hole, "new capture": new_capture}


@pytest.mark.slow
@pytest.mark.parametrize("change", ["nothing", "hole"])
def test_worker_that_dies_behind_any_write_goes_on_as_if_it_had_not(
    any_tagger: Tagger, pcm: Pcm16, writes: Writes, change: str
) -> None:
    undisturbed = live(any_tagger, pcm, writes, None, CHANGES[change], nothing)
    done = writes.done
    assert {"journal.json", "unwritten-coverage.jsonl", "events"} <= set(done)
    for number in range(1, len(done) + 1):
        left = live(any_tagger, pcm, writes, number, CHANGES[change], nothing)
        where = f"behind write {number} of {len(done)}, {done[number - 1]}"
        assert_agreeing(left, where)
        assert left.published == undisturbed.published, where
        assert left.heard == undisturbed.heard, where
        assert left.events == undisturbed.events, where


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "after"),
    [
        ("nothing", "new capture"),
        ("hole", "new capture"),
        ("new capture", "nothing"),
        ("new capture", "new capture"),
    ],
)
def test_worker_and_capture_that_die_behind_any_write_leave_the_gap_of_the_ledger(
    any_tagger: Tagger, pcm: Pcm16, writes: Writes, change: str, after: str
) -> None:
    live(any_tagger, pcm, writes, None, CHANGES[change], nothing)
    done = writes.done
    for number in range(1, len(done) + 1):
        left = live(any_tagger, pcm, writes, number, CHANGES[change], CHANGES[after])
        assert_agreeing(left, f"behind write {number} of {len(done)}, {done[number - 1]}")


def play_until_it_dies_behind_its_ledger(box: Site, pcm: Pcm16, writes: Writes) -> int:
    """Play until the ledger says more than the journal; return how many samples it says."""
    writes.begin(None)
    n_journalled = 0
    try:
        for at in range(0, len(pcm), BLOCK):
            if "journal.json" in writes.done[n_journalled:]:
                n_journalled = len(writes.done)
                if at > 4 * SAMPLE_RATE:
                    writes.dies_behind = "unwritten-coverage.jsonl"
            box.play(pcm[at : at + BLOCK])
    except DiedError:
        (span,) = box.spans()
        return span.stop_sample
    raise AssertionError("it did not die")


def test_gap_of_a_new_capture_process_begins_where_the_ledger_ends(
    any_tagger: Tagger, pcm: Pcm16, writes: Writes
) -> None:
    with site(any_tagger) as box:
        box.start_capture()
        epochs = [box.capture().epoch]
        box.start_worker("mic")
        n_heard = play_until_it_dies_behind_its_ledger(box, pcm, writes)
        decided: list[int] = []  # what is decided a second time, with less to go by
        box.on_sent = lambda message: decided.extend(
            message.body["end_sample"]
            for _ in range(message.kind == "scores" and message.body["epoch"] == epochs[0])
        )
        go_on(box, epochs, new_capture)
        play(box, pcm[: 3 * SAMPLE_RATE])
        left = left_of(box, epochs)
        assert_agreeing(left)
        assert [(epoch, start) for epoch, start, *_ in left.published] == [(0, n_heard)]
        assert not decided


@pytest.mark.parametrize("settings", ["same", "other"])
@pytest.mark.parametrize("n_lost", [-BLOCK, BLOCK, 5 * BLOCK])
def test_gap_of_a_ring_that_was_overrun_has_nothing_that_the_ledger_has(
    tagger: Tagger, pcm: Pcm16, writes: Writes, n_lost: int, settings: str
) -> None:
    """The ring begins behind what the ledger has, or between that and what the journal has.

    With other settings the next worker has no use for the journal.
    """
    with site(tagger) as box:
        box.start_capture(ring_s=2.0)
        epochs = [box.capture().epoch]
        box.start_worker("mic")
        n_heard = play_until_it_dies_behind_its_ledger(box, pcm, writes)
        box.kill_worker()
        box.capture_only(pcm[box.n_captured() : n_heard + n_lost + 2 * SAMPLE_RATE])
        assert box.capture().ring.oldest == n_heard + n_lost
        box.start_worker("mic", settings=settings)
        box.tick(5)  # until it has what the ring has
        play(box, pcm[: 3 * SAMPLE_RATE])
        left = left_of(box, epochs)
        assert_agreeing(left)
        lost = [(0, n_heard, n_heard + n_lost, "overwritten")]
        assert left.published == (lost if n_lost > 0 else [])


def test_gap_that_clocks_find_shorter_the_second_time_is_as_long_as_it_was_published(
    tagger: Tagger, pcm: Pcm16
) -> None:
    with site(tagger) as box:
        box.start_capture()
        epochs = [box.capture().epoch]
        box.start_worker("mic")
        play(box, pcm[: 4 * SAMPLE_RATE])
        new_capture(box, epochs)
        while not (found := published(box, epochs)):
            box.play(pcm[:BLOCK])
        ((_, _, stop, _),) = found
        box.kill_worker()
        box.set_by_ns = -NS_PER_SECOND
        new_capture(box, epochs)
        box.capture().set_by_ns = box.set_by_ns
        box.start_worker("mic")
        play(box, pcm[: 3 * SAMPLE_RATE])
        left = left_of(box, epochs)
        assert_agreeing(left)
        assert left.published[0][2] == stop


@pytest.mark.parametrize("n_ticks", range(1, 6))
def test_capture_that_dies_while_its_ring_fills_a_window_again_costs_nothing_decided(
    tagger: Tagger, pcm: Pcm16, n_ticks: int
) -> None:
    """A reply ends at a hole: the window is filled by several."""
    with site(tagger) as box:
        box.start_capture()
        epochs = [box.capture().epoch]
        box.start_worker("mic")
        play(box, pcm[: 4 * SAMPLE_RATE])
        n_hole = BLOCK // 2  # so short that it becomes silence
        box.capture().ring.skip(n_hole, "overflow")
        box.now_s += n_hole / SAMPLE_RATE
        play(box, pcm[4 * SAMPLE_RATE : 4 * SAMPLE_RATE + 5 * BLOCK])
        box.tick(seconds=1.1)  # journalled
        n_heard = box.spans()[-1].stop_sample
        box.kill_worker()
        box.start_worker("mic")
        box.tick(n_ticks)
        new_capture(box, epochs)
        play(box, pcm[: 3 * SAMPLE_RATE])
        left = left_of(box, epochs)
        assert_agreeing(left)
        assert left.published[0] == (0, 4 * SAMPLE_RATE, 4 * SAMPLE_RATE + n_hole, "overflow")
        assert left.published[1][1] >= n_heard


def test_gap_before_any_audio_is_in_the_ledger_once_it_is_behind_the_journal(
    tagger: Tagger, pcm: Pcm16
) -> None:
    with site(tagger) as box:
        box.start_capture()
        epochs = [box.capture().epoch]
        box.capture().ring.skip(3 * HOP, "overflow")
        box.start_worker("mic")
        play(box, pcm[:BLOCK])
        box.tick(2)
        box.tick(seconds=1.1)  # journalled, before a window has an end
        box.kill_worker()
        box.start_worker("mic")
        play(box, pcm[BLOCK : 3 * SAMPLE_RATE])
        left = left_of(box, epochs)
        assert_agreeing(left)
        assert left.published == [(0, 0, 3 * HOP, "overflow")]


def test_stream_that_was_removed_behind_any_write_has_lost_nothing_when_it_comes_back(
    tagger: Tagger, pcm: Pcm16, writes: Writes
) -> None:
    """Once the ledger says that it was off, the journal does not say where it goes on."""
    number, n_writes, was_off = 0, 1, set()
    while number <= n_writes:
        with site(tagger) as box:
            box.start_capture()
            epochs = [box.capture().epoch]
            box.start_worker("mic")
            play(box, pcm[: 4 * SAMPLE_RATE])
            writes.begin(number or None)
            try:
                box.use_streams()
                box.tick(20, seconds=0.1)
            except DiedError:
                pass
            n_writes = n_writes if number else len(writes.done)
            writes.is_counting = False
            box.kill_worker()
            box.kill_capture()
            box.start_worker()
            is_off = any(span.kind == "off" for span in box.spans())
            was_off.add(is_off)
            box.tick(20, seconds=10.0)
            new_capture(box, epochs)
            box.use_streams("mic")
            play(box, pcm[: 2 * SAMPLE_RATE])
            box.tick(30, seconds=0.1)
            box.worker.finish()
            lost = published(box, epochs)
            assert lost == accounted(box, epochs)
            assert not (is_off and lost), f"behind write {number} of {n_writes}"
        number += 1
    assert was_off == {False, True}
