from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from certificates import OPENSSL, Authority

from ast_stream.errors import StartupError
from ast_stream.settings.web import BehindProxy, WebSettings
from ast_stream.web.guard import read_proxy_token
from ast_stream.web.server import open_tls

needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")


def settings(certificate: Path, key: Path) -> WebSettings:
    return WebSettings(certificate=str(certificate), private_key=str(key))


@needs_openssl
def test_a_certificate_that_cannot_be_used_is_refused_in_a_sentence(tmp_path: Path) -> None:
    own = Authority(tmp_path).self_signed()
    other = Authority(tmp_path).self_signed("other")
    locked = tmp_path / "locked.key"
    command = [str(OPENSSL), "ec", "-in", str(own.key), "-aes256", "-passout", "pass:secret"]
    subprocess.run([*command, "-out", str(locked)], check=True, capture_output=True)
    assert open_tls(settings(own.certificate, own.key)) is not None
    for key, reason in (
        (other.key, "KEY_VALUES_MISMATCH"),
        (locked, "the key has a passphrase; expected one without"),
        (tmp_path / "missing.key", "No such file or directory"),
        (own.certificate, "PEM"),
    ):
        with pytest.raises(StartupError, match=reason) as caught:
            open_tls(settings(own.certificate, key))
        assert str(caught.value).startswith("web.certificate: cannot use ")


def test_the_secret_of_a_proxy_is_long_and_there(tmp_path: Path) -> None:
    file = tmp_path / "token"
    proxy = BehindProxy(token_file=str(file))
    with pytest.raises(StartupError, match=r"cannot read .*token: No such file"):
        read_proxy_token(proxy)
    file.write_text("short\n" + " " * 40)
    with pytest.raises(StartupError, match=r"expected at least 32 characters .* got 5"):
        read_proxy_token(proxy)
    file.write_text("x" * 32 + "\n")
    assert read_proxy_token(proxy) == b"x" * 32
    assert read_proxy_token(None) is None
