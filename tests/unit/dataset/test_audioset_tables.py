"""AudioSet's segment lists: names as downloaders give them, classes by id, gaps reported."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ast_stream.dataset.annotations import ClipSection
from ast_stream.dataset.clips import load_recordings, read_clips
from ast_stream.errors import ConfigError
from ast_stream.units import SAMPLE_RATE

HEADER = """# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=3, num_segs=3, num_unique_labels=2, num_positive_labels=4
# YTID, start_seconds, end_seconds, positive_labels
"""
CLASSES = 'index,mid,display_name\n0,/m/05tny_,Bark\n1,/m/06mb1,"Rain, heavy"\n'


def _write(path: Path, seconds: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(round(seconds * SAMPLE_RATE), 0.1), SAMPLE_RATE)


@pytest.fixture
def segments(tmp_path: Path) -> Path:
    """A list of four segments with its classes, and no clip yet."""
    (tmp_path / "class_labels_indices.csv").write_text(CLASSES)
    table = tmp_path / "balanced_train_segments.csv"
    table.write_text(
        HEADER
        + '--4gqARaEJE, 0.000, 10.000, "/m/05tny_,/m/06mb1"\n'
        + '_with_bars-1, 30.000, 40.000, "/m/05tny_"\n'
        + 'aBcDeFgHiJk, 120.000, 130.000, "/m/06mb1"\n'
        + 'ZZZZZZZZZZZ, 5.500, 15.500, "/m/06mb1"\n'
    )
    return table


@pytest.mark.parametrize(
    "names",
    [
        ("--4gqARaEJE.wav", "_with_bars-1.wav", "aBcDeFgHiJk.wav", "ZZZZZZZZZZZ.wav"),
        ("Y--4gqARaEJE.flac", "Y_with_bars-1.wav", "YaBcDeFgHiJk.wav", "YZZZZZZZZZZZ.mp3"),
        (
            "--4gqARaEJE_0.wav", "_with_bars-1_30.000.wav", "aBcDeFgHiJk_120000.wav",
            "ZZZZZZZZZZZ_5.5_15.5.wav",
        ),
        (
            "a/--4gqARaEJE_0_10.wav", "b/Y_with_bars-1_30.000_40.000.wav",
            "aBcDeFgHiJk_120000_130000.wav", "ZZZZZZZZZZZ_5.500.wav",
        ),
    ],
)  # fmt: skip
def test_clips_are_found_by_any_of_the_usual_names(segments: Path, names: tuple[str, ...]) -> None:
    for name in names:
        _write(segments.parent / name)
    clips = read_clips(segments)
    assert [str(clip.path.relative_to(segments.parent)) for clip in clips] == list(names)
    assert [clip.labels for clip in clips] == [
        ("Bark", "Rain, heavy"), ("Bark",), ("Rain, heavy",), ("Rain, heavy",)
    ]  # fmt: skip
    assert [clip.section for clip in clips] == [None] * 4


def test_of_a_whole_video_only_the_segment_is_taken(segments: Path) -> None:
    _write(segments.parent / "_with_bars-1.wav", seconds=41.0)
    (clip,) = read_clips(segments)
    assert clip.section == ClipSection(30.0, 40.0)


def test_clips_that_are_not_there_are_counted_and_named(
    segments: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _write(segments.parent / "aBcDeFgHiJk.wav")
    with caplog.at_level(logging.WARNING):
        assert len(read_clips(segments)) == 1
    (record,) = caplog.records
    assert "3 of 4 clips are missing and are skipped" in record.getMessage()
    assert "--4gqARaEJE, _with_bars-1, ZZZZZZZZZZZ" in record.getMessage()


def _problems(segments: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_clips(segments)
    return str(caught.value).splitlines()


def test_a_clip_in_a_format_that_cannot_be_read_is_named_unless_there_is_another(
    segments: Path,
) -> None:
    video = "--4gqARaEJE"
    segments.write_text(HEADER + f'{video}, 0.0, 10.0, "/m/06mb1"\n')
    unread = segments.parent / f"{video}.m4a"
    unread.write_bytes(b"ftyp")
    with pytest.raises(ConfigError, match=r"m4a: expected wav, flac, ogg or mp3"):
        load_recordings(read_clips(segments), min_clips=1)
    _write(segments.parent / f"{video}.flac")
    assert [clip.path.suffix for clip in read_clips(segments)] == [".flac"]


def test_a_list_without_any_clip_points_nowhere(segments: Path) -> None:
    with pytest.raises(ConfigError, match="named after their id beside it, got none of 4"):
        read_clips(segments)


def test_unknown_ids_and_broken_lines_are_reported_together(segments: Path) -> None:
    segments.write_text(
        segments.read_text()
        + 'xxxxxxxxxxx, 1.0, 11.0, "/m/nothing"\nyyyyyyyyyyy, soon\n'
        + "zzzzzzzzzzz, 1.0, 11.0, /m/05tny_,/m/06mb1\n"
    )
    assert _problems(segments) == [
        f"{segments}:8: class_labels_indices.csv has no class '/m/nothing'",
        f"{segments}:9: expected YTID, start, end and a list of classes",
        f"{segments}:10: expected YTID, start, end and a list of classes",
    ]


def test_times_that_make_no_sense_are_reported_together(segments: Path) -> None:
    rows = ("9.0, 3.0", "-3.0, 7.0", "nan, 10.0", "0.0, inf", "1.0, 1.0", "1.00, 1.05")
    segments.write_text(HEADER + "".join(f'--4gqARaEJE, {times}, "/m/06mb1"\n' for times in rows))
    _write(segments.parent / "--4gqARaEJE.wav")
    assert _problems(segments) == [
        f"{segments}:4: expected an onset before the offset, got 9 s and 3 s",
        f"{segments}:5: onset: expected seconds from the beginning, got '-3.0'",
        f"{segments}:6: onset: expected seconds from the beginning, got 'nan'",
        f"{segments}:7: offset: expected seconds from the beginning, got 'inf'",
        f"{segments}:8: expected an onset before the offset, got 1 s and 1 s",
        f"{segments}:9: expected at least 0.1 s from onset to offset, got 0.05 s",
    ]


def test_without_the_names_of_the_classes_it_is_said_which_file_is_missing(segments: Path) -> None:
    (segments.parent / "class_labels_indices.csv").unlink()
    with pytest.raises(ConfigError, match=r"expected class_labels_indices\.csv beside it"):
        read_clips(segments)
