"""`ast-stream scan`: what it finds, how it writes it, and what it says of bad input."""

import io
import json
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from reactive_model import framed_checkpoint, save_reactive, tones_and_noise

from ast_stream import load_tagger, scan_file
from ast_stream.audio.recording import RecordingError
from ast_stream.cli.app import run_command_line
from ast_stream.detect import Detector
from ast_stream.errors import AudioError, UsageError
from ast_stream.messages.event import Event, Scores
from ast_stream.model.checkpoint import load_checkpoint
from ast_stream.model.tagger import Tagger
from ast_stream.scanner import Scanner
from ast_stream.settings.detection import DetectionDefaults, DetectionSettings

HOP_S = 0.5


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audio") / "night one.wav"
    soundfile.write(path, tones_and_noise(30.0), 16_000, subtype="PCM_16")
    return path


def scan(checkpoint: Path, *args: object) -> int:
    common = ["scan", "--model", str(checkpoint), "--hop", str(HOP_S)]
    return run_command_line([*common, *map(str, args)])


def test_with_a_cascade_events_are_found_where_it_asks_and_carry_both_scores(
    checkpoint: Path, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"checkpoint": str(checkpoint), "ask_ratio": 0.01}
    model = {"checkpoint": str(checkpoint), "hop_s": HOP_S}
    stream = {"name": "unused", "source": {"type": "stdin"}}
    found = []
    for cascade in (None, small):
        config = tmp_path / "config.yaml"
        config.write_text(json.dumps({"streams": [stream], "model": model | {"cascade": cascade}}))
        words = ["scan", str(recording), "--json", "-c", str(config)]
        assert run_command_line(words) == 0
        found.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
        assert run_command_line([*words[:2], "--labels", "csv", "-c", str(config)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert {line.count(",") for line in lines if '"' not in line} == {8}
    alone, with_cascade = found
    # the small model is the large one, and asks about all that it hears at all
    assert [event.pop("watcher_score") for event in with_cascade] == [
        event["score"] for event in alone
    ]
    assert with_cascade == alone


def test_json_lines_have_the_promised_fields_in_order_of_the_ends(
    checkpoint: Path, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scan(checkpoint, recording, "--json") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(events) >= 3
    for event in events:
        assert list(event) == [
            "file",
            "class",
            "label",
            "onset_s",
            "offset_s",
            "score",
            "peak",
            "uncertainty_s",
            "mean",
        ]
        assert event["file"] == str(recording)
        assert 0 <= event["onset_s"] <= event["offset_s"] <= 30
        assert 0 < event["score"] <= event["peak"] <= 1
        assert 0 < event["mean"] <= event["peak"]


def test_scores_file_holds_what_the_decision_stage_saw(
    checkpoint: Path, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.npz"
    assert scan(checkpoint, recording, "--scores", out) == 0
    saved = np.load(out)
    assert saved["labels"].tolist() == ["Bark", "Siren", "Background"]
    assert saved["scores"].shape == (len(saved["times_s"]), 3)
    assert saved["scores"].dtype == np.float32
    tagger = load_tagger(str(checkpoint), device="cpu")
    pcm = tones_and_noise(30.0)
    row = int(np.flatnonzero(saved["times_s"] == 10.0)[0])
    window = pcm[160_000 - tagger.window_samples : 160_000].astype(np.float32) / np.float32(32_768)
    np.testing.assert_allclose(saved["scores"][row], tagger.scores(window)[0], atol=1e-5)


def test_standard_input_gives_what_the_file_gives(
    checkpoint: Path,
    recording: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert scan(checkpoint, recording, "--labels", "audacity") == 0
    from_file = capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(recording.read_bytes())))
    assert scan(checkpoint, "-", "--labels", "audacity") == 0
    assert capsys.readouterr().out == from_file
    onset, offset, label = from_file.splitlines()[0].split("\t")
    assert float(onset) < float(offset)
    assert label in ("Bark", "Siren")


@pytest.mark.slow
def test_scan_file_gives_what_the_command_gives(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "night.flac"
    soundfile.write(path, np.repeat(tones_and_noise(30.0), 3), 48_000)
    assert scan(checkpoint, path, "--json") == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = scan_file(path, model=str(checkpoint), device="cpu", hop_s=HOP_S)
    assert [event.as_json() for event in found] == printed
    tagger = load_tagger(str(checkpoint), device="cpu")
    assert scan_file(str(path), tagger, hop_s=HOP_S) == found
    (tmp_path / "cut.flac").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioError, match=r"cut\.flac: expected 30\.00 s.*its end is missing"):
        scan_file(tmp_path / "cut.flac", tagger)


def test_scores_of_a_damaged_recording_are_saved_too(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, scores = tmp_path / "cut.flac", tmp_path / "scores.npz"
    soundfile.write(path, tones_and_noise(30.0), 16_000)
    os.truncate(path, path.stat().st_size // 2)
    assert scan(checkpoint, path, "--scores", scores) == 1
    assert 10.0 < np.load(scores)["times_s"][-1] < 20.0
    assert scan(checkpoint, tmp_path / "gone.wav", "--scores", scores) == 1
    assert len(np.load(scores)["times_s"]) > 0  # what was there stays
    capsys.readouterr()


def test_scores_that_cannot_be_saved_are_known_before_the_scan(
    checkpoint: Path, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for target in (tmp_path, tmp_path / "nosuch" / "scores.npz"):
        assert scan(checkpoint, recording, "--scores", target) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert "scan: --scores: " in printed.err


def test_mistakes_in_calling_scan_file_are_one_sentence(checkpoint: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "two.wav", np.zeros((16_000, 2), np.float32), 16_000)
    wrong: Any
    for wrong in (-1, "left", True, 1.0):
        with pytest.raises(UsageError, match="channel: expected 'mix' or a number from 0"):
            scan_file(tmp_path / "two.wav", model=str(checkpoint), channel=wrong)
    wrong = str(checkpoint)
    with pytest.raises(UsageError, match="tagger: expected what load_tagger returns"):
        scan_file(tmp_path / "two.wav", wrong)
    with pytest.raises(RecordingError, match=r"two\.wav: .*channel"):
        scan_file(tmp_path / "two.wav", model=str(checkpoint), channel=2)
    assert scan_file(tmp_path / "two.wav", model=str(checkpoint), channel=1) == []


def test_a_recording_is_scanned_to_its_end_behind_damage_and_the_exit_code_is_1(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "damaged.mp3"
    soundfile.write(path, tones_and_noise(30.0), 16_000)
    assert scan(checkpoint, path, "--json") == 0
    whole = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3_000] = np.random.default_rng(1).bytes(3_000)
    path.write_bytes(content)
    assert scan(checkpoint, path, "--json") == 1
    printed = capfd.readouterr()
    assert re.match(
        r"scan: .*damaged\.mp3: damaged at 1[45]\.\d\d s .*read on behind it\n", printed.err
    )
    assert "mpg123" not in printed.err
    found = [json.loads(line) for line in printed.out.splitlines()]
    assert [event["onset_s"] for event in found if event["onset_s"] > 18] == pytest.approx(
        [event["onset_s"] for event in whole if event["onset_s"] > 18], abs=0.5
    )


def test_what_comes_through_a_pipe_is_scanned(
    checkpoint: Path, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scan(checkpoint, recording, "--labels", "audacity") == 0
    from_file = capsys.readouterr().out
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(
        target=(tmp_path / "pipe").write_bytes, args=(recording.read_bytes(),)
    )
    writer.start()
    assert scan(checkpoint, tmp_path / "pipe", "--labels", "audacity") == 0
    writer.join()
    assert capsys.readouterr().out == from_file


def test_a_folder_names_what_it_cannot_read_and_scans_the_rest(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.flac", "b.aiff", "c.w64", "d.opus", "e.caf"):
        kind = {"format": "OGG", "subtype": "OPUS"} if name == "d.opus" else {}
        soundfile.write(tmp_path / name, tones_and_noise(12.0), 16_000, **kind)
    (tmp_path / "f.m4a").write_bytes(b"\0\0\0 ftypM4A ")
    (tmp_path / "notes.txt").write_text("no audio")
    os.mkfifo(tmp_path / "g.wav")
    assert scan(checkpoint, tmp_path, "--json") == 1
    printed = capsys.readouterr()
    files = {Path(json.loads(line)["file"]).name for line in printed.out.splitlines()}
    assert files == {"a.flac", "b.aiff", "c.w64", "d.opus", "e.caf"}
    assert "f.m4a: its end is missing: 20 more bytes are promised" in printed.err
    assert "g.wav: expected a file, got a FIFO" in printed.err
    assert "notes.txt" not in printed.err
    assert "2 of 7 recordings could not be read to their end" in printed.err


def test_every_rate_and_format_of_a_folder_is_read(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pcm = np.repeat(tones_and_noise(12.0), 3)
    soundfile.write(tmp_path / "a.flac", pcm, 48_000)
    soundfile.write(tmp_path / "b.ogg", np.stack([pcm, pcm], axis=1), 48_000)
    (tmp_path / "notes.txt").write_text("no audio")
    assert scan(checkpoint, tmp_path, "--labels", "csv") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "file,class,label,onset_s,offset_s,score,peak,uncertainty_s,mean"
    assert {line.split(",")[0].rsplit("/", 1)[1] for line in lines[1:]} == {"a.flac", "b.ogg"}


def test_rttm_lines_have_ten_fields(
    checkpoint: Path, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scan(checkpoint, recording, "--labels", "rttm") == 0
    for line in capsys.readouterr().out.splitlines():
        assert len(line.split(" ")) == 10
        assert line.startswith("SPEAKER night_one 1 ")


def test_bad_recordings_are_named_and_do_not_stop_the_good_ones(
    checkpoint: Path, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.wav").write_bytes(b"RIFF nonsense")
    (tmp_path / "empty.wav").touch()
    code = scan(checkpoint, tmp_path / "broken.wav", tmp_path / "none.wav", recording, "--json")
    printed = capsys.readouterr()
    assert code == 1
    assert len(printed.out.splitlines()) >= 3
    assert "broken.wav: expected wav, flac, ogg or mp3" in printed.err
    assert "none.wav: No such file or directory" in printed.err
    assert "2 of 3 recordings could not be read to their end" in printed.err
    assert "Traceback" not in printed.err


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ([""], "scan: expected recordings, folders or -, got an empty name"),
        (["--json", "--labels", "csv"], "expected --json or --labels, got both"),
        (["--hop", "0.123"], "--hop: expected a positive multiple of 0.01 s, got 0.123"),
        (["second.wav", "--labels", "audacity"], "audacity: expected one recording, got 2"),
        (["second.wav", "--scores", "x.npz"], "expected one recording, got 2"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(
    checkpoint: Path,
    recording: Path,
    args: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert scan(checkpoint, recording, *args) == 2
    assert sentence in capsys.readouterr().err


def test_window_longer_than_trained_is_refused(
    checkpoint: Path, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scan(checkpoint, recording, "--window", "9") == 3
    assert "window_s: expected at most 128 frames" in capsys.readouterr().err


def test_empty_and_very_short_recordings_give_nothing_and_no_error(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for n_samples in (0, 1, 100):
        path = tmp_path / f"{n_samples}.wav"
        soundfile.write(path, np.zeros(n_samples, np.int16), 16_000)
        assert scan(checkpoint, path, "--json") == 0
    assert capsys.readouterr().out == ""


def test_channels_that_cancel_are_warned_of_and_one_of_them_can_be_heard(
    checkpoint: Path, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pcm, rate = soundfile.read(recording, dtype="int16")
    soundfile.write(tmp_path / "anti.wav", np.stack([pcm, -pcm], axis=1), rate)
    assert scan(checkpoint, recording, "--json") == 0
    expected = capsys.readouterr().out
    assert scan(checkpoint, tmp_path / "anti.wav", "--json") == 0
    mixed = capsys.readouterr()
    assert "anti.wav: warning: channels 0 and 1 cancel each other when averaged" in mixed.err
    assert scan(checkpoint, tmp_path / "anti.wav", "--json", "--channel", 0) == 0
    alone = capsys.readouterr()
    assert alone.out.replace("anti", "") == expected.replace(str(recording), str(tmp_path / ".wav"))
    assert alone.err == ""
    assert scan(checkpoint, tmp_path / "anti.wav", "--channel", 2) == 1
    assert "channel 2 is wanted (counted from 0), and the source has channels 0 to 1" in (
        capsys.readouterr().err
    )


def test_a_recording_of_nothing_is_warned_of(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "zeros.wav", np.zeros(48_000, np.int16), 16_000)
    assert scan(checkpoint, tmp_path / "zeros.wav") == 0
    assert "zeros.wav: warning: nothing but digital silence" in capsys.readouterr().err


def test_floats_in_the_scale_of_integers_are_warned_of(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pcm = tones_and_noise(3.0)
    soundfile.write(tmp_path / "loud.wav", pcm.astype(np.float32), 16_000, subtype="FLOAT")
    sound = pcm.astype(np.float32) / 65_536
    sound[::50] = 1.5  # 2 %, as an overdriven recording may have
    soundfile.write(tmp_path / "over.wav", sound, 16_000, subtype="FLOAT")
    assert scan(checkpoint, tmp_path / "loud.wav") == 0
    text = " % of its samples are beyond full scale and cut off: floats are expected from -1 to 1"
    assert text in capsys.readouterr().err
    assert scan(checkpoint, tmp_path / "over.wav") == 0
    assert capsys.readouterr().err == ""


def test_json_names_a_file_as_it_is_called(
    checkpoint: Path, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new\nline \udcfc.wav"
    path.write_bytes(recording.read_bytes())
    assert scan(checkpoint, path, "--json") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert {json.loads(line)["file"] for line in lines} == {str(path)}


@pytest.mark.parametrize("seconds", [0.9, 2.37, 30.0])
def test_a_recording_gives_to_the_bit_what_the_same_sound_gives_live(
    tmp_path: Path, seconds: float
) -> None:
    pcm = tones_and_noise(30.0)[: round(seconds * 16_000)]
    soundfile.write(tmp_path / "night.wav", pcm, 16_000, subtype="PCM_16")
    detection = DetectionSettings(defaults=DetectionDefaults(onset_threshold=0.5, confirm_s=0.25))
    for checkpoint in (framed_checkpoint(), load_checkpoint(str(save_reactive(tmp_path / "m")))):
        tagger = Tagger(checkpoint, "cpu", "fp32", "math")
        live_scores: list[Scores] = []
        live = Detector(tagger, detection, hop_s=0.1, on_scores=live_scores.append)
        live.open("scan", "0" * 32)
        expected: list[Event] = []
        for start in range(0, len(pcm), 1_600):
            live.push("scan", start, pcm[start : start + 1_600])
            expected += live.run()
        expected += live.flush("scan")
        scores: list[Scores] = []
        scanner = Scanner(tagger, detection, hop_s=0.1, on_scores=scores.append)
        assert list(scanner.messages(tmp_path / "night.wav")) == expected
        assert seconds < 10 or len(expected) > 5
        for one, other in zip(live_scores, scores, strict=True):
            assert one.end_sample == other.end_sample
            assert np.array_equal(one.scores, other.scores)
