"""Labelled intervals of long recordings: what holds where, what lies between, and every mistake."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ast_stream.dataset.annotations import MARGIN_S, ClipSection, LabelledClip
from ast_stream.dataset.clips import load_recordings, read_clips, read_data, write_clips
from ast_stream.dataset.tables import Columns
from ast_stream.errors import ConfigError
from ast_stream.units import SAMPLE_RATE

LENGTH_S = 20.0


@pytest.fixture
def ramp(tmp_path: Path) -> Path:
    """A recording whose samples tell where they come from: 0 at its begin, 0.5 at its end."""
    path = tmp_path / "long.wav"
    samples = np.linspace(0, 0.5, round(LENGTH_S * SAMPLE_RATE))
    soundfile.write(path, samples, SAMPLE_RATE, subtype="FLOAT")
    return path


def _table(folder: Path, *rows: str, name: str = "intervals.csv") -> Path:
    table = folder / name
    table.write_text("\n".join(["file,onset,offset,label", *rows]) + "\n")
    return table


def _spans(clips: list[LabelledClip]) -> list[tuple[tuple[str, ...], ClipSection | None]]:
    return [(clip.labels, clip.section) for clip in clips]


def test_an_interval_becomes_the_samples_between_its_times(ramp: Path, tmp_path: Path) -> None:
    table = _table(tmp_path, "long.wav,2.0,4.5,Bark", "long.wav,10,12,Bark")
    first, second = load_recordings(read_clips(table))
    assert len(first.waveform) == round(2.5 * SAMPLE_RATE)
    assert first.waveform[0] == pytest.approx(0.05, abs=1e-4)
    assert second.waveform[-1] == pytest.approx(0.30, abs=1e-4)


def test_what_lies_between_the_labels_is_kept_without_any(ramp: Path, tmp_path: Path) -> None:
    table = _table(tmp_path, "long.wav,2.0,4.0,Bark", "long.wav,10,12,Rain")
    free = [clip.section for clip in read_data(table) if not clip.labels]
    assert free == [
        (0.0, 2.0 - MARGIN_S),
        (4.0 + MARGIN_S, 10.0 - MARGIN_S),
        (12.0 + MARGIN_S, math.inf),
    ]
    assert all(clip.labels for clip in read_clips(table))


def test_where_labels_overlap_both_hold(tmp_path: Path) -> None:
    table = _table(tmp_path, "long.wav,1,5,Rain", "long.wav,3,4,Bark")
    assert _spans(read_clips(table)) == [
        (("Rain",), (1.0, 3.0)),
        (("Rain", "Bark"), (3.0, 4.0)),
        (("Rain",), (4.0, 5.0)),
    ]


def test_a_recording_without_labels_is_all_background(ramp: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "night.wav", np.full(3 * SAMPLE_RATE, 0.1), SAMPLE_RATE)
    table = _table(tmp_path, "long.wav,2,4,Bark", "long.wav,6,8,Bark", "night.wav,,,")
    night = load_recordings(read_data(table))[-1]
    assert (night.clip.path.name, night.clip.labels) == ("night.wav", ())
    assert len(night.waveform) == 3 * SAMPLE_RATE


def test_labels_to_the_end_leave_no_background_behind_it(ramp: Path, tmp_path: Path) -> None:
    table = _table(tmp_path, "long.wav,0,10,Bark", f"long.wav,10,{LENGTH_S + 0.05},Bark")
    assert [recording.clip.labels for recording in load_recordings(read_data(table))] == [
        ("Bark",),
        ("Bark",),
    ]


def test_tabs_and_other_column_names_are_understood(ramp: Path, tmp_path: Path) -> None:
    table = tmp_path / "truth.tsv"
    table.write_text("filename\tbegin\tend\tevent_label\nlong.wav\t1\t2\tBark, far\n")
    columns = Columns(file="filename", label="event_label", onset="begin", offset="end")
    assert _spans(read_clips(table, columns)) == [(("Bark, far",), (1.0, 2.0))]


def test_audacitys_label_tracks_are_read_beside_their_recordings(
    ramp: Path, tmp_path: Path
) -> None:
    (tmp_path / "long.txt").write_text("1.0\t2.5\tBark\n\\\t200.0\t4000.0\n7\t8\tBark\n")
    expected = [(("Bark",), (1.0, 2.5)), (("Bark",), (7.0, 8.0))]
    assert _spans(read_clips(tmp_path)) == expected
    assert _spans(read_clips(tmp_path / "long.txt")) == expected


def test_the_recording_of_a_label_track_is_found_whatever_its_name(
    ramp: Path, tmp_path: Path
) -> None:
    track = tmp_path / "hall [1].txt"
    track.write_text("1.0\t2.5\tBark\n")
    (tmp_path / "hall [1].m4a").write_bytes(b"ftyp")
    with pytest.raises(ConfigError, match=r"m4a: expected wav, flac, ogg or mp3"):
        load_recordings(read_clips(track), min_clips=1)
    ramp.rename(tmp_path / "hall [1].wav")
    assert _spans(read_clips(track)) == [(("Bark",), (1.0, 2.5))]


def test_a_label_that_would_be_read_back_as_two_is_refused(ramp: Path, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("1.0\t2.5\tBark; far\n3\t4\tBark; far\n")
    with pytest.raises(ConfigError) as caught:
        read_clips(tmp_path)
    text = "long.wav: expected a label without ';', which parts labels, got 'Bark; far'"
    assert str(caught.value) == f"{tmp_path / 'long.txt'}:1: {text}"


def test_a_label_track_that_points_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gone.txt").write_text("1.0\t2.5\tBark\n")
    with pytest.raises(ConfigError, match=r"expected a recording named gone\.wav"):
        read_clips(tmp_path / "gone.txt")


def test_all_wrong_times_are_reported_together_with_their_lines(tmp_path: Path) -> None:
    table = _table(
        tmp_path,
        "long.wav,3,2,Bark",
        "long.wav,nan,4,Bark",
        "long.wav,-1,4,Bark",
        "long.wav,1,soon,Bark",
        "long.wav,1,2,",
        "long.wav,1,2,Bark",
    )
    with pytest.raises(ConfigError) as caught:
        read_clips(table)
    lines = str(caught.value).splitlines()
    assert lines == [
        f"{table}:2: long.wav: expected an onset before the offset, got 3 s and 2 s",
        f"{table}:3: long.wav: onset: expected seconds from the beginning, got 'nan'",
        f"{table}:4: long.wav: onset: expected seconds from the beginning, got '-1'",
        f"{table}:5: long.wav: offset: expected seconds from the beginning, got 'soon'",
        f"{table}:6: long.wav: expected a label for these times, got none",
    ]


def test_a_label_too_short_to_teach_is_refused_and_a_crumb_of_two_is_not(tmp_path: Path) -> None:
    table = _table(tmp_path, "long.wav,1,1.06,Click", "long.wav,4.0,4.1,Click")
    with pytest.raises(ConfigError) as caught:
        read_clips(table)
    text = "long.wav: expected at least 0.1 s from onset to offset, got 0.06 s"
    assert str(caught.value) == f"{table}:2: {text}"
    table = _table(tmp_path, "long.wav,4.0,4.1,Click", "long.wav,5,7,Rain", "long.wav,6.95,8,Bark")
    assert _spans(read_clips(table)) == [
        (("Click",), (4.0, 4.1)),
        (("Rain",), (5.0, 6.95)),
        (("Bark",), (7.0, 8.0)),
    ]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("20.0,20.1", "onset: expected less than 20.00 s, where the file ends, got 20 s"),
        ("18,21", "offset: expected at most 20.00 s, where the file ends, got 21 s"),
    ],
)
def test_times_beyond_the_end_of_the_file_are_refused(
    ramp: Path, tmp_path: Path, row: str, problem: str
) -> None:
    table = _table(tmp_path, "long.wav,2,4,Bark", f"long.wav,{row},Bark")
    with pytest.raises(ConfigError) as caught:
        load_recordings(read_data(table))
    assert str(caught.value) == f"{table}:3: long.wav: {problem}"


def test_one_interval_cut_by_another_label_is_still_one_clip(ramp: Path, tmp_path: Path) -> None:
    table = _table(tmp_path, "long.wav,1,9,Rain", "long.wav,3,4,Bark", "long.wav,6,7,Bark")
    with pytest.raises(ConfigError, match="Rain: expected at least 2 clips of a class, got 1"):
        load_recordings(read_data(table))


def test_a_missing_recording_is_reported_once(tmp_path: Path) -> None:
    table = _table(tmp_path, "gone.wav,1,2,Bark", "gone.wav,3,4,Bark")
    with pytest.raises(ConfigError) as caught:
        load_recordings(read_data(table))
    assert str(caught.value) == f"{table}:2: gone.wav: No such file or directory"


def test_clips_are_written_as_a_table_that_reads_the_same(ramp: Path, tmp_path: Path) -> None:
    table = _table(tmp_path, "long.wav,2.5,4,Bark;Rain", "long.wav,10,12,Bark")
    first, second = read_clips(table)
    write_clips([(first, "trained"), (second, "held-out")], tmp_path / "out.csv")
    clips = read_clips(tmp_path / "out.csv")
    assert _spans(clips) == _spans([first, second])
    assert [clip.fold for clip in clips] == ["trained", "held-out"]
    assert [clip.path.resolve() for clip in clips] == [ramp.resolve()] * 2


def test_intervals_and_whole_files_are_written_as_a_table_that_reads_the_same(
    tmp_path: Path,
) -> None:
    table = _table(tmp_path, "long.wav,2.5,4,Bark", "short.wav,,,Bark;Rain", "other.wav,,,Rain")
    clips = read_clips(table)
    assert _spans(clips) == [(("Bark",), (2.5, 4)), (("Bark", "Rain"), None), (("Rain",), None)]
    write_clips([(clip, "trained") for clip in clips], tmp_path / "out.csv")
    assert _spans(read_clips(tmp_path / "out.csv")) == _spans(clips)


def test_a_whole_file_with_sections_of_its_own_is_refused(tmp_path: Path) -> None:
    table = _table(tmp_path, "long.wav,,,Rain", "long.wav,2.5,4,Bark", "other.wav,,,Rain")
    with pytest.raises(ConfigError) as caught:
        read_clips(table)
    text = "long.wav: expected times, since line 3 is of the same file, got none"
    assert str(caught.value) == f"{table}:2: {text}"
