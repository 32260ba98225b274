"""A light top-down pyramid that brings a backbone's deep features up to a finer stride."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import Conv2dNormActivation


class Pyramid(nn.Module):
    """Upsample, add the backbone's features of that stride, smooth; once for each halving.

    torchvision's FeaturePyramidNetwork smooths every level for a detector's many outputs; a pose
    head reads only the finest, so here each level is smoothed once, on the way up. The levels are
    named by their stride: a pyramid that stops at stride 8 shares its weights' names with one that
    goes on to 4.

    Args:
        channels: the backbone's channels by stride, such as `{4: 32, 8: 64, 16: 96, 32: 960}`.
        width: channels of the pyramid.
        stride: the finest stride, where the pyramid ends.
    """

    def __init__(self, channels: dict[int, int], width: int, stride: int) -> None:
        super().__init__()
        self.strides: Sequence[int] = sorted((s for s in channels if s >= stride), reverse=True)
        self.lateral = nn.ModuleDict(
            {
                str(s): Conv2dNormActivation(channels[s], width, 1, activation_layer=None)
                for s in self.strides
            }
        )
        self.smooth = nn.ModuleDict(
            {str(s): Conv2dNormActivation(width, width, 3) for s in self.strides[1:]}
        )

    def forward(self, features: dict[int, Tensor]) -> Tensor:
        """The backbone's features by stride to `(N, width, H / stride, W / stride)`."""
        x = self.lateral[str(self.strides[0])](features[self.strides[0]])
        for s in self.strides[1:]:
            finer = self.lateral[str(s)](features[s])
            x = self.smooth[str(s)](finer + functional.interpolate(x, size=finer.shape[-2:]))
        return cast(Tensor, x)
