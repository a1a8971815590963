"""`ast-stream outbox`, `ack` and `snooze`: operating alerts while the process runs, or not."""

from __future__ import annotations

import getpass
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from ast_stream.alerts import outbox_operations as operations
from ast_stream.alerts.administration import check_action, check_rule
from ast_stream.alerts.outbox_operations import OutboxRow
from ast_stream.alerts.rules.compile import alert_names, read_rule_document
from ast_stream.alerts.rules.field_types import parse_duration
from ast_stream.alerts.rules.schema import RULE_NAME
from ast_stream.alerts.steady_time import SteadyTime
from ast_stream.alerts.store import Store
from ast_stream.cli.options import config_option, json_option, with_option_groups
from ast_stream.cli.output import aligned, say
from ast_stream.errors import ConfigError, StartupError, UsageError
from ast_stream.labels import one_line
from ast_stream.messages.administration import (
    AcknowledgeRequest,
    Administered,
    AdministrationRequest,
    DropRequest,
    RetryRequest,
    SnoozeRequest,
    made,
)
from ast_stream.messages.alert import Severity
from ast_stream.runtime.state_format import check_state_dir
from ast_stream.settings.load import load_settings
from ast_stream.settings.paths import alerts_state_file
from ast_stream.transport.keys import ClientKeys
from ast_stream.transport.query import QueryClient
from ast_stream.transport.sockets import Sockets
from ast_stream.units import NS_PER_SECOND, format_time

ConfigOption = Annotated[Path, config_option()]
ANSWER_S = 10.0  # the alerts process answers within a second, and may just be starting


@dataclass
class OutboxTarget:
    """The target of alert operations: files of this box, or an alerts process's socket."""

    config: Annotated[
        Path | None, config_option("The configuration (YAML) of this box; or --endpoint.")
    ] = None
    endpoint: Annotated[
        str | None,
        typer.Option(metavar="ENDPOINT", help="Of an alerts process (transport.admin)."),
    ] = None
    client_key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Your secret key, where --endpoint is tcp with keys."),
    ] = None
    server_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The public key of that box.")
    ] = None

    @property
    def is_remote(self) -> bool:
        """Whether an alerts process is asked."""
        return self.endpoint is not None and self.config is None

    def files(self) -> Path:
        """Return the configuration.

        Raises:
            UsageError: there is not one of both.
        """
        if (self.config is None) == (self.endpoint is None):
            raise UsageError("expected --config or --endpoint, got both or neither")
        assert self.config is not None
        return self.config

    def ask(self, request: AdministrationRequest) -> Administered:
        """Return what the alerts process at the endpoint answers.

        Raises:
            UsageError: options that do not fit each other.
            WireError: it refuses.
            StartupError: it does not answer.
        """
        assert self.endpoint is not None
        sockets = Sockets(ClientKeys.of_options(self.client_key, self.server_key))
        try:
            frames = QueryClient(sockets, self.endpoint).ask(request, ANSWER_S)
        finally:
            sockets.close()
        if frames is None:
            raise StartupError(f"nobody answers at {self.endpoint} within {ANSWER_S:g} s")
        return Administered.decode(frames)


ActionOption = Annotated[str | None, typer.Option(help="Only deliveries by this action.")]
Numbers = Annotated[
    list[int] | None,
    typer.Argument(help="Numbers as `list` shows them.", show_default=False),
]
AllOption = Annotated[bool, typer.Option("--all", help="All of them.")]

app = typer.Typer(
    no_args_is_help=True, epilog="Example: ast-stream outbox list -c config.yaml --state dead"
)


