from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Literal

import pytest
from argon2 import PasswordHasher
from page_process import PASSWORD, add_users

from ast_stream.privacy.page_users import Users
from ast_stream.web.login_limits import OF_ADDRESS, OF_NAME_AND_ADDRESS, LoginLimits
from ast_stream.web.login_page import local_path
from ast_stream.web.logins import MAX_WAITING, LoginError, Logins
from ast_stream.web.passwords import Passwords
from ast_stream.web.report import login_families
from ast_stream.web.sessions import Sessions


class CountingHasher(PasswordHasher):
    """Notes what each check has to work on: time, memory and lanes are in the hash itself."""

    def __init__(self) -> None:
        super().__init__(time_cost=1, memory_cost=64, parallelism=1)
        self.checked: list[str] = []

    def verify(self, hash: str | bytes, password: str | bytes) -> Literal[True]:
        self.checked.append(str(hash).rpartition("$")[0].rpartition("$")[0])
        return super().verify(hash, password)


def logins(folder: Path, hasher: PasswordHasher, limits: LoginLimits | None = None) -> Logins:
    add_users(folder / "users.json", {"anna": ["view"]})
    users = Users(folder / "users.json")
    return Logins(users, Sessions(60, 60), Passwords(hasher), limits)


def refusal(made: Logins, name: str, password: str, address: str = "10.0.0.1") -> tuple[int, str]:
    with pytest.raises(LoginError) as caught:
        asyncio.run(made.begin(name, password, address))
    return caught.value.status, str(caught.value)


def test_an_unknown_name_costs_the_same_work_and_gets_the_same_answer(tmp_path: Path) -> None:
    hasher = CountingHasher()
    made = logins(tmp_path, hasher)
    wrong = refusal(made, "anna", "not her password")
    unknown = refusal(made, "nobody", "not her password")
    assert wrong == unknown == (401, "name or password is not right")
    assert len(hasher.checked) == 2
    shown = {
        family.name: family.samples[0].value for family in login_families(made, Sessions(9, 9))
    }
    assert shown["ast_stream_web_failed_logins"] == 2
    assert shown["ast_stream_web_limited_logins"] == 0
    assert hasher.checked[0] == hasher.checked[1] == "$argon2id$v=19$m=64,t=1,p=1"


def test_refused_tries_are_not_hashed(tmp_path: Path) -> None:
    hasher = CountingHasher()
    made = logins(tmp_path, hasher, LoginLimits(lambda: 0.0))
    answers = [refusal(made, "anna", f"password {number}")[0] for number in range(100)]
    assert answers.count(401) == OF_NAME_AND_ADDRESS.burst == len(hasher.checked)
    answers = [refusal(made, f"user{number}", "a password")[0] for number in range(100)]
    assert answers.count(401) == OF_ADDRESS.burst - OF_NAME_AND_ADDRESS.burst
    assert set(answers) == {401, 429}


def test_too_long_names_and_passwords_are_not_hashed(tmp_path: Path) -> None:
    hasher = CountingHasher()
    made = logins(tmp_path, hasher)
    assert refusal(made, "a" * 65, PASSWORD)[0] == 401
    assert refusal(made, "anna", "ä" * 600)[0] == 401
    assert hasher.checked == []


def test_many_at_a_time_are_not_all_kept_waiting(tmp_path: Path) -> None:
    async def all_at_once() -> list[int]:
        made = logins(tmp_path, CountingHasher())

        async def status(number: int) -> int:
            try:
                await made.begin(f"user{number}", PASSWORD, f"10.0.0.{number}")
            except LoginError as error:
                return error.status
            return 200

        return await asyncio.gather(*map(status, range(50)))

    answers = asyncio.run(all_at_once())
    assert answers.count(401) == MAX_WAITING
    assert answers.count(503) == 50 - MAX_WAITING


def test_a_user_of_the_proxy_cannot_log_in(tmp_path: Path) -> None:
    made = logins(tmp_path, CountingHasher())
    file = tmp_path / "users.json"
    file.write_text(
        '{"version": 1, "users": [{"name": "eve", "password_hash": null, "scopes": ["view"]}]}'
    )
    made = Logins(Users(file), Sessions(60, 60), Passwords(CountingHasher()))
    assert refusal(made, "eve", "")[0] == 401
    assert refusal(made, "eve", "None")[0] == 401


@pytest.mark.parametrize(
    ("path", "led_to"),
    [
        ("/events?class=bark", "/events?class=bark"),
        (None, "/"),
        ("", "/"),
        ("https://evil.example/", "/"),
        ("//evil.example/", "/"),
        ("/\\evil.example/", "/"),
        ("/x\\y", "/"),
        ("\t//evil.example", "/"),
        ("/\n/evil.example", "/"),
        ("javascript:alert(1)", "/"),
    ],
)
def test_a_login_leads_to_no_page_of_others(path: str | None, led_to: str) -> None:
    assert local_path(path) == led_to
