"""Which authorities a receiver's certificate must come from, and why a connection failed."""

from __future__ import annotations

import ssl
from pathlib import Path

from ast_stream.alerts.actions.base import one_line
from ast_stream.errors import StartupError

_SHOWN_CHARACTERS = 200  # of what may be the receiver's own words


def trust(name: str, ca_file: str | None) -> ssl.SSLContext:
    """Return what checks certificates and host names of the receivers of the action `name`.

    Args:
        ca_file: certificates of authorities (PEM) that are trusted instead of the system's.

    Raises:
        StartupError: `ca_file` cannot be read, or holds no certificate.
    """
    if ca_file is not None and Path(ca_file).exists() and not Path(ca_file).is_file():
        raise StartupError(f"action {name}: cannot read ca_file {ca_file}: it is no file")
    try:
        return ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError as error:
        text = f"action {name}: expected certificates in ca_file {ca_file}, got none that is valid"
        raise StartupError(text) from error
    except OSError as error:
        text = f"action {name}: cannot read ca_file {ca_file}: {error.strerror}"
        raise StartupError(text) from error


def connection_words(error: Exception) -> str:
    """Return why there is no connection, in words without code of a library."""
    match error:
        case ssl.SSLCertVerificationError():
            return f"its certificate is not accepted: {error.verify_message.rstrip('.')}"
        case ssl.SSLError():
            return f"no TLS: {(error.reason or 'unknown').replace('_', ' ').lower()}"
        case OSError(strerror=str() as text):
            return text
    return one_line(str(error))[:_SHOWN_CHARACTERS] or type(error).__name__
