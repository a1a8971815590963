"""Weights: files of tensors in, tensors by our names out; nothing in a file is ever executed.

A frame head has a file of its own beside the model's, which other programs do not look at.

Only reading tensors imports torch: names and shapes of a safetensors file are read without it.

Three kinds of names exist: `hub` are files on the Hugging Face Hub, `transformers` what
transformers >= 5 holds in memory, `original` the .pth files of YuanGongND/ast. Tables, not
patterns: a renaming by substring would mistake `attention.output.dense` for `output.dense`.
"""

from __future__ import annotations

import pickle
import re
import stat
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from safetensors import SafetensorError, safe_open

from ast_stream.errors import CheckpointError
from ast_stream.model.hf_config import read_json

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]
_Read = TypeVar("_Read")

SAFETENSORS = ".safetensors"
PICKLE_SUFFIXES = (".bin", ".pth", ".pt", ".ckpt")
SUFFIXES = (SAFETENSORS, *PICKLE_SUFFIXES)
FRAMES = "frames.safetensors"
FRAME_HEAD = ("frame_head.weight", "frame_head.bias")  # the same in our names and in that file
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
INDEX_SUFFIX = ".index.json"
INDEXES = tuple(name + INDEX_SUFFIX for name in WEIGHTS)
REWRITE = "write the model again with save_pretrained(), or its state_dict() with torch.save()"

# What may lie beside the weights: none of it is a model.
_NO_MODEL = re.compile(
    r"(optimizer|scheduler|scaler|training_args|rng_state[_\d]*|trainer_state)\.\w+\Z"
)
_SHARD = re.compile(r".+-\d{5}-of-\d{5}\.\w+\Z")
_FOREIGN = {
    ".onnx": "ONNX",
    ".gguf": "GGUF",
    ".h5": "TensorFlow",
    ".tflite": "TensorFlow Lite",
    ".msgpack": "Flax",
    ".pt2": "torch.export",
}
# Where training scripts put a model's tensors among other things.
_INSIDE = ("state_dict", "model_state_dict", "model", "module", "net", "weights")

Value = TypeVar("Value")

Schema = Literal["hub", "transformers", "original"]
_COLUMN: dict[Schema, int] = {"hub": 0, "transformers": 1, "original": 2}
_HF = "audio_spectrogram_transformer."

