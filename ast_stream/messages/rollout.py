"""What a centre stores about models: manifests, the model wanted of each box, roll-outs."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ast_stream.errors import WireError
from ast_stream.messages.codec import Body, Seconds, Text, Time, decode_json, encode_json, short

MAX_MANIFEST_BYTES = 512 * 1024
MAX_PLAN_BYTES = 900 * 1024  # below what a server takes at once
MAX_FILES = 64
MAX_TOTAL_BYTES = 1024**3
PIECE_BYTES = 4 * 1024 * 1024
_MAX_PIECES = MAX_TOTAL_BYTES // PIECE_BYTES
HASH = re.compile(r"sha256:[0-9a-f]{64}\Z")
_DIGEST = r"^[0-9a-f]{64}$"
# weights as safetensors alone: other formats can hold programs
_FILE = re.compile(r"(?!.*\.unfinished\Z)[A-Za-z0-9_][A-Za-z0-9._-]{0,120}\Z")
_CAN_HOLD_PROGRAMS = (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".py", ".so")

Digest = Annotated[str, Field(pattern=_DIGEST)]
Hash = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class ManifestFile(Body):
    """One file of a checkpoint."""

    name: Text
    size: Annotated[int, Field(alias="bytes", ge=0, le=MAX_TOTAL_BYTES)]
    digest: Annotated[Digest, Field(alias="sha256")]
    pieces: Annotated[list[Digest], Field(max_length=_MAX_PIECES)]
    """SHA-256 of each piece of `PIECE_BYTES`, in order; the last one may be shorter."""

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if not _FILE.match(self.name):
            raise ValueError(f"expected the name of a file, got {short(self.name.encode())}")
        if self.name.lower().endswith(_CAN_HOLD_PROGRAMS):
            raise ValueError(f"expected weights as safetensors, got {self.name}")
        if len(self.pieces) != -(-self.size // PIECE_BYTES):
            raise ValueError(f"expected pieces of {PIECE_BYTES} bytes, got {len(self.pieces)}")
        return self


class CheckpointManifest(Body):
    """A checkpoint, file by file; the SHA-256 of its bytes is the checkpoint's content hash."""

    v: Literal[1] = 1
    model: Hash
    """Hash of sizes, labels, statistics and weights, as events and workers name the model."""
    files: Annotated[list[ManifestFile], Field(min_length=1, max_length=MAX_FILES)]
    """In the order of their names."""

    @model_validator(mode="after")
    def _is_one_checkpoint(self) -> Self:
        names = [file.name for file in self.files]
        if names != sorted(set(names)):
            raise ValueError("expected each file once, in the order of their names")
        if self.total_bytes > MAX_TOTAL_BYTES:
            raise ValueError(f"expected at most {MAX_TOTAL_BYTES} bytes, got {self.total_bytes}")
        return self

    @property
    def total_bytes(self) -> int:
        """Of all files."""
        return sum(file.size for file in self.files)

    def encode(self) -> bytes:
        """Return the manifest as JSON, always the same bytes."""
        return encode_json(self.to_json())

    @property
    def content(self) -> str:
        """`sha256:` and the hash of the manifest: names weights, thresholds and all other files."""
        return content_hash(self.encode())

    @classmethod
    def decode(cls, body: bytes, content: str) -> CheckpointManifest:
        """Return the manifest in bytes from a store.

        Args:
            content: the hash that it is asked for by.

        Raises:
            WireError: these are other bytes, or no manifest.
        """
        what = f"checkpoint {content}"
        if content_hash(body) != content:
            raise WireError(f"{what}: its manifest is damaged, or not the one that was asked for")
        return cls.from_json(decode_json(body, what, MAX_MANIFEST_BYTES), what)


def content_hash(manifest: bytes) -> str:
    """Return `sha256:…` of the bytes of a manifest."""
    return f"sha256:{hashlib.sha256(manifest).hexdigest()}"


class WantedModel(Body):
    """The checkpoint wanted of a box, or of all boxes without an entry of their own."""

    v: Literal[1] = 1
    content: Hash | None
    """Content hash; None: the one that the configuration of the box names."""
    order: Text
    """Names the roll-out: a box that has refused a model tries it again for another order."""

    def encode(self) -> bytes:
        """Return it as JSON."""
        return encode_json(self.to_json())

    @classmethod
    def decode(cls, body: bytes) -> WantedModel:
        """Return what is wanted, from a store.

        Raises:
            WireError: it does not follow the format.
        """
        return cls.from_json(decode_json(body, "wanted model"), "wanted model")


Stage = Literal["canary", "others", "finishing", "done", "returning", "returned"]
"""How far a roll-out is.

* canary: one box uses the model, and is compared with itself before
* others: it was good; the others follow in batches
* finishing: all that are there use it; what is said of single boxes is put together
* done: the boxes use it, and those that come back will
* returning: it was worse, or an operator asked for it; boxes go back to what they had
* returned: they have
"""
ENDED: tuple[Stage, ...] = ("done", "returned")


class Baseline(Body):
    """How a box was before it used another model."""

    lag_s: Seconds | None = None
    hop_s: Seconds | None = None
    """The widest of its streams."""
    problems: list[Text] = Field(default_factory=list)
    """Digests of their sentences without the numbers."""
    unheard_s: Seconds | None = None
    """Of the last 24 hours, for each of its streams."""
    silent_streams: int = 0
    """Streams that were missing or degraded."""


class BoxProgress(Body):
    """What a roll-out knows of one box."""

    previous: Text | None = None
    """Content hash of the model wanted of it before; None: the one in its configuration."""
    baseline: Baseline | None = None
    asked_ns: Time | None = None
    """When it was asked to use the model."""
    in_use_ns: Time | None = None
    """When it was first known to use it."""
    bad: int = 0
    """Reports in a row that were worse than before."""
    judged: Text | None = None
    """Time of the newest report that was judged."""
    failed: Text | None = None
    """Why it does not use the model."""


class RolloutPlan(Body):
    """The plan and progress of a roll-out: all that is needed to continue after a kill."""

    v: Literal[1] = 1
    order: Text
    content: Hash
    model: Hash
    origin: Text
    """Where the checkpoint was read, for people."""
    canary: Text
    """`<site>.<box>`."""
    site: Text | None = None
    """Only boxes of this site; None: of all."""
    after_s: Seconds
    """How long the canary has to be good."""
    batch: int = 10
    """How many boxes follow at a time."""
    settle_s: Seconds = 60.0
    """How long each batch has to be good before the next one."""
    max_failures: int = 0
    """How many of the others may refuse the model, or return from it, before all return."""
    stage: Stage = "canary"
    began_ns: Time
    changed_ns: Time
    reason: Text | None = None
    """Why boxes return."""
    previous_all: Text | None = None
    """What was wanted of all boxes before; absent if nothing was."""
    had_all: bool = False
    """Whether something was wanted of all boxes."""
    boxes: dict[Text, BoxProgress] = Field(default_factory=dict)
    """By `<site>.<box>`, of those that were asked."""

    def encode(self) -> bytes:
        """Return it as JSON."""
        return encode_json(self.to_json())

    @classmethod
    def decode(cls, body: bytes) -> RolloutPlan:
        """Return the roll-out in bytes from a store.

        Raises:
            WireError: it does not follow the format.
        """
        what = "roll-out"
        return cls.from_json(decode_json(body, what, MAX_PLAN_BYTES), what)
