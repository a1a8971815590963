"""Credentials: secrets from files, and TLS contexts.

Secrets are never shown, whatever goes wrong with them.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from ast_stream.errors import StartupError
from ast_stream.labels import one_line
from ast_stream.runtime.files import DamagedFileError, read_bounded

MAX_SECRET_BYTES = 64 * 1024
CREDENTIALS = "CREDENTIALS_DIRECTORY"  # variable that systemd sets where there are credentials
_SHOWN_CHARACTERS = 200  # of what may be the receiver's own words


def secret_file(file: str, credential: str | None) -> Path:
    """Return where a secret is: in the credential that systemd has loaded, or else in its file.

    Args:
        credential: its name in `LoadCredential=`; None: there is none.
    """
    folder = os.environ.get(CREDENTIALS)
    if folder and credential is not None and (Path(folder) / credential).exists():
        return Path(folder) / credential
    return Path(file)


def read_secret(
    what: str, file: str | None, variable: str | None, credential: str | None = None
) -> str | None:
    """Return the text in a file or environment variable, None if neither is named.

    Args:
        what: who wants it, as the error names it.
        credential: see `secret_file`.

    Raises:
        StartupError: it is not there; the text itself is never shown.
    """
    if file is not None:
        try:
            path = secret_file(file, credential)
            return read_bounded(path, MAX_SECRET_BYTES).decode().rstrip()
        except (OSError, DamagedFileError, ValueError) as error:
            reason = "not UTF-8 text" if isinstance(error, UnicodeError) else str(error)
            reason = error.strerror or reason if isinstance(error, OSError) else reason
            raise StartupError(f"{what}: cannot read {file}: {reason}") from error
    if variable is not None:
        value = os.environ.get(variable)
        if not value:
            raise StartupError(f"{what}: expected the environment variable {variable}, got none")
        return value.rstrip()
    return None


def tls_context(
    what: str,
    ca_file: str | None,
    cert_file: str | None = None,
    key_file: str | Path | None = None,
) -> ssl.SSLContext:
    """Return a TLS context that checks certificates and host names.

    Args:
        what: who wants it, as errors name it.
        ca_file: certificates of authorities (PEM) that are trusted instead of the system's.
        cert_file, key_file: our own certificate and its key (PEM), for servers that ask for one.

    Raises:
        StartupError: a file cannot be read, or does not hold what it should.
    """
    if ca_file is not None and Path(ca_file).exists() and not Path(ca_file).is_file():
        raise StartupError(f"{what}: cannot read ca_file {ca_file}: it is no file")
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError as error:
        text = f"{what}: expected certificates in ca_file {ca_file}, got none that is valid"
        raise StartupError(text) from error
    except OSError as error:
        text = f"{what}: cannot read ca_file {ca_file}: {error.strerror}"
        raise StartupError(text) from error
    if cert_file is not None:
        _load_own(context, what, cert_file, key_file)
    return context


def connection_error(error: BaseException) -> str:
    """Return why there is no connection, in words rather than in a library's codes."""
    match error:
        case ssl.SSLCertVerificationError():
            return f"its certificate is not accepted: {error.verify_message.rstrip('.')}"
        case ssl.SSLError():
            return f"no TLS: {(error.reason or 'unknown').replace('_', ' ').lower()}"
        case OSError(strerror=str() as text):
            return text
    return one_line(str(error))[:_SHOWN_CHARACTERS] or type(error).__name__


def _load_own(
    context: ssl.SSLContext, what: str, cert_file: str, key_file: str | Path | None
) -> None:
    for file in (cert_file, key_file):
        if file is not None and Path(file).exists() and not Path(file).is_file():
            raise StartupError(f"{what}: cannot read {file}: it is no file")
    try:
        # without an encrypted key: nobody is there who could type its passphrase
        context.load_cert_chain(cert_file, key_file, password="")
    except ssl.SSLError as error:
        text = f"{what}: expected a certificate in {cert_file} and its key, without a passphrase, "
        raise StartupError(f"{text}in {key_file or cert_file}, got others") from error
    except OSError as error:
        text = f"{what}: cannot read {cert_file} or {key_file}: {error.strerror}"
        raise StartupError(text) from error
