"""A small convolutional network that learns fast from few clips, to teach the transformer.

Convolutions know from the start that near things belong together, wherever they are; a transformer
must learn that. On a few hundred clips the network is better after a third of the steps, and its
opinions on the same windows take the transformer further than the labels do. It is used in training
only: what is exported is the transformer.

Source: Touvron et al., "Training data-efficient image transformers" (ICML 2021).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ast_stream.model.dims import Normalization
from ast_stream.training.precision import autocast_type

DROPOUT = 0.2


@dataclass(frozen=True)
class ConvolutionalDims:
    """Sizes: channels and stride of each layer; kernels are 3 x 3."""

    n_classes: int
    max_frames: int  # of its windows; any length fits
    channels: tuple[int, ...] = (32, 64, 64, 128, 128, 256, 256)
    strides: tuple[int, ...] = (2, 2, 1, 2, 1, 2, 1)


class ConvolutionalNetwork(nn.Module):
    """Log-mel windows (B, max_frames, n_mels), normalised, to logits (B, n_classes)."""

    def __init__(self, dims: ConvolutionalDims) -> None:
        super().__init__()
        self.dims = dims
        layers: list[nn.Module] = []
        n_in = 1
        for n_out, stride in zip(dims.channels, dims.strides, strict=True):
            layers += [
                nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(n_out),
                nn.ReLU(inplace=True),
            ]
            n_in = n_out
        self.layers = nn.Sequential(*layers)
        self.drop = nn.Dropout(DROPOUT)
        self.head = nn.Linear(2 * n_in, dims.n_classes)

    def forward(self, fbank: Tensor) -> Tensor:
        """Return the logits: what is heard at some time, and what is heard all the time."""
        image = fbank.transpose(1, 2).unsqueeze(1)  # (B, 1, n_mels, n_frames)
        # twice as fast as the usual order on CPUs
        image = image.to(memory_format=torch.channels_last)
        heard = self.layers(image).mean(dim=2)  # (B, C, n_frames / 16)
        pooled = torch.cat((heard.mean(dim=-1), heard.amax(dim=-1)), dim=1)  # (B, 2C)
        logits: Tensor = self.head(self.drop(pooled))
        return logits


class ConvolutionalTeacher:
    """Scores windows with a trained network.

    Attributes:
        is_taught: shape (n_classes,), 1.0: it knows all classes.
    """

    def __init__(self, network: ConvolutionalNetwork, normalization: Normalization) -> None:
        self._network = network.eval()
        self._normalization = normalization
        self._device = next(network.parameters()).device
        self._type = autocast_type("auto", self._device)
        self.is_taught = torch.ones(network.dims.n_classes)

    @torch.no_grad()
    def scores(self, fbank: Tensor) -> Tensor:
        """Return the scores of windows, shape (B, n_classes).

        Args:
            fbank: log-mel frames, padded but not normalised, shape (B, n_frames, n_mels).
        """
        with torch.autocast(
            self._device.type, self._type or torch.bfloat16, enabled=self._type is not None
        ):
            logits = self._network(self._normalization.apply(fbank))
        return torch.sigmoid(logits.float())
