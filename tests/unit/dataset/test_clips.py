"""Labelled recordings: what is read, and every problem reported at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from ast_stream.cli.clip_options import accepted_values
from ast_stream.dataset.clips import load_recordings, read_clips, read_data
from ast_stream.dataset.tables import Columns
from ast_stream.errors import ConfigError, UsageError
from ast_stream.units import SAMPLE_RATE


def _write(path: Path, seconds: float = 0.5, rate: int = SAMPLE_RATE, channels: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.1 * np.random.default_rng(0).standard_normal((round(seconds * rate), channels))
    soundfile.write(path, samples, rate)


def test_a_folder_per_class_gives_its_files_with_the_folder_as_label(tmp_path: Path) -> None:
    _write(tmp_path / "Bark" / "a.wav")
    _write(tmp_path / "Bark" / "deeper" / "b.flac")
    _write(tmp_path / "Rain" / "c.WAV")
    (tmp_path / "Rain" / "notes.txt").write_text("not audio")
    clips = read_clips(tmp_path)
    assert [(clip.path.name, clip.labels) for clip in clips] == [
        ("a.wav", ("Bark",)),
        ("b.flac", ("Bark",)),
        ("c.WAV", ("Rain",)),
    ]


def test_folders_give_whatever_libsndfile_reads(tmp_path: Path) -> None:
    _write(tmp_path / "Bark" / "1.au")
    _write(tmp_path / "Bark" / "2.caf")
    noise = 0.1 * np.random.default_rng(0).standard_normal(SAMPLE_RATE)
    for name, subtype in (("3.opus", "OPUS"), ("4.oga", "VORBIS")):
        soundfile.write(tmp_path / "Bark" / name, noise, SAMPLE_RATE, format="OGG", subtype=subtype)
    assert [recording.clip.path.name for recording in load_recordings(read_clips(tmp_path))] == [
        "1.au", "2.caf", "3.opus", "4.oga"
    ]  # fmt: skip


def test_recordings_that_cannot_be_read_are_reported_and_not_skipped(tmp_path: Path) -> None:
    for name in ("1.wav", "2.wav"):
        _write(tmp_path / "Bark" / name)
    (tmp_path / "Bark" / "3.M4A").write_bytes(b"\0\0\0 ftypM4A ")
    (tmp_path / "Bark" / "4.raw").write_bytes(bytes(32_000))
    with pytest.raises(ConfigError) as caught:
        load_recordings(read_clips(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path / 'Bark' / '3.M4A'}: its end is missing: 20 more bytes are promised "
        "(Invalid data found when processing input)"
    )
    table = tmp_path / "labels.csv"
    table.write_text("file,label\nBark/1.wav,Bark\nBark/2.wav,Bark\nBark/4.raw,Bark\n")
    with pytest.raises(ConfigError, match=r"labels\.csv:4: 4\.raw: expected wav, flac, ogg or mp3"):
        load_recordings(read_clips(table))


def test_a_recording_whose_end_is_missing_is_refused(tmp_path: Path) -> None:
    for name in ("1.wav", "2.aiff", "3.wav", "4.wav"):
        _write(tmp_path / "Bark" / name, seconds=2.0)
    for name in ("1.wav", "2.aiff"):
        whole = (tmp_path / "Bark" / name).read_bytes()
        (tmp_path / "Bark" / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError) as caught:
        load_recordings(read_clips(tmp_path))
    text = "expected 2.00 s, as its header says, got 1.00 s: its end is missing"
    assert [str(problem) for problem in caught.value.problems] == [
        f"{tmp_path / 'Bark' / name}: {text}" for name in ("1.wav", "2.aiff")
    ]


def test_a_recorded_stream_of_unknown_length_is_read_to_its_end(tmp_path: Path) -> None:
    for name, n_bytes in (("1.wav", 0xFFFFFFFF), ("2.wav", 0x80000000), ("3.wav", 0x7FFFF000)):
        _write(tmp_path / "Bark" / name)
        content = bytearray((tmp_path / "Bark" / name).read_bytes())
        content[40:44] = n_bytes.to_bytes(4, "little")
        (tmp_path / "Bark" / name).write_bytes(content)
    for recording in load_recordings(read_clips(tmp_path)):
        assert len(recording.waveform) == SAMPLE_RATE // 2


def test_a_table_gives_labels_folds_and_only_the_rows_asked_for(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    _write(tmp_path / "clips" / "a.wav")
    _write(tmp_path / "b.wav")
    table = tmp_path / "labels.csv"
    table.write_text("name,what,fold,licence\na.wav,Bark;Rain,1,CC0\nb.wav,Bark,2,other\n")
    columns = Columns(file="name", label="what", where={"licence": ["CC0", "CC-BY"]})
    (clip,) = read_clips(table, columns)
    assert clip.path == tmp_path / "clips" / "a.wav"
    assert (clip.labels, clip.fold, clip.line) == (("Bark", "Rain"), "1", 2)
    assert clip.row["licence"] == "CC0"


def test_recordings_are_mixed_down_and_resampled(tmp_path: Path) -> None:
    _write(tmp_path / "A" / "a.wav", 0.5, rate=44_100, channels=2)
    _write(tmp_path / "A" / "b.wav", 0.5, rate=8_000)
    for recording in load_recordings(read_clips(tmp_path)):
        assert recording.waveform.shape == (SAMPLE_RATE // 2,)
        assert recording.waveform.dtype == np.float32


def test_all_problems_are_reported_together_with_their_lines(tmp_path: Path) -> None:
    _write(tmp_path / "good.wav")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), SAMPLE_RATE)
    (tmp_path / "text.wav").write_text("this is no audio")
    soundfile.write(tmp_path / "nan.wav", np.array([np.nan] * 800), SAMPLE_RATE, subtype="FLOAT")
    table = tmp_path / "labels.csv"
    table.write_text(
        "file,label\ngood.wav,Bark\nempty.wav,Bark\ntext.wav,Bark\nmissing.wav,Bark\nnan.wav,Brak\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_recordings(read_clips(table), known_labels=["Bark", "Rain"])
    text = str(caught.value)
    assert f"{table}:3: empty.wav: expected sound, got an empty file" in text
    assert f"{table}:4: text.wav: expected wav, flac, ogg or mp3" in text
    assert f"{table}:5: missing.wav: No such file" in text
    assert f"{table}:6: nan.wav: unknown label 'Brak'; did you mean 'Bark'?" in text
    assert f"{table}:6: nan.wav: expected finite samples" in text
    assert "Brak: expected at least 2 clips of a class, got 1" in text
    assert len(caught.value.problems) == 6


def test_every_labelled_clip_without_sound_is_refused(tmp_path: Path) -> None:
    for name in ("1.wav", "2.wav"):
        _write(tmp_path / "Bark" / name)
    soundfile.write(tmp_path / "Bark" / "off.wav", np.zeros(SAMPLE_RATE), SAMPLE_RATE)
    hiss = 1e-5 * np.random.default_rng(0).standard_normal(SAMPLE_RATE)
    soundfile.write(tmp_path / "Bark" / "hiss.wav", hiss, SAMPLE_RATE, subtype="FLOAT")
    with pytest.raises(ConfigError) as caught:
        load_recordings(read_clips(tmp_path))
    assert str(caught.value).splitlines() == [
        f"{tmp_path / 'Bark' / 'hiss.wav'}: expected sound, got silence only",
        f"{tmp_path / 'Bark' / 'off.wav'}: expected sound, got silence only",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,lable\na.wav,Bark\n", "label: column is missing; did you mean 'lable'?"),
        ("file,label\n", "expected labelled recordings, got none"),
        ("file,label\na.wav, ;\n", "labels.csv:2: label: expected a label, got none"),
        ("file,label\na.wav,Bark\n,Bark\n", "labels.csv:3: file: expected a file, got none"),
        (
            "file,label\na.wav,Baby cry, infant cry\n",
            "csv:2: expected 2 cells as in the header, got 3; a label with commas needs quotes",
        ),
    ],
)
def test_a_table_that_cannot_be_understood_is_refused(
    tmp_path: Path, content: str, message: str
) -> None:
    table = tmp_path / "labels.csv"
    table.write_text(content)
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        read_clips(table)


@pytest.mark.parametrize(
    "content",
    [
        "file;label\r\na.wav;Tone\r\nb.wav;Tone\r\n",
        "sep=;\r\nfile;label\r\na.wav;Tone\r\nb.wav;Tone\r\n",
        "sep=,\nfile,label\na.wav,Tone\nb.wav,Tone\n",
        '"sep=\t"\r\nfile\tlabel\r\na.wav\tTone\r\nb.wav\tTone\r\n',
        "file,label\ra.wav,Tone\rb.wav,Tone\r",
        "file ; label\r\na.wav;Tone\r\nb.wav;Tone\r\n;\r\n;\r\n",
        "file,label\nclips\\a.wav,Tone\nclips\\b.wav,Tone\n",
        "file,label,note\na.wav,Tone,x;y;z;w\nb.wav,Tone,\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_a_table_as_spreadsheets_save_it_is_read(
    tmp_path: Path, content: str, encoding: str
) -> None:
    for name in ("a.wav", "b.wav"):
        _write(tmp_path / "clips" / name)
    table = tmp_path / "labels.csv"
    table.write_bytes(content.encode(encoding))
    clips = read_clips(table)
    assert [(clip.path, clip.labels) for clip in clips] == [
        (tmp_path / "clips" / name, ("Tone",)) for name in ("a.wav", "b.wav")
    ]


def test_numbers_with_a_decimal_comma_are_read_where_semicolons_part_cells(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text('file;label;onset;offset\na.wav;"Bark;Rain";0,5;1,25\n')
    clip, *_ = read_clips(table)
    assert (clip.labels, clip.section) == (("Bark", "Rain"), (0.5, 1.25))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 rest of a zip", "expected a table of text, got a workbook; save it as CSV"),
        ("file,label\na.wav,Hündin\n".encode("cp1252"), r"labels\.csv:2: expected UTF-8, got b'"),
        (b"file;label\na.wav;Bark;Rain\n", "a label with semicolons needs quotes"),
        (b"file,label,label\na.wav,Bark,Rain\n", "label: expected each column once"),
        (b"", "file: column is missing"),
    ],
)
def test_what_a_table_is_instead_is_said(tmp_path: Path, content: bytes, message: str) -> None:
    table = tmp_path / "labels.csv"
    table.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_clips(table)


def test_label_tracks_and_segment_lists_are_read_as_spreadsheets_save_them(tmp_path: Path) -> None:
    _write(tmp_path / "night.wav", 4.0)
    (tmp_path / "night.txt").write_bytes("1,5\t2,5\tBark\r\n".encode("utf-16"))
    clip, *_ = read_clips(tmp_path / "night.txt")
    assert (clip.labels, clip.section) == (("Bark",), (1.5, 2.5))
    _write(tmp_path / "abc.wav", 4.0)
    (tmp_path / "class_labels_indices.csv").write_text("index;mid;display_name\n0;/m/1;Bark\n")
    segments = tmp_path / "segments.csv"
    segments.write_bytes(
        "# YTID; start_seconds; end_seconds; positive_labels\r\nabc;0;10;/m/1\r\n".encode("utf-16")
    )
    (clip,) = read_clips(segments)
    assert clip.labels == ("Bark",)


def test_rows_of_one_file_with_other_labels_are_one_clip(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("file,label\na.wav,Bark\nb.wav,Rain\na.wav,Rain;Siren\n")
    clips = read_clips(table)
    assert [(clip.path.name, clip.labels, clip.line) for clip in clips] == [
        ("a.wav", ("Bark", "Rain", "Siren"), 2),
        ("b.wav", ("Rain",), 3),
    ]


def test_rows_of_one_file_that_repeat_or_part_it_are_refused(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("file,label,fold\na.wav,Bark,1\na.wav,Bark,1\nb.wav,Rain,1\nb.wav,Bark,2\n")
    with pytest.raises(ConfigError) as caught:
        read_clips(table)
    assert str(caught.value).splitlines() == [
        f"{table}:3: a.wav: expected each file once with a label, got it in line 2",
        f"{table}:5: b.wav: expected one fold for a file, got 1 in line 4 and 2",
    ]


def test_a_folder_whose_name_would_be_read_back_as_two_labels_is_refused(tmp_path: Path) -> None:
    _write(tmp_path / "A;B" / "1.wav")
    _write(tmp_path / "A;B" / "2.wav")
    with pytest.raises(ConfigError) as caught:
        read_clips(tmp_path)
    text = "expected a label without ';', which parts labels, got 'A;B'"
    assert str(caught.value) == f"{tmp_path / 'A;B' / '1.wav'}: {text}"


def test_cells_beyond_the_header_matter_only_if_they_hold_something(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text('file,label\na.wav,"Baby cry, infant cry", ,\nb.wav,Bark\n')
    labels = [clip.labels for clip in read_clips(table)]
    assert labels == [("Baby cry, infant cry",), ("Bark",)]


def test_a_condition_may_be_a_value_with_commas(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text('file,label\na.wav,"Baby cry, infant cry"\nb.wav,Bark\nc.wav,Rain\n')
    for condition, files in (
        ("label=Baby cry, infant cry", ["a.wav"]),
        ("label=Bark,Rain", ["b.wav", "c.wav"]),
    ):
        columns = Columns(where=accepted_values([condition]))
        assert [clip.path.name for clip in read_clips(table, columns)] == files


def test_values_that_no_row_has_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("file,label,fold\na.wav,Bark,1\nb.wav,Rain,2\n")
    with pytest.raises(ConfigError) as caught:
        read_clips(table, Columns(where={"label": ["Brak", "Siren"], "fold": ["3"]}))
    assert str(caught.value).splitlines() == [
        f"{table}:1: label: no row has 'Brak'; did you mean 'Bark'?",
        f"{table}:1: label: no row has 'Siren'",
        f"{table}:1: fold: no row has '3'",
    ]
    (clip,) = read_clips(table, Columns(where={"label": ["Bark", "Rian"]}))
    assert clip.labels == ("Bark",)
    assert caplog.messages == [f"{table}:1: label: no row has 'Rian'; did you mean 'Rain'?"]


@pytest.mark.parametrize(
    ("header", "columns", "messages"),
    [
        ("file,label,onset,ofset", Columns(), ["offset: column is missing; did you mean 'ofset'?"]),
        (
            "file,label,begin,offset",
            Columns(),
            ["onset: column is missing, got file, label, begin, offset"],
        ),
        (
            "file,label,onset,length",
            Columns(),
            ["offset: column is missing, got file, label, onset, length"],
        ),
        (
            "file,label,Fold",
            Columns(fold="fold"),
            ["fold: column is missing; did you mean 'Fold'?"],
        ),
        (
            "file,label",
            Columns(onset="begin", offset="end"),
            [
                "begin: column is missing, got file, label",
                "end: column is missing, got file, label",
            ],
        ),
    ],
)
def test_columns_that_are_named_or_one_of_a_pair_must_be_there(
    tmp_path: Path, header: str, columns: Columns, messages: list[str]
) -> None:
    table = tmp_path / "labels.csv"
    table.write_text(f"{header}\na.wav,Bark,1,2\n")
    with pytest.raises(ConfigError) as caught:
        read_clips(table, columns)
    assert str(caught.value).splitlines() == [f"{table}:1: {message}" for message in messages]


def test_a_second_condition_for_a_column_is_refused() -> None:
    with pytest.raises(UsageError, match="expected one condition for column 'label'"):
        accepted_values(["label=Bark", "fold=1", "label=Rain"])


def test_a_source_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a folder or a CSV file"):
        read_clips(tmp_path / "nowhere")


def test_a_dash_stands_for_a_sound_of_no_class(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("file,label\na.wav,Bark\nb.wav,-\n")
    clips = read_data(table)
    assert [clip.labels for clip in clips] == [("Bark",), ()]
    assert [(clip.section, clip.row["file"]) for clip in clips] == [
        (None, "a.wav"),
        (None, "b.wav"),
    ]
    assert [clip.path.name for clip in read_clips(table)] == ["a.wav"]
