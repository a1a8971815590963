"""Names of an AST's tensors in the three kinds of files that exist, and in our own model.

`hub` are files on the Hugging Face Hub, `transformers` what transformers >= 5 holds in memory,
`original` the .pth files of YuanGongND/ast. Tables, not patterns: a renaming by substring would
mistake `attention.output.dense` for `output.dense`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from ast_stream.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

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


def detect(names: Iterable[str], where: str) -> KeyMap:
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