# Our name: names in each schema; `{n}` is the layer.
_TOKENS = {
    "cls_token": (f"{_HF}embeddings.cls_token",) * 2 + ("v.cls_token",),
    "dist_token": (f"{_HF}embeddings.distillation_token",) * 2 + ("v.dist_token",),
    "pos_embed": (f"{_HF}embeddings.position_embeddings",) * 2 + ("v.pos_embed",),
}
# Modules with a weight and a bias.
_MODULES = {
    "patch_embed.proj": (f"{_HF}embeddings.patch_embeddings.projection",) * 2
    + ("v.patch_embed.proj",),
    "norm": (f"{_HF}layernorm",) * 2 + ("v.norm",),
    "head_norm": ("classifier.layernorm",) * 2 + ("mlp_head.0",),
    "head": ("classifier.dense",) * 2 + ("mlp_head.1",),
}
_LAYER_MODULES = {
    "norm1": (
        f"{_HF}encoder.layer.{{n}}.layernorm_before",
        f"{_HF}layers.{{n}}.layernorm_before",
        "v.blocks.{n}.norm1",
    ),
    "norm2": (
        f"{_HF}encoder.layer.{{n}}.layernorm_after",
        f"{_HF}layers.{{n}}.layernorm_after",
        "v.blocks.{n}.norm2",
    ),
    "attn.proj": (
        f"{_HF}encoder.layer.{{n}}.attention.output.dense",
        f"{_HF}layers.{{n}}.attention.o_proj",
        "v.blocks.{n}.attn.proj",
    ),
    "mlp.fc1": (
        f"{_HF}encoder.layer.{{n}}.intermediate.dense",
        f"{_HF}layers.{{n}}.mlp.fc1",
        "v.blocks.{n}.mlp.fc1",
    ),
    "mlp.fc2": (
        f"{_HF}encoder.layer.{{n}}.output.dense",
        f"{_HF}layers.{{n}}.mlp.fc2",
        "v.blocks.{n}.mlp.fc2",
    ),
}
_QKV: dict[Schema, tuple[str, ...]] = {
    "hub": tuple(
        f"{_HF}encoder.layer.{{n}}.attention.attention.{part}" for part in ("query", "key", "value")
    ),
    "transformers": tuple(f"{_HF}layers.{{n}}.attention.{part}_proj" for part in "qkv"),
    "original": ("v.blocks.{n}.attn.qkv",),
}
_LAYER_PREFIX: dict[Schema, str] = {
    "hub": f"{_HF}encoder.layer.",
    "transformers": f"{_HF}layers.",
    "original": "v.blocks.",
}
# Classifiers of the ImageNet model that the original files still carry.
_UNUSED_PREFIXES = ("v.head.", "v.head_dist.")
_NO_FILES = ("", ".", "..")
_NAMED_IN_MESSAGES = 3
# What torch.compile, activation checkpointing and FSDP put among the parts of every name.
_WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
# The tensor that tells where a model's names begin, whatever module holds the model.
_ANCHORS = (f"{_HF}embeddings.cls_token", "v.cls_token")
_NOT_WEIGHTS = {
    "lora_A": "an adapter (LoRA) beside a model: merge it with peft's merge_and_unload()",
    "lora_embedding_A": "an adapter (LoRA) beside a model: merge it with merge_and_unload()",
    "SCB": "weights quantised by bitsandbytes: write them as they were before",
    "absmax": "weights quantised by bitsandbytes: write them as they were before",
    "qweight": "quantised weights: write them as they were before",
    "weight_scale": "quantised weights: write them as they were before",
    "parametrizations": "parametrised weights: call remove_parametrizations(), then save them",
}


def weights_in(directory: Path) -> Path:
    """Return the file of a folder that holds the weights, or the index of several such files.

    Raises:
        CheckpointError: there is none, or more than one that might be meant.
    """
    for name in (*WEIGHTS, *INDEXES):
        if (directory / name).exists():
            return directory / name
    try:
        files = sorted(directory.iterdir())
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be read: {error.strerror or error}") from error
    candidates = [
        path
        for path in files
        if path.suffix in SUFFIXES and path.name != FRAMES and not _NO_MODEL.match(path.name)
    ]
    if len(candidates) == 1:
        return candidates[0]
    found = ", ".join(path.name for path in candidates) or "none"
    raise CheckpointError(
        f"{directory}: expected {' or '.join(WEIGHTS)}, or one file ending in "
        f"{', '.join(SUFFIXES)}, got {found}{_what_else(files)}"
    )


