"""Decoders of files that a run leaves for the next one: logs, ledger, journal, alert database."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sample_messages as samples
from alert_samples import action_settings, firing
from clocks import FakeClock
from fuzz.decoder import Broken, Decoder
from fuzz.mutation import Case
from fuzz.wire import T0_NS, with_checksums
from rule_bodies import rules_from

from ast_stream.alerts import outbox_operations
from ast_stream.alerts.delivery_schedule import FEED
from ast_stream.alerts.engine import Engine
from ast_stream.alerts.model_facts import DetectionTiming
from ast_stream.alerts.outbox import Outbox
from ast_stream.alerts.process import resume_engine
from ast_stream.alerts.store import Store, _state_row, save_progress
from ast_stream.archive.folders import DiskFolder
from ast_stream.archive.listing import ShardNumber, list_archive, names_in, shown_name
from ast_stream.archive.manifest import (
    MANIFEST,
    Input,
    Made,
    PartFile,
    Progress,
    ShardManifest,
    ShardPart,
)
from ast_stream.coverage.ledger import CoverageLedger, read_spans
from ast_stream.coverage.spans import Kind, Span
from ast_stream.detect.state import ClassState, DetectorState
from ast_stream.machine_clock import Moment
from ast_stream.messages.event import FeedMessage, Stamp
from ast_stream.messages.query import TooOld
from ast_stream.recorder.clip import Clip, Sheet
from ast_stream.recorder.held_audio import CutAudio, Hole
from ast_stream.recorder.plan import ClipPart, TrackedEvent
from ast_stream.runtime.database import SIDE_FILES
from ast_stream.sample_clock import Anchor, SampleClock
from ast_stream.training.state import METRICS_FILE, read_metrics
from ast_stream.transport.event_log import EventLog
from ast_stream.worker.journal import JournalFile, StreamRecord

_RULES = rules_from(
    "alert: dog, match: {class: Bark}, actions: [phone]",
    "alert: quiet, absent: {match: {class: Alarm}, for: 60s}",
    "alert: long, match: {class: Siren}, for: 3s, tolerate: 1s",
    "alert: often, match: {class: Bark}, count: {min: 2, within: 60s}",
)
_ACTIONS = {"phone": action_settings()}


def decoders(scratch: Path) -> Iterator[Decoder]:
    """Yield the decoders; `scratch` is a folder that they may use."""
    folder = scratch / "state"
    folder.mkdir()
    yield Decoder(
        "event log", [_event_log(folder)], _EventLogs(folder).decode, 0.05, repair=_repair
    )
    yield Decoder("coverage ledger", [_ledger()], _Ledgers(folder).decode, 0.05, repair=_repair)
    yield Decoder("journal", [_journal(folder)], _Journals(folder).decode, 0.15, repair=_repair)
    yield Decoder("metrics of a training", [_metrics()], _Metrics(folder).decode, 0.15)
    yield Decoder("sheet of a clip", [_sheet()], _decode_sheet, 0.2)
    yield Decoder("manifest of a shard", [_manifest(folder)], _Manifests(folder).decode, 0.2)
    yield Decoder("list of an archive", [(b"a/1.wav\nb 2.flac\r\n", b"1/8")], _decode_list, 0.2)
    stores = _Stores(folder)
    yield Decoder("alert database", [stores.seed], stores.decode, 0.015)
    yield Decoder("rule state in the database", [_engine_state()], stores.decode_state, 0.015)


def _repair(case: Case) -> Case:
    return tuple(map(with_checksums, case))


def _messages() -> list[FeedMessage]:
    contents: list[Any] = [
        samples.event_message("e1"),
        samples.event_message("e2", label="Siren"),
        samples.event_message("e1", "end", offset_ns=T0_NS + 10**9, reason="quiet"),
        samples.gap_message(16_000, time_ns=T0_NS),
    ]
    return [
        FeedMessage.of(content, Stamp("b1", number, Moment(T0_NS, number), previous=number - 1))
        for number, content in enumerate(contents, start=1)
    ]


def _event_log(folder: Path) -> Case:
    lines = [FeedMessage.start_of("b1").encode_line()]
    lines += [message.encode_line() for message in _messages()]
    return b"".join(lines[:3]), b"".join(lines[3:])


class _EventLogs:
    def __init__(self, folder: Path) -> None:
        self._folder = folder / "events"

    def decode(self, case: Case) -> object:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        for number, content in enumerate(case[:5], start=1):
            (self._folder / f"events-{number:012}.jsonl").write_bytes(content)
        log = EventLog(self._folder, max_bytes=1 << 20, segment_bytes=1 << 18)
        try:
            log.begin("b9")
            message = _messages()[0]
            mine = FeedMessage(message.topic, message.body | {"boot": "b9", "seq": 1})
            log.append(mine)
            after, found = None, 0
            for _ in range(50):
                page = log.replay(after)
                if isinstance(page, TooOld):
                    page.encode()
                    break
                page.encode("b9")
                found += len(page.messages)
                if not page.messages or not page.more:
                    break
                after = page.messages[-1].position
            log.published("porch", "aaaaaaaa")
            if found == 0 or log.write_errors:
                raise Broken("what was written is not in the log")
            return found
        finally:
            log.close()


def _ledger() -> Case:
    kinds: list[tuple[int, Kind]] = [(0, "listened"), (16_000, "gap"), (32_000, "gated")]
    spans = [
        Span(
            stream=stream, epoch="9f2c4e1a", kind=kind, start_sample=start, samples=16_000,
            time_ns=T0_NS + start * 62_500, reason="overflow" if kind == "gap" else None,
        )
        for stream in ("porch", "yard")
        for start, kind in kinds
    ]  # fmt: skip
    lines = [span.encode_line() for span in spans]
    return b"".join(lines[:4]), b"".join(lines[4:])


class _Ledgers:
    def __init__(self, folder: Path) -> None:
        self._folder = folder / "coverage"
        self._unwritten = folder / "coverage.unwritten"

    def decode(self, case: Case) -> object:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        (self._folder / "coverage-000000000001.jsonl").write_bytes(case[0] if case else b"")
        self._unwritten.write_bytes(case[1] if len(case) > 1 else b"")
        before = read_spans(self._folder, self._unwritten)
        ledger = CoverageLedger(self._folder, self._unwritten, lambda: 0.0)
        mine = Span(
            stream="porch", epoch="00000000", kind="listened", start_sample=0, samples=7,
            time_ns=T0_NS,
        )  # fmt: skip
        ledger.add(mine)
        ledger.close()
        after = read_spans(self._folder, self._unwritten)
        for stream, spans in after.items():
            stops: dict[str, int] = {}
            for span in spans:
                if span.start_sample < stops.get(span.epoch, 0):
                    raise Broken("a sample is accounted for twice")
                stops[span.epoch] = span.stop_sample
            if stream not in before and stream != "porch":
                raise Broken("a stream has come from nowhere")
        return len(after)


def _journal(folder: Path) -> Case:
    record = StreamRecord(
        epoch="ab" * 16,
        detector=DetectorState(
            position=480_000, context_start=0, first_scored=16_000,
            classes={3: ClassState(hits=2**63, peak=0.91)},
        ),
        clock=[(0, T0_NS, 5), (16_000, T0_NS + 10**9, 10**9)],
    )  # fmt: skip
    path = folder / "journal.seed"
    JournalFile(path, "m", 5).save({"porch": record, "yard": record})
    return (path.read_bytes(),)


class _Journals:
    def __init__(self, folder: Path) -> None:
        self._path = folder / "journal"

    def decode(self, case: Case) -> object:
        self._path.write_bytes(case[0] if case else b"")
        records = JournalFile(self._path, "m", 5).load()
        for record in records.values():
            clock = record.sample_clock()
            if clock.anchors:
                clock.sample_at(clock.time_ns(record.position))
        again = JournalFile(self._path, "m", 5)
        again.save(records)
        if again.load() != records:
            raise Broken("a journal does not come back as it was")
        SampleClock([Anchor(0, 0, 0)])
        return records


def _metrics() -> Case:
    return (b'{"step": 100, "loss": 0.5, "mAP": 0.25}\n{"step": 200, "loss": 0.25}\n',)


class _Metrics:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def decode(self, case: Case) -> object:
        (self._folder / METRICS_FILE).write_bytes(case[0] if case else b"")
        return read_metrics(self._folder)


def _sheet() -> Case:
    message = samples.event_message("e1", "end", offset_sample=16_000)
    part = ClipPart(TrackedEvent(message), 0, 0, 16_000, True)
    audio = CutAudio(0, np.zeros(16_000, np.int16), [Hole(0, 10, "overflow")], [(20, 30)])
    clip = Clip.of(part, audio, "flac", "", is_without_speech=True)
    return (clip.sheet.encode(),)


def _decode_sheet(case: Case) -> object:
    sheet = Sheet.decode(case[0] if case else b"")
    return sheet.message, sheet.encode()


def _manifest(folder: Path) -> Case:
    files = {
        table: PartFile(file=f"{table}-00000000.parquet", rows=2, bytes=9, sha256="00" * 32)
        for table in ("events", "coverage")
    }
    made = Made(model="m", settings="s", settings_are={"hop_s": 0.5}, version="1", channel="mix")
    ShardManifest(
        shard=1,
        of=8,
        state="unfinished",
        made=made,
        input=Input(digest="d", recordings=9, of_shard=3),
        root="s3://bucket/archive",
        computed_on={"device": "cpu"},
        parts=(ShardPart(number=0, recordings=2, hours=0.5, files=files),),
        progress=Progress(recordings=2, hours=0.5),
    ).write(DiskFolder(folder))
    return ((folder / MANIFEST).read_bytes(),)


class _Manifests:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def decode(self, case: Case) -> object:
        (self._folder / MANIFEST).write_bytes(case[0] if case else b"")
        manifest = ShardManifest.read(DiskFolder(self._folder))
        assert manifest is not None
        return manifest, list(manifest.missing_files(DiskFolder(self._folder)))


def _decode_list(case: Case) -> object:
    lines, shard = (*case, b"", b"")[:2]
    number = ShardNumber.parse(shard.decode("utf-8", "replace"))
    listing = list_archive(number, names=names_in(io.BytesIO(lines)))
    return [(shown_name(one.name), one.place) for one in listing.recordings()]


def _engine() -> Engine:
    engine = Engine(_RULES, now_ns=T0_NS)
    for message in _messages()[:2]:
        engine.process(message.content())
    return engine


def _engine_state() -> Case:
    return (json.dumps(_engine().export()).encode(), json.dumps(["b1", 7]).encode())


class _Stores:
    """Databases of an alerts process, and its start with each."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "alerts.sqlite"
        self._sound = folder / "sound.sqlite"
        clock = FakeClock(T0_NS)
        store = Store(self._sound)
        store.since_ns(clock())
        outbox = Outbox(store, _ACTIONS, clock, lambda: 0.5)
        with store.transaction() as db:
            save_progress(db, _engine().export(), ("b1", 7))
            for number in range(3):
                outbox.enqueue(db, [firing(f"a{number}", "phone")])
        outbox_operations.snooze(store, "dog", clock() + 3600 * 10**9, clock())
        store.close()
        self.seed: Case = (self._sound.read_bytes(),)

    def decode(self, case: Case) -> object:
        for path in self._path.parent.glob(f"{self._path.name}*"):
            path.unlink()
        self._path.write_bytes(case[0] if case else b"")
        return self._start()

    def decode_state(self, case: Case) -> object:
        for path in self._path.parent.glob(f"{self._path.name}*"):
            path.unlink()
        shutil.copyfile(self._sound, self._path)
        with sqlite3.connect(self._path) as db:
            for name, frame in zip(("engine", "position"), case, strict=False):
                text = frame.decode("utf-8", "replace").replace("\0", "")
                row = (name, text, _state_row.__globals__["zlib"].crc32(f"{name}\0{text}".encode()))
                db.execute("INSERT OR REPLACE INTO state VALUES (?, ?, ?)", row)
        db.close()
        return self._start()

    def _start(self) -> object:
        clock = FakeClock(T0_NS)
        store = Store(self._path)
        try:
            outbox = Outbox(store, _ACTIONS, clock, lambda: 0.5)
            outbox.recover()
            engine = resume_engine(store, _RULES, DetectionTiming(), store.steady_time())
            position = store.position()
            owed = engine.resume()
            with store.transaction() as db:
                save_progress(db, engine.export(), position)
                outbox.enqueue(db, owed)
                outbox.end_unknown(db, engine.alert_ids())
                outbox.enqueue(db, engine.advance(engine.now_ns + 10**9))
                outbox.enqueue(db, engine.process(samples.event_message("e9")))
            for action in (FEED, *_ACTIONS):
                outbox.expire(action)
                outbox.next_delivery(action)
            outbox.pending()
            return len(outbox_operations.rows(store))
        finally:
            store.close()
            for name in SIDE_FILES:
                self._path.with_name(self._path.name + name).unlink(missing_ok=True)
