"""Decoders of what people write: YAML, rules and their tests, keys, label tables, annotations."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from fuzz.decoder import Broken, Decoder
from fuzz.mutation import Case
from rule_bodies import LABELS

from ast_stream.alerts.backtest import BacktestReport, backtest, read_messages
from ast_stream.alerts.rule_test_files import load_tests
from ast_stream.alerts.rules.compile import compile_rules, load_rules
from ast_stream.alerts.rules.lint import lint
from ast_stream.dataset.clips import read_data
from ast_stream.errors import ConfigError, StartupError
from ast_stream.settings.load import examine_file, load_file
from ast_stream.settings.yaml import parse_document
from ast_stream.transport.allow_list import AllowedClient, read_allow_list, write_allow_list
from ast_stream.transport.curve import make_key
from ast_stream.transport.keys import (
    KeyPair,
    decode_key,
    encode_z85,
    read_pair,
    read_public,
    write_pair,
)

_ROOT = Path(__file__).parents[2]
_CONFIGS = _ROOT / "configs"
_YAML_TOKENS = (
    b"streams", b"alert:", b"match: {class: Bark}", b"for: 5s", b"1h30m", b"0ms", b"- ", b"null",
    b"\"\"", b"!!binary", b"0o17", b"12:30", b"absent:", b"level:", b"count:", b"sequence:",
    b"group_by: [stream]", b"within: 1m", b"{{ stream.name | upper }}", b"{{ started }}",
)  # fmt: skip

_RULES = b"""\
version: 1
defaults:
  {timezone: Europe/Paris, severity: medium, cooldown: 1m, group_by: [stream], actions: [phone]}
ontology: ontology.json
classes: {warnings: [Alarm, Siren]}
windows:
  night: {from: "22:00", to: "06:00", timezone: Europe/Paris}
  holidays: {dates: ["2026-12-24..2027-01-02"], days: [mon-fri]}
groups:
  - name: home
    labels: {site: home}
    rules:
      - alert: long
        match: {class: Bark, stream: {id: hall}, score: {min: 0.9}, not: {class: Siren}}
        for: 30s
        tolerate: 5s
        when: [night]
        annotations: {summary: "Dog on {{ stream.name }} for {{ active_s | int }} s"}
      - {alert: rings, match: {group: warnings}, count: {min: 4, within: 1m}}
      - alert: both
        sequence: {within: 10s, steps: [{match: {class: Bark}}, {match: {any_of: [Alarm]}}]}
      - {alert: quiet, absent: {match: {under: "Animal > Dog"}, for: 1h}}
      - {alert: loud, level: {louder_than_dbfs: -12, for: 5s}, severity: low}
inhibit:
  - {source: {alert: both}, target: {severity: [low]}, equal: [stream]}
"""
_TESTS = b"""\
rules: rules.yaml
detector: {window: 2s, hop: 500ms}
tests:
  - name: a dog at night
    start: "2026-11-20T23:00:00+01:00"
    streams: {hall: {site: home}}
    events:
      - {stream: hall, class: Bark, at: 10s, dur: 40s, score: 0.95}
    scores:
      - {stream: hall, class: Alarm, values: "0x8 0.9x4 _x4"}
    health:
      - {stream: hall, at: 0s, dur: 60s, level_dbfs: -50}
    restart_at: [20s]
    expect:
      - {at: 40s, within: 10s, alert: long}
