from __future__ import annotations

import pytest

from ast_stream.web.login_limits import (
    MAX_BUCKETS,
    OF_ADDRESS,
    OF_ALL,
    OF_NAME,
    OF_NAME_AND_ADDRESS,
    LoginLimits,
    in_words,
)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def n_allowed(limits: LoginLimits, tries: list[tuple[str, str]]) -> int:
    return sum(limits.try_again_s(name, address) == 0 for name, address in tries)


def test_ten_thousand_passwords_for_one_name_are_a_handful() -> None:
    limits = LoginLimits(Clock())
    assert n_allowed(limits, [("anna", "10.0.0.1")] * 10_000) == OF_NAME_AND_ADDRESS.burst
    assert limits.refused == 10_000 - OF_NAME_AND_ADDRESS.burst


def test_names_tried_from_one_address_are_limited_together() -> None:
    limits = LoginLimits(Clock())
    tries = [(f"user{number}", "10.0.0.1") for number in range(10_000)]
    assert n_allowed(limits, tries) == OF_ADDRESS.burst


def test_one_name_tried_from_many_addresses_is_limited_together() -> None:
    limits = LoginLimits(Clock())
    tries = [("anna", f"10.0.{number // 256}.{number % 256}") for number in range(10_000)]
    assert n_allowed(limits, tries) == OF_NAME.burst


def test_many_names_from_many_addresses_are_limited_together() -> None:
    limits = LoginLimits(Clock())
    tries = [(f"user{number}", f"10.0.{number // 256}.{number % 256}") for number in range(10_000)]
    assert n_allowed(limits, tries) == OF_ALL.burst


def test_all_of_a_network_of_ipv6_counts_as_one_address() -> None:
    limits = LoginLimits(Clock())
    tries = [(f"user{number}", f"2001:db8::{number:x}") for number in range(100)]
    assert n_allowed(limits, tries) == OF_ADDRESS.burst
    assert limits.try_again_s("anna", "2001:db8:0:1::1") == 0


def test_who_attacks_a_name_does_not_keep_its_user_out() -> None:
    limits = LoginLimits(Clock())
    n_allowed(limits, [("anna", "10.0.0.1")] * 1000)
    assert limits.try_again_s("anna", "10.0.0.1") > 0
    assert limits.try_again_s("anna", "10.0.0.2") == 0


def test_memory_stays_bounded_however_long_it_is_tried() -> None:
    clock = Clock()
    limits = LoginLimits(clock)
    for number in range(MAX_BUCKETS):
        clock.now_s += OF_ALL.refill_s
        limits.try_again_s(f"user{number}", f"10.{number // 65536}.{number // 256 % 256}.1")
    assert len(limits) <= MAX_BUCKETS


def test_tries_come_back_with_time_and_after_a_right_password() -> None:
    clock = Clock()
    limits = LoginLimits(clock)
    for _ in range(3 * OF_NAME_AND_ADDRESS.burst):
        assert limits.try_again_s("anna", "10.0.0.1") == 0
        limits.give_back("anna", "10.0.0.1")
    n_allowed(limits, [("anna", "10.0.0.1")] * 100)
    wait_s = limits.try_again_s("anna", "10.0.0.1")
    assert wait_s == OF_NAME_AND_ADDRESS.refill_s
    clock.now_s += wait_s
    assert n_allowed(limits, [("anna", "10.0.0.1")] * 2) == 1


@pytest.mark.parametrize(
    ("wait_s", "text"), [(0.2, "1 second"), (59.5, "60 seconds"), (600, "10 minutes")]
)
def test_a_wait_is_said_as_people_say_it(wait_s: float, text: str) -> None:
    assert in_words(wait_s) == text