def read_frame_head(directory: Path) -> dict[str, Tensor]:
    """Return the frame head beside a model's weights under our names, as float32.

    Raises:
        CheckpointError: the file is missing, damaged, or holds anything else.
    """
    path = directory / FRAMES
    tensors = read_tensors(path)
    if set(tensors) != set(FRAME_HEAD):
        raise CheckpointError(
            f"{path}: expected {' and '.join(FRAME_HEAD)}, got {_some(tensors) or 'no tensors'}"
        )
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{path}: {name}: expected floating point numbers, got {tensor.dtype}"
            )
    return {name: tensors[name].float() for name in FRAME_HEAD}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors, .bin, .pth, .pt or .ckpt file, on the CPU.

    Args:
        path: such a file, or the index (`….index.json`) of the files that a checkpoint is split in.

    Raises:
        CheckpointError: a file is missing, empty, damaged, of another kind, or holds more or
            other things than tensors by name.
    """
    return _read(path, _safetensors, _pickled)


def read_shapes(path: Path) -> dict[str, Shape]:
    """Return the shapes of the tensors that `read_tensors` returns.

    Raises:
        CheckpointError: as `read_tensors`, for what can be seen without reading the numbers.
    """
    return _read(path, _safetensors_shapes, _pickled_shapes)


def _read(
    path: Path,
    read_safe: Callable[[Path], dict[str, _Read]],
    read_pickle: Callable[[Path], dict[str, _Read]],
) -> dict[str, _Read]:
    if path.name.endswith(INDEX_SUFFIX):
        return _read_shards(path, read_safe, read_pickle)
    if path.suffix not in SUFFIXES:
        kind = _FOREIGN.get(path.suffix)
        raise CheckpointError(
            f"{path}: expected a file ending in {', '.join(SUFFIXES)}, got '{path.suffix}'"
            + (f", a model for {kind}; {REWRITE}" if kind else "")
        )
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise CheckpointError(f"{path}: expected a file, got something else of that name")
        if found.st_size == 0:
            raise CheckpointError(f"{path}: the file is empty")
        return read_safe(path) if path.suffix == SAFETENSORS else read_pickle(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise CheckpointError(f"{path}: does not fit into memory") from error


def _read_shards(
    index: Path,
    read_safe: Callable[[Path], dict[str, _Read]],
    read_pickle: Callable[[Path], dict[str, _Read]],
) -> dict[str, _Read]:
    """Return the tensors of all files that an index names, each tensor from the file it says."""
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise CheckpointError(f"{index}: weight_map: expected file names by tensor, got {where!r}")
    for tensor, name in where.items():
        # nothing outside of the folder, whatever the index says
        is_inside = isinstance(name, str) and name not in _NO_FILES and Path(name).name == name
        if not is_inside or name.endswith(INDEX_SUFFIX):
            raise CheckpointError(
                f"{index}: weight_map: {tensor}: expected the name of a file beside it, "
                f"got {name!r}"
            )
    tensors: dict[str, _Read] = {}
    for name in sorted(set(where.values())):
        shard = index.parent / name
        if not exists(shard):
            raise CheckpointError(f"{index}: {name} is missing beside it")
        held = _read(shard, read_safe, read_pickle)
        wanted = [tensor for tensor, file in where.items() if file == name]
        missing = [tensor for tensor in wanted if tensor not in held]
        if missing:
            raise CheckpointError(f"{shard}: expected {missing[0]}, as {index.name} says, got none")
        extra = held.keys() - set(wanted)
        if extra:
            raise CheckpointError(f"{shard}: {min(extra)} is not in {index.name}")
        tensors |= held
    return tensors


def exists(path: Path) -> bool:
    """Return whether a path exists; one that cannot (a NUL in it, too long) does not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file  # imports torch

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, KeyError) as error:  # KeyError: a type of numbers torch has not
        raise CheckpointError(f"{path}: damaged or not a safetensors file: {error}") from error
    return tensors


def _safetensors_shapes(path: Path) -> dict[str, Shape]:
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged or not a safetensors file: {error}") from error


def _pickled_shapes(path: Path) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in _pickled(path).items()}


def _pickled(path: Path) -> dict[str, Tensor]:
    import torch

    try:
        with warnings.catch_warnings():  # about old storages and protocols, of no use to a reader
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: expected tensors only, got a pickle with other objects or none that torch "
            f"wrote; it was not opened, since that could run code from the file: {REWRITE}"
        ) from error
    except (OSError, MemoryError):
        raise
    except Exception as error:  # torch raises many kinds for damaged files, KeyError among them
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"{path}: expected tensors, got a TorchScript program, which is not run: {REWRITE}"
            ) from error
        reason = str(error).split("\n")[0].split(". ")[0].strip() or type(error).__name__
        raise CheckpointError(f"{path}: damaged or not a torch file: {reason}") from error
    return _named_tensors(_inside(content, path), path)


