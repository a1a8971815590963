"""`ast-stream users`: who may log in to the page, and what each may do."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import Annotated, get_args

import typer

from ast_stream.cli.options import config_option, json_option
from ast_stream.cli.output import aligned, json_line, say
from ast_stream.cli.web import expect_extra
from ast_stream.errors import UsageError
from ast_stream.labels import did_you_mean
from ast_stream.privacy.page_users import (
    NAME,
    NAME_RULE,
    User,
    changing_users,
    in_order,
    read_users,
)
from ast_stream.settings.load import load_settings
from ast_stream.settings.paths import web_users_file
from ast_stream.settings.web import SCOPES, Scope

ConfigOption = Annotated[Path, config_option()]
NameArgument = Annotated[str, typer.Argument(help="The user.")]
ScopeArguments = Annotated[
    list[str], typer.Argument(help="; ".join(f"{name}: {what}" for name, what in SCOPES.items()))
]

app = typer.Typer(
    no_args_is_help=True, epilog="Example: ast-stream users add anna view listen -c config.yaml"
)


@app.command("add")
def add(
    name: NameArgument,
    scopes: ScopeArguments,
    config: ConfigOption,
    proxy_only: Annotated[
        bool,
        typer.Option("--proxy-only", help="Without a password: the proxy logs the user in."),
    ] = False,
) -> None:
    """Add a user, with what it may do; the password is asked for, or read from standard input.

    A running page follows within a second.

    Example: ast-stream users add anna view listen -c config.yaml
    """
    if not NAME.match(name):
        raise UsageError(f"expected {NAME_RULE}, got {name!r}")
    allowed = _scopes(scopes)
    file = web_users_file(load_settings(config))
    if name in read_users(file):
        raise UsageError(f"there is a user {name} already: see `ast-stream users allow` and passwd")
    password_hash = None if proxy_only else _new_hash()
    with changing_users(file) as users:
        users[name] = User(name, password_hash, allowed)
    say(f"{name} may: {', '.join(allowed)}")


@app.command("allow")
def allow(name: NameArgument, scopes: ScopeArguments, config: ConfigOption) -> None:
    """Replace the scopes of a user; its logins continue, with these scopes.

    Example: ast-stream users allow anna view review listen -c config.yaml
    """
    allowed = _scopes(scopes)
    with changing_users(web_users_file(load_settings(config))) as users:
        user = _user(users, name)
        users[name] = User(name, user.password_hash, allowed)
    say(f"{name} may: {', '.join(allowed)} (was: {', '.join(user.scopes)})")


@app.command("passwd")
def passwd(name: NameArgument, config: ConfigOption) -> None:
    """Set the password of a user; all its logins end.

    Example: ast-stream users passwd anna -c config.yaml
    """
    file = web_users_file(load_settings(config))
    _user(read_users(file), name)
    password_hash = _new_hash()
    with changing_users(file) as users:
        users[name] = User(name, password_hash, _user(users, name).scopes)
    say(f"{name} has another password")


@app.command("remove")
def remove(name: NameArgument, config: ConfigOption) -> None:
    """Remove a user; all its logins end within a second.

    Example: ast-stream users remove anna -c config.yaml
    """
    with changing_users(web_users_file(load_settings(config))) as users:
        del users[_user(users, name).name]
    say(f"{name} may do nothing any more")


@app.command("list")
def list_users(
    config: ConfigOption, as_json: Annotated[bool, json_option("JSON lines.")] = False
) -> None:
    """List the users, and what each may do.

    Example: ast-stream users list -c config.yaml
    """
    users = read_users(web_users_file(load_settings(config))).values()
    if as_json:
        for user in users:
            entry = {"name": user.name, "scopes": user.scopes}
            print(json_line(entry | {"has_password": user.password_hash is not None}))
        return
    rows = [
        (user.name, "no" if user.password_hash is None else "yes", " ".join(user.scopes))
        for user in users
    ]
    for line in aligned([("name", "password", "may"), *rows]):
        say(line)


def _scopes(words: list[str]) -> tuple[Scope, ...]:
    known = get_args(Scope)
    for word in words:
        if word not in known:
            near = did_you_mean(word, known)
            raise UsageError(f"expected one of {', '.join(known)}, got {word!r}{near}")
    return in_order(words)


def _user(users: dict[str, User], name: str) -> User:
    if name not in users:
        raise UsageError(f"there is no user {name!r}{did_you_mean(name, users)}")
    return users[name]


def _new_hash() -> str:
    expect_extra()
    from ast_stream.web.passwords import expect_password, hash_password  # needs the extra

    if sys.stdin.isatty():
        password = getpass.getpass("Password: ")
        expect_password(password)
        if getpass.getpass("Again: ") != password:
            raise UsageError("the two passwords differ: nothing was changed")
    else:
        password = sys.stdin.readline().rstrip("\r\n")
        expect_password(password)
    return hash_password(password)
