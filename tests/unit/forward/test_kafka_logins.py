"""TLS and logins of the output `kafka`, through a front that speaks both before a mock cluster."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from certificates import OPENSSL, Authority
from kafka_cluster import Cluster, forwarder
from kafka_front import KafkaFront
from outgoing_messages import outgoing, send_until_taken

from ast_stream.forward.output import OutputError

pytestmark = pytest.mark.skipif(OPENSSL is None, reason="needs openssl")
USERS = {"attic": "right"}


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return Cluster()


@contextmanager
def front(cluster: Cluster, *arguments: Any, **options: Any) -> Iterator[KafkaFront]:
    found = KafkaFront(cluster.brokers, *arguments, **options)
    try:
        yield found
    finally:
        found.close()


def login(folder: Path, password: str = "right") -> dict[str, str]:
    (folder / "password").write_text(f"{password}\n")
    return {"username": "attic", "password_file": str(folder / "password")}


def refusal(brokers: list[str], **values: Any) -> str:
    """Return why nothing is taken."""
    with forwarder(brokers, timeout_s=1.0, **values) as output:
        with pytest.raises(OutputError) as error:
            output.send([outgoing(1)])
        assert error.value.confirmed == 0
        assert output.error is not None
        return str(error.value)


def test_messages_go_through_tls_to_brokers_that_ask_for_a_certificate(
    tmp_path: Path, cluster: Cluster
) -> None:
    authority = Authority(tmp_path)
    server, own = authority.identity(), authority.identity("DNS:box")
    context = server.server_context()
    context.load_verify_locations(authority.ca_file)
    context.verify_mode = ssl.CERT_REQUIRED
    tls = {"tls": True, "ca_file": authority.ca_file}
    mine = {"cert_file": str(own.certificate), "key_file": str(own.key)}
    stranger = Authority(_folder(tmp_path / "other")).identity("DNS:other")
    wrong = {"cert_file": str(stranger.certificate), "key_file": str(stranger.key)}
    batch = [outgoing(n) for n in range(50)]
    with front(cluster, context) as brokers:
        with forwarder(brokers.brokers, prefix="tls", **tls, **mine) as output:
            send_until_taken(output, batch)
        found = refusal(brokers.brokers, **tls)
        assert "the brokers ask for a certificate of this box (cert_file)" in found
        found = refusal(brokers.brokers, **tls, **wrong)
        assert "the brokers do not accept the certificate of this box" in found
        found = refusal(brokers.brokers)  # in the clear
        assert "no connection" in found or "no TLS" in found
    taken = cluster.messages("tls.event", 50)
    assert [message.value() for message in taken] == [message.body for message in batch]


def test_server_that_the_authority_does_not_vouch_for_gets_nothing(
    tmp_path: Path, cluster: Cluster
) -> None:
    authority = Authority(tmp_path)
    other = Authority(_folder(tmp_path / "other"))
    elsewhere = authority.identity("DNS:elsewhere.example")
    with front(cluster, other.identity().server_context(), users=USERS) as brokers:
        values = {"tls": True, "ca_file": authority.ca_file, **login(tmp_path)}
        assert "certificate verify failed" in refusal(brokers.brokers, **values)
        assert brokers.logged_in == []
    with front(cluster, elsewhere.server_context(), users=USERS) as brokers:
        assert "certificate verify failed" in refusal(brokers.brokers, **values)
        assert brokers.logged_in == []


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_login_is_taken_and_a_wrong_password_is_said(
    tmp_path: Path, cluster: Cluster, mechanism: str
) -> None:
    authority = Authority(tmp_path)
    tls = {"tls": True, "ca_file": authority.ca_file, "mechanism": mechanism}
    with front(cluster, authority.identity().server_context(), users=USERS) as brokers:
        with forwarder(
            brokers.brokers, prefix=f"sasl_{mechanism}", **tls, **login(tmp_path)
        ) as one:
            send_until_taken(one, [outgoing(1)])
        assert set(brokers.logged_in) == {"attic"}
        brokers.logged_in.clear()
        found = refusal(brokers.brokers, **tls, **login(tmp_path, "wrong"))
        assert "the brokers refuse the login" in found
        assert "wrong" not in found
        assert brokers.logged_in == []
    (message,) = cluster.messages(f"sasl_{mechanism}.event", 1)
    assert message.value() == outgoing(1).body


def test_mechanism_that_the_brokers_do_not_have_is_said(tmp_path: Path, cluster: Cluster) -> None:
    with front(cluster, users=USERS, mechanisms=["SCRAM-SHA-256"]) as brokers:
        found = refusal(brokers.brokers, **login(tmp_path), mechanism="PLAIN")
    assert "the brokers refuse the login" in found


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
