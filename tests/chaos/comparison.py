"""Compare what a box published and delivered under faults with an undisturbed run.

The reference is the detector itself, undisturbed, on the whole scene, or on what a live source gave
to its ring. Every epoch of a stream must be a prefix of it: the same messages in the same order,
bit for bit but for rounding, up to the sample where its capture process ended; open events have an
end with a reason, and a gap record covers the lost samples. Of a live source the gap records must
be its holes, to the sample. Alerts and readers must have all of it, and nothing twice.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from box import HOP_S, Body, Box
from faults import MICROPHONE, Injected, capture_of
from http_receiver import Received
from reference import RecordedReference, Reference, SceneReference
from ring_tap import Recording

from ast_stream.coverage.ledger import read_spans
from ast_stream.messages.event import Event
from ast_stream.messages.query import ReplayPage
from ast_stream.model.tagger import load_tagger
from ast_stream.transport.event_log import EventLog
from ast_stream.units import SAMPLE_RATE

EPOCH_END_REASONS = {"stream_lost", "gap", "shutdown", "restart"}  # of an end where an epoch ends
RESTART_GAP = "capture_restart"  # reason of the gap behind an epoch whose capture process died
ROUNDING = 2e-3  # scores are float16 on the feed, and batches of other sizes round otherwise
SILENT_S = 5.0  # then events of the stream end
SETTLED = 10 * SAMPLE_RATE
WINDOW_AT_END = 11 * SAMPLE_RATE  # the last windows of an epoch reach beyond its audio
FOR_EVER = 2**53
TIME_SLACK_S = 0.5  # a connection may be slower at times; a lost second shows
_TIME_POINTS = 10  # of a live epoch's beginning and end
_TRACE_LINES = 80
# what processes may die of, by the kind of fault
CRASHES = {
    "gpu": ("CUDA out of memory", "CUDA error"),
    "memory": ("MemoryError", "memory", "bad_alloc", "mmap"),
    "descriptors": ("Too many open files", "EMFILE", "unable to open database file"),
}

Key = tuple[Any, ...]


@dataclass
class Epoch:
    """What was published of one run of a capture process."""

    stream: str
    epoch: str
    messages: list[Body] = field(default_factory=list)
    gaps: list[Body] = field(default_factory=list)  # gap records
    scores: dict[int, npt.NDArray[np.float16]] = field(default_factory=dict)
    explained: list[tuple[int, int]] = field(default_factory=list)  # samples, from and to
    recording: Recording | None = None  # of a live source

    @property
    def name(self) -> str:
        """Stream and epoch, for messages."""
        return f"{self.stream} {self.epoch[:8]}"

    def is_explained(self, first: int, last: int) -> bool:
        """Return whether health explains a difference anywhere from `first` to `last`."""
        return any(first <= stop and start <= last for start, stop in self.explained)

    def decided(self) -> int:
        """Return the sample up to which everything must have been published."""
        starts = [int(gap["start"]) for gap in self.gaps if gap["reason"] == RESTART_GAP]
        return min(starts, default=max(self.scores, default=0))


@dataclass(frozen=True)
class Recovery:
    """How long after the end of a fault all was well again.

    Attributes:
        seconds: None: never.
        is_timed: nothing else was done meanwhile.
    """

    seconds: float | None
    is_timed: bool


def n_recovered(recoveries: Sequence[Recovery]) -> int:
    """Return how many recovered."""
    return sum(recovery.seconds is not None for recovery in recoveries)


def percentiles(recoveries: Sequence[Recovery]) -> list[float]:
    """Return the median, the 95th percentile and the greatest of the timed ones; [] if none."""
    times = [each.seconds for each in recoveries if each.is_timed and each.seconds is not None]
    return [float(np.percentile(times, part)) for part in (50, 95, 100)] if times else []


@dataclass
class Comparison:
    """Figures of the comparison, and the differences that nothing explains."""

    problems: list[str] = field(default_factory=list)
    figures: Counter[str] = field(default_factory=Counter)
    worst_score: float = 0.0
    explained: Counter[str] = field(default_factory=Counter)  # lost samples, by reason
    unexplained: int = 0  # lost samples
    faults: list[Injected] = field(default_factory=list)
    recoveries: dict[str, list[Recovery]] = field(default_factory=lambda: defaultdict(list))

    def table(self) -> str:
        """Return the summary as text."""
        lines = [f"{'fault':<28}{'done':>6}{'recovered':>11}{'p50 s':>9}{'p95 s':>9}{'max s':>9}"]
        for name, found in sorted(self.recoveries.items()):
            times = "".join(f"{seconds:>9.1f}" for seconds in percentiles(found))
            lines.append(f"{name:<28}{len(found):>6}{n_recovered(found):>11}{times}")
        lines.append("")
        lines += [f"{name:<58}{n:>9}" for name, n in self.figures.items()]
        for reason, n in sorted(self.explained.items()):
            lines.append(f"{f'samples lost, explained: {reason}':<58}{n:>9}")
        lines.append(f"{'samples lost, unexplained':<58}{self.unexplained:>9}")
        lines.append(f"{'largest difference of a score':<58}{self.worst_score:>9.5f}")
        lines.append(f"{'unexplained':<58}{len(self.problems):>9}")
        return "\n".join([*lines, *(f"  {problem}" for problem in self.problems)])


def compare(box: Box, received: Sequence[Received]) -> Comparison:
    """Compare what a stopped box has left behind with an undisturbed run."""
    comparison = Comparison(faults=box.injected)
    _compare_recoveries(box, comparison)
    log = published(box)
    tagger = load_tagger(box.checkpoint, device="cpu", precision="fp32", attention="math")
    for stream in box.streams:
        epochs = _epochs(box, log, stream)
        _check_epochs(box, stream, epochs, comparison)
        if stream in box.scenes:
            scene = SceneReference(tagger, box.scenes[stream])
            for epoch in epochs:
                _compare_epoch(epoch, scene, comparison)
            continue
        for epoch in epochs:
            epoch.recording = box.taps[stream].recordings.get(epoch.epoch)
            if epoch.recording is None:
                comparison.figures["epochs too short to be read along"] += 1
                continue
            check_time(epoch.name, epoch.recording, comparison)
            _compare_epoch(epoch, RecordedReference(tagger, epoch.recording), comparison)
    _check_coverage(box, log, comparison)
    _check_begins_and_ends(log, comparison)
    _check_alerts(log, received, comparison)
    _check_readers(box, log, comparison)
    for name, code in box.exit_codes.items():
        if code != 0:
            comparison.problems.append(f"{name}: expected exit code 0, got {code}")
    _check_log(box, comparison)
    return comparison


def published(box: Box) -> list[tuple[str, Body]]:
    """Return topic and body of all durable messages that the next worker would find."""
    event_log = EventLog(box.state / "events", spare=box.folder / "run" / "unlogged-events.jsonl")
    found: list[tuple[str, Body]] = []
    after = None
    while True:
        page = event_log.replay(after)
        assert isinstance(page, ReplayPage)
        found += [
            (message.topic, message.body) for message in page.messages if message.kind != "boot"
        ]
        if not page.more:
            event_log.close()
            return found
        after = page.messages[-1].position


def _epochs(box: Box, log: list[tuple[str, Body]], stream: str) -> list[Epoch]:
    epochs: dict[str, Epoch] = {}
    for topic, body in log:
        if body["stream"] == stream:
            epoch = epochs.setdefault(body["epoch"], Epoch(stream, body["epoch"]))
            (epoch.gaps if topic.startswith("gap/") else epoch.messages).append(body)
    for (name, epoch_id), scores in box.seen.scores.items():
        if name == stream:
            epochs.setdefault(epoch_id, Epoch(stream, epoch_id)).scores = scores
    for epoch in epochs.values():
        healths = [
            body
            for _, name, body in box.seen.healths
            if name == stream and body["epoch"] == epoch.epoch and body["hop_s"] is not None
        ]
        epoch.explained = _explained_ranges(healths)
    return list(epochs.values())


def _explained_ranges(healths: list[Body]) -> list[tuple[int, int]]:
    """Return the samples around which health reports skipped windows or no audio."""
    found: list[tuple[int, int]] = []
    begin, last_normal = None, 0
    for body in healths:
        is_worse = body["hop_s"] > 1.01 * HOP_S or body["silence_s"] >= SILENT_S
        if is_worse and begin is None:
            begin = last_normal
        elif not is_worse:
            received = round(body["audio_s"] * SAMPLE_RATE)
            if begin is not None:
                # scores of skipped windows live on in averages and open events
                found.append((begin, received + SETTLED))
                begin = None
            last_normal = received - round((body["lag_s"] + HOP_S) * SAMPLE_RATE)
    return found if begin is None else [*found, (begin, FOR_EVER)]


def _check_epochs(box: Box, stream: str, epochs: list[Epoch], comparison: Comparison) -> None:
    """Check that no capture process died by itself: at most one epoch per kill and one more."""
    kills = sum(_ends_of_capture(injected, stream) for injected in box.injected)
    comparison.figures["epochs (runs of capture processes)"] += len(epochs)
    if len(epochs) > 1 + kills:
        comparison.problems.append(
            f"{stream}: expected at most {1 + kills} epochs after {kills} kills, got {len(epochs)}"
        )


def _ends_of_capture(injected: Injected, stream: str) -> int:
    """Return how often at most a fault ends the capture process of a stream."""
    fault = injected.fault
    if fault.kind == "start order":
        return 2
    if fault.kind == "sound server" and stream == MICROPHONE:
        return int(fault.target == "hung")  # calls to the server never return
    if fault.kind == "kill":
        return int(fault.target in ("run", capture_of(stream)))
    return int(fault.kind in ("descriptors", "memory") and fault.target == capture_of(stream))


def check_time(name: str, recording: Recording, comparison: Comparison) -> None:
    """Check that a live source's samples and holes add up to the time that has passed."""
    late = recording.lateness_s
    if len(late) < 2 * _TIME_POINTS:
        return
    # the least of each end: audio is late, never early
    moved_s = min(late[-_TIME_POINTS:]) - min(late[:_TIME_POINTS])
    comparison.figures["live epochs whose time was checked"] += 1
    if abs(moved_s) > TIME_SLACK_S:
        comparison.unexplained += max(0, round(moved_s * SAMPLE_RATE))
        comparison.problems.append(
            f"{name}: in {recording.end / SAMPLE_RATE:.1f} s of audio {moved_s:+.2f} s are in no "
            "record"
        )


