"""Secrets in URLs never leave the process."""

from __future__ import annotations

import pytest

from ast_stream.urls import mask


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://cam/live/s3cr/stream", "http://cam/live/***/stream"),
        ("https://hooks.test/T0A/B1c/go", "https://hooks.test/***/***/go"),
        ("http://radio/mp3-128/stream1.m3u8", "http://radio/mp3-128/stream1.m3u8"),
        ("http://cam/v1/ch0/720p", "http://cam/v1/ch0/720p"),
        ("rtsp://cam/h264Preview_01_main", "rtsp://cam/h264Preview_01_main"),
    ],
)
def test_short_secrets_in_paths_of_the_web_are_masked(url: str, shown: str) -> None:
    assert mask(f"cannot open {url}: refused") == f"cannot open {shown}: refused"


@pytest.mark.parametrize(
    "text",
    [
        r'{"url": "rtsp:\/\/me:Geheim42@cam\/live"}',
        "cannot read /etc/rtsp:/me:Geheim42@cam/live",
        "cannot open rtsp://me:pass/Geheim42",
        "/etc/https:/host/x?token=Geheim42: no such file",
    ],
)
def test_urls_that_were_bent_on_their_way_are_masked_too(text: str) -> None:
    assert "Geheim" not in mask(text)
    assert mask("see /a:/b and ipc:/c") == "see /a:/b and ipc:/c"
