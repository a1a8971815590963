"""Network streams: what is on the wire is what comes out, and what is no sound is named."""

from __future__ import annotations

import io
import threading
import time
from http.server import BaseHTTPRequestHandler
from typing import Any

import av
import numpy as np
import pytest
from sound_server import Respond, encoded, http_server, muxed, paced, send
from source_blocks import MONO0, WALL0, Clock, joined, tone

from ast_stream.capture.sources.base import SourceBlock, SourceError
from ast_stream.capture.sources.network import (
    ABSENT,
    LOST,
    MAX_LEAD_S,
    NetworkStream,
    ffmpeg_options,
)
from ast_stream.settings.streams import UrlSource

PATIENCE_S = 60.0


def network_stream(url: str, **settings: object) -> NetworkStream:
    parsed = UrlSource.model_validate({"type": "url", "url": url, **settings})
    return NetworkStream(parsed, monotonic_ns=lambda: MONO0, wall_ns=lambda: WALL0)


def test_a_recording_sent_at_once_is_read_as_fast_as_it_lasts() -> None:
    body = encoded(tone(20.0, 16_000), 16_000, "FLAC")
    clock = Clock()
    settings = UrlSource(type="url", url="http://unused")
    with http_server(lambda handler: send(handler, body)) as url:
        source = NetworkStream(
            settings.model_copy(update={"url": url}),
            monotonic_ns=clock.monotonic_ns,
            wall_ns=lambda: WALL0,
            sleep=clock.sleep,
        )
        source.open()
        blocks = [source.read(0.2) for _ in range(100)]
        source.close()
    n_read = sum(len(block.pcm) for block in blocks if block is not None)
    elapsed_s = (clock.now_ns - MONO0) / 1e9
    assert elapsed_s > 0
    assert n_read / 16_000 == pytest.approx(elapsed_s + MAX_LEAD_S, abs=0.5)


def read_until_lost(source: NetworkStream) -> tuple[list[SourceBlock], SourceError]:
    blocks: list[SourceBlock] = []
    while True:
        try:
            block = source.read(0.2)
        except SourceError as error:
            source.close()
            return blocks, error
        assert block is not None
        blocks.append(block)


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3"])
def test_a_stream_over_http_has_the_level_of_the_file(format: str) -> None:
    sound = tone(1.0, 44_100, 2)
    body = encoded(sound, 44_100, format)
    with http_server(lambda handler: send(handler, body)) as url:
        source = network_stream(url)
        source.open()
        blocks, error = read_until_lost(source)
    pcm = joined(blocks)
    assert pcm.shape[1] == 2
    assert {block.rate for block in blocks} == {44_100}
    assert abs(len(pcm) - len(sound)) <= 2 * 1_152  # an mp3 stream keeps its encoder's padding
    middle = pcm[4_000:-4_000]
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.25 / np.sqrt(2), rel=0.01)
    assert error.reason == LOST
    assert_at_its_end(error)


def test_lossless_samples_arrive_exactly() -> None:
    pcm = np.random.default_rng(1).integers(-30_000, 30_000, (8_000, 2)).astype(np.int16)
    with http_server(lambda handler: send(handler, encoded(pcm, 16_000, "WAV"))) as url:
        source = network_stream(url)
        source.open()
        blocks, _ = read_until_lost(source)
    np.testing.assert_array_equal(joined(blocks) * 32_768, pcm)
    age_ns = 1_024 * 1_000_000_000 // 16_000  # of a packet: its sound began with the connection
    assert (blocks[0].monotonic_ns, blocks[0].captured_ns) == (MONO0 - age_ns, WALL0 - age_ns)


def packet(at_ms: int, n_frames: int = 400, rate: int = 16_000, **options: bool) -> SourceBlock:
    pcm = np.full((n_frames, 1), at_ms, np.float32)
    since_ns = at_ms * 1_000_000
    return SourceBlock(pcm, rate, WALL0 + since_ns, MONO0 + since_ns, **options)


