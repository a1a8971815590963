"""The action `webhook`: CloudEvents 1.0 in structured mode, signed as Standard Webhooks has it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any

from ast_stream.alerts.actions.base import (
    Delivered,
    Failed,
    Notification,
    Outcome,
    Refused,
    read_secret,
)
from ast_stream.alerts.actions.http_post import Answer, Forbidden, NoAnswer, post
from ast_stream.alerts.actions.signing import parse_secret, signature
from ast_stream.alerts.actions.tls import trust
from ast_stream.errors import StartupError
from ast_stream.messages.event import format_time
from ast_stream.settings.alert_schema import WebhookAction
from ast_stream.version import __version__

CONTENT_TYPE = "application/cloudevents+json; charset=utf-8"
GONE = 410
_WORTH_ANOTHER_TRY = (408, 425, 429)
_DOWN = (502, 503, 504)  # of what stands before the receiver
_MAX_RETRY_AFTER_S = 24 * 3600.0


class WebhookRunner:
    """Posts each notification to one URL.

    Args:
        name: of the action, for errors.
        now_s: wall clock, seconds since 1970; stamps each attempt.

    Raises:
        StartupError: the secret or `ca_file` cannot be read, or is none.
    """

    def __init__(
        self, name: str, settings: WebhookAction, now_s: Callable[[], float] = time.time
    ) -> None:
        self._settings = settings
        self._now_s = now_s
        self._trust = trust(name, settings.ca_file) if settings.url.startswith("https") else None
        text = read_secret(f"action {name}", settings.secret_file, settings.secret_env)
        try:
            self._keys = [parse_secret(line) for line in (text or "").splitlines() if line.strip()]
        except ValueError as error:
            raise StartupError(f"action {name}: {error}") from error
        if text is not None and not self._keys:
            raise StartupError(f"action {name}: expected a secret, got an empty file")

    def deliver(self, notification: Notification) -> Outcome:
        """Post once."""
        body = cloud_event(notification)
        try:
            answer = post(
                self._settings.url,
                body,
                self._headers(notification.id, body),
                timeout_s=self._settings.timeout_s,
                allow_private=self._settings.allow_private,
                context=self._trust,
            )
        except Forbidden as error:
            return Refused(str(error))
        except NoAnswer as error:
            return Failed(str(error), is_down=True)
        return self._outcome(answer)

    def close(self) -> None:
        """Have nothing to let go of: each post has its own connection."""

    def _headers(self, message_id: str, body: bytes) -> dict[str, str]:
        timestamp_s = int(self._now_s())
        headers = {
            "Content-Type": CONTENT_TYPE,
            "User-Agent": f"ast-stream/{__version__}",
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp_s),
        }
        if self._keys:
            headers["webhook-signature"] = signature(self._keys, message_id, timestamp_s, body)
        return headers

    def _outcome(self, answer: Answer) -> Outcome:
        status = answer.status
        reason = f"the receiver answered {status}"
        if 200 <= status < 300:
            return Delivered()
        if 300 <= status < 400:
            return Refused(f"{reason}: redirects are not followed")
        if status == GONE:
            return Refused(f"{reason} (gone): nothing more is sent there", is_closed=True)
        if status in _WORTH_ANOTHER_TRY or status >= 500:
            after_s = retry_after_s(answer.retry_after, self._now_s())
            return Failed(reason, after_s, is_down=status in _DOWN)
        return Refused(reason)


def cloud_event(notification: Notification) -> bytes:
    """Return the body: the same bytes at every attempt."""
    alert = notification.alert
    event: dict[str, Any] = {
        "specversion": "1.0",
        "id": notification.id,
        "source": f"/ast-stream/rule/{notification.rule}",
        "type": f"org.ast-stream.alert.{notification.kind}.v1",
        "subject": str(alert["id"]),
        "time": format_time(notification.at_ns),
        "datacontenttype": "application/json",
        "severitytext": notification.severity,
        "data": {
            "kind": notification.kind,
            "title": notification.title,
            "text": notification.text,
            "combined": notification.is_combined,
            "alert": dict(alert),
        },
    }
    if notification.event_id is not None:
        event["causationid"] = notification.event_id
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def retry_after_s(header: str | None, now_s: float) -> float:
    """Return the seconds that a `Retry-After` header asks for; 0 if it says nothing usable."""
    if header is None:
        return 0.0
    text = header.strip()
    if text.isdecimal() and len(text) < 10:
        wait_s = float(text)
    else:
        try:
            wait_s = parsedate_to_datetime(text).timestamp() - now_s
        except (ValueError, OverflowError):
            return 0.0
    return min(max(0.0, wait_s), _MAX_RETRY_AFTER_S)