def _inside(content: object, path: Path) -> Mapping[Any, object]:
    """Return the model's tensors from a file in which a training script saved other things, too."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: expected tensors by name, got {type(content).__name__}")
    if "param_groups" in content:
        raise CheckpointError(
            f"{path}: expected a model's tensors, got an optimizer's state: {REWRITE}"
        )
    models = [name for name in _INSIDE if isinstance(content.get(name), Mapping)]
    if len(models) > 1:
        raise CheckpointError(
            f"{path}: expected one model, got {' and '.join(models)}; "
            f"write the one that is meant with torch.save(content[{models[0]!r}], …)"
        )
    return content[models[0]] if models else content


def _named_tensors(content: Mapping[Any, object], path: Path) -> dict[str, Tensor]:
    import torch

    tensors: dict[str, Tensor] = {}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"{path}: expected tensors by name, got {type(value).__name__} under {name!r}"
            )
        if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
            raise CheckpointError(
                f"{path}: {name}: expected plain numbers, got a tensor that is sparse, quantised "
                f"or without data: {REWRITE}"
            )
        tensors[name] = value
    return tensors


def _what_else(files: list[Path]) -> str:
    """Return a hint about what a folder without weights seems to contain."""
    names = [path.name for path in files]
    if any(name.startswith("adapter_") for name in names):
        return (
            "; it holds an adapter (PEFT): load it into its model, merge_and_unload(), and "
            "save_pretrained()"
        )
    if any(map(_SHARD.match, names)):
        return (
            f"; these are parts of a checkpoint, whose {INDEXES[0]} is missing: write it again "
            "with save_pretrained(…, max_shard_size='10GB')"
        )
    foreign = next((path for path in files if path.suffix in _FOREIGN), None)
    if foreign is not None:
        return f"; {foreign.name} is a model for {_FOREIGN[foreign.suffix]}: {REWRITE}"
    inner = [path.name for path in files if any((path / name).exists() for name in WEIGHTS)]
    if inner:
        return f"; the folders in it have some: {', '.join(inner[:3])}"
    if any(map(_NO_MODEL.match, names)):
        return "; what is there is the state of a training"
    return ""


@dataclass(frozen=True)
class KeyMap:
    """Our tensor names, each with the names of the tensors it is made of, in order."""

    schema: Schema
    n_layers: int
    qkv_bias: bool

    def sources(self) -> dict[str, tuple[str, ...]]:
        """Return, for every tensor of our model, the tensors to join along the first axis."""
        column = _COLUMN[self.schema]
        sources: dict[str, tuple[str, ...]] = {
            own: (names[column],) for own, names in _TOKENS.items()
        }
        for own, names in _MODULES.items():
            sources |= _parameters(own, (names[column],), bias=True)
        for n in range(self.n_layers):
            for own, names in _LAYER_MODULES.items():
                source = (names[column].format(n=n),)
                sources |= _parameters(f"blocks.{n}.{own}", source, bias=True)
            qkv = tuple(name.format(n=n) for name in _QKV[self.schema])
            sources |= _parameters(f"blocks.{n}.attn.qkv", qkv, bias=self.qkv_bias)
        return sources


def detect_key_map(names: Iterable[str], where: str) -> KeyMap:
    """Return how the tensors called `names` map to ours.

    Raises:
        CheckpointError: these are not the tensors of an AST with a classifier.
    """
    known = set(names)
    if not known:
        raise CheckpointError(f"{where}: holds no tensors")
    for name in sorted(known):
        for part, reason in _NOT_WEIGHTS.items():
            if part in name.split("."):
                raise CheckpointError(f"{where}: holds {name}: {reason}")
    bare = {name for name in known if f".{name}".endswith(".embeddings.cls_token")}
    if bare and not bare & set(_ANCHORS):
        raise CheckpointError(
            f"{where}: expected an AST with a classifier, got a bare ASTModel without one"
        )
    for schema, prefix in _LAYER_PREFIX.items():
        layers = {
            name.removeprefix(prefix).split(".")[0] for name in known if name.startswith(prefix)
        }
        if layers:
            bias = f"{_QKV[schema][0].format(n=0)}.bias" in known
            return KeyMap(schema, n_layers=len(layers), qkv_bias=bias)
    raise CheckpointError(
        f"{where}: expected the tensors of an Audio Spectrogram Transformer, got {_some(known)}"
    )


def unwrapped(tensors: Mapping[str, Value], where: str) -> dict[str, Value]:
    """Return `tensors` under the names that the model itself gives them.

    Left out are what torch.compile and the like put into every name, and what modules that hold
    the model put before it: `module.` of DataParallel, `model.` of a Lightning module.

    Raises:
        CheckpointError: there are two models, or two tensors for one name.
    """
    short = {
        name: ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        for name in tensors
    }
    prefixes = {
        name.removesuffix(anchor)
        for name in short.values()
        for anchor in _ANCHORS
        if f".{name}".endswith(f".{anchor}")
    }
    if len(prefixes) > 1:
        found = " and ".join(repr(prefix) for prefix in sorted(prefixes))
        raise CheckpointError(f"{where}: expected one model, got several, under {found}")
    prefix = next(iter(prefixes), "")
    plain: dict[str, Value] = {}
    for name, tensor in tensors.items():
        own = short[name].removeprefix(prefix)
        if own in plain:
            raise CheckpointError(f"{where}: expected one tensor for {own}, got two")
        plain[own] = tensor
    return plain


def check_names(names: Iterable[str], key_map: KeyMap, where: str) -> None:
    """Refuse what lacks a tensor of the model, or holds others.

    Raises:
        CheckpointError: naming some of them.
    """
    known = set(names)
    expected = {name for parts in key_map.sources().values() for name in parts}
    missing = expected - known
    extra = {name for name in known - expected if not name.startswith(_UNUSED_PREFIXES)}
    if missing:
        raise CheckpointError(f"{where}: missing tensors: {_some(missing)}")
    if extra:
        raise CheckpointError(f"{where}: unexpected tensors: {_some(extra)}")


def to_own(tensors: Mapping[str, Tensor], key_map: KeyMap, where: str) -> dict[str, Tensor]:
    """Return `tensors` under our names, as float32, fused where ours are fused.

    Raises:
        CheckpointError: a tensor is missing, unexpected, empty, or not floating point.
    """
    import torch

    check_names(tensors, key_map, where)
    sources = key_map.sources()
    own: dict[str, Tensor] = {}
    for name, parts in sources.items():
        for part in parts:
            if not tensors[part].is_floating_point() or not tensors[part].numel():
                raise CheckpointError(
                    f"{where}: {part}: expected floating point numbers, got "
                    f"{tensors[part].dtype} of shape {tuple(tensors[part].shape)}"
                )
        try:
            own[name] = torch.cat([tensors[part].detach().float() for part in parts])
        except RuntimeError as error:
            shapes = ", ".join(f"{part} {tuple(tensors[part].shape)}" for part in parts)
            raise CheckpointError(f"{where}: shapes do not fit each other: {shapes}") from error
    return own


def from_own(state_dict: Mapping[str, Tensor], schema: Schema) -> dict[str, Tensor]:
    """Return our tensors under the names of `schema`, split where that has them apart."""
    n_layers = sum(name.endswith(".norm1.weight") for name in state_dict)
    key_map = KeyMap(schema, n_layers, qkv_bias="blocks.0.attn.qkv.bias" in state_dict)
    tensors: dict[str, Tensor] = {}
    for own, names in key_map.sources().items():
        for name, part in zip(names, state_dict[own].chunk(len(names)), strict=True):
            tensors[name] = part.contiguous()
    return tensors


def _parameters(own: str, sources: tuple[str, ...], *, bias: bool) -> dict[str, tuple[str, ...]]:
    kinds = ("weight", "bias") if bias else ("weight",)
    return {f"{own}.{kind}": tuple(f"{source}.{kind}" for source in sources) for kind in kinds}


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    shown = ", ".join(ordered[:_NAMED_IN_MESSAGES])
    rest = len(ordered) - _NAMED_IN_MESSAGES
    return f"{shown} and {rest} more" if rest > 0 else shown