def test_packets_are_joined_to_blocks_and_timed_by_the_one_that_came_with_the_least_delay() -> None:
    source = network_stream("http://unused")
    source._opened_ns = MONO0
    late = [packet(40), packet(30), packet(55), packet(85)]  # of 25 ms, the second is in time
    source._blocks.extend(
        [*late, packet(900, overflowed=True), packet(950), packet(999, rate=8_000)]
    )
    first, damaged = source.read(0.2), source.read(0.2)
    assert first is not None
    assert [*dict.fromkeys(first.pcm[:, 0])] == [40, 30, 55, 85]
    assert first.monotonic_ns == MONO0 + 5_000_000
    assert first.captured_ns == WALL0 + 5_000_000
    assert damaged is not None
    assert ([*dict.fromkeys(damaged.pcm[:, 0])], damaged.overflowed) == ([900, 950], True)
    assert [block.rate for block in source._blocks] == [8_000]


def test_a_server_that_stalls_is_lost_after_the_read_timeout() -> None:
    body = encoded(tone(20.0, 16_000), 16_000, "WAV")
    release = threading.Event()

    def stall(handler: BaseHTTPRequestHandler) -> None:
        send(handler, body[: len(body) // 2])
        release.wait(30)

    with http_server(stall) as url:
        source = network_stream(url, read_timeout_s=0.5)
        source.open()
        blocks, error = read_until_lost(source)
        release.set()
    assert len(joined(blocks)) > 9 * 16_000
    assert error.reason == LOST
    assert "no data for 0.5 s" in str(error)


def test_a_server_that_dies_and_comes_back_is_heard_again() -> None:
    body = encoded(tone(0.5, 16_000), 16_000, "WAV")
    n_requests = 0

    def half_then_whole(handler: BaseHTTPRequestHandler) -> None:
        nonlocal n_requests
        n_requests += 1
        send(handler, body[:4_000] if n_requests == 1 else body)

    with http_server(half_then_whole) as url:
        source = network_stream(url)
        source.open()
        first, _ = read_until_lost(source)
        source.open()
        second, _ = read_until_lost(source)
    assert len(joined(first)) < 8_000
    assert len(joined(second)) == 8_000


def test_what_cannot_be_opened_is_said_without_the_password() -> None:
    with http_server(lambda handler: send(handler, b"", 404)) as url:
        pass  # closed again: nobody listens there now
    source = network_stream(url.replace("127.0.0.1", "user:secret@127.0.0.1"))
    with pytest.raises(
        SourceError, match=r"cannot open http://\*\*\*@127.0.0.1.*refused"
    ) as refused:
        source.open()
    assert refused.value.reason == ABSENT
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(("body", "status"), [(b"no sound here" * 100, 200), (b"", 404)])
def test_a_page_that_is_no_sound_is_refused(body: bytes, status: int) -> None:
    with http_server(lambda handler: send(handler, body, status)) as url:
        source = network_stream(url)
        with pytest.raises(SourceError, match="cannot open"):
            source.open()
        source.close()


def options_for(url: str, **options: str) -> dict[str, str]:
    return ffmpeg_options(UrlSource(type="url", url=url, options=options), url)


def test_cameras_are_asked_over_tcp_unless_the_options_say_otherwise() -> None:
    assert options_for("rtsp://camera/stream")["rtsp_transport"] == "tcp"
    over_udp = options_for("rtsp://camera/stream", rtsp_transport="udp", x="1")
    assert over_udp["rtsp_transport"] == "udp"
    assert over_udp["x"] == "1"
    assert "rtsp_transport" not in options_for("http://radio/stream")


def test_opening_a_port_that_accepts_and_says_nothing_ends_in_time() -> None:
    accepted = threading.Event()

    def silent(handler: BaseHTTPRequestHandler) -> None:
        accepted.wait(30)

    with http_server(silent) as url:
        source = network_stream(url, open_timeout_s=0.3)
        with pytest.raises(SourceError, match=r"cannot open .*: no data for 0\.3 s"):
            source.open()
        accepted.set()


def live_stream(url: str, **settings: object) -> NetworkStream:
    """Return a stream on the real clock."""
    return NetworkStream(UrlSource.model_validate({"type": "url", "url": url, **settings}))


def read_for(source: NetworkStream) -> tuple[list[SourceBlock], SourceError]:
    """Read on until the stream is lost; between blocks there may be nothing."""
    blocks: list[SourceBlock] = []
    end_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < end_s:
        try:
            block = source.read(0.2)
        except SourceError as error:
            source.close()
            return blocks, error
        if block is not None:
            blocks.append(block)
    raise AssertionError(f"the stream is not lost after {PATIENCE_S} s")


def refused(url: str, **settings: object) -> SourceError:
    """Return why a stream cannot be opened."""
    source = live_stream(url, **settings)
    with pytest.raises(SourceError) as caught:
        source.open()
    source.close()
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.slow
def test_sound_that_stops_while_video_goes_on_is_lost_by_the_source_itself() -> None:
    body = muxed((0.0, 2.0), 20.0)
    with http_server(paced(body, 10.0)) as url:
        source = live_stream(url, read_timeout_s=0.6)
        source.open()
        began_s = time.monotonic()
        blocks, error = read_for(source)
        assert time.monotonic() - began_s < 9
    assert error.reason == LOST
    assert str(error).endswith("was lost: no sound for 0.6 s although video comes")
    assert len(joined(blocks)) / 16_000 == pytest.approx(2.0, abs=0.2)


def test_reading_comes_back_in_time_while_video_alone_comes() -> None:
    with http_server(paced(muxed((0.0, 1.0), 20.0), 10.0)) as url:
        source = live_stream(url, read_timeout_s=5.0)
        source.open()
        blocks = list(iter(lambda: source.read(0.2), None))  # until a read finds nothing in time
        source.close()
    assert len(joined(blocks)) / 16_000 == pytest.approx(1.0, abs=0.2)


@pytest.mark.slow
def test_sound_that_begins_later_than_video_is_waited_for() -> None:
    with http_server(paced(muxed((4.0, 6.0), 6.0), 3.0)) as url:
        source = live_stream(url, read_timeout_s=1.0)
        source.open()
        blocks, _ = read_for(source)
    assert len(joined(blocks)) / 16_000 == pytest.approx(2.0, abs=0.3)


def test_video_alone_is_no_source_of_sound() -> None:
    with http_server(lambda handler: send(handler, muxed((0, 0), 2.0))) as url:
        error = refused(url)
    assert "expected a track of sound, got video alone" in str(error)


def aac(rate: int, n_channels: int, seconds: float) -> bytes:
    file = io.BytesIO()
    layout = "mono" if n_channels == 1 else "stereo"
    sound = tone(seconds, rate, n_channels).T
    with av.open(file, "w", format="adts") as container:
        stream = container.add_stream("aac", rate=rate, layout=layout)
        for start in range(0, sound.shape[1] - 1_024, 1_024):
            piece = np.ascontiguousarray(sound[:, start : start + 1_024])
            frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
            frame.sample_rate, frame.pts = rate, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def test_a_stream_that_changes_rate_and_channels_goes_on() -> None:
    formats = [(44_100, 1), (22_050, 2), (48_000, 2)]
    body = b"".join(aac(rate, n_channels, 3.0) for rate, n_channels in formats)
    with http_server(lambda handler: send(handler, body)) as url:
        source = network_stream(url)
        source.open()
        blocks, error = read_until_lost(source)
    assert [*dict.fromkeys((block.rate, block.pcm.shape[1]) for block in blocks)] == formats
    assert sum(len(block.pcm) / block.rate for block in blocks) == pytest.approx(9.0, abs=0.3)
    assert_at_its_end(error)


def assert_at_its_end(error: SourceError) -> None:
    assert "has ended" in str(error) or "the connection was closed" in str(error)


def test_a_station_that_begins_a_new_ogg_stream_for_each_song_goes_on() -> None:
    song = encoded(tone(2.0, 48_000), 48_000, "OGG")
    with http_server(lambda handler: send(handler, song * 3)) as url:
        source = network_stream(url)
        source.open()
        blocks, error = read_until_lost(source)
    assert len(joined(blocks)) / 48_000 == pytest.approx(6.0, abs=0.1)
    assert_at_its_end(error)


def test_a_change_that_cannot_be_followed_is_a_loss_in_words() -> None:
    songs = [encoded(tone(2.0, rate), rate, "OGG") for rate in (48_000, 16_000)]
    with http_server(lambda handler: send(handler, b"".join(songs))) as url:
        source = network_stream(url)
        source.open()
        blocks, error = read_until_lost(source)
    assert len(joined(blocks)) / 48_000 == pytest.approx(2.0, abs=0.1)
    assert str(error).endswith("was lost: it changed in a way that FFmpeg cannot follow")


def test_timestamps_that_jump_back_are_no_loss() -> None:
    body = muxed((0.0, 2.0), 2.0)
    with http_server(lambda handler: send(handler, body * 3)) as url:
        source = network_stream(url)
        source.open()
        blocks, error = read_until_lost_or_empty(source)
    assert len(joined(blocks)) / 16_000 == pytest.approx(6.0, abs=0.5)
    assert_at_its_end(error)


def read_until_lost_or_empty(source: NetworkStream) -> tuple[list[SourceBlock], SourceError]:
    blocks: list[SourceBlock] = []
    while True:
        try:
            block = source.read(0.2)
        except SourceError as error:
            source.close()
            return blocks, error
        if block is not None:
            blocks.append(block)


def test_damaged_packets_are_passed_over_and_marked() -> None:
    body = bytearray(muxed((0.0, 4.0), 0.0, format="mp2"))
    third = len(body) // 3
    body[third : third + 3_000] = np.random.default_rng(0).bytes(3_000)
    with http_server(lambda handler: send(handler, bytes(body))) as url:
        source = network_stream(url)
        source.open()
        blocks, error = read_until_lost_or_empty(source)
    assert_at_its_end(error)
    assert len(joined(blocks)) / 16_000 > 3.0
    assert not blocks[0].overflowed
    assert any(block.overflowed for block in blocks)


def test_a_trickle_is_lost_in_time() -> None:
    body = encoded(tone(20.0, 16_000), 16_000, "WAV")

    def trickle(handler: BaseHTTPRequestHandler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"%x\r\n%b\r\n" % (200_000, body[:200_000]))
        for pts in range(200_000, 200_100):
            handler.wfile.write(b"1\r\n%b\r\n" % body[pts : pts + 1])
            time.sleep(0.1)

    with http_server(trickle) as url:
        source = network_stream(url, read_timeout_s=0.5)
        source.open()
        began_s = time.monotonic()
        _, error = read_until_lost(source)
        assert time.monotonic() - began_s < 8
    assert "no data for 0.5 s" in str(error)


PLAYLISTS = {
    "pls": "[playlist]\nFile1={}\nNumberOfEntries=1\nVersion=2\n",
    "windows pls": "\ufeff[Playlist]\r\nNumberOfEntries=1\r\nfile1 = {}\r\nTitle1=Radio\r\n",
    "m3u": "{}\n",
    "extended m3u": "#EXTM3U\n#EXTINF:-1,Radio Nowhere\n{}\n",
    "asx": '<asx version="3.0"><entry><Ref HREF="{}"/></entry></asx>',
    "asf reference": "[Reference]\nRef1={}\n",
    "xspf": '<?xml version="1.0"?>\n<playlist version="1" xmlns="http://xspf.org/ns/0/">'
    "<trackList><track><location>{}</location></track></trackList></playlist>",
}


def by_path(answers: dict[str, bytes], **kinds: str) -> Respond:
    """Answer by the last part of the path."""

    def respond(handler: BaseHTTPRequestHandler) -> None:
        name = handler.path.rpartition("/")[2]
        body = answers.get(name)
        handler.send_response(404 if body is None else 200)
        handler.send_header("Content-Type", kinds.get(name, "application/octet-stream"))
        handler.end_headers()
        handler.wfile.write(body or b"")

    return respond


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("suffix", ["", ".pls", ".m3u"])
def test_a_playlist_leads_to_its_stream(kind: str, suffix: str) -> None:
    answers = {"sound": encoded(tone(1.0, 16_000), 16_000, "WAV")}
    with http_server(by_path(answers)) as url:
        answers[f"list{suffix}"] = PLAYLISTS[kind].format(url).encode()
        source = network_stream(url.replace("sound", f"list{suffix}"))
        source.open()
        blocks, _ = read_until_lost(source)
    assert len(joined(blocks)) == 16_000


def test_a_playlist_may_lead_to_another_and_name_streams_beside_it() -> None:
    answers = {
        "sound": encoded(tone(1.0, 16_000), 16_000, "WAV"),
        "first.m3u": b"second.pls\n",
        "second.pls": b"[playlist]\nFile1=sound\n",
    }
    with http_server(by_path(answers)) as url:
        source = network_stream(url.replace("sound", "first.m3u"))
        source.open()
        blocks, _ = read_until_lost(source)
    assert len(joined(blocks)) == 16_000


def test_the_next_stream_of_a_playlist_is_tried_where_one_is_gone() -> None:
    answers = {
        "sound": encoded(tone(1.0, 16_000), 16_000, "WAV"),
        "list.m3u": b"gone\nsound\n",
    }
    with http_server(by_path(answers)) as url:
        source = network_stream(url.replace("sound", "list.m3u"))
        with pytest.raises(SourceError, match=r"gone: there is nothing at this address \(404\)"):
            source.open()
        source.open()
        source.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[playlist]\nFile1=file:///etc/passwd\n", "a playlist without any address"),
        ("#EXTM3U\n", "a playlist without any address"),
        ("#EXTM3U\nlist.m3u\n", "a playlist that leads to other playlists without end"),
    ],
)
def test_a_playlist_that_leads_nowhere_is_named(text: str, expected: str) -> None:
    with http_server(by_path({"list.m3u": text.encode()})) as url:
        error = refused(url.replace("sound", "list.m3u"))
    assert expected in str(error)
    assert error.max_pause_s == 60.0


