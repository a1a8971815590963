from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ast_stream.errors import ConfigError
from ast_stream.settings.check import check_against_model, check_classes
from ast_stream.settings.load import (
    LoadedSettings,
    load_file,
    load_settings,
    parse_settings,
    parse_text,
)
from ast_stream.settings.schema import Settings
from ast_stream.settings.yaml import MAX_FILE_BYTES
from ast_stream.urls import check_endpoint

STREAMS = "streams: [{name: porch, source: {type: microphone}}]\n"
LABELS = ["Bark", "Baby cry, infant cry", "Siren"]


def problems_of(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_settings(text, "a.yaml")
    return str(caught.value).splitlines()


def model_problems(
    text: str, *, labels: list[str] = LABELS, hop_s: float = 0.5, window_s: float = 2.56
) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check_against_model(load(text), labels, hop_s=hop_s, window_s=window_s)
    return str(caught.value).splitlines()


def load(text: str) -> LoadedSettings:
    return parse_text(STREAMS + text, "a.yaml")


def test_a_file_with_streams_alone_gets_the_defaults() -> None:
    settings = parse_settings(STREAMS)
    assert settings.model.hop_s == 0.5
    assert settings.detection.defaults.confirm_s is None
    assert settings.streams[0].source.type == "microphone"


def test_settings_cannot_be_changed_after_loading() -> None:
    settings = parse_settings(STREAMS)
    with pytest.raises(ValueError, match="frozen"):
        settings.model.hop_s = 1.0


@pytest.mark.parametrize(
    ("yaml", "problem"),
    [
        # unknown and missing keys
        ("alrts: {}", "2: alrts: unknown key 'alrts'; did you mean 'alerts'?"),
        (
            "detection:\n  classes:\n    Bark: {onset_treshold: 0.5}",
            "4: detection.classes.Bark.onset_treshold: unknown key 'onset_treshold'; "
            "did you mean 'onset_threshold'?",
        ),
        (
            "metrics: {zzz: 1}",
            "2: metrics.zzz: unknown key 'zzz'; known here: listen",
        ),
        # words that plain YAML would turn into something else
        ("model:\n  hop_s: 12:30", "3: model.hop_s: expected a number, got '12:30'"),
        ("model: {hop_s: 010}", "2: model.hop_s: expected a number, got '010'"),
        ("model: {hop_s: yes}", "2: model.hop_s: expected a number, got 'yes'"),
        ("model: {hop_s: true}", "2: model.hop_s: expected a number, got true"),
        ("model: {max_streams: 4.5}", "2: model.max_streams: expected a whole number, got 4.5"),
        (
            "model: {max_streams: 4.0}",
            "2: model.max_streams: expected a whole number, got 4.0",
        ),
        (
            'model: {hop_s: "0.5"}',
            "2: model.hop_s: expected a number, got '0.5'; leave out the quotes",
        ),
        (
            "model: {hop_s: 500 ms}",
            "2: model.hop_s: expected a number, got '500 ms'; "
            "write the number alone, in the unit that the key names",
        ),
        (
            "durability: ٣ s",
            "2: durability: expected 'each event', or 1 s to 60 s between two syncs, got '٣ s'",
        ),
        (
            "metrics: {listen: '127.0.0.1:٩٤٦٤'}",
            "2: metrics.listen: expected host:port of the worker, e.g. 127.0.0.1:9464, "
            "got '127.0.0.1:٩٤٦٤'",
        ),
        ("model: {max_streams: 1_0}", "2: model.max_streams: expected a whole number, got '1_0'"),
        ("model: {max_streams: 0x10}", "2: model.max_streams: expected a whole number, got '0x10'"),
        (
            "state_dir: 2026-11-20\nruntime_dir: 5",
            "3: runtime_dir: expected text, got 5; put it in quotes",
        ),
        ("model:", "2: model: expected keys and values, got null"),
        # ranges
        ("model: {window_s: .nan}", "2: model.window_s: expected a finite number, got nan"),
        ("model: {window_s: -.inf}", "2: model.window_s: expected a finite number, got -inf"),
        ("model: {window_s: 0}", "2: model.window_s: expected more than 0, got 0"),
        ("model: {max_streams: 0}", "2: model.max_streams: expected at least 1, got 0"),
        ("detection: {gate_dbfs: 3}", "2: detection.gate_dbfs: expected at most 0, got 3"),
        (
            "model: {hop_s: 0.333}",
            "2: model.hop_s: expected a positive multiple of 0.01 s, got 0.333",
        ),
        # words from a list
        (
            "model: {precision: fp61}",
            "2: model.precision: expected auto, fp32, fp16, bf16, int8 or fp8, got 'fp61'; "
            "did you mean 'fp16'?",
        ),
        (
            "model: {device: gpu}",
            "2: model.device: expected auto, cpu, cuda or cuda:<number>, got 'gpu'",
        ),
        (
            "metrics: {listen: 9464}",
            "2: metrics.listen: expected host:port, e.g. 127.0.0.1:9464 for this machine alone, "
            "got 9464",
        ),
        (
            "metrics: {listen: localhost}",
            "2: metrics.listen: expected host:port of the worker, e.g. 127.0.0.1:9464, "
            "got 'localhost'",
        ),
        ("version: 2", "2: version: expected 1, the only version there is, got 2"),
        ("version: true", "2: version: expected 1, the only version there is, got True"),
        ("transport: {curve: 1}", "2: transport.curve: expected keys and values, got 1"),
        (
            "transport: {curve: {client_secret: a.key_secret}}",
            "2: transport.curve: expected server_key, or server_secret on the box of the worker, "
            "got neither",
        ),
        (
            "transport: {feed: 'tcp://*:5', curve: {server_secret: a}}",
            "2: transport.feed: expected an endpoint such as",
        ),
        (
            "transport: {feed: 'tcp://0.0.0.0:5000'}",
            "2: transport.feed: tcp beyond loopback needs transport.curve, "
            "got 'tcp://0.0.0.0:5000'",
        ),
        (
            "transport: {feed: 'ipc:///run/x/feed.sock', admin: 'ipc:///run/x/feed.sock'}",
            "2: transport.admin: expected an endpoint of its own, got ipc:///run/x/feed.sock, "
            "which is transport.feed",
        ),
        (
            "privacy: sensor\ntransport: {audio: 'tcp://127.0.0.1:5555'}",
            "3: transport.audio: expected ipc with privacy: sensor, got tcp://127.0.0.1:5555",
        ),
        (
            "privacy: sensor\nalerts: {allow_exec: true, actions: "
            "{lamp: {type: command, argv: [/bin/lamp]}}}",
            "3: alerts.actions.lamp: expected an action that runs no program",
        ),
        (
            "privacy: speech\nmodel: {cascade: {checkpoint: small}}",
            "3: model.cascade: expected null with privacy: speech: of windows that the checkpoint "
            "is not asked about, nobody knows whether they hold speech",
        ),
        ("model: {cascade: small}", "2: model.cascade: expected keys and values, got 'small'"),
        ("model: {cascade: {}}", "2: model.cascade.checkpoint: the key 'checkpoint' is missing"),
        ("privacy: on", "2: privacy: expected"),
        ("alerts: {rules: a.yaml}", "2: alerts.rules: expected a list, got 'a.yaml'"),
        # YAML itself
        ("model: {}\nmodel: {}", "3: model: given twice, first on line 2"),
        ("model: !!python/object:os.system {}", "YAML tags are not used here, got !!python"),
        ("model: !secret x", "2: model: YAML tags are not used here, got !secret"),
        ("model: {<<: {hop_s: 1}}", "2: model: merge keys ('<<') are not used here"),
        ("5: x", "2: expected text as a key, got 5; put it in quotes"),
        ("true: x", "2: expected text as a key, got true; put it in quotes"),
        ("[1, 2]: x", "2: expected text as a key, got more than one word"),
        ("alerts: {actions: &a {b: *a}}", "an alias may not contain itself"),
    ],
)
def test_mistake_is_reported_with_its_line_and_path(yaml: str, problem: str) -> None:
    found = problems_of(STREAMS + yaml)
    assert len(found) == 1
    assert problem in found[0]
    assert found[0].startswith("a.yaml:")


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (
            "{type: mic}",
            "streams[0].source.type: unknown type 'mic'; expected microphone, file, url, stdin or "
            "scene",
        ),
        ("{type: fil}", "or scene; did you mean 'file'?"),
        (
            "{device: x}",
            "streams[0].source: the key 'type' is missing; expected microphone, file, url, stdin "
            "or scene",
        ),
        ("microphone", "streams[0].source: expected keys and values, got 'microphone'"),
        ("{type: file}", "streams[0].source.path: the key 'path' is missing"),
        (
            "{type: file, path: a.wav, file: b.wav}",
            "streams[0].source.file: unknown key 'file'; known here: type, path, pace, loop, "
            "channel, block_s",
        ),
        (
            "{type: microphone, device: [a]}",
            "streams[0].source.device: expected text or a whole number, got a list",
        ),
        (
            "{type: microphone, device: true}",
            "streams[0].source.device: expected text or a whole number, got true",
        ),
        (
            "{type: url, url: 'rtsp://x', options: {a: 5}}",
            "streams[0].source.options.a: expected text, got 5; put it in quotes",
        ),
        ("{type: stdin, format: s24be}", "or wav, got 's24be'; did you mean 's24le'?"),
    ],
)
def test_mistake_in_a_source_is_reported_without_internal_names(source: str, problem: str) -> None:
    found = problems_of(f"streams:\n  - name: porch\n    source: {source}\n")
    assert len(found) == 1
    assert found[0].startswith("a.yaml:3: ")
    assert found[0].endswith(problem)


