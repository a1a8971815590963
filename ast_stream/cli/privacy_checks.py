"""Checks of `ast-stream doctor` for `privacy`: tries to get audio, and looks for recordings."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from ast_stream.cli.doctor_checks import Check
from ast_stream.errors import AstStreamError, WireError
from ast_stream.messages.audio import ReadRequest, RingReply
from ast_stream.messages.query import AudioAnswer, AudioQuery, Snapshot, SnapshotQuery
from ast_stream.privacy.access import SENSOR_REFUSAL
from ast_stream.recorder.clip import MAX_SHEET_BYTES, Sheet
from ast_stream.runtime.files import read_bounded
from ast_stream.settings import paths, storage
from ast_stream.settings.schema import Settings
from ast_stream.settings.storage import undeclared
from ast_stream.settings.workers import of_worker, process_name, worker_names
from ast_stream.transport.keys import client_keys
from ast_stream.transport.query import QueryClient
from ast_stream.transport.requester import listening_process
from ast_stream.transport.sockets import QUERY_HWM_MESSAGES, Sockets
from ast_stream.units import SAMPLE_RATE, counted

NAME = "privacy"
TIMEOUT_S = 2.0
MAX_FILES = 10_000
_HEAD_BYTES = 64
# how recordings begin: wav, flac, ogg, matroska, mp3, aiff, au, caf; and mp4 from the fifth byte on
_AUDIO = re.compile(
    rb"RIFF....WAVE|RF64....WAVE|fLaC|OggS|\x1aE\xdf\xa3|ID3|\xff[\xfb\xf3\xf2]|FORM....AIF|\.snd"
    rb"|caff|....ftyp",
    re.DOTALL,
)
_SWAP_FREE = re.compile(r"^VmSwap:\s+0 kB", re.MULTILINE)
_NO_CORE = re.compile(r"^Max core file size\s+0\s+0\s", re.MULTILINE)


def check_privacy(settings: Settings) -> Iterator[Check]:
    """Yield what trying to get audio comes to, and which files there are that should not be."""
    try:
        if settings.privacy == "off":
            text = "off: clients with the right audio can get it, see `ast-stream privacy`"
            yield Check(NAME, "ok", text, {"privacy": settings.privacy})
        else:
            for worker in worker_names(settings):
                own = of_worker(settings, worker)
                yield from _try_queries(own, process_name(worker))
                yield from _try_rings(own)
                yield from _check_memory(own, process_name(worker))
        yield from _check_files(settings)
    except (AstStreamError, OSError) as error:
        yield Check(NAME, "failed", str(error).split("\n")[0])


def _try_queries(settings: Settings, worker: str) -> Iterator[Check]:
    """Ask a running worker for a second of each stream, where it should not be given."""
    sockets = Sockets(client_keys(settings.transport))
    try:
        client = QueryClient(sockets, paths.query_endpoint(settings))
        answer = client.ask(SnapshotQuery(), TIMEOUT_S)
        if answer is None:
            text = f"{settings.privacy}: no {worker} answers, so that it could not be tried"
            yield Check(NAME, "warning", text, {"privacy": settings.privacy})
            return
        for health in Snapshot.decode(answer).streams:
            stop = round((health.audio_s or 0.0) * SAMPLE_RATE)
            query = AudioQuery(
                stream=health.stream, start=max(0, stop - SAMPLE_RATE), stop=max(1, stop)
            )
            yield _tried(settings, health.stream, client.ask(query, TIMEOUT_S))
    finally:
        sockets.close()


def _tried(settings: Settings, stream: str, answer: list[bytes] | None) -> Check:
    """Return what an answer to a query for audio means."""
    mode = settings.privacy
    restart = f"it does not run with privacy: {mode}; restart it"
    if answer is None:
        return Check(NAME, "failed", f"the worker did not answer a query for audio of {stream}")
    try:
        found = AudioAnswer.decode(answer)
    except WireError as error:
        if mode == "sensor" and SENSOR_REFUSAL not in str(error):
            text = f"the worker refused audio of {stream} for another reason: {error}; {restart}"
            return Check(NAME, "failed", text)
        return Check(NAME, "ok", f"{mode}: tried to get audio of {stream}, and was refused")
    if mode == "sensor":
        n = len(found.block.pcm)
        return Check(NAME, "failed", f"the worker gave {n} samples of {stream}: {restart}")
    if found.withheld is None:
        return Check(NAME, "failed", f"the worker withholds no speech of {stream}: {restart}")
    return Check(NAME, "ok", f"{mode}: an answer with audio of {stream} says what is withheld")


def _try_rings(settings: Settings) -> Iterator[Check]:
    """Ask each ring for audio, as only the worker may."""
    for stream in settings.streams:
        sockets = Sockets()
        try:
            endpoint = paths.ring_endpoint(settings, stream.name)
            if not Path(endpoint.removeprefix("ipc://")).exists():
                continue
            dealer = sockets.connect("dealer", endpoint, QUERY_HWM_MESSAGES)
            dealer.send(ReadRequest(v=1, op="read", stream=stream.name).encode())
            frames = dealer.receive(round(1000 * TIMEOUT_S))
            if frames is None:
                continue
            reply = RingReply.decode(frames, stream.name)
        except WireError:
            text = f"{settings.privacy}: tried to read the ring of {stream.name}, and was refused"
            yield Check(NAME, "ok", text)
        else:
            text = f"the ring of {stream.name} gave {len(reply.block.pcm)} samples: its process "
            text += f"does not run with privacy: {settings.privacy}; restart it"
            yield Check(NAME, "failed", text)
        finally:
            sockets.close()


def _check_memory(settings: Settings, worker: str) -> Iterator[Check]:
    """Look whether processes with sound in memory may leave it on a disk."""
    places = {worker: paths.query_endpoint(settings)}
    places |= {
        f"capture {stream.name}": paths.ring_endpoint(settings, stream.name)
        for stream in settings.streams
    }
    names: dict[int, list[str]] = {}  # one process may capture several streams
    for place, endpoint in places.items():
        if (pid := listening_process(endpoint)) is not None:
            names.setdefault(pid, []).append(place)
    for pid, found in names.items():
        name = ", ".join(found)
        try:
            limits = Path(f"/proc/{pid}/limits").read_text()
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue  # not ours to look at
        if not _NO_CORE.search(limits):
            yield Check(NAME, "failed", f"{name} may leave its memory in a core dump: restart it")
        elif not _SWAP_FREE.search(status):
            text = f"{name}: part of its memory is in the swap space: use the units, which forbid "
            yield Check(NAME, "warning", f"{text}that, or encrypt it")
        else:
            yield Check(NAME, "ok", f"{name}: no core dumps, and no memory is swapped out")


def _check_files(settings: Settings) -> Iterator[Check]:
    """Look for recordings, and for files of no declared kind, in the folders of the processes."""
    folders = [Path(settings.state_dir), paths.runtime_dir(settings)]
    files = list(islice((file for folder in folders for file in _files_in(folder)), MAX_FILES))
    found = [file for file in files if _is_recording(file)]
    undeclared_files = dict.fromkeys(undeclared(settings, iter(files)))
    sound = [file for file in found if file in undeclared_files]
    yield from _check_clips(settings, [file for file in found if file not in undeclared_files])
    for path in sound:
        yield Check(
            NAME, "failed" if settings.privacy != "off" else "warning", f"a recording: {path}"
        )
    unknown = [file for file in undeclared_files if file not in sound]
    for path in unknown[:10]:
        yield Check(NAME, "warning", f"a file that no process of this program keeps: {path}")
    if not sound and not unknown:
        of_these = "but for the clips none" if found else "none"
        text = f"{len(files)} files in {' and '.join(map(str, folders))}: {of_these} of them a "
        text += "recording"
        yield Check(NAME, "ok", text, {"files": len(files)})


def _check_clips(settings: Settings, clips: Sequence[Path]) -> Iterator[Check]:
    """Say how many clips of events there are, and which are from before speech was withheld."""
    if not clips:
        return
    before = 0
    for clip in clips if settings.privacy == "speech" else ():
        try:
            sheet = Sheet.decode(read_bounded(clip.with_suffix(".json"), MAX_SHEET_BYTES))
            before += sheet.withheld is None
        except (OSError, AstStreamError):
            before += 1
    if before:
        text = f"{counted(before, 'clip')} of {len(clips)} from before speech was withheld: delete "
        yield Check(NAME, "warning", f"{text}what is older in {storage.clips(settings).folder}")
    else:
        text = f"{counted(len(clips), 'clip')} of events, as the section recorder has it"
        yield Check(NAME, "ok", text, {"clips": len(clips)})


def _files_in(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        for name in names:
            yield Path(place) / name


def _is_recording(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return _AUDIO.match(file.read(_HEAD_BYTES)) is not None
    except OSError:
        return False
