"""The sound card edge: names, choice of format, the callback's queue, and every way to be lost."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clocks import FakeClock
from fake_portaudio import (
    HOST_ERROR,
    FakeSoundDevice,
    PortAudioError,
)
from source_blocks import MONO0, WALL0

import ast_stream.capture.sources.microphone as microphone_module
from ast_stream.capture.sound_cards import Card, InputDevice, find_cards, find_device, names_of
from ast_stream.capture.sources.base import SourceBlock, SourceError, SourceHungError
from ast_stream.capture.sources.microphone import BlockQueue, Microphone, list_devices
from ast_stream.errors import StartupError
from ast_stream.settings.streams import MicrophoneSource


def install(
    monkeypatch: pytest.MonkeyPatch,
    names: list[str],
    *,
    rates: set[int] | None = None,
    channels: set[int] | None = None,
) -> FakeSoundDevice:
    fake = FakeSoundDevice(names, rates=rates or {16_000}, channels=channels or {1})
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    monkeypatch.setattr(microphone_module, "find_cards", lambda: [Card(1, "Device")])
    return fake


def microphone(clock: FakeClock | None = None, **settings: object) -> Microphone:
    parsed = MicrophoneSource.model_validate({"type": "microphone", **settings})
    return Microphone(parsed, clock or FakeClock(MONO0), lambda: WALL0)


def ramp(n_frames: int, n_channels: int = 1, start: int = 0) -> Any:
    flat = np.arange(start, start + n_frames * n_channels, dtype=np.int16)
    return flat.reshape(n_frames, n_channels)


def device(index: int, name: str, stable: str | None = None, *aliases: str) -> InputDevice:
    return InputDevice(index, name, stable or name, aliases, "ALSA", 1, 48_000.0, index == 0)


DEVICES = [
    device(0, "HDA Intel: ALC (hw:0,0)", "hw:CARD=PCH,DEV=0"),
    device(1, "USB Audio Device: - (hw:1,0)", "usb:0d8c:0014@1-1.2", "hw:CARD=Device,DEV=0"),
    device(2, "USB Audio Device: - (hw:2,0)", "usb:0d8c:0014@1-1.3", "hw:CARD=Device_1,DEV=0"),
    device(3, "pulse"),
    device(4, "pulse2"),
]


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (None, 0),
        (2, 2),
        ("usb:0d8c:0014@1-1.3", 2),
        ("hw:card=device,dev=0", 1),
        ("pulse", 3),
        ("hda intel", 0),
        ("(hw:1,0)", 1),
    ],
)
def test_a_device_is_found_by_each_of_its_names(wanted: str | int | None, index: int) -> None:
    assert find_device(wanted, DEVICES).index == index


def test_an_ambiguous_name_is_refused_with_all_matches() -> None:
    with pytest.raises(SourceError, match="'USB Audio': expected one match") as refused:
        find_device("USB Audio", DEVICES)
    assert refused.value.reason == "device_ambiguous"
    assert "usb:0d8c:0014@1-1.2 (index 1" in str(refused.value)
    assert "usb:0d8c:0014@1-1.3 (index 2" in str(refused.value)


@pytest.mark.parametrize("wanted", ["Blue Yeti", 17])
def test_an_absent_device_is_said_with_those_that_are_there(wanted: str | int) -> None:
    with pytest.raises(SourceError, match=f"{wanted!r} is not there; .*hw:CARD=PCH") as refused:
        find_device(wanted, DEVICES)
    assert refused.value.reason == "device_absent"


def make_card(sysfs: Path, number: int, card_id: str, usb: dict[str, str] | None = None) -> None:
    """Build what /sys shows of one card: class/sound/cardN -> .../sound/cardN."""
    if usb is None:
        parent = sysfs / f"devices/pci0000:00/card-{number}"
    else:
        parent = sysfs / f"devices/usb1/{usb['port']}/{usb['port']}:1.0"
        parent.parent.mkdir(parents=True)
        for name in usb.keys() - {"port"}:
            (parent.parent / name).write_text(usb[name] + "\n")
    home = parent / f"sound/card{number}"
    home.mkdir(parents=True)
    (home / "id").write_text(card_id + "\n")
    (home / "device").symlink_to(parent)
    (sysfs / "class/sound").mkdir(parents=True, exist_ok=True)
    (sysfs / f"class/sound/card{number}").symlink_to(home)


def test_cards_are_known_by_serial_number_else_by_port_else_by_alsa_id(tmp_path: Path) -> None:
    usb = {"idVendor": "0d8c", "idProduct": "0014"}
    make_card(tmp_path, 0, "PCH")
    make_card(tmp_path, 1, "Device", usb | {"port": "1-1.2"})
    make_card(tmp_path, 12, "Mic", usb | {"port": "1-1.3", "serial": "A1B2"})
    (tmp_path / "class/sound/timer").mkdir()
    cards = find_cards(tmp_path)
    assert [card.number for card in cards] == [0, 1, 12]
    assert names_of("HDA: ALC (hw:0,2)", cards) == ["hw:CARD=PCH,DEV=2"]
    assert names_of("USB: - (hw:1,0)", cards) == [
        "usb:0d8c:0014@1-1.2",
        "hw:CARD=Device,DEV=0",
        "usb:0d8c:0014",
    ]
    assert names_of("Mic: - (hw:12,1)", cards)[0] == "usb:0d8c:0014:A1B2,DEV=1"
    assert names_of("pulse", cards) == ["pulse"]
    assert names_of("Gone: - (hw:7,0)", cards) == ["Gone: - (hw:7,0)"]


def test_without_sysfs_there_are_no_cards(tmp_path: Path) -> None:
    assert find_cards(tmp_path / "nowhere") == []


def test_devices_are_listed_with_stable_names_and_without_outputs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, ["Mic: - (hw:1,0)", "pulse"])
    found = list_devices()
    assert [(device.index, device.stable, device.is_default) for device in found] == [
        (0, "hw:CARD=Device,DEV=0", True),
        (1, "pulse", False),
    ]


def test_blocks_arrive_with_the_time_of_their_first_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, ["Mic"])
    mic = microphone()
    mic.open()
    stream = fake.streams[0]
    assert stream.arguments["samplerate"] == 16_000
    assert stream.arguments["blocksize"] == 1_600
    assert stream.arguments["latency"] == 0.2
    pcm = ramp(1_600)
    stream.deliver(pcm)
    block = mic.read(1.0)
    assert block is not None
    np.testing.assert_array_equal(block.pcm, pcm)
    assert (block.rate, block.overflowed) == (16_000, False)
    assert (block.monotonic_ns, block.captured_ns) == (MONO0 - 100_000_000, WALL0 - 100_000_000)
    mic.close()
    assert stream.calls == ["start", "abort", "close"]
    mic.close()


def test_the_native_rate_is_taken_where_16_khz_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, ["Mic"], rates={44_100, 48_000})
    mic = microphone()
    mic.open()
    assert fake.streams[0].arguments["samplerate"] == 44_100
    assert fake.streams[0].arguments["blocksize"] == 4_410


def test_all_channels_are_taken_where_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, ["Mic"], rates={48_000}, channels={2})
    mic = microphone()
    mic.open()
    assert fake.streams[0].arguments["samplerate"] == 48_000
    fake.streams[0].deliver(ramp(4_800, 2))
    block = mic.read(1.0)
    assert block is not None
    np.testing.assert_array_equal(block.pcm, ramp(4_800, 2))


def test_all_channels_of_a_sound_card_are_opened_to_pick_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = install(monkeypatch, ["Array: USB (hw:1,0)"], channels={1, 6})
    microphone(channel=4).open()
    assert fake.streams[0].arguments["channels"] == 6


def test_a_channel_that_the_device_lacks_is_named_with_their_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, ["Array: USB (hw:1,0)"], channels={1, 6})
    with pytest.raises(SourceError, match=r"channel 6 is wanted \(counted from 0\), .* has 6"):
        microphone(channel=6).open()


def test_a_sound_server_is_asked_for_a_channel_only_if_their_number_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = install(monkeypatch, ["pulse"], channels={1, 6, 32})
    with pytest.raises(SourceError, match="set `channels` to the number that the microphone has"):
        microphone(channel=4).open()
    microphone(channel=4, channels=6).open()
    assert fake.streams[0].arguments["channels"] == 6


def test_more_channels_than_the_device_has_are_refused_with_both_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, ["Array: USB (hw:1,0)"], channels={1, 6})
    with pytest.raises(SourceError, match=r"refuses 8 channels at .* Hz; it has 6"):
        microphone(channels=8).open()


def test_a_device_that_takes_nothing_we_can_use_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, ["Mic"], rates={8_000})
    with pytest.raises(SourceError, match="Mic refuses 1 channels at 16000, 44100, 48000 Hz"):
        microphone().open()


def test_a_device_in_use_is_not_asked_for_other_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, ["Mic"])
    fake.check_error = PortAudioError("Device unavailable", -9985)
    with pytest.raises(SourceError, match=r"Mic cannot be opened: .*Device unavailable") as refused:
        microphone().open()
    assert refused.value.reason == "device_absent"


def test_portaudio_is_started_anew_before_each_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, [])
    mic = microphone()
    with pytest.raises(SourceError, match="the default input is not there; input devices: none"):
        mic.open()
    fake.names, fake.default.device = ["Mic"], (0, -1)
    mic.open()
    assert fake.n_starts == 2
    assert fake.n_initialized == 1


def test_a_failed_start_of_portaudio_does_not_stand_in_the_way_of_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = install(monkeypatch, ["Mic"])
    fake.start_errors = [PortAudioError("Unanticipated host error", HOST_ERROR)]
    mic = microphone()
    with pytest.raises(SourceError, match="PortAudio does not start"):
        mic.open()
    mic.open()
    assert fake.streams[0].calls == ["start"]


def test_an_unplugged_device_is_lost_after_its_last_block(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, ["Mic"])
    mic = microphone()
    mic.open()
    fake.streams[0].deliver(ramp(1_600))
    fake.streams[0].arguments["finished_callback"]()
    assert mic.read(1.0) is not None
    with pytest.raises(SourceError, match="Mic has stopped") as lost:
        mic.read(1.0)
    assert lost.value.reason == "device_lost"


def test_a_device_that_falls_silent_is_stalled_after_ten_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = install(monkeypatch, ["Mic"])
    clock = FakeClock(MONO0)
    mic = microphone(clock)
    mic.open()
    clock.now_ns += 2_900_000_000  # a device may take its time for the first block
    assert mic.read(0.0) is None
    fake.streams[0].deliver(ramp(1_600))
    assert mic.read(0.0) is not None
    clock.now_ns += 990_000_000
    assert mic.read(0.0) is None
    clock.now_ns += 20_000_000
    with pytest.raises(SourceError, match=r"Mic has delivered nothing for 1\.0 s") as lost:
        mic.read(0.0)
    assert lost.value.reason == "stalled"


def test_a_sound_server_that_hangs_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, ["Mic"])
    fake.hangs = threading.Event()
    monkeypatch.setattr(microphone_module, "CLOSE_LIMIT_S", 0.05)
    mic = microphone()
    mic.open()
    with pytest.raises(SourceHungError, match=r"closing Mic: no answer in 0\.05 s"):
        mic.close()
    fake.hangs.set()


def test_a_hang_while_portaudio_starts_leaves_stderr_open(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fake = install(monkeypatch, ["Mic"])
    release = threading.Event()

    def start_without_stderr() -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)
        release.wait(30)

    monkeypatch.setattr(fake, "_initialize", start_without_stderr)
    monkeypatch.setattr(microphone_module, "OPEN_LIMIT_S", 0.2)
    with pytest.raises(SourceHungError, match="opening the default input: no answer"):
        microphone().open()
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"
    release.set()


def test_without_portaudio_the_reason_and_the_remedy_are_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "sounddevice":
                raise OSError("PortAudio library not found")

    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(StartupError, match=r"library not found.*apt install libportaudio2"):
        microphone().open()


def queue(n_slots: int = 3, n_channels: int = 1) -> BlockQueue:
    return BlockQueue(
        n_slots, 160, n_channels, 16_000, monotonic_ns=lambda: MONO0, wall_ns=lambda: WALL0
    )


def put(blocks: BlockQueue, pcm: Any, *, overflow: bool = False) -> None:
    blocks.put(memoryview(pcm.tobytes()), len(pcm), overflow)


def got(blocks: BlockQueue) -> SourceBlock:
    block = blocks.get(0.0)
    assert block is not None
    return block


def test_a_late_reader_loses_the_newest_frames_and_learns_where() -> None:
    blocks = queue()
    for number in range(5):
        put(blocks, ramp(160, start=number))
    assert [int(got(blocks).pcm[0, 0]) for _ in range(3)] == [0, 1, 2]
    assert blocks.get(0.0) is None
    put(blocks, ramp(160, start=5))
    after = got(blocks)
    assert after.overflowed
    assert int(after.pcm[0, 0]) == 5
    put(blocks, ramp(160, start=6))
    assert not got(blocks).overflowed


def test_an_overflow_inside_portaudio_is_marked() -> None:
    blocks = queue()
    put(blocks, ramp(160), overflow=True)
    put(blocks, ramp(160))
    assert [got(blocks).overflowed for _ in range(2)] == [True, False]


def test_a_block_is_the_readers_own() -> None:
    blocks = queue(n_slots=1)
    put(blocks, ramp(160))
    first = got(blocks)
    put(blocks, ramp(160, start=1_000))
    np.testing.assert_array_equal(first.pcm, ramp(160))


def test_shorter_blocks_and_several_channels_keep_their_shape() -> None:
    blocks = queue(n_channels=2)
    put(blocks, ramp(7, 2))
    np.testing.assert_array_equal(got(blocks).pcm, ramp(7, 2))
