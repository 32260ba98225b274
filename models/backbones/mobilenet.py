"""The MobileNetV2 of mmpose's SimCC: timm's, with the 1x1 convolution before its classifier.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (CVPR 2018), table 2.
"""

from __future__ import annotations

import timm
from torch import Tensor, nn


class _Features(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        for name in ("conv_stem", "bn1", "blocks", "conv_head", "bn2"):
            self.add_module(name, network.get_submodule(name))

    def forward(self, x: Tensor) -> list[Tensor]:
        """`(N, 3, H, W)` to `[(N, 1280, H / 32, W / 32)]`."""
        for layer in self.children():
            x = layer(x)
        return [x]


def pose_mobilenetv2(_: tuple[int, int]) -> tuple[nn.Module, dict[int, int]]:
    """The features of stride 32 after the last convolution, which timm's feature lists lack."""
    return _Features(timm.create_model("mobilenetv2_100")), {32: 1280}
