"""ViTPose's backbone: timm's plain Vision Transformer, with its own patches.

Xu et al., "ViTPose: Simple Vision Transformer Baselines for Human Pose Estimation" (NeurIPS 2022),
as `ViT` of github.com/ViTAE-Transformer/ViTPose sets it up: patches of 16 pixels on a crop that is
padded by 2, no class token, the last features normalised.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

_PATCH = 16
_PADDING = 2


@dataclass(frozen=True)
class ViTSize:
    """Size of a Vision Transformer.

    Args:
        width: channels.
        blocks: how many.
        heads: of each block's attention.
        drop_path: how often training skips the last block's branches; those before less often.
    """

    width: int
    blocks: int
    heads: int
    drop_path: float


class _PoseViT(VisionTransformer):
    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        """`(N, 3, H, W)` to `[(N, C, H / 16, W / 16)]`."""
        rows, columns = self.patch_embed.grid_size
        features = self.forward_features(x).transpose(-2, -1)
        return [features.reshape(-1, self.num_features, rows, columns)]


def pose_vit(size: ViTSize, input_size: tuple[int, int]) -> tuple[nn.Module, dict[int, int]]:
    """The features of stride 16 of a Vision Transformer for inputs of that width and height.

    There is one position for each patch: what the published files hold besides them for a class
    token is dealt with when they are read.

    Raises:
        RuntimeError: the input does not divide into patches.
    """
    if any(pixels % _PATCH for pixels in input_size):
        raise RuntimeError(
            f"inputs of {input_size[0]}x{input_size[1]} do not divide into patches of "
            f"{_PATCH}x{_PATCH}"
        )
    network = _PoseViT(
        img_size=(input_size[1], input_size[0]),
        patch_size=_PATCH,
        num_classes=0,
        global_pool="",
        embed_dim=size.width,
        depth=size.blocks,
        num_heads=size.heads,
        class_token=False,
        drop_path_rate=size.drop_path,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )
    network.patch_embed.proj.padding = (_PADDING, _PADDING)
    return network, {_PATCH: size.width}
