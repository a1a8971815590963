"""Matrix products in fp8 on GPUs, with scales of their own for each token; for inference alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ast_stream.errors import StartupError
from ast_stream.model.ast import AudioSpectrogramTransformer, Block

NUMBERS = torch.float8_e4m3fn  # 4 bits of exponent, 3 of mantissa: what inference takes
LARGEST = torch.finfo(NUMBERS).max  # 448
SMALLEST_SCALE = 1e-30  # of a token of zeros
ALIGNMENT = 16  # of both widths of a layer: what the products of GPUs ask for
# Of the check, relative to the largest value: the result's own rounding, and the shorter sums of
# tensor cores in fp8, which keep some 14 bits. Wrong scales give far more.
MAX_ERROR = {torch.float16: 5e-3, torch.bfloat16: 1e-2, torch.float32: 5e-3}


class Float8Linear(nn.Module):
    """A linear layer whose product is in fp8 (e4m3), of weights and activations.

    Weights have a scale for each output, activations one for each token, found in the token itself
    when it comes: nothing is calibrated, and what a token is rounded to does not depend on others.
    The product applies the scales and adds the bias; its result is in the inputs' dtype.

    Source: Micikevicius et al., "FP8 Formats for Deep Learning" (2022), and the row-wise scales of
    torchao's float8 inference, by the same operator. It exists on CPUs as well, where it is slow:
    that is how its numbers are tested without a GPU.

    Args:
        linear: the plain layer, in fp16, bf16 or fp32.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        numbers, scales = rounded(linear.weight.detach())  # (out_features, in_features)
        self._weight = numbers.t()  # by columns, as the product wants its second factor
        self._scales = scales.t()  # (1, out_features)
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out_features) for (..., in_features)."""
        numbers, scales = rounded(x.reshape(-1, x.shape[-1]))
        product = torch._scaled_mm(
            numbers, self._weight, scales, self._scales, self._bias,
            out_dtype=x.dtype, use_fast_accum=True,
        )  # fmt: skip
        return product.view(*x.shape[:-1], -1)


def rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows as fp8 numbers and the scale of each.

    Args:
        rows: shape (n, width), any float.

    Returns:
        Numbers (n, width) in fp8, and scales (n, 1) in fp32: a row is about numbers * scale. A row
        that holds NaN or infinity gives products that are not finite.
    """
    largest = torch.linalg.vector_norm(rows, torch.inf, dim=1, keepdim=True)  # one pass over rows
    scales = (largest.float() / LARGEST).clamp_min_(SMALLEST_SCALE)
    return (rows / scales).to(NUMBERS), scales


@torch.inference_mode()
def use_float8(model: AudioSpectrogramTransformer, n_plain: int = 1) -> None:
    """Put layers in fp8 in the place of the linear ones of blocks, all but the first, in place.

    Patch embedding, attention, norms and heads stay as they are: they are a small part of the
    work, or lose more. So does the first block, whose rounding all others hear: without it the
    differences of scores fall by a fifth (bundled checkpoint; see
    `scripts/measure_float8.py`).

    Args:
        n_plain: blocks at the beginning that stay as they are.

    Raises:
        StartupError: products in fp8 are missing, or wrong, here, or the model's widths are none
            that they take.
    """
    problem = _problem(model)
    if problem is not None:
        raise StartupError(f"precision fp8: {problem}")
    for block in list(model.blocks)[n_plain:]:
        assert isinstance(block, Block)
        for part in (block.attn, block.mlp):
            for name, child in list(part.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(part, name, Float8Linear(child))


def _problem(model: AudioSpectrogramTransformer) -> str | None:
    """Return why fp8 products cannot be used for a model, or None."""
    for width in (model.dims.hidden_size, model.dims.intermediate_size):
        if width % ALIGNMENT:
            return f"expected a model whose widths are multiples of {ALIGNMENT}, got {width}"
    like = next(model.parameters())
    with torch.random.fork_rng(devices=()):  # the seeds of others stay theirs
        torch.manual_seed(0)
        linear, tokens = nn.Linear(256, 32), torch.randn((48, 256))
    linear.weight.data[0] *= 50.0  # scales that differ between outputs, and between tokens
    tokens[0] *= 50.0
    linear, tokens = linear.to(like.device, like.dtype), tokens.to(like.device, like.dtype)
    expected = emulated(linear, tokens)
    try:
        found = Float8Linear(linear)(tokens)
    except (AttributeError, RuntimeError, ValueError) as missing:
        return f"no such products in torch {torch.__version__}: {str(missing).splitlines()[0]}"
    error = ((found - expected).abs().amax(dim=1) / expected.abs().amax(dim=1)).max().item()
    if not error <= MAX_ERROR[like.dtype]:
        return f"products differ from exact ones by {error:.2g}"
    return None


def emulated(linear: nn.Linear, tokens: Tensor) -> Tensor:
    """Return the result of `Float8Linear` for tokens (n, in_features), computed in float64."""
    (numbers, scales), (weights, weight_scales) = rounded(tokens), rounded(linear.weight.detach())
    product = (numbers.double() * scales) @ (weights.double() * weight_scales).T
    return product if linear.bias is None else product + linear.bias.double()
