"""Compare what a box published and delivered under faults with an undisturbed run.

The reference is the detector itself on the whole scene, undisturbed. Every epoch of a stream must
be a prefix of it: the same messages in the same order, bit for bit but for rounding, up to the
sample where its capture process was killed; open events have an end with a reason, and a
gap record covers the lost samples. Alerts and readers must have all of it, and nothing twice.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from chaos import HOP_S, Body, Box, Injected
from http_receiver import Received

from ast_stream.coverage.ledger import read_spans
from ast_stream.detect.detector import Detector
from ast_stream.messages.audio import Pcm16
from ast_stream.messages.event import Event, Scores
from ast_stream.messages.query import ReplayPage
from ast_stream.model.tagger import Tagger, load_tagger
from ast_stream.settings.schema import DetectionSettings
from ast_stream.transport.event_log import EventLog
from ast_stream.units import SAMPLE_RATE

EPOCH_END_REASONS = {"stream_lost", "gap", "shutdown", "restart"}  # of an end where an epoch ends
RESTART_GAP = "capture_restart"  # reason of the gap behind an epoch whose capture process died
ROUNDING = 2e-3  # scores are float16 on the feed, and batches of other sizes round otherwise
SILENT_S = 5.0  # then events of the stream end
SETTLED = 10 * SAMPLE_RATE
WINDOW_AT_END = 11 * SAMPLE_RATE  # the last windows of an epoch reach beyond its audio
FOR_EVER = 2**53
_PIECE = 10 * SAMPLE_RATE

Key = tuple[Any, ...]


class Reference:
    """Events and scores of an endless repetition of a scene, as far as it was needed."""

    def __init__(self, tagger: Tagger, pcm: Pcm16) -> None:
        self.events: list[Event] = []
        self.scores: dict[int, npt.NDArray[np.float32]] = {}
        self._pcm = pcm
        self._detector = Detector(tagger, DetectionSettings(), hop_s=HOP_S, on_scores=self._keep)
        self._detector.open("reference", "0" * 32)
        self._end_sample = 0

    def advance(self, until: int) -> None:
        """Run the detector up to sample `until`."""
        while self._end_sample < until:
            at = self._end_sample % len(self._pcm)
            piece = self._pcm[at : at + _PIECE]
            self._detector.push("reference", self._end_sample, piece)
            self.events += self._detector.run()
            self._end_sample += len(piece)

    @property
    def longest_wait(self) -> int:
        """Samples that a frame may wait for the window that decides it; 0 where windows decide.

        The last frames of an epoch are decided without that window.
        """
        return self._detector.parameters.geometry.longest_wait

    def _keep(self, scores: Scores) -> None:
        self.scores[scores.end_sample] = scores.scores


@dataclass
class Epoch:
    """What was published of one run of a capture process."""

    stream: str
    epoch: str
    messages: list[Body] = field(default_factory=list)
    gaps: list[Body] = field(default_factory=list)  # gap records
    scores: dict[int, npt.NDArray[np.float16]] = field(default_factory=dict)
    explained: list[tuple[int, int]] = field(default_factory=list)  # samples, from and to

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


@dataclass
class Comparison:
    """Figures of the comparison, and the differences that nothing explains."""

    problems: list[str] = field(default_factory=list)
    figures: Counter[str] = field(default_factory=Counter)
    worst_score: float = 0.0
    faults: list[Injected] = field(default_factory=list)
    recoveries_s: dict[str, list[float | None]] = field(default_factory=lambda: defaultdict(list))

    def table(self) -> str:
        """Return the summary as text."""
        lines = [f"{'fault':<24}{'done':>6}{'recovered':>11}{'median s':>10}{'slowest s':>11}"]
        for name, found in sorted(self.recoveries_s.items()):
            known = sorted(recovery_s for recovery_s in found if recovery_s is not None)
            median, slowest = (
                (f"{known[len(known) // 2]:.1f}", f"{known[-1]:.1f}") if known else ("-", "-")
            )
            lines.append(f"{name:<24}{len(found):>6}{len(known):>11}{median:>10}{slowest:>11}")
        lines.append("")
        lines += [f"{name:<58}{n:>9}" for name, n in self.figures.items()]
        lines.append(f"{'largest difference of a score':<58}{self.worst_score:>9.5f}")
        lines.append(f"{'unexplained':<58}{len(self.problems):>9}")
        return "\n".join([*lines, *(f"  {problem}" for problem in self.problems)])


def compare(box: Box, received: Sequence[Received]) -> Comparison:
    """Compare what a stopped box has left behind with an undisturbed run."""
    comparison = Comparison(faults=box.injected)
    _compare_recoveries(box, comparison)
    log = published(box)
    tagger = load_tagger("bundled", device="cpu", precision="fp32", attention="math")
    for stream in box.streams:
        reference = Reference(tagger, box.scenes[stream])
        epochs = _epochs(box, log, stream)
        _check_epochs(box, stream, epochs, comparison)
        for epoch in epochs:
            _compare_epoch(epoch, reference, comparison)
    _check_coverage(box, log, comparison)
    _check_begins_and_ends(log, comparison)
    _check_alerts(log, received, comparison)
    _check_readers(box, log, comparison)
    for name, code in box.exit_codes.items():
        if code != 0:
            comparison.problems.append(f"{name}: expected exit code 0, got {code}")
    for word in ("Traceback", "Assertion failed", "Fatal Python error"):
        if n := box.log.count(word):
            comparison.problems.append(f"the log has {n} times {word!r}")
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
    kills = sum(
        injected.fault.kind == "kill" and injected.fault.target in ("run", f"capture {stream}")
        for injected in box.injected
    )
    comparison.figures["epochs (runs of capture processes)"] += len(epochs)
    if len(epochs) > 1 + kills:
        comparison.problems.append(
            f"{stream}: expected at most {1 + kills} epochs after {kills} kills, got {len(epochs)}"
        )


def _compare_epoch(epoch: Epoch, reference: Reference, comparison: Comparison) -> None:
    decided = epoch.decided() - reference.longest_wait
    last_sample = max([decided, *(body["at_sample"] for body in epoch.messages)])
    reference.advance(last_sample + SAMPLE_RATE)
    _compare_messages(epoch, reference, decided, comparison)
    for gap in epoch.gaps:
        comparison.figures[f"gap records: {gap['reason']}"] += 1
        if gap["reason"] != RESTART_GAP:
            comparison.problems.append(
                f"{epoch.name}: lost {gap['samples']} samples from {gap['start']} on "
                f"({gap['reason']}), which the ring had"
            )
    ranges = sorted((gap["start"], gap["start"] + gap["samples"]) for gap in epoch.gaps)
    if any(stop > start for (_, stop), (start, _) in pairwise(ranges)):
        comparison.problems.append(
            f"{epoch.name}: lost samples were published more than once: {ranges}"
        )
    wrong = {}
    for end_sample, scores in epoch.scores.items():
        if end_sample <= decided and not epoch.is_explained(end_sample, end_sample):
            difference = float(np.abs(scores - reference.scores[end_sample]).max())
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
    missing, extra = [], []
    for key in expected:
        if key not in got and epoch.is_explained(*spans[key]):
            comparison.figures["differences explained by published overload or silence"] += 1
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
        recovered_s = box.seen.recovered_after(injected.over_s, box.streams)
        name = injected.fault.name.split(" ")[:2]
        comparison.recoveries_s[" ".join(name)].append(recovered_s)
        if recovered_s is None:
            comparison.problems.append(f"nothing recovered after {injected.fault.name}")
