from __future__ import annotations

from ast_stream.web.sessions import MAX_OF_ACCOUNT, MAX_SESSIONS, Sessions


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_login_is_over_when_it_is_not_used() -> None:
    clock = Clock()
    sessions = Sessions(idle_s=60, max_s=1000, now_s=clock)
    secret = sessions.begin("anna", "stamp")
    clock.now_s += 59
    assert sessions.use(secret) is not None
    clock.now_s += 59
    assert sessions.use(secret) is not None
    clock.now_s += 60
    assert sessions.use(secret) is None
    assert len(sessions) == 0


def test_a_login_is_over_after_its_time_however_much_it_is_used() -> None:
    clock = Clock()
    sessions = Sessions(idle_s=60, max_s=100, now_s=clock)
    secret = sessions.begin("anna", "stamp")
    for _ in range(3):
        clock.now_s += 30
        assert sessions.use(secret) is not None
    clock.now_s += 10
    assert sessions.use(secret) is None


def test_to_look_at_a_login_is_not_to_use_it() -> None:
    clock = Clock()
    sessions = Sessions(idle_s=60, max_s=1000, now_s=clock)
    secret = sessions.begin("anna", "stamp")
    session = sessions.use(secret)
    assert session is not None
    clock.now_s += 59
    assert sessions.get(session.key) is session
    clock.now_s += 1
    assert sessions.get(session.key) is None


def test_secrets_are_new_each_time_and_kept_nowhere() -> None:
    sessions = Sessions(60, 60)
    secrets = {sessions.begin("anna", "stamp") for _ in range(10)}
    assert len(secrets) == 10
    assert not any(secret in str(vars(sessions)) for secret in secrets)
    assert sessions.use("") is None
    assert sessions.use("\ud800") is None


def test_the_oldest_of_too_many_logins_are_over() -> None:
    sessions = Sessions(60, 60)
    own = [sessions.begin("anna", "stamp") for _ in range(MAX_OF_ACCOUNT + 1)]
    assert sessions.use(own[0]) is None
    assert sessions.use(own[1]) is not None
    for number in range(MAX_SESSIONS):
        sessions.begin(f"user{number}", "stamp")
    assert len(sessions) == MAX_SESSIONS
    assert sessions.use(own[1]) is None


def test_an_ended_login_is_over() -> None:
    sessions = Sessions(60, 60)
    secret = sessions.begin("anna", "stamp")
    session = sessions.use(secret)
    assert session is not None
    sessions.end(session.key)
    sessions.end(session.key)
    assert sessions.use(secret) is None
