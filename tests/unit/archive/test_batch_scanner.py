"""Recordings heard beside each other have the rows that they have alone."""

from __future__ import annotations

import resource
import threading
from pathlib import Path

import numpy as np
import pytest
from archive_rows import HOP_S, make_archive

from ast_stream.archive.batch_scanner import BatchScanner, BatchScanOptions
from ast_stream.archive.listing import Recording, ShardNumber, list_archive
from ast_stream.archive.recording_rows import RecordingRows, ScoreSpool, in_order
from ast_stream.audio.recording import RecordingError
from ast_stream.detect import Detector
from ast_stream.messages.audio import Pcm16
from ast_stream.messages.event import Scores
from ast_stream.model.tagger import Tagger
from ast_stream.scanner import Scanner
from ast_stream.settings.detection import DetectionSettings
from ast_stream.settings.model import CascadeSettings, ModelSettings


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_archive(tmp_path_factory.mktemp("scanner") / "archive")


def settings(checkpoint: Path) -> ModelSettings:
    return ModelSettings(
        checkpoint=str(checkpoint), hop_s=HOP_S, device="cpu", precision="fp32", attention="math"
    )


def recordings_of(archive: Path) -> list[Recording]:
    return list(list_archive(ShardNumber(), [str(archive)]).recordings())


def scan(checkpoint: Path, archive: Path, options: BatchScanOptions) -> list[RecordingRows]:
    scanner = BatchScanner(settings(checkpoint), DetectionSettings(), options)
    return list(scanner.scan(recordings_of(archive)))


def test_however_many_are_heard_at_once_rows_and_order_are_the_same(
    checkpoint: Path, archive: Path
) -> None:
    alone = scan(checkpoint, archive, BatchScanOptions(together=1, readers=1))
    assert [heard.name for heard in alone] == [one.name for one in recordings_of(archive)]
    assert sum(len(heard.events) for heard in alone) > 10
    for together, readers in ((3, 2), (16, 4), (64, 64)):
        options = BatchScanOptions(together=together, readers=readers)
        assert scan(checkpoint, archive, options) == alone


