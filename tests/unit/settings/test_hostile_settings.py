"""Configurations that are made to break whoever reads them: only a ConfigError may come of it."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from pathlib import Path

import pytest

from ast_stream.alerts.model_facts import decision_parameters, model_facts
from ast_stream.alerts.rules.compile import compile_rules
from ast_stream.errors import ConfigError, UsageError
from ast_stream.settings.check import check_against_model
from ast_stream.settings.load import examine_text, load_settings, parse_settings, parse_text
from ast_stream.settings.yaml import MAX_WRITTEN, parse_document

CONFIGS = Path(__file__).parents[3] / "configs"
SHIPPED = sorted(set(CONFIGS.rglob("*.yaml")))
STREAMS = "streams: [{name: porch, source: {type: microphone}}]\n"
N_MUTATIONS = 2000
PIECES = [
    *("1e300", "1e308", "-1e308", "1e999", ".inf", "-.inf", ".nan", "0", "-1", "9" * 400, "1e-320"),
    *(
        "null",
        "true",
        "[]",
        "{}",
        "''",
        '"\\0"',
        '"\\uD800"',
        '"\\U99999999"',
        "~",
        "!!binary eA==",
    ),
    *(
        "&a [*a]",
        "*nosuch",
        "<<: *x",
        "? x",
        "|",
        ">-",
        "- ",
        "{",
        "}",
        "[",
        "]",
        ":",
        "%",
        "@",
        "`",
    ),
    *("\x00", "\x1b[2J", "\ud800", "\ufeff", "\t", "\r", "é" * 300, "x" * 11_000, "../" * 2000),
    *("rtsp://a:b[c@d", "~nosuchuser/x", "\n---\n", "\n...\n", "  ", "2026-11-20", "12:30", "0x10"),
]


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_settings(text, "a.yaml")
    return str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 99))]), "nest"),
        ("\n".join(f"a{n}: &a{n} [{f'*a{n - 1},' * 9 if n else 1}]" for n in range(30)), "values"),
        (STREAMS + "x: " + "[" * 900, "a.yaml:2: expected at most 32 levels"),
        (STREAMS + "".join(f"k{n}: 1\n" for n in range(MAX_WRITTEN)), f"at most {MAX_WRITTEN}"),
        (STREAMS + 'x: "\\U99999999"', "this is not valid YAML"),
        (f"%YAML 1.{'9' * 5000}\n---\n{STREAMS}", "this is not valid YAML"),
        (STREAMS + 'state_dir: "a\\0b"', "a.yaml:2: state_dir: expected text, got the character"),
        (STREAMS + 'state_dir: "\\uD800"', "a.yaml:2: state_dir: expected text, got the character"),
        (STREAMS + '"\\e[2J": 1', "a.yaml:2: expected text, got the character U+001B"),
        (STREAMS + "state_dir: " + "x" * 300, "a.yaml:2: state_dir: expected a path of at most"),
        (STREAMS + "state_dir: ~nosuchuser/x", "a.yaml:2: state_dir: expected a path, got one"),
        (STREAMS + "model: {hop_s: " + "9" * 400 + "}", "expected a number of at most 18 digits"),
        (STREAMS + "model: {hop_s: " + "9" * 5000 + "}", "expected a number of at most 18 digits"),
    ],
)  # fmt: skip
def test_what_is_made_to_break_the_reader_is_refused_in_a_sentence(text: str, words: str) -> None:
    assert words in refused(text)


@pytest.mark.parametrize("value", ["1e300", "1e15", "604801"])
@pytest.mark.parametrize(
    "path",
    [
        *(f"detection.defaults.{key}_s" for key in ("confirm", "hold", "min_duration")),
        "detection.defaults.refractory_s",
        "detection.defaults.max_duration_s",
        "detection.classes.Bark.hold_s",
        *(f"model.{key}_s" for key in ("hop", "window", "min_context")),
        "alerts.actions.a.timeout_s",
        "alerts.actions.a.rate_limit.per_s",
        "alerts.heartbeat.interval_s",
    ],
)  # fmt: skip
def test_every_duration_has_an_upper_bound(path: str, value: str) -> None:
    text = value
    for key in reversed(path.split(".")):
        others = "type: webhook, url: 'http://x', " if key == "timeout_s" else ""
        others = "type: log, " if key == "rate_limit" else others
        text = f"{{{others}{key}: {text}}}"
    assert "expected at most" in refused(STREAMS + text[1:-1])


def test_thresholds_of_zero_are_refused() -> None:
    text = "detection: {defaults: {onset_threshold: 0}, classes: {Bark: {onset_threshold: 0.0}}}"
    assert refused(STREAMS + text).count("onset_threshold: expected more than 0, got 0") == 2


def test_many_problems_are_counted_and_not_all_listed() -> None:
    with pytest.raises(ConfigError, match="and 900 more problems") as caught:
        parse_settings(STREAMS + "".join(f"k{n}: 1\n" for n in range(5000)))
    assert len(caught.value.problems) <= 101


@pytest.mark.slow
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_any_mutation_of_a_shipped_file_gives_settings_or_a_config_error(path: Path) -> None:
    rng = random.Random(path.name)
    original = path.read_text()
    facts = model_facts(parse_settings(STREAMS).model)
    assert facts.labels is not None
    for number in range(N_MUTATIONS // len(SHIPPED)):
        text = mutated(original, rng)
        try:
            if path.name.startswith("alerts"):
                compile_rules([parse_document(text, path.name, "groups")], labels=facts.labels)
                continue
            loaded, _ = examine_text(text, path.name, path.parent)
            if loaded is not None:
                check_against_model(loaded, facts.labels, hop_s=0.5, window_s=facts.window_s)
            settings = parse_text(text, path.name, path.parent).settings
            decision_parameters(facts, settings.detection, settings.model.hop_s)
        except (ConfigError, UsageError):
            continue
        except Exception as error:
            raise AssertionError(f"mutation {number} of {path.name}: {text!r}") from error


def mutated(text: str, rng: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    for _ in range(rng.randint(1, 4)):
        row = rng.randrange(len(lines))
        line = lines[row]
        match rng.randrange(6):
            case 0:  # another value
                key, colon, _ = line.partition(":")
                lines[row] = f"{key}{colon} {rng.choice(PIECES)}\n"
            case 1:
                at = rng.randrange(len(line) + 1)
                lines[row] = line[:at] + rng.choice(PIECES) + line[at:]
            case 2:
                at = rng.randrange(len(line) + 1)
                lines[row] = line[:at] + line[at + rng.randint(1, 5) :]
            case 3:
                lines.insert(row, lines[rng.randrange(len(lines))])
            case 4:
                lines[row] = "  " * rng.randint(0, 40) + line
            case _:
                del lines[row]
                lines = lines or ["\n"]
    return "".join(lines)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    for path, words in ((pipe, "expected a file"), (Path("/dev/zero"), "expected a file")):
        with pytest.raises(ConfigError, match=words):
            load_settings(path)
    with pytest.raises(ConfigError, match="cannot be read: File name too long"):
        load_settings(tmp_path / ("x" * 300))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(tmp_path / "a\0b")


def test_a_large_file_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    with path.open("wb") as stream:
        stream.truncate(100_000_000)
    with pytest.raises(ConfigError, match="at most 1000000 bytes"):
        load_settings(path)


def test_a_file_that_is_being_written_is_read_whole_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(STREAMS)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            path.write_text(STREAMS + "#" * 200_000)
            time.sleep(0.001)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(5):
            with contextlib.suppress(ConfigError):
                assert load_settings(path).streams[0].name == "porch"
    finally:
        stop.set()
        writer.join()