@app.command("list")
def list_rows(
    config: ConfigOption,
    state: Annotated[
        list[str] | None,
        typer.Option(help="pending, done, dead, expired, dropped, superseded, snoozed; repeatable"),
    ] = None,
    action: ActionOption = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest.")] = 50,
    as_json: Annotated[bool, json_option("JSON lines.")] = False,
) -> None:
    """List deliveries, newest first.

    Example: ast-stream outbox list -c config.yaml --state pending --state dead
    """
    with _store(config) as store:
        check_action(store, action, load_settings(config).alerts.actions)
        rows = operations.rows(store, state or (), action, limit)
        time = store.steady_time()
        held = [] if as_json else operations.snoozes(store, time.now_ns())
    if as_json:
        for row in rows:
            print(json.dumps(_row_json(row, time)))
        return
    for line in _lines(rows, time):
        say(line)
    for rule, until_ns in held:
        print(f"{rule} is snoozed until {format_time(time.wall_ns(until_ns))}")


@app.command("retry")
@with_option_groups
def retry_rows(
    box: OutboxTarget,
    numbers: Numbers = None,
    action: ActionOption = None,
    is_all: AllOption = False,
) -> None:
    """Try deliveries again that were given up, and reopen the receivers that said "gone".

    Example: ast-stream outbox retry -c config.yaml --all --action phone
    """
    n_rows = _change(operations.retry, RetryRequest, box, numbers, action, is_all)
    print(f"{_deliveries(n_rows)} tried again")


@app.command("drop")
@with_option_groups
def drop_rows(
    box: OutboxTarget,
    numbers: Numbers = None,
    action: ActionOption = None,
    is_all: AllOption = False,
) -> None:
    """Never deliver what is still waiting.

    Example: ast-stream outbox drop -c config.yaml 17 18
    """
    n_rows = _change(operations.drop, DropRequest, box, numbers, action, is_all)
    print(f"{_deliveries(n_rows)} dropped")


def _change(
    operation: Callable[[Store, Sequence[int], int, str | None], int],
    request: type[RetryRequest] | type[DropRequest],
    box: OutboxTarget,
    numbers: list[int] | None,
    action: str | None,
    is_all: bool,
) -> int:
    """Return how many of the deliveries that were named, or of all, an operation has changed."""
    if bool(numbers) == is_all:
        raise UsageError("expected numbers of deliveries, or --all")
    if box.is_remote:
        return box.ask(made(request, numbers=numbers or [], action=action)).deliveries
    config = box.files()
    with _store(config) as store:
        check_action(store, action, load_settings(config).alerts.actions)
        return operation(store, numbers or (), store.steady_time().now_ns(), action)


@app.command("send")
def send(
    text: Annotated[str, typer.Argument(help="The message, in one line.")],
    config: ConfigOption,
    severity: Annotated[Severity, typer.Option(help="Of the alert.")] = "informational",
    rule: Annotated[
        str, typer.Option(metavar="NAME", help="The rule that the alert names.")
    ] = "message",
    about: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=VALUE",
            help="Subject: the same is sent once an hour at most; repeatable.",
        ),
    ] = None,
) -> None:
    """Send a message through every action: to try them out, or for other programs.

    It is written into the outbox; the alerts process delivers it.

    Example: ast-stream outbox send -c config.yaml "this is a test"
    """
    if not text.strip():
        raise UsageError("outbox send: expected a message, got an empty text")
    if not re.match(RULE_NAME, rule):
        raise UsageError(f"--rule: expected a name like dog_barking, got {rule!r}")
    labels = dict(fact.partition("=")[::2] for fact in about or ())
    if not all(labels) or not all(labels.values()):
        raise UsageError(f"--about: expected LABEL=VALUE, got {' '.join(about or ())!r}")
    alerts = load_settings(config).alerts
    actions = [name for name, action in alerts.actions.items() if "firing" in action.on]
    if not alerts.rules or not actions:
        raise UsageError(
            f"{config}: expected alerts.rules and an alerts.actions that is there for firing "
            "alerts, got none: nothing is delivered"
        )
    with _store(config) as store:
        is_new = operations.send(
            store, actions, rule=rule, severity=severity, about=labels, text=one_line(text),
            time=store.steady_time(),
        )  # fmt: skip
    print(f"to be sent by {', '.join(actions)}" if is_new else "was sent within this hour")


