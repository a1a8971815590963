"""Linear layers whose weights oneDNN has laid out once, for inference on a CPU.

torch's own linear layer multiplies by MKL, which knows the widest registers of some makers only,
and lays the weights out anew for each call where it multiplies by oneDNN. Laid out once, a product
takes 0.4 of the time in fp32 and 0.85 in bf16 (AMD EPYC with AVX-512, one thread, AST-base), and
the activation behind it is computed on the way.

Source: the operators that torch.compile puts in the place of linear layers on CPUs
(torch/_inductor/fx_passes/mkldnn_fusion.py). They are not part of torch's public interface, so
they are looked for and compared with the plain layer before they are used.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ast_stream.model.ast import AudioSpectrogramTransformer, Mlp

logger = logging.getLogger(__name__)

# largest difference from the plain layer on values of order 1: the order of sums, and bf16's steps
MAX_ERROR = {torch.float32: 1e-4, torch.bfloat16: 6e-2}
_FUSED = {"gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh"), "relu": ("relu", "")}
_NOT_FUSED = ("none", "")
_PROBE_ROWS = 8


class PackedLinear(nn.Module):
    """A linear layer, with the activation behind it if wanted; for inference alone.

    Args:
        linear: the plain layer, on the CPU in fp32 or bf16.
        n_rows: of the inputs to expect; others give the same, perhaps slower.
        activation: a name in `FUSED_ACTIVATIONS`, or None.
    """

    def __init__(self, linear: nn.Linear, n_rows: int, activation: str | None = None) -> None:
        super().__init__()
        self._post, self._algorithm = _FUSED[activation] if activation else _NOT_FUSED
        self._linear_pointwise = torch.ops.mkldnn._linear_pointwise
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), n_rows)
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out_features) for (..., in_features)."""
        result: Tensor = self._linear_pointwise(
            x, self._weight, self._bias, self._post, [], self._algorithm
        )
        return result


FUSED_ACTIVATIONS = frozenset(_FUSED)


@torch.inference_mode()
def pack(model: AudioSpectrogramTransformer) -> str | None:
    """Put packed layers in the place of the linear ones of a model, in place.

    Returns:
        None, or why the model stays as it is: what is missing or wrong here.
    """
    problem = _problem(next(model.parameters()).dtype)
    if problem is not None:
        return problem
    n_rows = model.dims.n_tokens
    activation = model.dims.activation
    for module in list(model.modules()):
        if isinstance(module, Mlp) and activation in FUSED_ACTIVATIONS:
            assert isinstance(module.fc1, nn.Linear)
            module.fc1 = PackedLinear(module.fc1, n_rows, activation)
            module.activation = nn.Identity()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, PackedLinear(child, n_rows))
    return None


def _problem(dtype: torch.dtype) -> str | None:
    """Return what keeps packed layers from being used here; None: nothing."""
    if dtype not in MAX_ERROR:
        return f"no packed layers in {dtype}"
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(64, 48).to(dtype)
    x = torch.randn((2, _PROBE_ROWS, 64), generator=generator).to(dtype)
    try:
        plain, gelu = PackedLinear(linear, _PROBE_ROWS), PackedLinear(linear, _PROBE_ROWS, "gelu")
        error = max(
            (plain(x) - linear(x)).abs().max().item(),
            (gelu(x) - F.gelu(linear(x))).abs().max().item(),
        )
    except (AttributeError, RuntimeError) as missing:  # NotImplementedError is a RuntimeError
        return f"no packed layers in torch {torch.__version__}: {str(missing).splitlines()[0]}"
    if not error <= MAX_ERROR[dtype]:
        return f"packed layers differ from plain ones by {error:.2g}"
    return None