def _check_log(box: Box, comparison: Comparison) -> None:
    """Check that nothing crashed but of what was injected."""
    kinds = {injected.fault.kind for injected in box.injected}
    allowed = [word for kind, words in CRASHES.items() if kind in kinds for word in words]
    lines = box.log.splitlines()
    for number, line in enumerate(lines):
        if not any(word in line for word in ("Traceback", "Assertion failed", "Fatal Python")):
            continue
        about = lines[max(0, number - 3) : number + _TRACE_LINES]
        if not any(word in each for each in about for word in allowed):
            comparison.problems.append(f"the log has, unexpectedly: {' | '.join(about)[:2000]}")


def compare_gaps(epoch: Epoch, decided: int, comparison: Comparison) -> None:
    """Check that the gap records of a live source are its holes."""
    assert epoch.recording is not None
    published = _merged(
        (gap["start"], gap["start"] + gap["samples"], gap["reason"])
        for gap in epoch.gaps
        if gap["reason"] != RESTART_GAP and gap["start"] < epoch.recording.end
    )
    holes = _merged(hole for hole in epoch.recording.holes if hole[1] <= decided)
    for start, stop, reason in published:
        comparison.explained[reason] += stop - start
    published = [gap for gap in published if gap[1] <= decided]
    if published != holes:
        wrong = set(published) ^ set(holes)
        comparison.unexplained += sum(stop - start for start, stop, _ in wrong)
        comparison.problems.append(
            f"{epoch.name}: gap records {published} are not the holes of the source {holes}"
        )


