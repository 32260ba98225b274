"""PCT's backbone: timm's Swin Transformer V2 with its own windows.

Liu et al., "Swin Transformer V2" (CVPR 2022), as `SwinV2TransformerRPE2FC` of
github.com/Gengzigang/PCT sets it up: windows of 16, position tables that are scaled to the windows
of 12 that it was pre-trained with, and the last features normalised.
"""

from __future__ import annotations

from dataclasses import dataclass

from timm.layers.norm import LayerNorm
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn

_WINDOW = 16
_PRETRAINED_WINDOWS = (12, 12, 12, 6)


@dataclass(frozen=True)
class SwinSize:
    """Size of a Swin Transformer.

    Args:
        width: channels of the first stage; each stage doubles them.
        blocks: of each stage.
        heads: of each stage's attention.
        drop_path: how often training skips the last block's branches; those before less often.
    """

    width: int
    blocks: tuple[int, ...]
    heads: tuple[int, ...]
    drop_path: float


class _PoseSwin(SwinTransformerV2):
    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        """`(N, 3, H, W)` to `[(N, C, H / 32, W / 32)]`."""
        return [self.forward_features(x).permute(0, 3, 1, 2)]


def pose_swin(size: SwinSize, input_size: tuple[int, int]) -> tuple[nn.Module, dict[int, int]]:
    """The features of stride 32 of a Swin Transformer V2 for inputs of that width and height."""
    network = _PoseSwin(
        img_size=(input_size[1], input_size[0]),
        num_classes=0,
        embed_dim=size.width,
        depths=size.blocks,
        num_heads=size.heads,
        window_size=_WINDOW,
        pretrained_window_sizes=_PRETRAINED_WINDOWS,
        drop_path_rate=size.drop_path,
        norm_layer=LayerNorm,
    )
    return network, {32: network.num_features}
