"""Accounting of samples: runs of hops and gaps of a stream, in order, into the ledger."""

from __future__ import annotations

import itertools

from ast_stream.coverage.ledger import CoverageLedger
from ast_stream.coverage.spans import Kind, Span
from ast_stream.detect.scorer import HopRun
from ast_stream.messages.event import Gap
from ast_stream.sample_clock import SampleClock
from ast_stream.worker.reassembly import CAPTURE_RESTART


class StreamAccount:
    """Accounts for the samples of one stream, in order.

    A gap is known before the audio in front of it is scored, and the detector hears a short one as
    silence: gaps are kept until their turn, and take the place of what was said of their samples.
    """

    def __init__(self, ledger: CoverageLedger) -> None:
        self._ledger = ledger
        self._gaps: list[Gap] = []  # whose turn has not come

    def restart(self) -> None:
        """Forget the gaps ahead: another epoch begins."""
        self._gaps.clear()

    @property
    def has_gaps(self) -> bool:
        """Whether a gap waits for its turn."""
        return bool(self._gaps)

    def expect(self, gap: Gap) -> None:
        """Note a gap that the detector will come to."""
        if gap.samples > 0:
            self._gaps.append(gap)

    def stop(self, stream: str, epoch: str) -> int:
        """Return the sample up to which an epoch is accounted for, by earlier runs as well."""
        return self._ledger.stop(stream, epoch)

    def add_run(self, run: HopRun, clock: SampleClock) -> None:
        """Account for a run of hops, and for the gaps in it."""
        start = run.start
        while self._gaps and self._gaps[0].start_sample < run.stop:
            gap = self._gaps.pop(0)
            self._add(run.stream, run.epoch, run.kind, start, gap.start_sample, clock)
            self._add_gap(gap, clock)
            start = max(start, gap.start_sample + gap.samples)
        self._add(run.stream, run.epoch, run.kind, start, run.stop, clock)

    def add_gaps(self, position: int, clock: SampleClock) -> None:
        """Account for the gaps that the detector has left behind at `position`."""
        while self._gaps and self._gaps[0].start_sample < position and clock.anchors:
            self._add_gap(self._gaps.pop(0), clock)

    def _add_gap(self, gap: Gap, clock: SampleClock) -> None:
        # a capture process that was away could not listen: that is no loss of what it heard
        kind: Kind = "missing" if gap.reason == CAPTURE_RESTART else "gap"
        stop = gap.start_sample + gap.samples
        self._add(gap.stream, gap.epoch, kind, gap.start_sample, stop, clock, gap.reason)

    def _add(
        self,
        stream: str,
        epoch: str,
        kind: Kind,
        start: int,
        stop: int,
        clock: SampleClock,
        reason: str | None = None,
    ) -> None:
        """Account for samples; a span ends where a new line of time begins."""
        steps = [anchor.sample for anchor in clock.anchors if start < anchor.sample < stop]
        cuts = [start, *steps, stop]
        for first, last in itertools.pairwise(cuts):
            if first < last:
                # checked where it is read: nothing here may stop a worker that runs
                span = Span.model_construct(
                    stream=stream,
                    epoch=epoch,
                    kind=kind,
                    start_sample=first,
                    samples=last - first,
                    time_ns=clock.time_ns(first),
                    reason=reason,
                )
                self._ledger.add(span)
