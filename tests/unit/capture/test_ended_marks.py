"""The note of a source that has ended: for this source alone, and without its secrets."""

from __future__ import annotations

from pathlib import Path

from ast_stream.capture.ended_marks import EndedMark
from ast_stream.errors import AudioError
from ast_stream.settings.schema import Settings


def mark(folder: Path, password: str) -> EndedMark:
    source = {"type": "url", "url": f"http://me:{password}@127.0.0.1/a.mp3"}
    folders = {"runtime_dir": str(folder), "state_dir": str(folder)}
    settings = Settings.model_validate({"streams": [{"name": "a", "source": source}]} | folders)
    return EndedMark(settings, settings.streams[0])


def test_the_note_holds_no_password_and_is_of_no_other_source(tmp_path: Path) -> None:
    ended = mark(tmp_path, "Geheim42")
    assert ended.read() == (False, None)
    ended.write(AudioError("damaged"))
    is_over, failure = ended.read()
    assert is_over
    assert str(failure) == "damaged"
    (file,) = tmp_path.iterdir()
    assert "Geheim42" not in file.read_text()
    assert mark(tmp_path, "another").read() == (False, None)
    ended.remove()
    assert ended.read() == (False, None)