HTML = b"<!DOCTYPE html><html><body>Hi</body></html>"


@pytest.mark.parametrize(
    ("name", "kind", "body", "expected"),
    [
        ("sound", "text/html; charset=utf-8", HTML, "a web page came instead of sound"),
        ("sound", "", b"<html><head><title>Login</title></head></html>" * 50, "a web page"),
        ("list.m3u", "audio/x-mpegurl", HTML, "a web page came instead of sound"),
        ("sound", "application/json", b'{"error": "no such stream"}', "JSON came instead of sound"),
        ("list.pls", "", b'[{"a": 1}]' * 100, "JSON came instead of sound"),
        (
            "sound",
            "text/plain",
            b"offline until Monday\n",
            "instead of sound: 'offline until Monday'",
        ),
        ("sound", "audio/mpeg", b"", "the server answers with nothing"),
        ("list.m3u", "audio/x-mpegurl", b"", "the server answers with nothing"),
    ],
)
def test_what_is_no_sound_is_called_by_name(
    name: str, kind: str, body: bytes, expected: str
) -> None:
    with http_server(by_path({name: body}, **{name: kind})) as url:
        error = refused(url.replace("sound", name))
    assert expected in str(error)
    assert str(error).startswith("cannot open http://127.0.0.1:")


@pytest.mark.parametrize(
    ("status", "expected", "max_pause_s"),
    [
        (401, "user and password are missing or wrong (401)", 60.0),
        (403, "access is forbidden (403)", 60.0),
        (404, "there is nothing at this address (404)", None),
        (410, "what was at this address is gone for good (410)", None),
        (418, "the server refuses the request (418 I'm a Teapot)", None),
        (429, "the server wants fewer requests (429)", 60.0),
        (500, "the server has a fault of its own (500 Internal Server Error)", None),
        (503, "the server has a fault of its own (503 Service Unavailable)", None),
    ],
)
def test_each_refusal_of_a_server_has_its_own_words(
    status: int, expected: str, max_pause_s: float | None
) -> None:
    with http_server(lambda handler: send(handler, b"<html>no</html>", status)) as url:
        error = refused(url)
    assert str(error) == f"cannot open {url}: {expected}"
    assert error.max_pause_s == max_pause_s
    assert error.reason == ABSENT


