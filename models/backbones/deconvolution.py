"""The transposed convolutions of SimpleBaselines and ViTPose, which lead to stride 4."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class DeconvolutionSize:
    """Channels, kernel and number of the transposed convolutions.

    Raises:
        ValueError: the kernel is neither 2 nor 4, with which alone they double the size exactly, or
            there is none.
    """

    width: int = 256
    kernel: int = 4
    layers: int = 3

    def __post_init__(self) -> None:
        if self.kernel not in (2, 4):
            raise ValueError(f"deconvolution.kernel must be 2 or 4, not {self.kernel!r}")
        if self.layers < 1:
            raise ValueError(f"deconvolution.layers must be 1 or more, not {self.layers!r}")

    @property
    def scale(self) -> int:
        """How many times coarser what goes in is than what comes out."""
        return 1 << self.layers


class Deconvolution(nn.Sequential):
    """Several times: transposed convolution of stride 2, batch norm, ReLU.

    Xiao et al., "Simple Baselines for Human Pose Estimation and Tracking" (ECCV 2018), section 2,
    three times; Xu et al., "ViTPose" (NeurIPS 2022), section 3.1, twice, the "classic decoder". The
    indices are those of `deconv_layers` in their checkpoints.

    Args:
        channels: channels of the features.
        size: of the transposed convolutions.
    """

    def __init__(self, channels: int, size: DeconvolutionSize) -> None:
        layers: list[nn.Module] = []
        for inputs in (channels, *[size.width] * (size.layers - 1)):
            upsample = nn.ConvTranspose2d(
                inputs, size.width, size.kernel, 2, (size.kernel - 2) // 2, bias=False
            )
            nn.init.normal_(upsample.weight, std=0.001)
            layers += [upsample, nn.BatchNorm2d(size.width), nn.ReLU(inplace=True)]
        super().__init__(*layers)
