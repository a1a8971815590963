from __future__ import annotations

import os
import random
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from damage import mutations
from history_samples import SECOND, published
from sample_messages import EPOCH, T0_NS, event_message

from ast_stream.errors import StartupError, UsageError
from ast_stream.history import score_log
from ast_stream.history.score_blocks import BlockFile, Place, decode_scores, encode_block
from ast_stream.history.score_log import ScoreLog, ScoreReader
from ast_stream.messages.event import FeedMessage, Scores16, ScoresHeader
from ast_stream.runtime.files import DamagedFileError
from ast_stream.units import samples_to_ns

HOP = 8000
LABELS = ["Bark", "Siren", "Baby cry, infant cry"]
MIB = 1024 * 1024


def scores_of(n: int, n_classes: int = 3, seed: int = 1) -> Scores16:
    """Return scores that wander as those of a model do, shape (n, n_classes)."""
    logits = np.random.default_rng(seed).normal(0, 0.3, (n, n_classes)).cumsum(axis=0) - 6
    return (1 / (1 + np.exp(-logits))).astype(np.float16)


def messages(
    scores: Scores16, *, stream: str = "porch", epoch: str = EPOCH, first_end: int = HOP,
    step: int = HOP, start_ns: int = T0_NS, boot: str = "b1",
) -> list[FeedMessage]:  # fmt: skip
    """Return the messages of consecutive windows, as a worker publishes them."""
    found = []
    for number, row in enumerate(scores):
        end = first_end + number * step
        header = ScoresHeader(
            stream=stream, epoch=epoch, end_sample=end, time_ns=start_ns + samples_to_ns(end)
        )
        message = published(header, number + 1, boot=boot, scores=row)
        found.append(FeedMessage.decode(message.encode()))
    return found


def everything(folder: Path, stream: str = "porch") -> list[tuple[int, bytes]]:
    """Return the end and the scores of all windows of a stream that are in the log."""
    spans = ScoreReader(folder).read(stream, 0, 2**62)
    return [
        (int(end), row.tobytes())
        for span in spans
        for end, row in zip(span.ends, span.scores, strict=True)
    ]


