"""Certificates made on the spot by openssl: an authority, and what it signs for loopback."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

OPENSSL = shutil.which("openssl")
_NEW_KEY = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
_SIGNS = "keyUsage=critical,keyCertSign"


@dataclass(frozen=True)
class Identity:
    """A certificate and its key, PEM."""

    certificate: Path
    key: Path

    def server_context(self) -> ssl.SSLContext:
        """Return what a server with this identity speaks TLS with."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context

    def client_context(self) -> ssl.SSLContext:
        """Return what a client that trusts this identity alone speaks TLS with."""
        return ssl.create_default_context(cafile=str(self.certificate))


class Authority:
    """Signs certificates, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own = self.self_signed("authority", "-addext", _SIGNS)
        self.ca_file = str(self._own.certificate)

    def identity(self, names: str = "IP:127.0.0.1", days: int = 2) -> Identity:
        """Return a signed identity for `names` (subjectAltName); a day is over if `days` is -1."""
        made = self._paths(f"server{names}{days}".replace(":", "-"))
        request = self._folder / "request.pem"
        subject = ("-subj", "/CN=server", "-addext", f"subjectAltName={names}")
        _openssl(*_NEW_KEY, "-keyout", made.key, "-out", request, *subject)
        signing = ("-CA", self._own.certificate, "-CAkey", self._own.key, "-days", str(days))
        out = ("-copy_extensions", "copy", "-out", made.certificate)
        _openssl("x509", "-req", "-in", request, *signing, *out)
        return made

    def self_signed(self, name: str = "own", *options: str) -> Identity:
        """Return an identity that nobody but itself vouches for."""
        made = self._paths(name)
        out = ("-keyout", made.key, "-out", made.certificate)
        names = ("-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1")
        _openssl(*_NEW_KEY, "-x509", *out, *names, "-days", "2", *options)
        return made

    def _paths(self, name: str) -> Identity:
        return Identity(self._folder / f"{name}.pem", self._folder / f"{name}.key")


def _openssl(*arguments: object) -> None:
    assert OPENSSL is not None
    subprocess.run([OPENSSL, *map(str, arguments)], check=True, capture_output=True, timeout=120)