@pytest.mark.parametrize(
    ("yaml", "problem"),
    [
        ("", "a.yaml: expected settings, got an empty file; 'streams' is needed"),
        ("# nothing yet\n", "a.yaml: expected settings, got an empty file; 'streams' is needed"),
        ("- a\n- b\n", "a.yaml:1: expected keys such as 'streams:' at the top level"),
        ("version: 1\n", "a.yaml: streams: the key 'streams' is missing"),
        ("streams: []\n", "a.yaml:1: streams: expected at least 1, got 0"),
        ("a: b\n---\nc: d\n", "a.yaml:3: expected one YAML document, got a second one"),
        ("version: 1\nstreams: [1\n", "a.yaml:3: this is not valid YAML: "),
        ("version: 1\n\tstreams: []\n", "a.yaml:2: this is not valid YAML: "),
        ("version: 1\nx: \x07\n", "a.yaml:2: expected text, got the character U+0007"),
        ("[" * 5000, "a.yaml:1: expected at most 32 levels of nesting, got more"),
        (
            "streams: [{name: A, source: {type: stdin}}]",
            "a.yaml:1: streams[0].name: expected lower-case letters, digits and '-', at most 63, "
            "not starting with '-', got 'A'",
        ),
        (
            "streams: [{name: a, source: {type: stdin}}, {name: a, source: {type: microphone}}]",
            "a.yaml:1: streams: expected different names, got more than once: a",
        ),
        (
            "streams: [{name: a, source: {type: stdin}}, {name: b, source: {type: stdin}}]",
            "a.yaml:1: streams: expected at most one stdin source, got several",
        ),
        (
            STREAMS.replace("]", ", {name: b, source: {type: stdin}}]") + "model: {max_streams: 1}",
            "a.yaml: expected at most model.max_streams=1 streams, got 2",
        ),
    ],
)
def test_unusable_text_is_explained(yaml: str, problem: str) -> None:
    found = problems_of(yaml)
    assert len(found) == 1
    assert found[0].startswith(problem)


