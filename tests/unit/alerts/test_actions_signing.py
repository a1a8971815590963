from __future__ import annotations

import base64

import pytest

from ast_stream.alerts.actions.webhook import new_signer, sign

# the published vector of Standard Webhooks
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
MESSAGE_ID, TIMESTAMP_S = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330
BODY = b'{"test": 2432232314}'
EXPECTED = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_signature_is_that_of_the_published_vector() -> None:
    assert sign([new_signer(SECRET)], MESSAGE_ID, TIMESTAMP_S, BODY) == EXPECTED


def test_a_secret_may_come_without_its_prefix() -> None:
    signer = new_signer(SECRET.removeprefix("whsec_"))
    assert sign([signer], MESSAGE_ID, TIMESTAMP_S, BODY) == EXPECTED


def test_there_is_one_signature_for_each_secret_while_they_rotate() -> None:
    keys = [new_signer(base64.b64encode(b"n" * 24).decode()), new_signer(SECRET)]
    first, second = sign(keys, MESSAGE_ID, TIMESTAMP_S, BODY).split(" ")
    assert second == EXPECTED
    assert first.startswith("v1,")
    assert first != second


def test_signature_covers_id_time_and_body() -> None:
    keys = [new_signer(SECRET)]
    others = {
        sign(keys, "msg_x", TIMESTAMP_S, BODY),
        sign(keys, MESSAGE_ID, TIMESTAMP_S + 1, BODY),
        sign(keys, MESSAGE_ID, TIMESTAMP_S, BODY + b" "),
    }
    assert len(others | {EXPECTED}) == 4


@pytest.mark.parametrize(
    ("secret", "reason"),
    [
        ("whsec_c2hvcnQ=", "expected a secret of 24 to 64 bytes, got 5"),
        ("whsec_not base64!", "expected whsec_ and base64, got something else"),
        ("", "expected a secret of 24 to 64 bytes, got 0"),
    ],
)
def test_a_secret_that_is_none_is_refused_without_showing_it(secret: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        new_signer(secret)