def test_scores_are_read_as_they_were_published(tmp_path: Path) -> None:
    porch, yard = scores_of(200, seed=1), scores_of(150, seed=2)
    with ScoreLog(tmp_path, 64 * MIB) as log:
        log.set_model("sha256:tiny", LABELS)
        for one, other in zip(messages(porch), messages(yard, stream="yard"), strict=False):
            log.append(one)
            log.append(other)
        for rest in messages(porch)[150:]:
            log.append(rest)
        log.append(published(event_message()))
        assert (log.figures.written, log.figures.malformed) == (350, 0)
    reader = ScoreReader(tmp_path)
    assert reader.streams() == ["porch", "yard"]
    (span,) = reader.read("porch", 0, 2**62)
    np.testing.assert_array_equal(span.scores, porch)
    np.testing.assert_array_equal(span.ends, HOP * np.arange(1, 201))
    np.testing.assert_array_equal(span.times_ns, T0_NS + SECOND // 2 * np.arange(1, 201))
    assert (span.labels, span.model, span.step) == (tuple(LABELS), "sha256:tiny", HOP)
    (span,) = reader.read("yard", 0, 2**62)
    np.testing.assert_array_equal(span.scores, yard)


def test_part_of_the_time_and_of_the_classes_is_read(tmp_path: Path) -> None:
    scores = scores_of(400)
    with ScoreLog(tmp_path, 64 * MIB) as log:
        log.set_model("sha256:tiny", LABELS)
        for message in messages(scores):
            log.append(message)
    reader = ScoreReader(tmp_path)
    since, until = T0_NS + 40 * SECOND, T0_NS + 111 * SECOND
    (span,) = reader.read("porch", since, until, ["baby_cry_infant_cry", "Bark"])
    assert span.labels == ("Baby cry, infant cry", "Bark")
    assert span.times_ns[0] == since
    assert span.times_ns[-1] == until - SECOND // 2
    np.testing.assert_array_equal(span.scores, scores[79:221][:, [2, 0]])
    assert reader.read("porch", 0, T0_NS) == []
    assert reader.read("attic", 0, 2**62) == []
    with pytest.raises(UsageError, match="expected a class of the model, got 'Barkk'"):
        reader.read("porch", 0, 2**62, ["Barkk"])
    times, peaks = reader.peaks("porch", 0, 2**62, "siren")
    assert len(times) == 7
    bounds = [slice(at, at + 60) for at in range(0, 400, 60)]
    np.testing.assert_array_equal(peaks, [scores[part, 1].max() for part in bounds])
    np.testing.assert_array_equal(times[0], [T0_NS + SECOND // 2, T0_NS + 30 * SECOND])


def test_labels_of_the_reader_hold_where_the_log_names_none(tmp_path: Path) -> None:
    with ScoreLog(tmp_path, 64 * MIB) as log:
        for message in messages(scores_of(3)):
            log.append(message)
    with pytest.raises(UsageError, match="expected scores of a model whose classes it knows"):
        ScoreReader(tmp_path).read("porch", 0, 2**62, ["Bark"])
    (span,) = ScoreReader(tmp_path, LABELS).read("porch", 0, 2**62, ["Bark"])
    assert span.labels == ("Bark",)


def test_span_ends_where_windows_are_missing_or_another_epoch_or_model_begins(
    tmp_path: Path,
) -> None:
    scores = scores_of(40)
    feed = messages(scores)
    with ScoreLog(tmp_path, 64 * MIB) as log:
        for message in [*feed[:10], *feed[14:20]]:
            log.append(message)
        for message in messages(scores[:5], epoch="bbbbbbbb", start_ns=T0_NS + 60 * SECOND):
            log.append(message)
        log.set_model("sha256:other", LABELS)
        later = messages(scores[:9], epoch="bbbbbbbb", start_ns=T0_NS + 60 * SECOND)[5:]
        for message in later:
            log.append(message)
    spans = ScoreReader(tmp_path).read("porch", 0, 2**62)
    found = [(span.epoch, span.model, int(span.ends[0]), len(span.ends)) for span in spans]
    assert found == [
        (EPOCH, None, HOP, 10),
        (EPOCH, None, 15 * HOP, 6),
        ("bbbbbbbb", None, HOP, 5),
        ("bbbbbbbb", "sha256:other", 6 * HOP, 4),
    ]


def test_times_are_kept_where_the_clock_of_capture_was_set(tmp_path: Path) -> None:
    feed = messages(scores_of(10)) + messages(scores_of(20), start_ns=T0_NS + 3 * SECOND)[10:]
    with ScoreLog(tmp_path, 64 * MIB) as log:
        for message in feed:
            log.append(message)
    (span,) = ScoreReader(tmp_path).read("porch", 0, 2**62)
    steps = np.diff(span.times_ns)
    assert [int(step) for step in np.unique(steps)] == [SECOND // 2, 7 * SECOND // 2]


def test_what_a_resumed_worker_publishes_again_is_kept_once(tmp_path: Path) -> None:
    feed, resumed = (messages(scores_of(100), boot=boot) for boot in ("b1", "b2"))
    with ScoreLog(tmp_path, 64 * MIB) as log:
        for message in [*feed[:50], *resumed[30:80]]:
            log.append(message)
        assert log.figures.repeated == 20
    with ScoreLog(tmp_path, 64 * MIB) as log:  # and the recorder was started again
        for message in resumed[60:]:
            log.append(message)
        assert log.figures.repeated == 20
    assert everything(tmp_path) == [
        (HOP * (number + 1), row.tobytes()) for number, row in enumerate(scores_of(100))
    ]


def test_log_has_one_writer(tmp_path: Path) -> None:
    with ScoreLog(tmp_path, 64 * MIB), pytest.raises(StartupError, match="is in use"):
        ScoreLog(tmp_path, 64 * MIB)


def test_torn_end_is_skipped_and_the_log_goes_on_behind_what_is_whole(tmp_path: Path) -> None:
    feed = messages(scores_of(300))
    with ScoreLog(tmp_path, 64 * MIB) as log:
        for message in feed[:180]:
            log.append(message)
    (file,) = tmp_path.glob("*.blocks")
    whole = file.read_bytes()
    for n_lost in (1, 40, 200, 330):
        file.write_bytes(whole[:-n_lost])
        n_before = len(everything(tmp_path))
        assert n_before == 120
        with ScoreLog(tmp_path, 64 * MIB) as log:
            for message in feed[180:]:
                log.append(message)
        assert len(everything(tmp_path)) == n_before + 120


def test_damaged_block_is_skipped_and_the_others_are_read(tmp_path: Path) -> None:
    with ScoreLog(tmp_path, 64 * MIB) as log:
        for message in messages(scores_of(600)):
            log.append(message)
    (path,) = tmp_path.glob("*.blocks")
    whole, published_rows = path.read_bytes(), everything(tmp_path)
    for seed in range(40):
        (damaged,) = mutations(whole, 1, seed)
        path.write_bytes(damaged)
        found = everything(tmp_path)
        assert set(found) <= set(published_rows)
    rng = random.Random(3)
    for _ in range(40):
        place = rng.randrange(len(whole))
        path.write_bytes(
            whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :]
        )
        found = everything(tmp_path)
        assert set(found) <= set(published_rows)
        assert len(found) >= 540


def test_block_that_claims_too_much_is_refused() -> None:
    place = Place("s", "e", None, 0, 1, 2, 3, 0, 0, 0, 0, b"")
    bomb = bytes(6) + zlib.compress(bytes(50_000_000))
    forged = replace(place, n_bytes=len(bomb), crc=zlib.crc32(bomb))
    with pytest.raises(DamagedFileError, match="expected 12 bytes, got 13"):
        decode_scores(bomb, forged)
    planes = b"\x7e" + bytes(11)  # not a number
    strange = bytes(6) + zlib.compress(planes)
    with pytest.raises(DamagedFileError, match="expected scores from 0 to 1"):
        decode_scores(strange, replace(place, n_bytes=len(strange), crc=zlib.crc32(strange)))


def test_reader_sees_what_is_appended_and_what_is_deleted(tmp_path: Path) -> None:
    reader = ScoreReader(tmp_path)
    assert reader.streams() == []
    assert reader.span_ns() is None
    feed = messages(scores_of(240))
    with ScoreLog(tmp_path, 64 * MIB) as log:
        for message in feed[:120]:
            log.append(message)
        assert sum(len(span.ends) for span in reader.read("porch", 0, 2**62)) == 120
        for message in feed[120:]:
            log.append(message)
        assert sum(len(span.ends) for span in reader.read("porch", 0, 2**62)) == 240
    (path,) = tmp_path.glob("*.blocks")
    path.unlink()
    assert reader.read("porch", 0, 2**62) == []


def test_log_keeps_its_bytes_and_the_newest_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 256 * 1024
    noise: npt.NDArray[np.float16] = np.random.default_rng(1).random((3000, 60)).astype(np.float16)
    with ScoreLog(tmp_path, limit) as log:
        for message in messages(noise):
            log.append(message)
            assert sum(path.stat().st_size for path in tmp_path.glob("*.blocks")) <= limit
    found = everything(tmp_path)
    assert found[-1][0] == 3000 * HOP
    assert len(found) > 800
    ends = [end for end, _ in found]
    assert ends == list(range(ends[0], 3000 * HOP + 1, HOP))


def test_scores_that_are_too_old_are_deleted(tmp_path: Path) -> None:
    now_s = [1e9]
    with ScoreLog(tmp_path, 64 * MIB, max_age_s=3600, wall_s=lambda: now_s[0]) as log:
        feed = messages(scores_of(240))
        for number, message in enumerate(feed):
            log.append(message)
            now_s[0] += 60
            for path in tmp_path.glob("*.blocks"):
                if path.stat().st_mtime > 1e9 + 1e6:
                    os.utime(path, (now_s[0], now_s[0]))
            del number
        kept = everything(tmp_path)
    assert 0 < len(kept) < 240


def test_full_disk_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feed = messages(scores_of(600))
    real_write = os.write
    is_full = [True]

    def write(fd: int, content: bytes) -> int:
        return real_write(fd, content[: len(content) // 2] if is_full[0] else content)

    with ScoreLog(tmp_path, 64 * MIB) as log:
        monkeypatch.setattr(os, "write", write)
        for message in feed[:300]:
            log.append(message)
        assert log.figures.waiting == 5
        assert log.figures.write_errors >= 5
        assert "cannot be written" in (log.outage.text or "")
        is_full[0] = False
        for message in feed[300:]:
            log.append(message)
        assert log.figures.waiting == 0
    assert len(everything(tmp_path)) == 600


def test_blocks_beyond_what_memory_holds_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_log, "MAX_UNWRITTEN", 2)
    monkeypatch.setattr(BlockFile, "append", _refuse)
    with ScoreLog(tmp_path, 64 * MIB) as log:
        for message in messages(scores_of(300)):
            log.append(message)
        assert (log.figures.waiting, log.figures.dropped) == (2, 3)


def _refuse(self: BlockFile, line: bytes) -> int:
    raise OSError(28, "No space left on device")


def test_malformed_scores_are_counted_and_not_kept(tmp_path: Path) -> None:
    whole, broken, strange, empty = messages(scores_of(4))
    broken.body["end_sample"] = "soon"
    with ScoreLog(tmp_path, 64 * MIB) as log:
        log.append(broken)
        log.append(FeedMessage(strange.topic, strange.body, np.array([0.5, np.nan], np.float16)))
        log.append(FeedMessage(empty.topic, empty.body, None))
        log.append(whole)
        assert (log.figures.malformed, log.figures.written) == (3, 1)


def test_every_shape_of_a_block_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "scores-000000000001.blocks"
    shapes = [(1, 1), (1, 527), (187, 60), (60, 527), (4096, 2)]
    content = b"".join(
        encode_block("s", "e", None, end=5, step=7, start_ns=T0_NS, scores=scores_of(*shape))
        for shape in shapes
    )
    path.write_bytes(content)
    file = BlockFile(path)
    file.scan()
    for shape, place in zip(shapes, file.places, strict=True):
        np.testing.assert_array_equal(decode_scores(file.read(place), place), scores_of(*shape))
        np.testing.assert_array_equal(place.peaks, scores_of(*shape).max(axis=0))