"""
_ONTOLOGY = json.dumps(
    [
        {"id": "/m/1", "name": "Animal", "child_ids": ["/m/2"]},
        {"id": "/m/2", "name": "Dog", "child_ids": ["/m/3"]},
        {"id": "/m/3", "name": "Bark"},
    ]
).encode()
_KEY = make_key()


def decoders(scratch: Path) -> Iterator[Decoder]:
    """Yield the decoders; `scratch` is a folder that they may use."""
    folder = scratch / "configuration"
    folder.mkdir()
    examples = [
        (path.read_bytes(),)
        for path in sorted([*_CONFIGS.glob("*.yaml"), *_CONFIGS.glob("examples/*.yaml")])
    ]
    settings = [case for case in examples if b"\nstreams:" in case[0]]
    yaml_seeds = [(_flow(case[0]),) for case in settings] + settings
    yield Decoder("YAML", [*examples, (_RULES,)], _yaml, 0.04, _YAML_TOKENS)
    yield Decoder("configuration", yaml_seeds, _Settings(folder).decode, 0.05, _YAML_TOKENS)
    yield Decoder("rule file", [(_RULES, _ONTOLOGY)], _Rules(folder).decode, 0.03, _YAML_TOKENS)
    yield Decoder("rule tests", [(_TESTS,)], _Tests(folder).decode, 0.03, _YAML_TOKENS)
    yield Decoder("messages to backtest", [_backtest_seed()], _backtest, 0.1)
    yield Decoder("key file", _key_files(folder), _Keys(folder).decode, 0.5)
    yield Decoder("key in Z85", [(_KEY.public.encode(),)], _z85)
    yield Decoder("allow-list", [_allow_list(folder)], _AllowList(folder).decode, 0.5)
    tables = _Tables(folder / "data")
    for name, kind in tables.kinds.items():
        yield Decoder(f"annotations: {name}", kind[0], kind[1], 0.2)


def _flow(text: bytes) -> bytes:
    """Return YAML as JSON, whose values are easy to change."""
    return json.dumps(parse_document(text.decode(), "example", "streams").data).encode()


def _text(case: Case) -> str:
    return (case[0] if case else b"").decode("utf-8", "replace")


def _yaml(case: Case) -> object:
    document = parse_document(_text(case), "file.yaml", "streams")
    written = json.dumps(document.data)
    if "NaN" in written or "Infinity" in written:  # as a number or a word: YAML has others
        return document.data
    again = parse_document(written, "again.yaml", "streams")
    if not document.problems and not again.problems and repr(again.data) != repr(document.data):
        raise Broken("a document does not come back as it was")
    for problem in document.problems:
        if not str(problem).isprintable():
            raise Broken("a problem cannot be shown", repr(str(problem)))
    return document.data


class _Settings:
    def __init__(self, folder: Path) -> None:
        self._path = folder / "config.yaml"

    def decode(self, case: Case) -> object:
        self._path.write_bytes(case[0] if case else b"")
        examined, problems = examine_file(self._path)
        if not problems and examined is None:
            raise Broken("no problem, and no settings either")
        loaded = load_file(self._path)
        loaded.settings.model_dump_json()
        return loaded


class _Rules:
    def __init__(self, folder: Path) -> None:
        self._path = folder / "rules.yaml"
        self._ontology = folder / "ontology.json"

    def decode(self, case: Case) -> object:
        self._path.write_bytes(case[0] if case else b"")
        self._ontology.write_bytes(case[1] if len(case) > 1 else _ONTOLOGY)
        try:
            rules = load_rules([self._path], labels=LABELS, actions={"phone"})
        except ConfigError:
            load_rules([self._path])  # names are taken as they are
            raise
        list(lint(rules))
        return rules


class _Tests:
    def __init__(self, folder: Path) -> None:
        self._path = folder / "tests.yaml"
        self._rules = folder / "rules.yaml"
        self._ontology = folder / "ontology.json"

    def decode(self, case: Case) -> object:
        self._rules.write_bytes(_RULES)
        self._ontology.write_bytes(_ONTOLOGY)
        self._path.write_bytes(case[0] if case else b"")
        return load_tests(self._path, labels=LABELS)


_WITHOUT_ONTOLOGY = (
    _RULES.decode()
    .replace("ontology: ontology.json\n", "")
    .replace('under: "Animal > Dog"', "class: Bark")
)
_BACKTEST_RULES = compile_rules(
    [parse_document(_WITHOUT_ONTOLOGY, "r.yaml", "groups")], labels=LABELS
)


def _backtest_seed() -> Case:
    from fuzz.wire import _log_lines

    lines = [case[0] for case in _log_lines()]
    return (b"".join(lines),)


def _backtest(case: Case) -> object:
    report = BacktestReport()
    messages = read_messages((case[0] if case else b"").splitlines(), report)
    found = list(backtest(_BACKTEST_RULES, messages, report))
    json.dumps([transition.alert.to_json() for transition in found])
    return report


# keys


def _key_files(folder: Path) -> list[Case]:
    public, secret = write_pair(folder / "keys", "box", _KEY)
    return [(public.read_bytes(),), (secret.read_bytes(),)]


class _Keys:
    def __init__(self, folder: Path) -> None:
        self._path = folder / "other.key_secret"

    def decode(self, case: Case) -> object:
        self._path.write_bytes(case[0] if case else b"")
        self._path.chmod(0o600)
        try:
            public = read_public(self._path)
        except StartupError:
            public = None
        try:
            pair = read_pair(self._path)
        except StartupError as error:
            if _KEY.secret in str(error):
                raise Broken("a secret key is shown") from error
            if public is None:
                raise
            return public
        if public is not None and (
            pair.public != public or encode_z85(decode_key(public)) != public
        ):
            raise Broken("two halves of one file differ")
        return pair


def _z85(case: Case) -> object:
    text = _text(case)
    try:
        key = decode_key(text)
    except ValueError as error:
        raise StartupError(str(error)) from error  # as its callers do
    if encode_z85(key) != text:
        raise Broken("a key does not come back as it was")
    return KeyPair(text, text)


def _allow_list(folder: Path) -> Case:
    path = folder / "seed.json"
    clients = [
        AllowedClient(
            "porch-box", _KEY.public, ("push:porch", "push:*", "feed"), 1_700_000_000 * 10**9
        ),
        AllowedClient("dashboard", make_key().public, ("feed", "scores", "audio", "admin"), 0),
    ]
    write_allow_list(path, clients)
    return (path.read_bytes(),)


class _AllowList:
    def __init__(self, folder: Path) -> None:
        self._path = folder / "allowed.json"
        self._again = folder / "again.json"

    def decode(self, case: Case) -> object:
        self._path.write_bytes(case[0] if case else b"")
        clients = read_allow_list(self._path)
        write_allow_list(self._again, clients)
        if read_allow_list(self._again) != clients:
            raise Broken("an allow-list does not come back as it was")
        return clients


# annotations


class _Tables:
    """Recordings that are there, and tables of what is heard in them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        for name in ("a", "b", "Yabc123", "long"):
            (folder / f"{name}.wav").write_bytes(_wav())
        classes = b'index,mid,display_name\n0,/m/1,"Bark"\n1,/m/2,"Siren, wail"\n'
        segments = (
            b"# Segments csv created Sun Mar  5 10:54:31 2017\n# YTID, start_seconds, end_seconds, "
            b'positive_labels\nabc123, 0.000, 0.500, "/m/1,/m/2"\n'
        )
        files = b"file,label,fold\na.wav,Bark;Growl,1\nb.wav,-,2\nlong.wav,Siren,1\n"
        sections = b"file;label;onset;offset\na.wav;Bark;0.1;0.4\na.wav;Growl;0,2;0,5\nb.wav;;;\n"
        tabs = sections.replace(b";", b"\t").replace(b"0,", b"0.").decode().encode("utf-16")
        track = b"0.1\t0.3\tBark\n\\\t100\t2000\n0.25\t0.5\tGrowl\n"
        self.kinds: dict[str, tuple[list[Case], Callable[[Case], object]]] = {
            "table": ([(files,), (sections,), (tabs,)], self._decode("table.csv")),
            "Audacity track": ([(track,), (track.replace(b".", b","),)], self._decode("a.txt")),
            "AudioSet list": (
                [(segments, classes)], self._decode("segments.csv", "class_labels_indices.csv")
            ),
        }  # fmt: skip

    def _decode(self, *names: str) -> Callable[[Case], object]:
        paths = [self._folder / name for name in names]

        def decode(case: Case) -> object:
            for path, content in zip(paths, [*case, b"", b""], strict=False):
                path.write_bytes(content)
            try:
                return read_data(paths[0])
            finally:
                for path in paths:
                    os.unlink(path)

        return decode


def _wav() -> bytes:
    from fuzz.recordings import wav

    return wav(0.6)
