"""Checks of `ast-stream doctor` for the page: its packages, its address, who may see it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from ast_stream.box_status import page_answers
from ast_stream.cli.doctor_checks import Check
from ast_stream.cli.web import MODULES
from ast_stream.errors import AstStreamError
from ast_stream.privacy.page_users import read_users
from ast_stream.settings.paths import web_users_file
from ast_stream.settings.schema import Settings

NAME = "page"


def check_page(settings: Settings) -> Iterator[Check]:
    """Yield whether the page can run, and who may do what on it; nothing where it is off."""
    web = settings.web
    if web.listen is None:
        return
    missing = [module for module in MODULES if find_spec(module) is None]
    if missing:
        text = f"{', '.join(missing)} not installed: pip install 'ast-stream[web]'"
        yield Check(NAME, "failed", text, {"missing": missing})
        return
    try:
        yield _check_address(settings)
        yield _check_rights(settings)
    except AstStreamError as error:
        yield Check(NAME, "failed", str(error).split("\n")[0])


def _check_address(settings: Settings) -> Check:
    from ast_stream.web.guard import read_proxy_token  # they need the extra
    from ast_stream.web.server import bind, open_tls

    web = settings.web
    facts = {"listen": web.listen}
    open_tls(web)
    read_proxy_token(web.behind_proxy)
    if page_answers(settings):
        return Check(NAME, "ok", f"answers at {web.origin}", facts)
    for socket in bind(web):
        socket.close()
    return Check(NAME, "ok", f"does not run, and could listen at {web.origin}", facts)


def _check_rights(settings: Settings) -> Check:
    web = settings.web
    if not web.needs_login:
        words = ", ".join(web.without_login)
        text = f"whoever can connect on this box may, without login: {words}"
        return Check(NAME, "ok", text, {"without_login": web.without_login})
    file = web_users_file(settings)
    users = read_users(file)
    facts = {"users": {user.name: user.scopes for user in users.values()}}
    if not users:
        text = f"nobody can log in: {file} names no users, see `ast-stream users add`"
        return Check(NAME, "warning", text, facts)
    shown = "; ".join(f"{user.name}: {', '.join(user.scopes)}" for user in users.values())
    return Check(NAME, "ok", f"users and their rights: {shown}", facts)
