"""Many changed cases through each decoder, in processes of their own, and what became of them.

A case that a decoder takes in a way not seen before becomes the seed of more. A case is a finding
if the decoder raises anything but a refusal in a sentence, warns, ends its process, takes longer
than `MAX_CASE_S` or more memory than `MAX_CASE_BYTES`, or leaves files or threads behind.
"""

from __future__ import annotations

import base64
import ctypes
import faulthandler
import gc
import json
import logging
import mmap
import os
import resource
import select
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from fuzz.decoder import Broken, Decoder, digest, outcome_of
from fuzz.mutation import MAX_CASE_BYTES as MAX_FRAME_BYTES
from fuzz.mutation import Case, Mutator

MAX_CASE_S = 3.0  # of computing; the slowest kinds take a tenth of a second
MAX_CASE_BYTES = 512 * 1024 * 1024  # more than before it
_ALLOCATION_S = 0.01  # what takes less has not filled so much
MAX_WAIT_S = 90.0  # after which a process that does nothing hangs
MAX_POOL = 400  # cases of each decoder that others are made of
BATCH = 5_000
_PRINTS_EVERY = 100  # cases; what is printed is looked for so often, for it takes as long as a case
_LEFTOVERS = 8  # files or threads more than before a batch that are no finding
_SHARED_BYTES = 1 << 20
_ROOT = Path(__file__).parents[2]
FINDINGS = Path(__file__).parent / "findings"


@dataclass(frozen=True)
class Finding:
    """A case that breaks the law.

    Attributes:
        kind: what happened, the same for all cases in which it is the same fault.
        text: more of it, e.g. where it was raised; empty if it was read from `findings`.
    """

    decoder: str
    kind: str
    text: str
    case: Case

    def to_json(self) -> dict[str, Any]:
        """Return it as one process gives it to another."""
        frames = [base64.b64encode(frame).decode() for frame in self.case]
        return {
            "decoder": self.decoder, "kind": self.kind, "text": self.text, "frames": frames,
        }  # fmt: skip

    @classmethod
    def of_json(cls, body: dict[str, Any]) -> Finding:
        """Return what `to_json` returned."""
        case = tuple(base64.b64decode(frame) for frame in body["frames"])
        return cls(body["decoder"], body["kind"], body.get("text", ""), case)


@dataclass
class Tally:
    """What became of the cases of one decoder."""

    cases: int = 0
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0
    ways: Counter[str] = field(default_factory=Counter)
    """How cases were taken: each kind of refusal is one."""
    findings: dict[str, Finding] = field(default_factory=dict)
    """The first of each kind."""
    n_findings: int = 0

    def note(self, finding: Finding) -> None:
        """Add a finding."""
        self.n_findings += 1
        self.findings.setdefault(finding.kind, finding)

    def add(self, other: Tally) -> None:
        """Add what a batch found."""
        self.cases += other.cases
        self.accepted += other.accepted
        self.refused += other.refused
        self.seconds += other.seconds
        self.slowest_s = max(self.slowest_s, other.slowest_s)
        self.ways += other.ways
        self.n_findings += other.n_findings
        for kind, finding in other.findings.items():
            self.findings.setdefault(kind, finding)


