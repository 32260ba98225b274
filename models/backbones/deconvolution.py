"""The transposed convolutions of SimpleBaselines, from stride 32 to stride 4."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class DeconvolutionSize:
    """Channels and kernel of the transposed convolutions.

    Raises:
        ValueError: the kernel is neither 2 nor 4, with which alone they double the size exactly.
    """

    width: int = 256
    kernel: int = 4

    def __post_init__(self) -> None:
        if self.kernel not in (2, 4):
            raise ValueError(f"deconvolution.kernel must be 2 or 4, not {self.kernel!r}")


class Deconvolution(nn.Sequential):
    """Three times: transposed convolution of stride 2, batch norm, ReLU.

    Xiao et al., "Simple Baselines for Human Pose Estimation and Tracking" (ECCV 2018), section 2;
    the indices are those of `deconv_layers` in its checkpoints.

    Args:
        channels: channels of the features.
        size: of the transposed convolutions.
    """

    #: How many times coarser what goes in is than what comes out.
    SCALE = 8

    def __init__(self, channels: int, size: DeconvolutionSize) -> None:
        layers: list[nn.Module] = []
        for inputs in (channels, size.width, size.width):
            upsample = nn.ConvTranspose2d(
                inputs, size.width, size.kernel, 2, (size.kernel - 2) // 2, bias=False
            )
            nn.init.normal_(upsample.weight, std=0.001)
            layers += [upsample, nn.BatchNorm2d(size.width), nn.ReLU(inplace=True)]
        super().__init__(*layers)