def test_all_problems_are_reported_at_once_in_the_order_of_the_file() -> None:
    found = problems_of(
        "version: 3\n"
        "streams:\n"
        "  - nmae: porch\n"
        "    source: {type: scene, duration_s: 1, pace: slow}\n"
        "model: {hop_s: [1]}\n"
        "model: {}\n"
        "x: !y z\n"
    )
    lines = [int(problem.split(":")[1]) for problem in found]
    assert lines == [1, 3, 3, 4, 4, 5, 6, 7]
    assert "did you mean 'name'?" in "\n".join(found)


STREAM = "streams: [{name: porch, source: {type: microphone}}]\n"


@pytest.mark.parametrize(
    ("yaml", "path"),
    [
        (STREAM + "pool: {name: p, members: [{name: a, audio: 'tcp://h:1'}]}", "members[0].rings"),
        ("pool: {name: P!, nats: {servers: ['nats://h']}}", "pool.name"),
        (
            STREAM + "transport: {audio: 'tcp://0.0.0.0:1', curve: {server_secret: 5}}",
            "server_secret",
        ),
        (STREAM + "transport: {audio: 'tcp://0.0.0.0:1', curve: 3}", "transport.curve"),
        (
            STREAM + "transport: {audio: 7, rings: 'tcp://0.0.0.0:2', curve: {server_secret: a}}",
            "transport.audio",
        ),
        (
            STREAM + "web: {listen: '0.0.0.0:8080', certificate: 5, private_key: k}",
            "web.certificate",
        ),
        (
            STREAM + "forward: [{name: a, type: nats}]\nfleet: {models: {follow: true}}",
            "forward[0].servers",
        ),
        (
            STREAM + "alerts: {allow_exec: yes, actions: {a: {type: command, argv: [/bin/true]}}}",
            "alerts.allow_exec",
        ),
        (
            STREAM + "alerts: {actions: {A!: {type: log}}, heartbeat: {action: a, interval_s: 60}}",
            "alerts.actions",
        ),
        (
            "streams: 5\nworkers: {w: {streams: [porch]}}\n"
            "recorder: {clips: [{classes: all, when: event, streams: [porch]}]}",
            "streams",
        ),
    ],
)
def test_what_is_wrong_in_the_file_is_not_called_missing_as_well(yaml: str, path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_settings(yaml)
    (problem,) = caught.value.problems
    assert problem.path.endswith(path)


def test_problems_keep_their_facts_for_programs() -> None:
    with pytest.raises(ConfigError, match="hop_s: expected a number, got 'x'") as caught:
        parse_settings(STREAMS + "model: {hop_s: x}", "a.yaml")
    problem = caught.value.problems[0]
    assert (problem.file, problem.line, problem.path) == ("a.yaml", 2, "model.hop_s")


def test_numbers_read_as_they_look() -> None:
    settings = parse_settings(STREAMS + "model: {hop_s: 1e0, window_s: 2}\nstate_dir: '010'")
    assert (settings.model.hop_s, settings.model.window_s) == (1.0, 2.0)
    assert settings.state_dir == "010"
    assert parse_settings(STREAMS + "detection: {gate_dbfs: -4.55e1}").detection.gate_dbfs == -45.5


@pytest.mark.parametrize("word", ["yes", "on", "No", "True", "010", "12:30", "1_000", "0o7", "~a"])
def test_plain_words_stay_text(word: str) -> None:
    text = f"streams: [{{name: a, source: {{type: stdin}}, labels: {{k: {word}}}}}]"
    assert parse_settings(text).streams[0].labels == {"k": word}


def test_aliases_may_repeat_a_section() -> None:
    text = (
        "streams:\n"
        "  - {name: a, source: &camera {type: url, url: 'rtsp://192.0.2.1/'}}\n"
        "  - {name: b, source: *camera}\n"
    )
    first, second = parse_settings(text).streams
    assert first.source == second.source


def test_aliases_cannot_multiply_without_end() -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    assert "expected at most 200000 values, got more" in problems_of("\n".join(rows))[-1]


@given(st.text(max_size=200))
def test_any_text_gives_settings_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(parse_settings(text), Settings)


@given(st.text(alphabet="{}[]:-,&*!|>'\"#%@`? \n\tab1.<", max_size=60))
def test_any_punctuation_gives_settings_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(parse_settings(STREAMS + text), Settings)


def test_lines_of_keys_and_items_are_kept() -> None:
    loaded = parse_text("version: 1\nstreams:\n  - name: a\n    source:\n      type: stdin\n")
    assert loaded.lines[("streams", 0)] == 3
    assert loaded.lines[("streams", 0, "source", "type")] == 5
    assert loaded.problem(("streams", 0, "source", "rate"), "x").line == 4


def test_file_is_read_and_named(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(STREAMS)
    assert load_settings(path) == parse_settings(STREAMS)
    assert load_file(path).file == str(path)


def test_file_that_cannot_be_read_is_explained(tmp_path: Path) -> None:
    def problem(path: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            load_settings(path)
        return str(caught.value).removeprefix(str(path))

    missing, folder = tmp_path / "missing.yaml", tmp_path / "folder"
    folder.mkdir()
    latin, huge = tmp_path / "latin.yaml", tmp_path / "huge.yaml"
    latin.write_bytes(b"version: 1\n# caf\xe9\n")
    huge.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    assert problem(missing) == ": no such configuration file"
    assert problem(folder) == ": the configuration file cannot be read: Is a directory"
    assert problem(latin) == ":2: expected UTF-8 text, got byte 0xe9"
    assert problem(huge) == ": expected a configuration file of at most 1000000 bytes, got more"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(STREAMS)
    path.chmod(0)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        load_settings(path)


@pytest.mark.parametrize(
    "endpoint",
    ["ipc:///run/a.sock", "tcp://127.0.0.1:5000", "tcp://localhost:1", "tcp://[::1]:65535"],
)
def test_good_endpoints(endpoint: str) -> None:
    assert check_endpoint(endpoint) == endpoint


@pytest.mark.parametrize(
    "endpoint",
    [
        "ipc://a.sock",
        "ipc:///" + "x" * 107,
        "tcp://10.0.0.1:5",
        "tcp://*:5",
        "tcp://127.0.0.1:0",
        "tcp://127.0.0.1:70000",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:5\n",
        "inproc://a",
        "",
    ],
)
def test_bad_endpoints(endpoint: str) -> None:
    with pytest.raises(ValueError, match=r"got .|needs transport\.curve"):
        check_endpoint(endpoint)


def test_classes_may_be_named_by_label_or_slug() -> None:
    loaded = load("detection: {classes: {Bark: {}, baby_cry_infant_cry: {hold_s: 1}}}")
    assert check_classes(loaded, LABELS) == []


def test_class_that_the_model_does_not_have_is_reported_with_the_near_one() -> None:
    text = "detection:\n  classes:\n    Brak: {}\n    Syren: {enabled: false}\n"
    command = "list all with: ast-stream model info bundled"
    mean = "did you mean"
    assert model_problems(text + "    Xylograph: {}\n") == [
        f"a.yaml:4: detection.classes.Brak: unknown class 'Brak'; {mean} 'Bark'? {command}",
        f"a.yaml:5: detection.classes.Syren: unknown class 'Syren'; {mean} 'Siren'? {command}",
        f"a.yaml:6: detection.classes.Xylograph: unknown class 'Xylograph'; {command}",
    ]


def test_class_named_twice_is_reported() -> None:
    text = "detection: {classes: {Bark: {}, bark: {}}}"
    assert model_problems(text) == [
        "a.yaml:2: detection.classes.bark: names the same class as 'Bark'"
    ]


def test_confirmation_that_no_sound_can_reach_is_reported_in_hops() -> None:
    text = "detection: {defaults: {confirm_s: 0.6}, classes: {Bark: {confirm_s: 0.65}}}"
    assert model_problems(text, hop_s=0.01) == [
        "a.yaml:2: detection.classes.Bark.confirm_s: expected at most 64 hops of 0.01 s (0.64 s), "
        "got 0.65"
    ]
    check_against_model(load(text), LABELS, hop_s=0.02, window_s=2.56)


def test_unreachable_default_is_reported_once_and_not_for_each_class_that_inherits_it() -> None:
    text = (
        "detection: {defaults: {confirm_s: 0.75}, "
        "classes: {Bark: {hold_s: 1}, Siren: {min_duration_s: 1}}}"
    )
    assert model_problems(text, hop_s=0.01) == [
        "a.yaml:2: detection.defaults.confirm_s: expected at most 64 hops of 0.01 s (0.64 s), "
        "got 0.75"
    ]


def test_minimum_above_the_maximum_is_reported_where_it_was_written() -> None:
    text = "detection:\n  defaults:\n    min_duration_s: 5\n  classes: {Bark: {max_duration_s: 4}}"
    assert model_problems(text) == [
        "a.yaml:5: detection.classes.Bark.max_duration_s: expected min_duration_s to be at most "
        "max_duration_s, got 5 and 4: no sound could ever make an event"
    ]


def test_unreachable_values_of_a_disabled_class_do_no_harm() -> None:
    text = "detection: {classes: {Bark: {enabled: false, confirm_s: 1000}}}"
    check_against_model(load(text), LABELS, hop_s=0.5, window_s=2.56)


def test_hop_longer_than_the_window_is_reported() -> None:
    assert model_problems("model: {hop_s: 3}", hop_s=3.0) == [
        "a.yaml:2: model.hop_s: expected at most the window of 2.56 s, got 3: audio between the "
        "windows would not be scored"
    ]


def test_context_longer_than_the_window_is_reported_only_if_somebody_wrote_it() -> None:
    check_against_model(load("model: {}"), LABELS, hop_s=0.5, window_s=0.96)
    assert model_problems("model: {min_context_s: 2}", window_s=0.96) == [
        "a.yaml:2: model.min_context_s: expected at most the window of 0.96 s, got 2"
    ]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("each event", "each event"),
        ("each_event", "each event"),
        ("1 s", 1.0),
        ("2.5s", 2.5),
        ("60", 60.0),
    ],
)
def test_durability_is_each_event_or_seconds(written: str, read: object) -> None:
    assert parse_settings(STREAMS + f"durability: {written}").durability == read


@pytest.mark.parametrize("written", ["0.5 s", "61", "true", "never", "1 h", "null"])
def test_other_durability_is_refused_in_one_sentence(written: str) -> None:
    with pytest.raises(ConfigError, match="expected 'each event', or 1 s to 60 s between two sync"):
        parse_settings(STREAMS + f"durability: {written}")