def _merged(ranges: Iterable[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Return ranges in order, those joined that touch and have the same reason."""
    found: list[tuple[int, int, str]] = []
    for start, stop, reason in sorted(ranges):
        if found and found[-1][1] == start and found[-1][2] == reason:
            found[-1] = (found[-1][0], stop, reason)
        else:
            found.append((start, stop, reason))
    return found


def _compare_epoch(epoch: Epoch, reference: Reference, comparison: Comparison) -> None:
    decided = epoch.decided()
    if reference.end is not None:
        decided = min(decided, reference.end)
    decided -= reference.longest_wait
    last_sample = max([decided, *(body["at_sample"] for body in epoch.messages)])
    reference.advance(last_sample + SAMPLE_RATE)
    _compare_messages(epoch, reference, decided, comparison)
    for gap in epoch.gaps:
        comparison.figures[f"gap records: {gap['reason']}"] += 1
        if gap["reason"] == RESTART_GAP:
            comparison.explained[RESTART_GAP] += gap["samples"]
        elif epoch.recording is None:
            comparison.unexplained += gap["samples"]
            comparison.problems.append(
                f"{epoch.name}: lost {gap['samples']} samples from {gap['start']} on "
                f"({gap['reason']}), which the ring had"
            )
    if epoch.recording is not None:
        compare_gaps(epoch, decided, comparison)
    ranges = sorted((gap["start"], gap["start"] + gap["samples"]) for gap in epoch.gaps)
    if any(stop > start for (_, stop), (start, _) in pairwise(ranges)):
        comparison.problems.append(
            f"{epoch.name}: lost samples were published more than once: {ranges}"
        )
    wrong = {}
    for end_sample, scores in epoch.scores.items():
        if end_sample <= decided and not epoch.is_explained(end_sample, end_sample):
            expected = reference.scores.get(end_sample)
            if expected is None:
                wrong[end_sample] = np.inf
                continue
            difference = float(np.abs(scores - expected).max())
            comparison.worst_score = max(comparison.worst_score, difference)
            comparison.figures["windows with equal scores"] += difference <= ROUNDING
            if difference > ROUNDING:
                wrong[end_sample] = difference
    if wrong:
        comparison.problems.append(
            f"{epoch.name}: {len(wrong)} windows with wrong scores, the first at {min(wrong)}, "
            f"the worst {max(wrong.values()):.3f} off"
        )


def _compare_messages(
    epoch: Epoch, reference: Reference, decided: int, comparison: Comparison
) -> None:
    """Check that the end of an epoch, overload or silence explains every difference."""
    expected = {key: None for key in map(_key_of_event, reference.events) if key[0] <= decided}
    got = {_key_of_body(body): body for body in epoch.messages}
    if len(got) < len(epoch.messages):
        comparison.problems.append(f"{epoch.name}: {len(epoch.messages) - len(got)} messages twice")
    spans = _spans(reference, epoch)
    # an event whose end came early, for a reason that it names, has no later one
    ended_early = {
        key[2:4] for key, body in got.items()
        if body["type"] == "end" and body["reason"] in EPOCH_END_REASONS
    }  # fmt: skip
    missing, extra = [], []
    for key in expected:
        if key not in got and epoch.is_explained(*spans[key]):
            comparison.figures["differences explained by published overload or silence"] += 1
        elif key not in got and key[1] != "begin" and key[2:4] in ended_early:
            comparison.figures["differences explained by an early end"] += 1
        elif key not in got:
            missing.append(key)
    for key, body in got.items():
        if key in expected:
            comparison.figures["event messages equal to the undisturbed ones"] += 1
        elif key[0] > decided or (body["type"] == "end" and body["reason"] in EPOCH_END_REASONS):
            # an end that came too early is one that is missing later
            comparison.figures["differences explained by the end of an epoch"] += 1
        elif epoch.is_explained(*spans[key]):
            comparison.figures["differences explained by published overload or silence"] += 1
        else:
            extra.append(key)
    for what, keys in (("missing", missing), ("too much", extra)):
        if keys:
            comparison.problems.append(
                f"{epoch.name}: {len(keys)} of {len(expected)} messages are {what}, the first "
                f"{keys[0]}"
            )
    common = [key for key in got if key in expected]
    if common != [key for key in expected if key in got]:
        comparison.problems.append(f"{epoch.name}: messages in another order")


def _spans(reference: Reference, epoch: Epoch) -> dict[Key, tuple[int, int]]:
    """Return first and last sample of the event of each message."""
    samples: dict[str, list[int]] = defaultdict(list)
    messages = [(event.id, _key_of_event(event)) for event in reference.events]
    messages += [(body["id"], _key_of_body(body)) for body in epoch.messages]
    for event_id, key in messages:
        samples[event_id].append(key[0])
    return {key: (min(samples[event_id]), max(samples[event_id])) for event_id, key in messages}


def _key_of_event(event: Event) -> Key:
    return (
        event.at_sample, event.type, event.slug, event.onset_sample, event.offset_sample,
        event.reason,
    )  # fmt: skip


def _key_of_body(body: Body) -> Key:
    names = ("at_sample", "type", "class", "onset_sample", "offset_sample", "reason")
    return tuple(body[name] for name in names)


def _check_coverage(box: Box, log: list[tuple[str, Body]], comparison: Comparison) -> None:
    """Check that the ledger has every sample of every epoch once, and the gaps of the records."""
    streams = read_spans(box.state / "coverage", box.folder / "run" / "unwritten-coverage.jsonl")
    for stream in box.streams:
        recorded: Counter[tuple[str, str]] = Counter()
        for topic, body in log:
            if topic == f"gap/{stream}/":
                recorded[body["epoch"], body["reason"]] += body["samples"]
        lost: Counter[tuple[str, str]] = Counter()
        stops: dict[str, int] = {}
        for span in streams.get(stream, []):
            comparison.figures[f"samples {span.kind}"] += span.samples
            if span.reason is not None:
                lost[span.epoch, span.reason] += span.samples
            expected = stops.get(span.epoch, 0)
            if span.start_sample != expected:
                comparison.unexplained += abs(span.start_sample - expected)
                comparison.problems.append(
                    f"{stream} {span.epoch[:8]}: the ledger goes on at sample {span.start_sample} "
                    f"instead of {expected}"
                )
            stops[span.epoch] = span.stop_sample
        if lost != recorded:
            comparison.problems.append(
                f"{stream}: the ledger has other gaps ({dict(lost)}) than were published "
                f"({dict(recorded)})"
            )
        for (name, epoch), scores in box.seen.scores.items():
            if name == stream and stops.get(epoch, 0) < max(scores) - WINDOW_AT_END:
                comparison.problems.append(
                    f"{stream} {epoch[:8]}: the ledger ends at sample {stops.get(epoch)}, and "
                    f"scores at {max(scores)}"
                )


def _check_begins_and_ends(log: list[tuple[str, Body]], comparison: Comparison) -> None:
    """Check that every event has one begin and one end."""
    counts = Counter(
        (body["id"], body["type"]) for topic, body in log if topic.startswith("event/")
    )
    for event_id in {event_id for event_id, _ in counts}:
        begins, ends = counts[event_id, "begin"], counts[event_id, "end"]
        comparison.figures["events"] += 1
        if (begins, ends) != (1, 1):
            comparison.problems.append(f"event {event_id} has {begins} begins and {ends} ends")


def _check_alerts(
    log: list[tuple[str, Body]], received: Sequence[Received], comparison: Comparison
) -> None:
    """Check that one alert of every event was delivered, once firing and once resolved."""
    delivered: dict[str, dict[str, set[str]]] = defaultdict(
        lambda: defaultdict(set)
    )  # ids of messages
    for message in received:
        data = message.body["data"]
        for event_id in data["alert"]["events"]:
            delivered[event_id][data["kind"]].add(message.id)
            if data["combined"]:
                delivered[event_id]["firing"].add(message.id)
    begun = {body["id"] for topic, body in log if topic.startswith("event/")}
    for event_id in begun:
        for kind in ("firing", "resolved"):
            n = len(delivered[event_id][kind])
            comparison.figures["alerts expected"] += 1
            comparison.figures["alerts delivered"] += n > 0
            if n != 1:
                comparison.problems.append(f"event {event_id}: delivered {n} times as {kind}")
    for event_id in set(delivered) - begun:
        comparison.problems.append(f"event {event_id} was delivered and is not in the log")
    n_messages = len({message.id for message in received})
    comparison.figures["alerts repeated after a kill, with the same id"] += (
        len(received) - n_messages
    )


def _check_readers(box: Box, log: list[tuple[str, Body]], comparison: Comparison) -> None:
    """Check that readers got everything in the log, in its order, whatever the boot."""
    expected = [_content(body) for _, body in log]
    for missed in box.seen.missed:
        comparison.problems.append(f"the undisturbed reader missed messages: {missed}")
    _check_same("the undisturbed reader", [b for _, b in box.seen.durable], expected, comparison)
    runs = list(box.subscribed())
    for number, lines in enumerate(runs, 1):
        for line in lines:
            if line["topic"] == "missed/":
                comparison.problems.append(f"subscriber {number} missed messages: {line}")
        lines = [line for line in lines if line["topic"] != "missed/"]
        # all but the last were killed on their way
        n_expected = len(expected) if number == len(runs) else len(lines)
        _check_same(f"subscriber {number}", lines, expected[:n_expected], comparison)
    comparison.figures["readers compared"] = 1 + len(runs)
    comparison.figures["starts that delivered what a stop left"] = int(box.delivered_after_restart)


def _check_same(who: str, got: Iterable[Body], expected: list[Key], comparison: Comparison) -> None:
    found = [_content(body) for body in got]
    # between streams another order than that of the log is possible: a worker that was killed
    # while the disk was full had published what another one logged
    if _by_stream(found) == _by_stream(expected):
        return
    lost, extra = set(expected) - set(found), set(found) - set(expected)
    twice = len(found) - len(set(found))
    comparison.problems.append(
        f"{who}: expected {len(expected)} messages as in the log, got {len(found)}: "
        f"{len(lost)} lost, {len(extra)} others, {twice} twice"
        + ("" if lost or extra or twice else ", in another order")
    )


def _by_stream(keys: Iterable[Key]) -> dict[str, list[Key]]:
    found: dict[str, list[Key]] = defaultdict(list)
    for key in keys:
        found[key[0]].append(key)
    return found


def _content(body: Body) -> Key:
    if "type" in body:
        return body["stream"], body["id"], body["type"], body["at_sample"]
    return body["stream"], body["epoch"], body["start"]


def _compare_recoveries(box: Box, comparison: Comparison) -> None:
    if not box.has_own_disk:
        comparison.figures["full disks: none, as only root can mount a small one"] = 0
    for injected in box.injected:
        if injected.note:
            comparison.figures[f"faults not done: {injected.note}"] += 1
            continue
        fault = injected.fault
        recovered_s = box.seen.recovered_after(injected.over_s, fault.streams(box.streams))
        if fault.target in ("alerts", "run") or fault.kind == "start order":
            alerts_s = box.seen.alerts_recovered_after(injected.over_s)
            is_back = recovered_s is not None and alerts_s is not None
            recovered_s = max(recovered_s or 0.0, alerts_s or 0.0) if is_back else None
        if recovered_s is None:
            comparison.problems.append(f"nothing recovered after {fault.name}")
        comparison.recoveries[fault.row].append(Recovery(recovered_s, injected.is_alone))