@with_option_groups
def ack(
    alert: Annotated[str, typer.Argument(help="Id of the alert, or the beginning of it.")],
    box: OutboxTarget,
) -> None:
    """Say that an alert has been seen: nothing more is sent of it until it is over.

    Example: ast-stream ack -c config.yaml ysl7yjzd
    """
    if not alert:
        raise UsageError("expected the id of one alert, or the beginning of it, got an empty text")
    if box.is_remote:
        n_rows = box.ask(made(AcknowledgeRequest, alert=alert)).deliveries
    else:
        with _store(box.files()) as store:
            now_ns = store.steady_time().now_ns()
            n_rows = operations.acknowledge(store, alert, now_ns, getpass.getuser())
    print(f"acknowledged; {_deliveries(n_rows)} dropped")


@with_option_groups
def snooze(
    rule: Annotated[str, typer.Argument(help="Name of the rule.")],
    box: OutboxTarget,
    duration: Annotated[
        str, typer.Option("--for", help="How long, e.g. 30m or 2h; 0s ends a snooze.")
    ] = "1h",
) -> None:
    """Send nothing of a rule for a while; what is still firing then is sent.

    Example: ast-stream snooze -c config.yaml dog_barking_long --for 2h
    """
    try:
        length_ns = parse_duration(duration)
    except ValueError as error:
        raise UsageError(f"--for: {error}") from error
    if box.is_remote:
        request = made(SnoozeRequest, rule=rule, for_s=length_ns / NS_PER_SECOND)
        answer = box.ask(request)
        n_rows, until_ns = answer.deliveries, answer.until_ns or 0
    else:
        config = box.files()
        with _store(config) as store:
            time = store.steady_time()
            now_ns = time.now_ns()
            check_rule(store, rule, _rules(config))
            n_rows = operations.snooze(store, rule, now_ns + length_ns, now_ns)
            until_ns = time.wall_ns(now_ns + length_ns)
    until, more = f"until {format_time(until_ns)}", ""
    if length_ns == 0:
        until, more = "no longer", " no more"
    print(f"{rule} is snoozed {until}; {_deliveries(n_rows)} held back{more}")


@contextmanager
def _store(config: Path) -> Iterator[Store]:
    settings = load_settings(config)
    state_file = alerts_state_file(settings)
    check_state_dir(state_file.parent, str(config))
    store = Store(state_file, must_exist=True)
    try:
        yield store
    finally:
        store.close()


def _rules(config: Path) -> set[str]:
    """Return the names of all rules in the files of a configuration, right or wrong ones."""
    found: set[str] = set()
    for name in load_settings(config).alerts.rules:
        with suppress(ConfigError):  # what is wrong with it is not the question here
            found |= alert_names(read_rule_document(config.parent / name))
    return found


def _deliveries(n_rows: int) -> str:
    return "1 delivery is" if n_rows == 1 else f"{n_rows} deliveries are"


def _row_json(row: OutboxRow, time: SteadyTime) -> dict[str, object]:
    times = ("created", "next", "expires")
    values = asdict(row)
    return values | {name: format_time(time.wall_ns(values.pop(f"{name}_ns"))) for name in times}


def _lines(rows: list[OutboxRow], time: SteadyTime) -> Iterator[str]:
    """Yield a line for each delivery, and below it why it was not delivered."""
    heading = ("no", "created (UTC)", "alert", "state", "what", "action", "rule")
    table = [heading]
    for row in rows:
        created = format_time(time.wall_ns(row.created_ns))[:19].replace("T", " ")
        words = (row.alert_id[:10], row.state, row.transition, row.action, row.rule)
        table.append((str(row.seq), created, *words))
    number_width = max(len(cells[0]) for cells in table)
    first, *lines = aligned(table)
    yield first
    for row, line in zip(rows, lines, strict=True):
        yield line
        if row.last_error:
            tries = "1 try" if row.attempts == 1 else f"{row.attempts} tries"
            yield f"{'':{number_width}}  {tries}: {one_line(row.last_error)}"
