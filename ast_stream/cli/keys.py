"""`ast-stream keys`: CURVE keys for tcp, and the rights of each."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ast_stream.cli.options import json_option
from ast_stream.cli.output import aligned, json_line, say
from ast_stream.errors import UsageError
from ast_stream.settings.transport import DEFAULT_ALLOW_LIST
from ast_stream.transport.allow_list import (
    WORDS,
    AllowedClient,
    changing_allow_list,
    read_allow_list,
)
from ast_stream.transport.curve import make_key
from ast_stream.transport.keys import (
    KEY_CHARACTERS,
    NAME,
    NAME_RULE,
    PUBLIC_SUFFIX,
    decode_key,
    holds_secret,
    read_public,
    write_pair,
)
from ast_stream.units import format_time

AllowListOption = Annotated[
    Path, typer.Option("--allow-list", metavar="FILE", help="The allow-list of the worker.")
]
ALLOW_LIST = Path(DEFAULT_ALLOW_LIST)
KEY_FOLDER = ALLOW_LIST.parent
_RIGHTS = "; ".join(f"{word}: {meaning}" for word, meaning in WORDS.items())

app = typer.Typer(no_args_is_help=True, epilog="Example: ast-stream keys create porch-box")


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Name of the key, e.g. worker or porch-box.")],
    folder: Annotated[
        Path, typer.Option("--dir", metavar="DIR", help="Where the files are written.")
    ] = KEY_FOLDER,
) -> None:
    """Make a key: NAME.key, which may be given to anyone, and NAME.key_secret, which may not.

    The secret is written with mode 0600 and never printed; the paths of both files are.

    Example: ast-stream keys create porch-box --dir keys
    """
    for path in write_pair(folder, name, make_key()):
        say(str(path))


@app.command("authorise")
def authorise(
    key: Annotated[str, typer.Argument(help="The public key: its file, or its 40 characters.")],
    rights: Annotated[list[str], typer.Argument(help=f"{_RIGHTS}.")],
    name: Annotated[
        str | None, typer.Option(help="Name on the list. (default: that of the file)")
    ] = None,
    allow_list: AllowListOption = ALLOW_LIST,
) -> None:
    """Let the owner of a key do what is named, and nothing else.

    The rights replace those that the key had. A running worker follows within two seconds.

    Example: ast-stream keys authorise porch-box.key push:porch feed
    """
    public = _public(key)
    name = Path(key).stem if name is None and public != key else name
    if name is None or not NAME.match(name):
        raise UsageError(f"--name: expected {NAME_RULE}, got {name or 'none'}")
    try:
        client = AllowedClient(name, public, tuple(dict.fromkeys(rights)), time.time_ns())
    except ValueError as error:
        raise UsageError(str(error)) from error
    with changing_allow_list(allow_list) as clients:
        if any(other.name == name and other.key != public for other in clients):
            raise UsageError(
                f"{name} is the name of another key: revoke that, or choose another --name"
            )
        before = _remove(clients, public)
        clients.append(client)
    say(f"{name} may: {', '.join(client.words)}{_change(before, client)}")


@app.command("revoke")
def revoke(
    key: Annotated[str, typer.Argument(help="The name as `list` shows it, the file, or the key.")],
    allow_list: AllowListOption = ALLOW_LIST,
) -> None:
    """Take all rights from a key; a running worker disconnects its owner within two seconds.

    Example: ast-stream keys revoke porch-box
    """
    clients = read_allow_list(allow_list)
    named = [client for client in clients if key in (client.name, client.key)]
    if not named and Path(key).is_file():
        public = _public(key)
        named = [client for client in clients if client.key == public]
    if not named:
        raise UsageError(f"{key}: expected a key in {allow_list}, got none that is")
    with changing_allow_list(allow_list) as clients:
        _remove(clients, named[0].key)
    say(f"{named[0].name} may do nothing any more")


@app.command("list")
def list_keys(
    allow_list: AllowListOption = ALLOW_LIST,
    as_json: Annotated[bool, json_option("JSON lines.")] = False,
) -> None:
    """List the keys that are authorised, and the rights of each.

    Example: ast-stream keys list --json
    """
    clients = read_allow_list(allow_list)
    if as_json:
        for client in clients:
            added = format_time(client.added_ns)
            entry = {"name": client.name, "key": client.key, "rights": client.words, "added": added}
            print(json_line(entry))
        return
    rows = [
        (client.name, client.key, format_time(client.added_ns)[:10], " ".join(client.words))
        for client in clients
    ]
    for line in aligned([("name", "key", "added", "rights"), *rows]):
        say(line)


def _public(key: str) -> str:
    """Return the public key that is meant: the text itself, or what is in the file."""
    if len(key) == KEY_CHARACTERS and not Path(key).exists():
        try:
            decode_key(key)
        except ValueError as error:
            raise UsageError(str(error)) from error
        return key
    path = Path(key)
    public = read_public(path)
    if holds_secret(path):
        raise UsageError(
            f"{path} holds a secret key, which stays on its own box: expected the public one, "
            f"{path.with_suffix(PUBLIC_SUFFIX).name}"
        )
    return public


def _remove(clients: list[AllowedClient], key: str) -> AllowedClient | None:
    """Remove the client that has a key from a list, and return it; None if there is none."""
    for client in clients:
        if client.key == key:
            clients.remove(client)
            return client
    return None


def _change(before: AllowedClient | None, client: AllowedClient) -> str:
    """Return what the entry of a client was before, where that differs."""
    if before is None or (before.name, before.words) == (client.name, client.words):
        return ""
    name = "" if before.name == client.name else f"{before.name}, "
    return f" (was: {name}{', '.join(before.words)})"
