"""Verifiers: for each class a linear classifier on the embeddings of the encoder.

A file has a weight vector and a bias for each class, as safetensors, with a description as JSON in
its header. It belongs to one checkpoint, because embeddings of different checkpoints differ. The
score of an event is the logistic function of the weighted sum of its embedding: the mean of the
last layer's patches over frequency and over the time of the event so far.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ast_stream.detect.decision import Opinion
from ast_stream.detect.second_opinion import Embedding
from ast_stream.errors import StartupError
from ast_stream.messages.event import Event
from ast_stream.runtime.files import DamagedFileError, read_bounded, reason_of, replace_file
from ast_stream.settings.model import ModelSettings

logger = logging.getLogger(__name__)

LAYER = "final-norm patches, mean over frequency and over the event"
MAX_FILE_BYTES = 64 * 1024 * 1024
_DESCRIPTION = "ast_stream"  # key of the header
_MAX_LOGIT = 30.0

Floats = npt.NDArray[np.float32]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


_Count = Annotated[int, Field(ge=0)]
_Share = Annotated[float, Field(ge=0, le=1)]


class ClassVerifier(_Part):
    """The verifier of one class, without its weights.

    Attributes:
        threshold: events with a lower score are rejected.
        n_right, n_wrong: verdicts that it was fitted to.
        turned_off, lost: how many of these wrong and right events verifiers fitted without them
            would withhold.
    """

    label: str
    threshold: _Share
    n_right: _Count
    n_wrong: _Count
    turned_off: _Count
    lost: _Count


class VerifiersDescription(_Part):
    """The description in the header of a file.

    Attributes:
        checkpoint: its hash.
        provenance: when, from what and how the verifiers were fitted; for people.
    """

    version: Literal[1] = 1
    checkpoint: str
    layer: str
    width: Annotated[int, Field(ge=1, le=65_536)]
    classes: Annotated[list[ClassVerifier], Field(min_length=1, max_length=10_000)]
    provenance: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        labels = [verifier.label for verifier in self.classes]
        if len(set(labels)) < len(labels):
            raise ValueError("expected one verifier for each class")
        return self


@dataclass(frozen=True, eq=False)
class VerifiersFile:
    """The content of a file.

    Attributes:
        weights: shape (n_classes, width), float32, in the order of `description.classes`.
        biases: shape (n_classes,).
    """

    description: VerifiersDescription
    weights: Floats
    biases: Floats

    def score(self, number: int, embedding: Floats) -> float:
        """Return the score of an event of class `number`, in [0, 1], rounded to float32."""
        # in float64 and for one event at a time, so that nothing else affects the result
        logit = float(
            self.weights[number].astype(np.float64) @ embedding.astype(np.float64)
            + self.biases[number]
        )
        return float(np.float32(1 / (1 + math.exp(-min(max(logit, -_MAX_LOGIT), _MAX_LOGIT)))))

    @property
    def digest(self) -> str:
        """A hash that identifies these verifiers."""
        said = self.description.model_dump_json().encode()
        return hashlib.sha256(said + self.weights.tobytes() + self.biases.tobytes()).hexdigest()

    def write(self, path: Path) -> None:
        """Write the file, replacing an existing one atomically."""
        header = {_DESCRIPTION: json.dumps(self.description.model_dump())}
        replace_file(path, save({"weights": self.weights, "biases": self.biases}, header))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the content of a file.

        Raises:
            StartupError: it is missing, damaged or of another kind.
        """
        try:
            content = read_bounded(path, MAX_FILE_BYTES)
            tensors = load(content)
            description = VerifiersDescription.model_validate_json(_header(content))
        except (OSError, DamagedFileError) as error:
            raise StartupError(f"verifiers: {path}: {reason_of(error)}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise StartupError(f"verifiers: {path}: {where}: {first['msg']}") from error
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise StartupError(
                f"verifiers: {path}: expected a file that 'ast-stream review fit' wrote, "
                "got a damaged or another one"
            ) from error
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        n_classes = len(description.classes)
        expected = {"weights": (n_classes, description.width), "biases": (n_classes,)}
        if shapes != expected or not all(
            tensor.dtype == np.float32 and np.isfinite(tensor).all() for tensor in tensors.values()
        ):
            raise StartupError(
                f"verifiers: {path}: expected finite float32 numbers of shapes {expected}, "
                f"got {shapes}"
            )
        return cls(description, tensors["weights"], tensors["biases"])


def _header(content: bytes) -> str:
    """Return the description in the header of a safetensors file."""
    size = int.from_bytes(content[:8], "little")
    text: str = json.loads(content[8 : 8 + size])["__metadata__"][_DESCRIPTION]
    return text


def event_vector(embedding: Embedding) -> Floats:
    """Return the input of a verifier for an event, shape (width,)."""
    own = embedding.patches[embedding.first : embedding.stop]
    # one patch after the other: the order of summation must not depend on the CPU
    total = np.zeros(own.shape[1], np.float64)
    for patch in own:
        total += patch
    return (total / len(own)).astype(np.float32)


class Verifiers:
    """Judges events that are about to begin with the verifiers of a file.

    Attributes:
        file: the content of the file.
    """

    def __init__(self, file: VerifiersFile, labels: Sequence[str], *, is_tag_only: bool) -> None:
        self.file = file
        self._is_tag_only = is_tag_only
        known = {verifier.label: number for number, verifier in enumerate(file.description.classes)}
        self._numbers = {
            index: known[label] for index, label in enumerate(labels) if label in known
        }

    @property
    def labels(self) -> list[str]:
        """The classes that have a verifier."""
        return [verifier.label for verifier in self.file.description.classes]

    def concerns(self, index: int) -> bool:
        """Return whether the class with this index has a verifier."""
        return index in self._numbers

    def judge(self, begin: Event, embedding: Embedding) -> Opinion:
        """Return the opinion on an event that is about to begin."""
        number = self._numbers[begin.index]
        score = self.file.score(number, event_vector(embedding))
        is_withheld = (
            not self._is_tag_only and score < self.file.description.classes[number].threshold
        )
        if is_withheld:
            logger.info(
                "stream %s: %s withheld: score %.2f, verifier %.2f",
                begin.stream, begin.label, begin.score, score,
            )  # fmt: skip
        return Opinion(score, is_withheld)


def load_verifiers(
    settings: ModelSettings, checkpoint_hash: str, labels: Sequence[str]
) -> Verifiers | None:
    """Return the verifiers named in the settings, or None.

    Raises:
        StartupError: the file is missing, damaged, or of another checkpoint.
    """
    if settings.verifiers is None:
        return None
    path = Path(settings.verifiers.file)
    file = VerifiersFile.read(path)
    check_checkpoint(file.description, path, checkpoint_hash, labels)
    return Verifiers(file, labels, is_tag_only=settings.verifiers.action == "tag")


def check_checkpoint(
    description: VerifiersDescription, path: Path, checkpoint_hash: str, labels: Sequence[str]
) -> None:
    """Check that verifiers belong to this checkpoint.

    Raises:
        StartupError: they belong to another one.
    """
    if description.checkpoint != checkpoint_hash:
        raise StartupError(
            f"model.verifiers: {path}: expected verifiers of the checkpoint {checkpoint_hash}, "
            f"got those of {description.checkpoint}; fit them again with 'ast-stream review fit'"
        )
    if description.layer != LAYER:
        raise StartupError(
            f"model.verifiers: {path}: expected verifiers of the layer '{LAYER}', "
            f"got '{description.layer}'"
        )
    problem = problem_with_labels(description, labels)
    if problem is not None:
        raise StartupError(f"model.verifiers: {path}: {problem}")


def problem_with_labels(description: VerifiersDescription, labels: Sequence[str]) -> str | None:
    """Return a sentence about a verifier whose class the model lacks; None if there is none."""
    for verifier in description.classes:
        if verifier.label not in labels:
            return f"the model has no class '{verifier.label}'"
    return None