def test_a_long_recording_is_heard_alone_until_its_end(
    checkpoint: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = scan(checkpoint, archive, BatchScanOptions(together=1))
    monkeypatch.setattr("ast_stream.archive.batch_scanner._LONG_S", 5.0)
    names = [one.name for one in recordings_of(archive)]
    long = names.index("site-1/AM_20260501_210100.flac")
    scanner = BatchScanner(settings(checkpoint), DetectionSettings(), BatchScanOptions(together=8))
    assert long < len(names) - 2
    rows, scanned_s = [], []
    for heard in scanner.scan(recordings_of(archive)):
        rows.append(heard)
        scanned_s.append(scanner.scanned_s)
    assert rows == expected
    sums = np.cumsum([heard.duration_s for heard in rows])
    # those behind it were begun beside it, and wait: a batch, and 5 s, of seven others at most
    assert scanned_s[long] - sums[long] < 7 * 10
    assert scanned_s[-1] == pytest.approx(sums[-1], abs=0.01)


@pytest.mark.slow
def test_with_a_cascade_rows_do_not_depend_on_what_is_heard_beside_them(
    checkpoint: Path, archive: Path
) -> None:
    cascade = CascadeSettings(checkpoint=str(checkpoint), ask_ratio=0.9, every_s=2.0)
    model = settings(checkpoint).model_copy(update={"cascade": cascade})
    found = []
    for together in (1, 7):
        scanner = BatchScanner(model, DetectionSettings(), BatchScanOptions(together=together))
        found.append(list(scanner.scan(recordings_of(archive))))
    assert found[0] == found[1]
    scores = [event.watcher_score for heard in found[0] for event in heard.events]
    assert len(scores) > 10
    assert None not in scores
    assert scanner.settings != BatchScanner(settings(checkpoint), DetectionSettings()).settings


def test_rows_are_the_events_of_a_scan_of_the_file(
    checkpoint: Path, archive: Path, tagger: Tagger
) -> None:
    scanner = Scanner(tagger, hop_s=HOP_S)
    for heard in scan(checkpoint, archive, BatchScanOptions()):
        events, sentence = [], None
        try:
            for event in scanner.scan(archive / heard.name, ""):
                events.append(event)
        except RecordingError as error:
            sentence = error.text
        assert heard.events == in_order(events)
        assert heard.sentence in (sentence or scanner.warning, "it holds no sound")


def test_what_is_not_whole_is_a_row_with_its_reason(checkpoint: Path, archive: Path) -> None:
    heard = {one.name: one for one in scan(checkpoint, archive, BatchScanOptions())}
    assert {name: one.status for name, one in heard.items() if one.status != "ok"} == {
        "none.wav": "unreadable",
        "silent.wav": "warned",
        "empty.wav": "warned",
        "site-1/AM_20260501_211100.flac": "partial",
    }
    assert (heard["none.wav"].n_windows, heard["none.wav"].duration_s) == (0, 0.0)
    assert heard["none.wav"].n_bytes == len("no recording")
    assert "its end is missing" in str(heard["site-1/AM_20260501_211100.flac"].sentence)
    assert heard["silent.wav"].sentence == "nothing but digital silence"
    absent = Recording("gone.wav", str(archive / "gone.wav"))
    scanner = BatchScanner(settings(checkpoint), DetectionSettings())
    (gone,) = scanner.scan([absent])
    assert (gone.status, gone.sentence, gone.n_bytes) == (
        "unreadable",
        "No such file or directory",
        None,
    )


def test_windows_of_a_recording_are_those_that_the_detector_scores(tagger: Tagger) -> None:
    for hop_s in (0.1, 0.5):
        for min_context_s in (None, 0.3):
            for n_samples in (0, 100, 399, 400, 5_000, 16_000, 23_456, 80_000, 100_001):
                detector = Detector(tagger, hop_s=hop_s, min_context_s=min_context_s)
                detector.open("scan", "0" * 32)
                detector.push("scan", 0, tones(n_samples))
                detector.flush("scan")
                assert detector.windows_of(n_samples) == detector.n_scored, n_samples


def tones(n_samples: int) -> Pcm16:
    return np.full(n_samples, 7, np.int16)


def test_one_that_stops_listening_leaves_no_thread_behind(checkpoint: Path, archive: Path) -> None:
    scanner = BatchScanner(
        settings(checkpoint), DetectionSettings(), BatchScanOptions(has_scores=True)
    )
    before = threading.active_count()
    recordings = [one for one in recordings_of(archive) if one.name.startswith("site")]
    rows = scanner.scan(recordings)
    first = next(rows)
    rows.close()  # type: ignore[attr-defined]
    assert first.scores is not None
    assert threading.active_count() == before
    (again,) = scanner.scan(recordings[:1])
    assert again.scores is not None
    assert (again.name, again.events) == (first.name, first.events)
    assert again.scores.n_rows == first.scores.n_rows > 0
    for scores in (first.scores, again.scores):
        scores.close()


def test_scores_of_a_thousand_short_recordings_need_no_thousand_files() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
    rng = np.random.default_rng(0)
    spools = []
    try:
        for number in range(300):
            spool = ScoreSpool(3)
            n_rows = 30_000 if number % 100 == 0 else 20  # longer than memory, and than a block
            rows = rng.random((n_rows, 3), np.float32)
            for end, row in enumerate(rows):
                spool.add(Scores("s", "e", end, row))
            spools.append((spool, rows))
        for spool, rows in spools:
            ends, scores = zip(*spool.blocks(), strict=True)
            np.testing.assert_array_equal(np.concatenate(ends), np.arange(len(rows)))
            np.testing.assert_array_equal(np.concatenate(scores), rows.astype(np.float16))
            assert spool.n_rows == len(rows)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for spool, _ in spools:
            spool.close()


def test_what_was_heard_goes_to_another_process_as_text(checkpoint: Path, archive: Path) -> None:
    for heard in scan(checkpoint, archive, BatchScanOptions()):
        assert RecordingRows.from_json(heard.to_json()) == heard


def test_settings_that_make_other_rows_have_another_hash(checkpoint: Path, tmp_path: Path) -> None:
    model, detection = settings(checkpoint), DetectionSettings()
    base = BatchScanner(model, detection)
    same = BatchScanner(model, detection, BatchScanOptions(readers=2, together=5))
    assert same.settings == base.settings
    others = [
        BatchScanner(model.model_copy(update={"hop_s": 0.25}), detection),
        BatchScanner(model, detection.model_copy(update={"gate_dbfs": -60.0})),
        BatchScanner(model, detection, BatchScanOptions(channel=0)),
        BatchScanner(model, detection, BatchScanOptions(has_scores=True)),
    ]
    assert len({one.settings for one in (base, *others)}) == 5
    assert {one.model for one in others} == {base.model}
