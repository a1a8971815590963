"""CURVE keys in files: the certificates of ZeroMQ (CZMQ, pyzmq), which any program can load.

A key has two files: `NAME.key` with the public half, which may be shown to anyone, and
`NAME.key_secret` with both. A service finds its secret among the credentials that systemd loaded
for it (LoadCredential=), so that the file itself can be root's alone.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from ast_stream.errors import ConfigError, Problem, StartupError, UsageError
from ast_stream.runtime.credentials import CREDENTIALS
from ast_stream.runtime.files import DamagedFileError, read_bounded, sync
from ast_stream.settings.transport import CurveSettings, TransportSettings

KEY_BYTES = 32
KEY_CHARACTERS = 40  # of a key in Z85
PUBLIC_SUFFIX, SECRET_SUFFIX = ".key", ".key_secret"
SERVER_CREDENTIAL, CLIENT_CREDENTIAL = "curve-server", "curve-client"
NO_SECRET = "expected a secret key, got none"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")
NAME_RULE = "lower-case letters, digits, '.', '_' and '-', at most 63, first a letter or digit"

_MAX_FILE_BYTES = 4096
_SECRET_MODE = 0o600
_PUBLIC_MODE = 0o644
_LINE = re.compile(r'^\s*(public|secret)-key\s*=\s*"([^"]*)"\s*$', re.MULTILINE)
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_VALUES = {digit: value for value, digit in enumerate(_DIGITS)}


@dataclass(frozen=True)
class KeyPair:
    """Both halves of a key, in Z85; the secret one is never shown."""

    public: str
    secret: str = field(repr=False)


@dataclass(frozen=True)
class ClientKeys:
    """What a client needs over tcp: its own key, and the public one that it expects there."""

    own: KeyPair
    server: str

    @classmethod
    def load(cls, secret: str | Path, server: str | Path) -> ClientKeys:
        """Return the keys in two files: the client's secret one, and the server's public one.

        Raises:
            StartupError: a file cannot be read, holds no key, or others may read the secret.
        """
        return cls(read_pair(Path(secret), CLIENT_CREDENTIAL), read_public(Path(server)))

    @classmethod
    def of_options(cls, client_key: Path | None, server_key: Path | None) -> ClientKeys | None:
        """Return the keys that two options of a command name; None if neither is given.

        Raises:
            UsageError: only one is given.
            StartupError: as `load`.
        """
        if client_key is None and server_key is None:
            return None
        if client_key is None or server_key is None:
            raise UsageError("expected both --client-key and --server-key, or neither")
        return cls.load(client_key, server_key)


def encode_z85(data: bytes) -> str:
    """Return bytes as text, five characters for each four; RFC 32 of the ZeroMQ project.

    >>> encode_z85(bytes.fromhex("864FD26FB559F75B"))
    'HelloWorld'
    """
    text = ""
    for start in range(0, len(data), 4):
        value = int.from_bytes(data[start : start + 4], "big")
        text += "".join(_DIGITS[value // 85**power % 85] for power in (4, 3, 2, 1, 0))
    return text


def decode_key(text: str) -> bytes:
    """Return the 32 bytes of a key in Z85.

    Raises:
        ValueError: it is none; the text is not quoted, for it may be a secret.
    """
    if len(text) != KEY_CHARACTERS or not all(character in _VALUES for character in text):
        raise ValueError(
            f"expected a key of {KEY_CHARACTERS} characters in Z85, got something else"
        )
    data = b""
    for start in range(0, len(text), 5):
        value = 0
        for character in text[start : start + 5]:
            value = value * 85 + _VALUES[character]
        if value >= 2**32:
            raise ValueError("expected a key in Z85, got a number that is too large")
        data += value.to_bytes(4, "big")
    return data


def write_pair(folder: Path, name: str, pair: KeyPair) -> tuple[Path, Path]:
    """Write both files of a key; return their paths, first the public one's.

    Raises:
        UsageError: a bad name, or one of the files is there: a key is never overwritten.
        StartupError: they cannot be written.
    """
    if not NAME.match(name):
        raise UsageError(f"name of a key: expected {NAME_RULE}, got {name!r}")
    public, secret = folder / f"{name}{PUBLIC_SUFFIX}", folder / f"{name}{SECRET_SUFFIX}"
    for path in (public, secret):
        if os.path.lexists(path):
            raise UsageError(f"{path} is there already: remove it first, or choose another name")
    head = f"# CURVE key {name!r} of ast-stream, in the format of ZeroMQ's certificates.\n"
    half = f'metadata\ncurve\n    public-key = "{pair.public}"\n'
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        warning = "# SECRET: whoever has this file can act as its owner.\n"
        secret_line = f'    secret-key = "{pair.secret}"\n'
        _write_new(secret, head + warning + half + secret_line, _SECRET_MODE)
        _write_new(public, head + half, _PUBLIC_MODE)
    except OSError as error:
        raise StartupError(f"cannot write {error.filename}: {error.strerror}") from error
    return public, secret


def read_public(path: Path) -> str:
    """Return the public half in either file of a key.

    Raises:
        StartupError: it cannot be read, or holds none.
    """
    return _read_halves(path, "public")["public"]


def holds_secret(path: Path) -> bool:
    """Return whether a file of a key has its secret half, too.

    Raises:
        StartupError: it cannot be read, or holds no key.
    """
    return "secret" in _read_halves(path, "public")


def read_pair(path: Path, credential: str | None = None) -> KeyPair:
    """Return the key in a secret file.

    Args:
        credential: name of the credential that is used instead, where systemd has loaded one.

    Raises:
        StartupError: it cannot be read, holds no secret, or others than its owner may read it.
    """
    folder = os.environ.get(CREDENTIALS)
    if folder and credential is not None and (Path(folder) / credential).exists():
        path = Path(folder) / credential
    halves = _read_halves(path, "secret")
    # systemd's credentials have a mode of their own, and their folder keeps everybody else out
    is_credential = folder is not None and path.absolute().parent == Path(folder)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077 and not is_credential:
        raise StartupError(
            f"secret key {path}: expected mode 0600, got {mode:04o}, with which others may read or "
            f"change it; chmod 600 {path}"
        )
    return KeyPair(halves["public"], halves["secret"])


def _read_halves(path: Path, wanted: str) -> dict[str, str]:
    try:
        text = read_bounded(path, _MAX_FILE_BYTES).decode()
    except OSError as error:
        raise StartupError(f"{wanted} key: cannot read {path}: {error.strerror}") from error
    except (DamagedFileError, UnicodeDecodeError) as error:
        raise StartupError(f"{wanted} key: {path} is no key file") from error
    halves = dict(_LINE.findall(text))
    if wanted == "secret" and "public" in halves and "secret" not in halves:
        raise StartupError(
            f"secret key: {path} holds the public half only; expected its {SECRET_SUFFIX} file"
        )
    try:
        for half in ("public", wanted):
            decode_key(halves.get(half, ""))
    except ValueError as error:
        raise StartupError(f"{wanted} key: {path} holds none: {error}") from error
    return halves


def _write_new(path: Path, text: str, mode: int) -> None:
    """Write a file that was not there; nobody else can read it before its mode is set."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode & 0o600)
    with open(fd, "w") as file:
        file.write(text)
        os.fchmod(fd, mode)
        file.flush()
        os.fsync(fd)
    sync(path.parent)


