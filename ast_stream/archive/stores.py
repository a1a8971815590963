"""Object stores: opened by URI, retried while they do not answer, but not when they refuse access.

Stores are opened by pyarrow (s3, gs, abfs, hdfs), all others by fsspec. Credentials are found
where the store's own command-line tools look for them.
"""

from __future__ import annotations

import atexit
import errno
import functools
import importlib
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from ast_stream.audio.recording import RecordingAbsentError
from ast_stream.errors import AstStreamError, UsageError
from ast_stream.runtime.backoff import Backoff

ATTEMPTS = 6  # without progress, over about half a minute, before the shard gives up
BLOCK_BYTES = 8 << 20  # requested of an object at once: large blocks need fewer requests
_FIRST_DELAY_S, _LONGEST_DELAY_S = 1.0, 16.0
_FLAT = ("s3", "gs", "gcs", "abfs", "abfss")  # folders need not be created
_OF_ARROW = (*_FLAT, "hdfs", "viewfs")
# how S3, Google and Azure refuse access: retrying would not help
_REFUSED = re.compile(
    r"ACCESS_DENIED|AccessDenied|INVALID_ACCESS_KEY|InvalidAccessKey|SIGNATURE_DOES_NOT_MATCH"
    r"|SignatureDoesNotMatch|INVALID_CLIENT_TOKEN|UNRECOGNIZED_CLIENT|EXPIRED_TOKEN|ExpiredToken"
    r"|MISSING_AUTHENTICATION|InvalidToken|PERMISSION_DENIED|UNAUTHENTICATED|AuthenticationFailed"
    r"|AuthorizationFailure|AuthorizationPermissionMismatch|NoCredentials|HTTP (?:status )?40[13]"
    r"|DefaultAzureCredential|Could not create an OAuth2|invalid_grant|Forbidden|Unauthorized"
)
# S3 gives out the head of an object, but not the object: it is archived. To pyarrow the error is
# a number of the service's own, from 129 on; those of networks and of all services are below
_NOT_GIVEN = re.compile(
    r"INVALID_OBJECT_STATE|InvalidObjectState|AWS Error \[code (?:129|1[3-9]\d)\] during GetObject"
)
_NO_BUCKET = re.compile(r"NO_SUCH_BUCKET|NoSuchBucket|ContainerNotFound|bucket does not exist")
_T = TypeVar("_T")


class ObjectStoreError(AstStreamError):
    """An object store or network share does not answer; the shard can be tried again later."""


class StoreRefusedError(ObjectStoreError):
    """An object store refuses access to this user, or has no such bucket."""


def retried(
    place: str,
    call: Callable[[], _T],
    sleep: Callable[[float], None] = time.sleep,
    *,
    does: str = "read",
    progress: Callable[[], int] = lambda: 0,
) -> _T:
    """Return the result of a call to a store, which is retried while the store does not answer.

    Args:
        place: URI that is read or written.
        does: "read" or "written", for the error message.
        progress: bytes transferred so far; attempts are counted anew whenever it has grown.

    Raises:
        RecordingAbsentError: there is no such object.
        StoreRefusedError: the store refuses access to this user, or there is no such bucket.
        ObjectStoreError: the store did not answer after several attempts.
        UsageError: the URI is not valid for the store.
    """
    backoff, n_failed, reached = Backoff(_FIRST_DELAY_S, _LONGEST_DELAY_S), 0, progress()
    while True:
        try:
            return call()
        except AstStreamError:
            raise
        except FileNotFoundError as error:
            if not has_bucket(place):
                raise StoreRefusedError(f"scan: {place}: there is no such bucket") from error
            raise RecordingAbsentError(place, os.strerror(errno.ENOENT)) from error
        except (ValueError, TypeError, NotImplementedError) as error:
            raise UsageError(f"scan: {place}: {_one_line(error)}") from error
        except Exception as error:  # each of fsspec's stores has its own exceptions
            what = _one_line(error)
            if _NO_BUCKET.search(what):
                raise StoreRefusedError(f"scan: {place}: there is no such bucket") from error
            if is_refusal(error):
                raise StoreRefusedError(
                    f"scan: {place}: the store refuses access: expected credentials, where its own "
                    f"tools look for them, with which it may be {does}: {what}"
                ) from error
            if progress() > reached:
                backoff, n_failed, reached = (
                    Backoff(_FIRST_DELAY_S, _LONGEST_DELAY_S),
                    0,
                    progress(),
                )
            n_failed += 1
            if n_failed == ATTEMPTS:
                raise ObjectStoreError(
                    f"scan: {place}: the store cannot be {does}: {what}"
                ) from error
            sleep(backoff.next_s())


def is_refusal(error: Exception) -> bool:
    """Return whether a store refuses access to this user, so that retrying would not help."""
    return isinstance(error, PermissionError) or _REFUSED.search(_one_line(error)) is not None


def is_not_given(error: Exception) -> bool:
    """Return whether a store may be refusing an object for what the object is."""
    return is_refusal(error) or _NOT_GIVEN.search(_one_line(error)) is not None


def open_store(place: str) -> tuple[Any, str]:
    """Return the pyarrow file system of a URI, and the path in it.

    Raises:
        UsageError: the store is not supported.
    """
    scheme, _, rest = place.partition("://")
    if scheme.lower() in _OF_ARROW:
        bucket, slash, path = rest.partition("/")
        files, start = _arrow_store(f"{scheme}://{bucket}")
        return files, f"{start.rstrip('/')}{slash}{path}"
    return _fsspec_store(scheme.lower()), rest


def has_folders(place: str) -> bool:
    """Return whether a folder must be created before files are written to it."""
    return place.partition("://")[0].lower() not in _FLAT


def has_bucket(place: str) -> bool:
    """Return False if the bucket of a URI certainly does not exist."""
    files, path = open_store(place)
    bucket = path.strip("/").partition("/")[0]
    if has_folders(place) or not bucket:
        return True
    with suppress(OSError):
        return bool(files.get_file_info(bucket).type != arrow("pyarrow.fs").FileType.NotFound)
    return True  # unknown: this user may not look


def arrow(module: str = "pyarrow") -> Any:
    """Return pyarrow, which is untyped, or one of its modules.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        text = "an archive is written and read with pyarrow: pip install 'ast-stream[export]'"
        raise UsageError(text) from error


@functools.cache
def _arrow_store(bucket: str) -> tuple[Any, str]:
    try:
        files, start = arrow("pyarrow.fs").FileSystem.from_uri(bucket)
    except (OSError, ValueError, NotImplementedError) as error:
        raise UsageError(f"scan: {bucket}: {_one_line(error)}") from error
    # must precede pyarrow's S3 shutdown, which waits for open file systems (apache/arrow#50188)
    atexit.register(_arrow_store.cache_clear)
    return files, str(start)


@functools.cache
def _fsspec_store(scheme: str) -> Any:
    try:
        fsspec: Any = importlib.import_module("fsspec")
        made = fsspec.filesystem(scheme)
    except Exception as error:  # the store's package raises its own, such as missing credentials
        what = _one_line(error)
        raise UsageError(f"scan: {scheme}://: no such store can be read: {what}") from error
    return arrow("pyarrow.fs").PyFileSystem(arrow("pyarrow.fs").FSSpecHandler(made))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