def test_redirects_are_followed() -> None:
    answers = {"moved": encoded(tone(0.5, 16_000), 16_000, "WAV")}

    def respond(handler: BaseHTTPRequestHandler) -> None:
        if handler.path.endswith("moved"):
            by_path(answers)(handler)
            return
        handler.send_response(302)
        handler.send_header("Location", "/moved")
        handler.end_headers()

    with http_server(respond) as url:
        source = network_stream(url)
        source.open()
        blocks, _ = read_until_lost(source)
    assert len(joined(blocks)) == 8_000


def test_a_host_that_does_not_exist_is_named() -> None:
    error = refused("http://no-such-host.invalid/sound", open_timeout_s=5.0)
    assert "the host no-such-host.invalid is not found" in str(error)


def test_a_name_that_is_looked_up_without_end_is_waited_for_by_one_thread_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FFmpeg looks up names of hosts without any limit."""
    answer = threading.Event()
    n_calls = 0

    def hang(*arguments: Any, **options: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        assert answer.wait(PATIENCE_S)
        return av_open(*arguments, **options)

    av_open = av.open
    with http_server(by_path({"sound": encoded(tone(1.0, 16_000), 16_000, "WAV")})) as url:
        monkeypatch.setattr(UrlSource, "opening_limit_s", 0.1)
        monkeypatch.setattr(av, "open", hang)
        source = live_stream(url)
        for _ in range(3):
            with pytest.raises(SourceError, match=r"no answer in 0.1 s, not even to the name"):
                source.open()
        assert n_calls == 1
        answer.set()
        monkeypatch.setattr(UrlSource, "opening_limit_s", PATIENCE_S)
        source.open()
        assert source.read(PATIENCE_S) is not None
        source.close()


def test_sound_is_placed_where_it_began_and_not_where_ffmpeg_had_recognised_it() -> None:
    """FFmpeg reads a second of a live MP3 before it gives any of it, and then all at once."""
    body = encoded(tone(6.0, 44_100), 44_100, "MP3")
    with http_server(paced(body, 6.0)) as url:
        source = NetworkStream(UrlSource(type="url", url=url))
        began_ns = time.monotonic_ns()
        source.open()
        opened_ns = time.monotonic_ns()
        first = source.read(0.2)
        assert first is not None
        samples, begins_ns = 0, []
        block: SourceBlock | None = first
        while samples < 3 * 44_100:
            if block is not None:
                samples += len(block.pcm)
                begins_ns.append(time.monotonic_ns() - samples * 1_000_000_000 // 44_100)
            block = source.read(0.2)
        source.close()
    assert opened_ns - began_ns > 500_000_000  # it was recognised late, or nothing is shown here
    # what has come was sent in real time, from about there on; on a busy machine some came late
    assert abs(first.monotonic_ns - min(begins_ns)) < 300_000_000