class Campaign:
    """The cases of one decoder; the same seed makes the same ones."""

    def __init__(self, decoder: Decoder, seed: int) -> None:
        self.decoder = decoder
        self.tally = Tally()
        self._seed = seed
        self._batch = 0
        self._mutator = Mutator(decoder.seeds, decoder.tokens)
        self._pool: list[Case] = list(decoder.seeds)
        self._ways: set[str] = set()
        self._peak_bytes = _peak_bytes()

    def check_seeds(self) -> None:
        """Give the decoder what is right.

        Raises:
            Exception: it does not accept it.
        """
        for case in self.decoder.seeds:
            outcome = outcome_of(self.decoder, case)
            if not outcome.startswith("accepted"):
                raise Broken("a seed is refused", self.decoder.name, outcome)

    def run(self, n_cases: int, on_case: Callable[[Case], None] = lambda case: None) -> Tally:
        """Give the decoder so many changed cases in this process; return what became of them."""
        rng = Random(f"{self._seed} {self.decoder.name} {self._batch}")
        self._batch += 1
        tally = Tally()
        before = _left_behind()
        self._peak_bytes = _peak_bytes()
        with _strict():
            for _ in range(n_cases):
                case = self._next(rng)
                on_case(case)
                self._try(case, tally)
        more = _more_than(before)
        if max(more) > _LEFTOVERS:  # perhaps rubbish, which takes longer to collect than small runs
            gc.collect()
            more = _more_than(before)
        if max(more) > _LEFTOVERS:
            text = f"{more[0]} descriptors and {more[1]} threads more after {n_cases} cases"
            tally.note(Finding(self.decoder.name, "leaves something behind", text, ()))
        self.tally.add(tally)
        return tally

    def _next(self, rng: Random) -> Case:
        # what is right leads further than what is refused in yet another way
        base = rng.choice(self.decoder.seeds if rng.random() < 0.5 else self._pool)
        case = self._mutator.mutated(base, rng.choice(self._pool), rng)
        if self.decoder.repair is not None and rng.random() < 0.8:
            case = self.decoder.repair(case)
        return case

    def _try(self, case: Case, tally: Tally) -> None:
        tally.cases += 1
        began_s = time.perf_counter()
        try:
            way = outcome_of(self.decoder, case)
        except Exception as error:
            way = f"finding: {kind_of(error)}"
            text = "".join(traceback.format_exception(error))[-3_000:]
            tally.note(Finding(self.decoder.name, kind_of(error), text, case))
        seconds = time.perf_counter() - began_s
        tally.seconds += seconds
        tally.slowest_s = max(tally.slowest_s, seconds)
        tally.accepted += way.startswith("accepted")
        tally.refused += not way.startswith(("accepted", "finding"))
        if seconds > MAX_CASE_S and (cpu_s := self._computing_s(case)) > MAX_CASE_S:
            text = f"{cpu_s:.1f} s of computing"
            tally.note(Finding(self.decoder.name, "slow", text, case))
        if seconds > _ALLOCATION_S:
            peak, self._peak_bytes = self._peak_bytes, _peak_bytes()
            if (grown := self._peak_bytes - peak) > MAX_CASE_BYTES:
                text = f"{grown >> 20} MiB more than before"
                tally.note(Finding(self.decoder.name, "memory", text, case))
        tally.ways[way] += 1
        if way not in self._ways and sum(map(len, case)) < MAX_FRAME_BYTES // 4:
            self._ways.add(way)
            if len(self._pool) < MAX_POOL:
                self._pool.append(case)

    def _computing_s(self, case: Case) -> float:
        """Return how long a case takes if nothing else keeps the processor busy."""
        began_s = time.process_time()
        with suppress(Exception):
            outcome_of(self.decoder, case)
        return time.process_time() - began_s

    def run_apart(self, n_cases: int) -> Tally:
        """Do the same in a process of its own; one that ends or hangs is a finding, too.

        What is learnt of how cases are taken is kept.
        """
        shared = mmap.mmap(-1, _SHARED_BYTES)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _be_batch(self, n_cases, shared, writing)  # does not return
        os.close(writing)
        answer, is_hung = _answer_of(child, reading, shared)
        _, status = os.waitpid(child, 0)
        self._batch += 1
        tally = Tally()
        if answer:
            body = json.loads(answer)
            tally = _tally_of(body)
            self._ways.update(tally.ways)
            for frames in body["pool"]:
                self._pool.append(tuple(base64.b64decode(frame) for frame in frames))
        else:
            number, case = _shown_case(shared)
            tally.cases = number
            kind = "hangs" if is_hung else f"ends the process: status {status}"
            tally.note(Finding(self.decoder.name, kind, f"case {number} of its batch", case))
        self.tally.add(tally)
        shared.close()
        return tally


def kind_of(error: BaseException) -> str:
    """Return the type of an error and the last place of this program that it passed."""
    places = [
        f"{Path(frame.filename).relative_to(_ROOT)}:{frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.startswith(str(_ROOT / "ast_stream"))
    ]
    if isinstance(error, Broken):
        return error.fault
    return f"{type(error).__name__} in {places[-1] if places else 'no code of ours'}"


def shares(decoders: Sequence[Decoder], n_cases: int) -> dict[str, int]:
    """Return how many of the cases each decoder gets."""
    whole = sum(decoder.share for decoder in decoders)
    return {decoder.name: max(1, round(n_cases * decoder.share / whole)) for decoder in decoders}


def kept_findings() -> Iterator[tuple[Path, Finding]]:
    """Yield the findings of before, which must never come back."""
    for path in sorted(FINDINGS.glob("*.json")):
        yield path, Finding.of_json(json.loads(path.read_text()))


def keep_finding(finding: Finding, folder: Path = FINDINGS) -> Path:
    """Write a finding beside the others."""
    words = "".join(letter if letter.isalnum() else "-" for letter in finding.decoder)
    path = folder / f"{words}-{digest(finding.case)}.json"
    folder.mkdir(parents=True, exist_ok=True)
    body = finding.to_json()
    del body["text"]  # where it was raised is of one machine and one day
    path.write_text(json.dumps(body, indent=1) + "\n")
    return path