def client_keys(transport: TransportSettings) -> ClientKeys | None:
    """Return what this box's clients need; None if nothing goes over tcp with keys.

    Raises:
        ConfigError: the configuration names none.
        StartupError: a key cannot be used.
    """
    curve = transport.curve
    if curve is None or not transport.has_keyed_tcp:
        return None
    if curve.client_secret is None:
        raise _unnamed("client_secret")
    if curve.server_key is curve.server_secret is None:  # workers of a pool have each its own
        own = read_pair(Path(curve.client_secret), CLIENT_CREDENTIAL)
        return ClientKeys(own, own.public)
    return ClientKeys.load(curve.client_secret, expected_server_key(curve))


def expected_server_key(curve: CurveSettings) -> Path:
    """Return the file of the public key that clients expect the worker to have."""
    if curve.server_key is not None:
        return Path(curve.server_key)
    assert curve.server_secret is not None  # as the settings are checked
    # not the secret itself, which clients may not be able to read
    return Path(curve.server_secret).with_suffix(PUBLIC_SUFFIX)


def server_key(transport: TransportSettings) -> KeyPair | None:
    """Return the worker's key; None if it binds nothing that needs one.

    Raises:
        ConfigError: the configuration names none.
        StartupError: it cannot be used.
    """
    curve = transport.curve
    if curve is None or not transport.has_keyed_tcp:
        return None
    if curve.server_secret is None:
        raise _unnamed("server_secret")
    return read_pair(Path(curve.server_secret), SERVER_CREDENTIAL)


def _unnamed(key: str) -> ConfigError:
    path = f"transport.curve.{key}"
    return ConfigError([Problem("configuration", None, path, NO_SECRET)])
