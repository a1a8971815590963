"""Decoders of what the recorder leaves: the history and the log of scores."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import history_samples as samples
import numpy as np
import sample_messages
from fuzz.decoder import Broken, Decoder
from fuzz.mutation import Case
from fuzz.wire import T0_NS

from ast_stream.history.database import History
from ast_stream.history.export import csv_lines, in_order
from ast_stream.history.records import AlertQuery, EventQuery
from ast_stream.history.score_blocks import encode_block, encode_model
from ast_stream.history.score_log import ScoreLog, ScoreReader
from ast_stream.messages.codec import add_checksum, encode_json
from ast_stream.messages.event import ScoresHeader

_LABELS = ["Bark", "Siren", "Speech"]
_BEGIN = b'{"crc":"'
_CRC_FIELD = len(b'{"crc":"00000000",')


def decoders(scratch: Path) -> Iterator[Decoder]:
    """Yield the decoders; `scratch` is a folder that they may use."""
    folder = scratch / "remembered"
    folder.mkdir()
    histories = _Histories(folder)
    yield Decoder("history", [histories.seed], histories.decode, 0.01)
    yield Decoder("score log", [_blocks()], _ScoreLogs(folder).decode, 0.03, repair=_repair)


class _Histories:
    def __init__(self, folder: Path) -> None:
        self._path = folder / "history.sqlite"
        with History(self._path) as history:
            for number in range(30):
                history.add_messages(samples.whole_event(f"e{number}", T0_NS + number * 10**9))
            history.add_messages([samples.gap(0), samples.alert_message()], {"worker": ("b1", 7)})
            history.add_clip(samples.clip("e1"))
            history.add_verdict(samples.verdict("e2"))
        self.seed: Case = (self._path.read_bytes(),)

    def decode(self, case: Case) -> object:
        for path in self._path.parent.glob(f"{self._path.name}*"):
            path.unlink()
        self._path.write_bytes(case[0] if case else b"")
        with History(self._path, wall_s=lambda: T0_NS / 1e9) as history:
            history.positions()
            if not history.add_message(samples.event("new")) and not history.retry():
                raise Broken("what is new cannot be written")
            if history.event("new") is None:
                raise Broken("what is new is not in it")
            everything = EventQuery(newest_first=False)
            n_events = sum(1 for _ in csv_lines(history.all_events(everything)))
            for _ in in_order(history.all_events(everything), history.gaps()):
                pass
            history.events(EventQuery(has_clip=True))
            history.events(EventQuery(has_verdict=True, classes=("bark",)))
            history.alerts(AlertQuery())
            list(history.all_clips())
            history.verdicts()
            for bounds in (range(0, 2**62, 2**60), [T0_NS, T0_NS + 1]):
                history.counts(bounds)
            history.names()
            while history.prune(1, 3600):
                pass
            return n_events


def _blocks() -> Case:
    scores = (np.arange(60, dtype=np.float16).reshape(20, 3) / 64).astype(np.float16)
    parts = [encode_model("sha256:tiny", _LABELS)]
    parts += [
        encode_block(
            "porch", "aaaaaaaa", model, end=8000 + 160_000 * number, step=8000,
            start_ns=T0_NS + number * 10**10, scores=scores,
        )
        for number, model in enumerate(("sha256:tiny", "sha256:tiny", None))
    ]  # fmt: skip
    return b"".join(parts[:3]), parts[3]


class _ScoreLogs:
    def __init__(self, folder: Path) -> None:
        self._folder = folder / "scores"

    def decode(self, case: Case) -> object:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        for number, content in enumerate(case[:5], start=1):
            (self._folder / f"scores-{number:012}.blocks").write_bytes(content)
        header = ScoresHeader(
            stream="mine", epoch="e", end_sample=16_000, time_ns=sample_messages.T0_NS
        )
        row = np.array([0.5, 0.25, 1.0], np.float16)
        with ScoreLog(self._folder, 1 << 22, labels=lambda: _LABELS) as log:
            log.note_model("sha256:mine")
            log.append(samples.published(header, scores=row))
        reader = ScoreReader(self._folder)
        found = 0
        for stream in reader.streams():
            for span in reader.read(stream, 0, 2**62):
                found += len(span.ends)
                if not (len(span.ends) == len(span.times_ns) == len(span.scores)):
                    raise Broken("ends, times and scores are not as many")
                if not ((span.scores >= 0) & (span.scores <= 1)).all():
                    raise Broken("a score is none")
            reader.peaks(stream, 0, 2**62, "Bark")
        (mine,) = reader.read("mine", 0, 2**62, ["siren"])
        if mine.scores.tolist() != [[0.25]]:
            raise Broken("what is new is not in it")
        return found


def _repair(case: Case) -> Case:
    return tuple(map(_with_checksums, case))


def _with_checksums(content: bytes) -> bytes:
    """Make the checksums of lines, and of what follows them, right again."""
    at = 0
    while (at := content.find(_BEGIN, at)) >= 0:
        end = content.find(b"\n", at) + 1
        if end == 0:
            break
        line = b"{" + content[at + _CRC_FIELD : end - 1]
        with suppress(ValueError, TypeError, KeyError, RecursionError):
            body = json.loads(line)
            if isinstance(body, dict) and isinstance(body.get("bytes"), int):
                body["payload_crc"] = zlib.crc32(content[end : end + max(0, body["bytes"])])
                line = encode_json(body)
        line = add_checksum(line)
        content = content[:at] + line + content[end:]
        at += len(line)
    return content