class _Formatting(logging.Handler):
    """Formats every record as a log would, so that a mistake in that is met."""

    def emit(self, record: logging.LogRecord) -> None:
        record.getMessage()


@contextmanager
def _strict() -> Iterator[None]:
    """Let a warning be an error, and what is logged be formatted and forgotten."""
    logger = logging.getLogger("ast_stream")
    handlers, level, is_passed_on = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = [_Formatting()], False
    logger.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        logger.handlers, logger.propagate = handlers, is_passed_on
        logger.setLevel(level)


def _left_behind() -> tuple[int, int]:
    return len(os.listdir("/proc/self/fd")), threading.active_count()


def _more_than(before: tuple[int, int]) -> list[int]:
    return [now - then for now, then in zip(_left_behind(), before, strict=True)]


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _be_batch(campaign: Campaign, n_cases: int, shared: mmap.mmap, writing: int) -> None:
    """Run a batch as the child, write what became of it, and end."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        faulthandler.disable()  # its end is told by the parent
        printed = os.memfd_create("standard output")
        os.dup2(printed, 1)
        c_library = ctypes.CDLL(None)
        gc.freeze()
        n_known = len(campaign._pool)
        numbers = iter(range(1, n_cases + 1))

        def show(case: Case) -> None:
            number = next(numbers)
            if n_cases < BATCH // 4 or number % _PRINTS_EVERY == 0:
                note_printed()
            last[:] = [case]
            _show_case(shared, number, case)

        def note_printed() -> None:
            """Meet what libraries print where results go."""
            c_library.fflush(None)
            if last and (size := os.fstat(printed).st_size):
                text = os.pread(printed, 200, 0).decode(errors="replace")
                os.ftruncate(printed, 0)
                os.lseek(printed, 0, os.SEEK_SET)
                found.append(
                    Finding(campaign.decoder.name, "prints", f"{size} bytes: {text}", last[0])
                )

        last: list[Case] = []
        found: list[Finding] = []
        tally = campaign.run(n_cases, show)
        note_printed()
        for one in found:
            tally.note(one)
        pool = [
            [base64.b64encode(frame).decode() for frame in case]
            for case in campaign._pool[n_known:]
        ]
        with open(writing, "w") as answer:
            json.dump(_tally_body(tally) | {"pool": pool}, answer)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(70)


def _show_case(shared: mmap.mmap, number: int, case: Case) -> None:
    """Leave the case where the parent finds it, should this process not come back from it."""
    frames = [number.to_bytes(8, "big"), len(case).to_bytes(4, "big")]
    for frame in case:
        frames += [len(frame).to_bytes(4, "big"), frame]
    content = b"".join(frames)
    if len(content) <= _SHARED_BYTES:
        shared[: len(content)] = content


def _shown_case(shared: mmap.mmap) -> tuple[int, Case]:
    number, n_frames = int.from_bytes(shared[:8], "big"), int.from_bytes(shared[8:12], "big")
    at, frames = 12, []
    for _ in range(n_frames):
        size = int.from_bytes(shared[at : at + 4], "big")
        frames.append(shared[at + 4 : at + 4 + size])
        at += 4 + size
    return number, tuple(frames)


def _answer_of(child: int, reading: int, shared: mmap.mmap) -> tuple[bytes, bool]:
    """Return what a child wrote until its end, and whether it had to be ended."""
    answer, seen, seen_s, is_hung = b"", -1, time.monotonic(), False
    with open(reading, "rb", buffering=0) as file:
        while True:
            if select.select([file], [], [], 1.0)[0]:
                piece = file.read(1 << 20)
                if not piece:
                    return answer, is_hung
                answer += piece
            number = int.from_bytes(shared[:8], "big")
            if number != seen:
                seen, seen_s = number, time.monotonic()
            elif time.monotonic() - seen_s > MAX_WAIT_S and not is_hung and not answer:
                is_hung = True
                os.kill(child, signal.SIGKILL)


def _tally_body(tally: Tally) -> dict[str, Any]:
    findings = [finding.to_json() for finding in tally.findings.values()]
    return vars(tally) | {"findings": findings, "ways": dict(tally.ways)}


def _tally_of(body: dict[str, Any]) -> Tally:
    findings = [Finding.of_json(one) for one in body["findings"]]
    fields = {name: value for name, value in body.items() if name != "pool"}
    fields |= {"ways": Counter(body["ways"]), "findings": {one.kind: one for one in findings}}
    return Tally(**fields)
