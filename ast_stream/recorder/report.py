"""Status and metrics of the recorder: each second on its feed, for Prometheus, and as a line."""

from __future__ import annotations

from typing import get_args

from ast_stream.history.database import History
from ast_stream.history.score_log import ScoreLog
from ast_stream.messages.status import RecorderStatus
from ast_stream.recorder.fetcher import AudioFetcher
from ast_stream.recorder.folder import Reason
from ast_stream.recorder.loop import Recorder
from ast_stream.runtime.metrics import Family, figure
from ast_stream.transport.process_report import ProcessReport, Reporting
from ast_stream.units import counted


class RecorderReport(ProcessReport[RecorderStatus]):
    """Reports once a second."""

    def __init__(
        self,
        to: Reporting,
        recorder: Recorder,
        fetcher: AudioFetcher,
        history: History,
        scores: ScoreLog | None = None,
    ) -> None:
        super().__init__(to)
        self._recorder = recorder
        self._fetcher = fetcher
        self._history = history
        self._scores = scores

    def describe(self, status: RecorderStatus) -> str:
        """Return a status as a line for people."""
        return describe(status)

    def status(self) -> RecorderStatus:
        """Return the status of the recorder."""
        clips, history = self._recorder.clips, self._history
        keepers = [keeper for keeper in (history, clips, self._scores) if keeper is not None]
        outages = [keeper.outage for keeper in keepers]
        return RecorderStatus(
            hears_workers=self._recorder.hears_workers,
            clips=0 if clips is None else clips.n_clips,
            clip_bytes=0 if clips is None else clips.n_bytes,
            events=len(self._recorder.plan),
            waiting=history.figures.waiting,
            disk="; ".join(filter(None, (outage.text for outage in outages))) or None,
            counters={
                "clips_written": 0 if clips is None else clips.written.total(),
                "clips_deleted": 0 if clips is None else clips.deleted.total(),
                "clips_missing": self._recorder.unkept,
                "messages_missed": self._recorder.missed,
                "messages_dropped": history.figures.dropped,
                "scores_written": 0 if self._scores is None else self._scores.figures.written,
                "audio_refused": self._fetcher.refused,
            },
            restart_needed=list(self.restart_needed),
        )

    def families(self, status: RecorderStatus) -> list[Family]:
        """Return the metrics for Prometheus."""
        clips, figures = self._recorder.clips, self._history.figures
        return [
            figure("ast_stream_recorder_clips", "Clips that are kept", status.clips),
            figure(
                "ast_stream_recorder_clip_bytes",
                "Bytes of all clips, of those that wait for a decision too",
                status.clip_bytes,
            ),
            figure("ast_stream_recorder_events", "Events in progress", status.events),
            figure(
                "ast_stream_recorder_hears_workers",
                "1 while messages of the workers arrive",
                status.hears_workers,
            ),
            figure(
                "ast_stream_recorder_disk_failing",
                "1 while clips or the history cannot be written",
                status.disk is not None,
            ),
            figure(
                "ast_stream_recorder_clips_written_total",
                "Clips written",
                {} if clips is None else {(name,): n for name, n in clips.written.items()},
                ("class",),
            ),
            figure(
                "ast_stream_recorder_clips_deleted_total",
                "Clips deleted; reason is age, room, no_alert or dropped",
                {} if clips is None else {(why,): clips.deleted[why] for why in get_args(Reason)},
                ("reason",),
            ),
            figure(
                "ast_stream_recorder_clips_missing_total",
                "Clips that should be and are not; the history says why",
                self._recorder.unkept,
            ),
            figure(
                "ast_stream_recorder_messages_total",
                "Messages of the feeds that were read",
                {(kind,): n for kind, n in self._recorder.received.items()},
                ("kind",),
            ),
            figure(
                "ast_stream_recorder_messages_waiting",
                "Messages that wait for the history to be written",
                figures.waiting,
            ),
            figure(
                "ast_stream_recorder_messages_lost_total",
                "Messages that are not in the history: malformed, or too many for a full disk",
                figures.malformed + figures.dropped,
            ),
            figure(
                "ast_stream_recorder_scores_total",
                "Windows whose scores came; outcome is kept, repeated or malformed",
                _outcomes(self._scores),
                ("outcome",),
            ),
            figure(
                "ast_stream_recorder_score_blocks_lost_total",
                "Blocks of scores that are lost because too many waited for a full disk",
                0 if self._scores is None else self._scores.figures.dropped,
            ),
            figure(
                "ast_stream_recorder_audio_requests_total",
                "Queries for audio; outcome is answered or refused",
                {
                    ("answered",): self._fetcher.requests - self._fetcher.refused,
                    ("refused",): self._fetcher.refused,
                },
                ("outcome",),
            ),
        ]


def _outcomes(scores: ScoreLog | None) -> dict[tuple[str, ...], float]:
    if scores is None:
        return {}
    figures = scores.figures
    return {
        ("kept",): figures.written,
        ("repeated",): figures.repeated,
        ("malformed",): figures.malformed,
    }


def describe(status: RecorderStatus) -> str:
    """Return a status as a line for people."""
    at_work = f", {counted(status.events, 'event')} at work" if status.events else ""
    disk = f", {status.disk}" if status.disk else ""
    unheard = "" if status.hears_workers else ", waiting for the worker"
    mib = status.clip_bytes / 2**20
    return f"{counted(status.clips, 'clip')}, {mib:.1f} MiB{at_work}{unheard}{disk}"
