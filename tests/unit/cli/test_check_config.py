from __future__ import annotations

import json
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_model import TINY_DIMS, TINY_LABELS, save_tiny

from ast_stream.cli.app import run_command_line
from ast_stream.cli.check_config import scrape_targets
from ast_stream.settings.load import load_settings
from ast_stream.settings.schema import Settings
from ast_stream.transport.allow_list import AllowedClient, write_allow_list
from ast_stream.transport.curve import make_key
from ast_stream.transport.keys import write_pair
from ast_stream.worker.capacity import describe_load, load_warnings

STREAMS = "streams: [{name: porch, source: {type: microphone, device: USB}, labels: {room: p}}]\n"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(
        tmp_path_factory.mktemp("tiny"), onset_thresholds={"Siren": 0.4}, background=["Background"]
    )


@pytest.fixture
def check(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    return Check(tmp_path / "a.yaml", checkpoint, capsys)


class Check:
    """Run check-config on a text and keep what it says."""

    def __init__(self, file: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.file, self.checkpoint, self._capsys = file, checkpoint, capsys
        self.out: list[str] = []
        self.err: list[str] = []

    def __call__(self, text: str, *options: str, speed: str = "--no-speed") -> int:
        self.file.write_text(text)
        code = run_command_line(["check-config", str(self.file), speed, *options])
        captured = self._capsys.readouterr()
        self.out, self.err = captured.out.splitlines(), captured.err.splitlines()
        return code


def test_good_configuration_is_described_in_seconds_and_hops(check: Check, tmp_path: Path) -> None:
    text = (
        f"{STREAMS}runtime_dir: {tmp_path}\nstate_dir: state\n"
        f"model: {{checkpoint: {check.checkpoint}, hop_s: 0.25, min_context_s: null}}\n"
        "detection:\n"
        "  defaults: {refractory_s: 1.0, max_duration_s: 60}\n"
        "  classes: {Bark: {onset_threshold: 0.7, confirm_s: 1.2, hold_s: 0.3}}\n"
    )
    assert check(text) == 0
    assert check.err == []
    assert check.out == [
        f"{check.file}: no problems",
        "stream       porch: microphone 'USB', ring 90 s, room=p",
        f"audio        ipc://{tmp_path}/audio.sock",
        f"feed         ipc://{tmp_path}/feed.sock",
        f"query        ipc://{tmp_path}/query.sock",
        f"state        {tmp_path}/state",
        f"checkpoint   {check.checkpoint}: 3 classes",
        "window       1 s every 0.25 s (4000 samples)",
        "",
        "class       onset            offset  confirm      hold             min  refractory    max",
        "Bark        0.70             0.55    3 of 5 hops  0.3 s (2 hops)   -    1 s (4 hops)  "
        "60 s (240 hops)",
        "Siren       0.40             0.25    2 of 3 hops  0.75 s (3 hops)  -    1 s (4 hops)  "
        "60 s (240 hops)",
        "Background  makes no events",
    ]


def test_only_some_of_many_classes_are_listed_and_those_that_are_off_are_counted(
    check: Check, tmp_path: Path
) -> None:
    dims = replace(TINY_DIMS, n_classes=41)
    large = save_tiny(tmp_path / "large", dims=dims, off=["class_003", "class_007", "class_008"])
    model = f"{STREAMS}model: {{checkpoint: {large}}}\n"
    assert check(model) == 0
    assert check.out[-1] == "41 classes without settings of their own, 3 of which make no events"
    detection = "detection: {classes: {class_001: {hold_s: 2}, class_007: {enabled: true}}}\n"
    assert check(model + detection) == 0
    assert [line.split()[0] for line in check.out[-4:-1]] == ["class", "class_001", "class_007"]
    assert (
        check.out[-1] == "and 39 classes without settings of their own, 2 of which make no events"
    )


def test_load_is_measured_and_what_the_machine_cannot_hold_is_a_warning(check: Check) -> None:
    model = f"model: {{checkpoint: {check.checkpoint}, hop_s: 0.01, min_context_s: null}}\n"
    streams = "".join(
        f"  - {{name: mic-{n}, ring_s: 15, source: {{type: microphone}}}}\n" for n in range(60)
    )
    assert check(f"streams:\n{streams}{model}", speed="--speed") == 0
    assert check.out[0].endswith("no problems, 61 to think about")
    load = next(line for line in check.out if line.startswith("load "))
    assert "6000 windows/s are due for 60 streams" in load
    warnings = [line for line in check.out if line.startswith("warning: ")]
    assert "model.hop_s: the model would be busy" in warnings[0]
    assert warnings[1].startswith("warning: streams.mic-0.ring_s: 15 s do not bridge the restart")
    assert warnings[1].endswith("16 s do")


@pytest.mark.parametrize(
    ("n_streams", "hop_s", "ms_per_window", "text"),
    [(1, 0.5, 8.0, "about 43 streams fit"), (16, 0.1, 8.0, "about 8 streams fit")],
)
def test_streams_that_fit_follow_from_hop_and_milliseconds(
    n_streams: int, hop_s: float, ms_per_window: float, text: str
) -> None:
    streams = [{"name": f"mic-{n}", "source": {"type": "microphone"}} for n in range(n_streams)]
    settings = Settings.model_validate({"streams": streams, "model": {"hop_s": hop_s}})
    assert text in describe_load(settings, ms_per_window)
    overloaded = n_streams / hop_s * ms_per_window > 700
    assert bool(list(load_warnings(settings, ms_per_window, 2.56))) == overloaded


def test_all_problems_are_listed_and_the_exit_code_is_78(check: Check) -> None:
    assert check(STREAMS + "model: {hop_s: 0.333}\nalrts: {}\n") == 78
    assert check.out == []
    assert check.err == [
        f"{check.file}:2: model.hop_s: expected a positive multiple of 0.01 s, got 0.333",
        f"{check.file}:3: alrts: unknown key 'alrts'; did you mean 'alerts'?",
    ]


def test_a_runtime_folder_too_long_for_sockets_is_listed_once(check: Check) -> None:
    assert check(f"runtime_dir: /tmp/{'d' * 120}\n{STREAMS}") == 78
    (problem,) = check.err
    assert problem.startswith(f"{check.file}:1: runtime_dir: expected a folder short enough")


def test_problems_with_the_checkpoint_are_listed_at_their_lines(check: Check) -> None:
    text = (
        f"{STREAMS}model: {{checkpoint: {check.checkpoint}, hop_s: 0.01, min_context_s: null}}\n"
        "detection:\n  defaults: {confirm_s: 0.75}\n"
        "  classes:\n    Brak: {}\n    Siren: {confirm_s: 2}\n"
    )
    assert check(text) == 78
    limit = "expected at most 64 hops of 0.01 s (0.64 s)"
    assert [line.removeprefix(f"{check.file}:") for line in check.err] == [
        f"4: detection.defaults.confirm_s: {limit}, got 0.75",
        "6: detection.classes.Brak: unknown class 'Brak'; did you mean 'Bark'? list all with: "
        f"ast-stream model info {check.checkpoint}",
        f"7: detection.classes.Siren.confirm_s: {limit}, got 2",
    ]


def test_the_small_model_of_a_cascade_is_checked_too(check: Check, tmp_path: Path) -> None:
    def with_cascade(small: Path) -> str:
        model = {"checkpoint": str(check.checkpoint), "cascade": {"checkpoint": str(small)}}
        return f"{STREAMS}model: {json.dumps(model)}\n"

    assert check(with_cascade(check.checkpoint), speed="--speed") == 0
    assert f"cascade      {check.checkpoint} hears all and knows 3 of 3 classes" in check.out
    assert any(line.startswith("load         not measured: with a cascade") for line in check.out)
    assert check(with_cascade(tmp_path / "nowhere")) == 78
    assert any("2: model.cascade.checkpoint: " in line for line in check.err)
    other = save_tiny(tmp_path / "other", dims=replace(TINY_DIMS, n_classes=4), window_s=0.4)
    assert check(with_cascade(other)) == 78
    assert any("got one with none of them" in line for line in check.err)
    assert any("expected windows of model.hop_s, 0.5 s, or more, got 0.4 s" in e for e in check.err)


def test_window_longer_than_trained_is_refused(check: Check) -> None:
    assert check(f"{STREAMS}model: {{checkpoint: {check.checkpoint}, window_s: 5.12}}\n") == 78
    assert check.err == [
        f"{check.file}:2: model.window_s: expected at most 1 s, as trained, got 5.12"
    ]


def test_window_much_shorter_than_trained_is_a_warning(check: Check) -> None:
    model = f"model: {{checkpoint: {check.checkpoint}, hop_s: 0.2, window_s: 0.4}}\n"
    assert check(STREAMS + model) == 0
    (warning,) = [line for line in check.out if line.startswith("warning: model.window_s")]
    assert "windows of 0.4 s, where the checkpoint was trained on 1 s" in warning
    assert check(STREAMS + model.replace("0.4", "0.8")) == 0
    assert not [line for line in check.out if line.startswith("warning: model.window_s")]


def test_checkpoint_that_is_not_there_is_a_problem_of_its_line(
    check: Check, tmp_path: Path
) -> None:
    assert check(f"{STREAMS}model:\n  checkpoint: {tmp_path}/nothing\n") == 78
    assert len(check.err) == 1
    assert check.err[0].startswith(f"{check.file}:3: model.checkpoint: {tmp_path}/nothing: ")


@pytest.mark.parametrize(
    ("model", "options", "text"),
    [
        ("MIT/ast-finetuned-audioset-10-10-0.4593", (), "not on this machine"),
        ("/nothing", ("--no-model",), "not read"),
    ],
)
def test_what_was_not_checked_is_said(
    model: str, options: tuple[str, ...], text: str, check: Check
) -> None:
    assert check(f"{STREAMS}model: {{checkpoint: {model}}}", *options) == 0
    assert f"{text}: class names and durations are unchecked" in check.out[-1]


def test_every_kind_of_source_is_described(check: Check) -> None:
    sources = [
        "{type: microphone}",
        "{type: file, path: a.wav, pace: fast, loop: true}",
        "{type: url, url: 'rtsp://user:secret@192.0.2.1/a'}",
        "{type: stdin, format: f32le, channels: 2}",
        "{type: scene, seed: 3}",
    ]
    (check.file.parent / "a.wav").write_bytes(b"")
    rows = [f"  - {{name: s{n}, source: {source}}}" for n, source in enumerate(sources)]
    assert check("streams:\n" + "\n".join(rows), "--no-model") == 0
    assert [line.split(": ", 1)[1] for line in check.out if line.startswith("stream ")] == [
        "microphone (default), ring 90 s",
        f"file {check.file.parent}/a.wav, fast, looped, ring 90 s",
        "url rtsp://***@192.0.2.1/a, ring 90 s",
        "standard input, f32le, 16000 Hz, 2 channel(s), ring 90 s",
        "generated scene 3, 40 s, realtime, ring 90 s",
    ]


def test_mistakes_in_rule_files_are_mistakes_of_the_configuration(
    check: Check, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.yaml"
    text = f"{STREAMS}model: {{checkpoint: {check.checkpoint}}}\nalerts: {{rules: [rules.yaml]}}\n"
    rule = "version: 1\ngroups: [{name: g, rules: [{alert: dog, match: {class: %s}}]}]\n"
    rules.write_text(rule % "Bark")
    assert check(text) == 0
    assert "rules        1 in rules.yaml" in check.out
    rules.write_text(rule % "Barck")
    assert check(text) == 78
    assert len(check.err) == 1
    assert check.err[0].startswith(f"{rules}:2:")
    assert "did you mean 'Bark'?" in check.err[0]
    assert check(text, "--no-model") == 0
    rules.unlink()
    assert check(text) == 78


def test_schema_describes_every_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert set(schema["properties"]) == set(Settings.model_fields)
    assert schema["anyOf"] == [{"required": ["streams"]}, {"required": ["pool"]}]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["model"]["default"]["hop_s"] == 0.5
    sources = schema["$defs"]["StreamSettings"]["properties"]["source"]["discriminator"]["mapping"]
    assert set(sources) == {"microphone", "file", "url", "stdin", "scene"}


def test_tiny_model_has_the_classes_the_tests_speak_of() -> None:
    assert TINY_LABELS == ["Bark", "Siren", "Background"]


def test_worker_of_a_pool_has_no_streams_and_is_measured(check: Check) -> None:
    text = (
        f"model: {{checkpoint: {check.checkpoint}, min_context_s: null}}\n"
        'pool: {name: city, nats: {servers: ["nats://127.0.0.1"]}, host: 127.0.0.1}\n'
        "transport: {audio: 'tcp://127.0.0.1:5555', rings: 'tcp://127.0.0.1:5559'}\n"
    )
    assert check(text, speed="--speed") == 0
    load = next(line for line in check.out if line.startswith("load "))
    assert "can be scored" in load
    assert "due" not in load


def test_alerts_and_clips_in_a_pool_are_told_whose_streams_they_hear(
    check: Check, tmp_path: Path
) -> None:
    rules = "version: 1\ngroups: [{name: g, rules: [{alert: dog, match: {class: Bark}}]}]\n"
    (tmp_path / "rules.yaml").write_text(rules)
    alerts = f"model: {{checkpoint: {check.checkpoint}}}\nalerts: {{rules: [rules.yaml]}}\n"
    nats = 'pool: {name: city, nats: {servers: ["nats://127.0.0.1"]}}\n'
    endpoints = "audio: 'tcp://127.0.0.1:5555', rings: 'tcp://127.0.0.1:5559'"
    listed = f"pool: {{name: city, members: [{{name: gpu-1, {endpoints}}}]}}\n"

    def warnings(text: str) -> str:
        assert check(text) == 0
        return "\n".join(line for line in check.out if line.startswith("warning: "))

    clips = "recorder: {clips: [{streams: [porch]}]}\n"  # of a box that is not known here
    assert "pool" not in warnings(alerts + nats + clips)  # the right place for them
    told = warnings(f"{alerts}{nats}{clips}transport: {{{endpoints}}}\n")
    assert "alerts.rules: they follow all workers of the pool" in told
    assert "recorder: it follows all workers of the pool" in told
    text = "pool.members: no feed of gpu-1: alerts and recorder cannot hear what it finds"
    assert text in warnings(alerts + listed + clips)
    heard = listed.replace("audio:", "feed: 'tcp://127.0.0.1:5556', audio:")
    assert "pool.members: no query of gpu-1: there are no clips" in warnings(alerts + heard + clips)


def test_targets_are_what_prometheus_scrapes_of_the_processes_there_are(check: Check) -> None:
    def targets(text: str) -> dict[str, list[str]]:
        assert check(text, "--targets") == 0
        found: dict[str, list[str]] = {}
        for problem in json.loads("\n".join(check.out)):
            found.setdefault(problem["labels"]["process"], []).extend(problem["targets"])
        return found

    two = "streams:\n  - {name: a, source: {type: stdin}}\n  - {name: b, source: {type: scene}}\n"
    text = f'{two}metrics: {{listen: "[::1]:9464"}}\n'
    assert targets(text) == {"worker": ["[::1]:9464"], "capture": ["[::1]:9466", "[::1]:9467"]}
    shared = text.replace("type: stdin", "type: file, path: a.wav")  # one process captures both
    assert targets(shared) == {"worker": ["[::1]:9464"], "capture": ["[::1]:9466"]}
    with_alerts = f"{text}alerts: {{rules: [a.yaml]}}\n"
    assert targets(with_alerts)["alerts"] == ["[::1]:9465"]
    with_page = f"{text}web: {{listen: '127.0.0.1:8080'}}\n"
    assert targets(with_page)["web"] == ["[::1]:9469"]
    host = socket.gethostname()
    assert targets(text.replace("[::1]", "0.0.0.0"))["worker"] == [f"{host}:9464"]
    assert check(two, "--targets") == 2
    assert "metrics.listen: expected host:port" in check.err[0]


def test_shipped_targets_are_those_of_the_shipped_service() -> None:
    configs = Path(__file__).parents[3] / "configs"
    shipped = json.loads((configs / "monitoring/ast-stream-targets.json").read_text())
    assert shipped == scrape_targets(load_settings(configs / "service.yaml"))


ALERTS = """
alerts:
  rules: [r.yaml]
  allow_exec: true
  actions:
    phone: {type: apprise, urls_env: NOT_SET_ANYWHERE}
    siem: {type: webhook, url: "http://10.0.0.1/hook", secret_file: hook.key}
    siren: {type: command, argv: [/usr/bin/no-such-siren]}
    home: {type: mqtt, host: b, username: u, password_file: /nonexistent/pw}
    spare: {type: log}
"""
RULE_FILE = """
version: 1
groups:
  - name: g
    rules:
      - {alert: bark, match: {class: Bark}}
      - {alert: siren, match: {class: Siren}, actions: [siren]}
"""


def test_actions_that_cannot_deliver_and_mistakes_in_rules_are_listed_in_one_pass(
    check: Check, tmp_path: Path
) -> None:
    (tmp_path / "r.yaml").write_text(RULE_FILE.replace("[siren]", "[sirene]"))
    model = f"model: {{checkpoint: {check.checkpoint}, hop_s: 5, window_s: 0.5}}"
    assert check(STREAMS + model + ALERTS) == 78
    file, at = check.file, "alerts.actions"
    assert [line for line in check.err if f"{at}." in line][:5] == [
        f"{file}:7: {at}.phone: expected the environment variable NOT_SET_ANYWHERE, got none",
        f"{file}:8: {at}.siem: cannot read {tmp_path}/hook.key: No such file or directory",
        f"{file}:8: {at}.siem: url: 10.0.0.1 is not public: expected 'allow_private: true' beside "
        "it, got none",
        f"{file}:9: {at}.siren: argv: there is no program /usr/bin/no-such-siren",
        f"{file}:10: {at}.home: cannot read /nonexistent/pw: No such file or directory",
    ]
    assert any("unknown action 'sirene'; did you mean 'siren'" in line for line in check.err)
    assert any("model.hop_s" in line for line in check.err)


@pytest.mark.parametrize(
    ("action", "missing"),
    [("{type: mqtt, host: b}", "paho"), ("{type: apprise, urls_env: P}", "ap")],
)
def test_extra_that_is_not_installed_is_a_mistake(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str, missing: str
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in ("paho", "apprise")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "paho", None)
    monkeypatch.setitem(sys.modules, "paho.mqtt.client", None)
    monkeypatch.setitem(sys.modules, "apprise", None)
    (tmp_path / "r.yaml").write_text(RULE_FILE)
    text = f"alerts: {{rules: [r.yaml], actions: {{siren: {action}}}}}"
    assert check(f"{STREAMS}{text}", "--no-model") == 78
    assert f"{missing}" in check.err[0]
    assert "is not installed: pip install 'ast-stream[notify]'" in check.err[0]


OPUS = (
    "streams: [{name: porch, source: {type: microphone}, wire: {codec: opus, bit_rate: 24000}}]\n"
)


def test_opus_is_described_and_named_where_it_saves_nothing(check: Check) -> None:
    assert check(f"{OPUS}transport: {{audio: 'tcp://127.0.0.1:5555'}}", "--no-model") == 0
    assert "sent as Opus, 24 kbit/s" in check.out[1]
    assert check.err == []
    assert check(OPUS, "--no-model") == 0
    assert any(
        line.startswith("warning: ") and "streams[0].wire.codec: opus on the way" in line
        for line in check.out
    )


def test_opus_without_its_library_is_a_mistake(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert check(f"{OPUS}transport: {{audio: 'tcp://127.0.0.1:5555'}}", "--no-model") == 78
    assert "streams[0].wire.codec: opus needs PyAV with libopus: pip install" in check.err[0]


@pytest.mark.parametrize("wire", ["{codec: mp3}", "{bit_rate: 4000}", "opus", "{rate: 1}"])
def test_wire_that_there_is_not_is_a_mistake(check: Check, wire: str) -> None:
    text = f"streams: [{{name: porch, source: {{type: microphone}}, wire: {wire}}}]\n"
    assert check(text, "--no-model") == 78
    assert "streams[0].wire" in check.err[0]


@pytest.mark.parametrize(
    ("host", "is_private"),
    [
        ("127.0.0.1", True), ("localhost", True), ("[::1]", True), ("[64:ff9b::7f00:1]", True),
        ("nas.local", True), ("93.184.216.34", False), ("example.test", False),
    ],
)  # fmt: skip
def test_webhook_that_is_surely_private_needs_leave(
    check: Check, tmp_path: Path, host: str, is_private: bool
) -> None:
    (tmp_path / "r.yaml").write_text(RULE_FILE)
    text = f'alerts: {{rules: [r.yaml], actions: {{siren: {{type: webhook, url: "http://{host}/x"}}}}}}'
    assert check(f"{STREAMS}{text}", "--no-model") == (78 if is_private else 0)


def test_all_layers_of_mistakes_are_reported_in_one_pass(check: Check, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RULE_FILE.replace("Siren", "Syren"))
    (tmp_path / "folder").mkdir()
    text = (
        "streams:\n"
        "  - {name: a, source: {type: file, path: nowhere.wav}}\n"
        "  - {name: b, source: {type: file, path: folder}}\n"
        "  - {name: c, source: {type: url, url: 192.0.2.1/live}}\n"
        "  - {name: D, source: {type: microphone}}\n"
        "  - {nam: e, source: {type: mic}}\n"
        f"model: {{checkpoint: {check.checkpoint}, hop_s: 0.123, window_s: 5}}\n"
        "detection:\n"
        "  defaults: {onset_threshold: 0}\n"
        "  classes: {Brak: {}, Siren: {holds: 1}}\n"
        "alerts:\n"
        "  rules: [r.yaml, gone.yaml]\n"
        "  actions:\n"
        "    siren: {type: webhook, url: 'http://example.test', ca_file: gone.pem}\n"
        "    wrong: {type: webhook}\n"
        "  heartbeat: {action: nobody}\n"
    )
    assert check(text) == 78
    errors = "\n".join(check.err)
    for line, words in [
        (2, f"streams[0].source.path: cannot read {tmp_path}/nowhere.wav: No such file"),
        (3, f"streams[1].source.path: expected a file, got the folder {tmp_path}/folder"),
        (4, "streams[2].source.url: expected a URL that begins with a scheme such as rtsp://"),
        (5, "streams[3].name: expected lower-case letters"),
        (6, "streams[4].nam: unknown key 'nam'; did you mean 'name'?"),
        (6, "streams[4].source.type: unknown type 'mic'"),
        (7, "model.hop_s: expected a positive multiple of 0.01 s, got 0.123"),
        (7, "model.window_s: expected at most 1 s, as trained, got 5"),
        (9, "detection.defaults.onset_threshold: expected more than 0, got 0"),
        (10, "detection.classes.Brak: unknown class 'Brak'; did you mean 'Bark'?"),
        (10, "detection.classes.Siren.holds: unknown key 'holds'; did you mean 'hold_s'?"),
        (14, "alerts.actions.siren"),
        (15, "alerts.actions.wrong.url: the key 'url' is missing"),
        (11, "alerts: heartbeat.action: expected the name of a webhook"),
    ]:
        assert f"{check.file}:{line}: {words}" in errors
    assert "gone.yaml: " in errors
    assert "'Syren'" in errors
    assert "Traceback" not in errors
    assert "nobody" in errors
    assert not any("stream-4" in line or "'wrong'" in line for line in check.err)


@pytest.mark.parametrize(
    "url",
    [
        "rtsp://admin:pa#Geheim42@127.0.0.1:5540/live",
        "rtsp://admin:pa/Geheim42@127.0.0.1:5540/live",
        "rtsp://admin:p[Geheim42@127.0.0.1:5540/live",
        "rtsp://admin:p Geheim42@127.0.0.1:5540/live",
        "rtsp://admin:Geheim42",
        "tgram://Geheim42:abc/",
        "admin:Geheim42@127.0.0.1",
    ],
)
def test_url_that_cannot_be_read_in_one_way_is_refused_and_not_shown(
    check: Check, url: str
) -> None:
    assert check(f'streams: [{{name: a, source: {{type: url, url: "{url}"}}}}]', "--no-model") == 78
    text = "\n".join(check.out + check.err)
    assert "Geheim" not in text
    assert f"{check.file}:1: streams[0].source.url: expected" in text
    if "@127" in url and "://" in url and " " not in url:
        assert "write # / [ as %23 %2F %5B" in text


@pytest.mark.parametrize(
    "text",
    [
        "streams: [{name: a, source: {type: url, url: 'srt://x', options: {pass: 4242424242}}}]",
        "alerts: {actions: {a: {type: mqtt, host: b, password: 4242424242}}}",
        "alerts: {actions: {a: {type: mqtt, host: b, username: 4242424242}}}",
        "alerts: {actions: {a: {type: mqtt, host: b, password_env: '4242424242!'}}}",
        "alerts: {actions: {a: {type: mqtt, host: b, password_env: *g4242424242}}}",
        "alerts: {actions: {a: {type: mqtt, host: b, password_env: !g4242424242 x}}}",
        "alerts: {actions: {a: {type: apprise, urls_env: 'tgram://4242424242:x/'}}}",
        "alerts: {actions: {a: {type: webhook, url: 'https://x/hook?key=4242424242 '}}}",
        "alerts: {actions: {a: {type: webhook, url: 'https://me:4242424242@x/'}}}",
        "'rtsp://me:4242424242@x/': 1",
        "state_dir: [*g4242424242",
        "state_dir: 'https://me:4242424242@x/'",
        "model: {checkpoint: 'https://me:4242424242@x/y'}",
        "alerts: {rules: ['https://me:4242424242@x/y.yaml']}",
        "streams: [{name: a, source: {type: file, path: 'rtsp://me:4242424242@x/y'}}]",
    ],
)
def test_mistakes_are_reported_without_the_secrets_around_them(check: Check, text: str) -> None:
    assert check((STREAMS if "streams" not in text else "") + text, "--no-model") == 78
    assert check.err
    assert "4242424242" not in "\n".join(check.out + check.err)


def test_rules_without_actions_and_actions_without_rules_are_warned_of(
    check: Check, tmp_path: Path
) -> None:
    (tmp_path / "r.yaml").write_text(RULE_FILE)
    text = "alerts: {rules: [r.yaml], actions: {siren: {type: log}, spare: {type: log}}}"
    assert check(STREAMS + text, "--no-model") == 0
    assert check.out[0].endswith("a.yaml: no problems, 2 to think about")
    silent, unused = check.out[-2:]
    assert silent.startswith(
        f"warning: {tmp_path}/r.yaml:6: 'bark' notifies nobody: expected 'actions'"
    )
    assert unused.endswith("no rule uses the action 'spare' of the configuration")


def test_folders_that_cannot_be_made_are_mistakes(check: Check, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folders = f"runtime_dir: {tmp_path}/file/run\nstate_dir: {tmp_path}/file\n"
    assert check(STREAMS + folders, "--no-model") == 78
    text = "\n".join(check.err)
    assert f"runtime_dir: expected a folder, but {tmp_path}/file is not one" in text
    assert f"state_dir: expected a folder, but {tmp_path}/file is not one" in text


def test_files_of_the_page_that_are_missing_are_mistakes(check: Check, tmp_path: Path) -> None:
    web = "web:\n  listen: 0.0.0.0:8443\n  certificate: chain.pem\n  private_key: key.pem\n"
    assert check(STREAMS + web, "--no-model") == 78
    text = "\n".join(check.err)
    assert f"a.yaml:4: web.certificate: {tmp_path}/chain.pem: No such file or directory" in text
    assert f"a.yaml:5: web.private_key: {tmp_path}/key.pem: No such file or directory" in text
    proxied = "web:\n  listen: 127.0.0.1:8080\n  behind_proxy: {token_file: secret}\n"
    assert check(STREAMS + proxied, "--no-model") == 78
    assert f"a.yaml:4: web.behind_proxy.token_file: {tmp_path}/secret: No such" in check.err[0]


def test_the_address_of_the_page_is_shown(check: Check, tmp_path: Path) -> None:
    (tmp_path / "a.pem").write_text("")
    assert check(f"{STREAMS}web: {{listen: '127.0.0.1:8080'}}", "--no-model") == 0
    assert "page         http://127.0.0.1:8080, without login" in check.out
    tls = "web: {listen: '0.0.0.0:8443', certificate: a.pem, private_key: a.pem}"
    assert check(f"{STREAMS}{tls}", "--no-model") == 0
    assert "page         https://0.0.0.0:8443, after a login" in check.out


@pytest.mark.parametrize(
    ("listen", "problem"),
    [
        ("127.0.0.1:9464", "taken by the metrics of worker"),
        ("0.0.0.0:9466", "taken by the metrics of capture"),
        ("'[::]:9468'", "taken by the metrics of web"),
        ("127.0.0.1:9465", ""),  # of alerts, which this box has not
        ("127.0.0.2:9464", ""),
    ],
)
def test_an_address_belongs_to_one_process(check: Check, listen: str, problem: str) -> None:
    rest = f"metrics: {{listen: '127.0.0.1:9464'}}\nweb: {{listen: {listen}}}\n"
    code = check(f"{STREAMS}{rest}", "--no-model")
    assert (code, "listen: expected an address of its own" in "".join(check.err)) == (
        (78, True) if problem else (0, False)
    )
    assert problem in "".join(check.err)


def test_an_endpoint_is_not_where_the_metrics_or_the_page_are(check: Check) -> None:
    rest = "metrics: {listen: '127.0.0.1:9464'}\nweb: {listen: '127.0.0.1:8080'}\n"
    both = "transport: {feed: 'tcp://127.0.0.1:9464', query: 'tcp://127.0.0.1:8080'}\n"
    assert check(f"{STREAMS}{rest}{both}", "--no-model") == 78
    text = "\n".join(check.err)
    assert "a.yaml:4: transport.feed: expected an endpoint of its own" in text
    assert "tcp://127.0.0.1:9464, taken by the metrics of worker" in text
    assert "tcp://127.0.0.1:8080, taken by the page" in text


def keyed(folder: Path, *lines: str) -> str:
    """Return a configuration over tcp with these lines in transport.curve, from line 7 on."""
    text = (
        f"{STREAMS}runtime_dir: {folder}\nstate_dir: {folder}/state\n"
        "transport:\n  audio: tcp://0.0.0.0:5555\n  curve:\n"
    )
    return text + "".join(f"    {line}\n" for line in lines)


def test_keys_that_cannot_be_used_are_named_with_their_lines(check: Check, tmp_path: Path) -> None:
    write_pair(tmp_path, "worker", make_key())
    write_pair(tmp_path, "open", make_key())[1].chmod(0o644)
    (tmp_path / "allowed.json").write_text("[]")
    wrong = ("server_secret: worker.key", "client_secret: absent.key_secret")
    text = keyed(tmp_path, *wrong, "server_key: a.yaml", "allow_list: allowed.json")
    assert check(text, "--no-model") == 78
    assert [line.removeprefix(f"{check.file}:") for line in check.err] == [
        f"7: transport.curve.server_secret: secret key: {tmp_path}/worker.key holds the public "
        "half only; expected its .key_secret file",
        f"8: transport.curve.client_secret: secret key: cannot read {tmp_path}/absent.key_secret: "
        "No such file or directory",
        f"9: transport.curve.server_key: public key: {check.file} holds none: expected a key of 40 "
        "characters in Z85, got something else",
        f"10: transport.curve.allow_list: allow-list: {tmp_path}/allowed.json cannot be used: "
        "expected an object of version 1, got something else",
    ]
    assert check(keyed(tmp_path, "server_secret: open.key_secret"), "--no-model") == 78
    assert f":7: transport.curve.server_secret: secret key {tmp_path}/open" in check.err[0]
    assert "expected mode 0600, got 0644" in check.err[0]


def test_keys_that_are_not_named_or_lack_their_public_half_are_problems(
    check: Check, tmp_path: Path
) -> None:
    write_pair(tmp_path, "worker", make_key())
    assert check(keyed(tmp_path, "server_key: worker.key"), "--no-model") == 78
    assert check.err == [
        f"{check.file}:6: transport.curve.client_secret: expected a secret key, got none"
    ]
    (tmp_path / "worker.key").unlink()
    own = ("server_secret: worker.key_secret", "client_secret: worker.key_secret")
    assert check(keyed(tmp_path, *own, "allow_list: none.json"), "--no-model") == 78
    assert check.err[0].startswith(
        f"{check.file}:6: transport.curve.server_key: public key: cannot read {tmp_path}/worker.key"
    )


def test_an_allow_list_that_lets_nobody_in_is_a_warning(check: Check, tmp_path: Path) -> None:
    write_pair(tmp_path, "worker", make_key())
    own = make_key()
    write_pair(tmp_path, "own", own)
    allowed = tmp_path / "allowed.json"
    lines = ("server_secret: worker.key_secret", "allow_list: allowed.json")
    text = keyed(tmp_path, *lines, "client_secret: own.key_secret")

    def warnings() -> list[str]:
        assert check(text, "--no-model") == 0
        return [line for line in check.out if line.startswith("warning: ")]

    prefix = f"warning: {check.file}:8: transport.curve.allow_list: "
    advice = "nobody can connect over tcp until `ast-stream keys authorise` adds a key"
    assert warnings() == [f"{prefix}there is no {allowed} yet: {advice}"]
    write_allow_list(allowed, [])
    assert warnings() == [f"{prefix}{allowed} allows nobody yet: {advice}"]
    write_allow_list(allowed, [AllowedClient("other", make_key().public, ("feed",), 0)])
    assert warnings() == [
        f"warning: {check.file}:9: transport.curve.client_secret: its key {own.public} is not in "
        f"{allowed}: the worker will refuse it"
    ]
    write_allow_list(allowed, [AllowedClient("own", own.public, ("feed",), 0)])
    assert warnings() == []
    text = keyed(tmp_path, *lines)
    assert warnings() == [
        f"warning: {check.file}:6: transport.curve.client_secret: none: capture, alerts, status "
        "and subscribe of this box cannot connect"
    ]


def test_keys_that_no_endpoint_needs_are_not_asked_for(check: Check, tmp_path: Path) -> None:
    text = keyed(tmp_path, "server_secret: absent.key_secret").replace("  audio: tcp", "  #")
    assert check(text, "--no-model") == 0
