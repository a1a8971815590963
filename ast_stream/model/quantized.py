"""Matrix products in int8 on CPUs, with scales of their own for each token; for inference alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ast_stream.errors import StartupError
from ast_stream.model.ast import AudioSpectrogramTransformer, Block
from ast_stream.model.runners import cpu_has_int8

LARGEST = 127  # int8 is used symmetrically
ZERO_POINT = 128  # of activations, which the products take unsigned
SMALLEST_SCALE = 1e-30  # of a token of zeros
BLOCK = 400_000  # values that are rounded at once: what the cache holds, twenty times as fast
MAX_ERROR = 1e-5  # of the check, relative: only the order of two multiplications may differ


class QuantizedLinear(nn.Module):
    """A linear layer whose product is in int8, of weights and activations.

    Weights have a scale for each output, activations one for each token, found in the token itself
    when it comes: nothing is calibrated, and what a token becomes does not depend on others. Sums
    are exact in int32. Scales, bias and result are in the layer's own dtype.

    Source of the operators: see `PackedLinear`; of the way to quantise: Dettmers et al.,
    "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale" (NeurIPS 2022), section 2,
    vector-wise quantisation, here without its outliers.

    Args:
        linear: the plain layer, on the CPU in fp32 or bf16.
        n_rows: of the inputs to expect; others give the same, perhaps slower.
    """

    def __init__(self, linear: nn.Linear, n_rows: int) -> None:
        super().__init__()
        weight = linear.weight.detach().float()  # (out_features, in_features)
        scales = (weight.abs().amax(dim=1) / LARGEST).clamp_min(SMALLEST_SCALE)
        numbers = (weight / scales[:, None]).round_().to(torch.int8)
        prepack = torch.ops.onednn.qlinear_prepack
        self._linear_pointwise = torch.ops.onednn.qlinear_pointwise
        self._weight = prepack(numbers, [n_rows, linear.in_features])
        self._scales = scales
        self._zero_points = torch.zeros(linear.out_features, dtype=torch.int64)
        bias = linear.bias
        self._bias = linear.weight.new_zeros(()) if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out_features) for (..., in_features)."""
        tokens = x.reshape(-1, x.shape[-1])
        numbers, scales = quantized(tokens)
        product = self._linear_pointwise(
            numbers, 1.0, ZERO_POINT, self._weight, self._scales, self._zero_points, None,
            1.0, 0, x.dtype, "none", [], "",
        )  # fmt: skip
        return torch.addcmul(self._bias, product, scales).view(*x.shape[:-1], -1)


def quantized(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return tokens as whole numbers and the scale of each.

    Args:
        tokens: shape (n, width), fp32 or bf16.

    Returns:
        Numbers from 1 to 255, of which `ZERO_POINT` stands for 0, uint8; and scales (n, 1) in the
        tokens' dtype: a token is about (numbers - ZERO_POINT) * scale. The scale of a token that
        holds NaN or infinity is that.
    """
    numbers = torch.empty(tokens.shape, dtype=torch.int8)
    scales = tokens.new_empty((len(tokens), 1))
    step = max(1, BLOCK // tokens.shape[1])
    for start in range(0, len(tokens), step):
        rows = slice(start, start + step)
        largest = tokens[rows].abs().amax(dim=1, keepdim=True)
        scale = (largest / LARGEST).clamp_min_(SMALLEST_SCALE)
        scales[rows] = scale
        # by the scale as rounded to its dtype, which is what the product is multiplied by
        numbers[rows] = tokens[rows].float().mul(scale.float().reciprocal()).round_()
    # inverting the sign's bit adds 128: the products of many CPUs are fast for unsigned inputs only
    return numbers.view(torch.uint8).bitwise_xor_(ZERO_POINT), scales


@torch.inference_mode()
def quantize(model: AudioSpectrogramTransformer) -> None:
    """Put layers in int8 in the place of the linear ones of all blocks but the first, in place.

    Patch embedding, attention, norms and heads stay as they are: they are a small part of the
    work, or lose more. So does the first block, whose rounding all others hear: a quarter of the
    difference of scores comes from it (bundled checkpoint).

    Raises:
        StartupError: products in int8 are missing, or wrong, here.
    """
    problem = _problem()
    if problem is not None:
        raise StartupError(f"precision int8: {problem}")
    n_rows = model.dims.n_tokens
    for block in list(model.blocks)[1:]:
        assert isinstance(block, Block)
        for part in (block.attn, block.mlp):
            for name, child in list(part.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(part, name, QuantizedLinear(child, n_rows))


def _problem() -> str | None:
    """Return why int8 products cannot be used here, or None."""
    if not cpu_has_int8():
        return "this CPU has no instructions for it (VNNI or AMX)"
    with torch.random.fork_rng(devices=()):  # the seeds of others stay theirs
        torch.manual_seed(0)
        linear, tokens = nn.Linear(256, 32), torch.randn((5, 256))
    linear.weight.data[0] = 1.0  # and the largest sum there can be
    tokens[0] = 1.0
    numbers, scales = quantized(tokens)
    weight_scales = linear.weight.abs().amax(dim=1) / LARGEST
    weights = (linear.weight / weight_scales[:, None]).round()
    product = (numbers.double() - ZERO_POINT) @ weights.double().T
    expected = product * scales * weight_scales + linear.bias
    try:
        found = QuantizedLinear(linear, len(tokens))(tokens)
    except (AttributeError, RuntimeError) as missing:  # NotImplementedError is a RuntimeError
        return f"no such products in torch {torch.__version__}: {str(missing).splitlines()[0]}"
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    return None if error <= MAX_ERROR else f"products differ from exact ones by {error:.2g}"
