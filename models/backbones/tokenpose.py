"""TokenPose: each joint is a token that looks at the picture's patches and at the other joints."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class TokenSize:
    """Size of TokenPose's transformer; a patch is so many features wide and high."""

    patch_width: int
    patch_height: int
    width: int = 192
    blocks: int = 12
    heads: int = 8
    mlp_ratio: float = 3.0


class JointTokens(nn.Module):
    """Feature maps to one vector for each joint.

    Li et al., "TokenPose: Learning Keypoint Tokens for Human Pose Estimation" (ICCV 2021),
    section 3: patches and learnt joint tokens go through one transformer; the patches' sine
    positions are added before every block, and kept with the weights as in the released files.
    Attention is scaled by the width of a head, as the paper says; the released TokenPose-S scales
    by the whole width, which is made good when its files are read.

    Args:
        channels: channels of the features.
        joints: K.
        feature_size: width and height of the features.
        size: of the transformer.

    Raises:
        ValueError: the features do not divide into patches of that size.
    """

    positions: Tensor

    def __init__(
        self, channels: int, joints: int, feature_size: tuple[int, int], size: TokenSize
    ) -> None:
        super().__init__()
        patch = (size.patch_width, size.patch_height)
        columns, rows = (whole // part for whole, part in zip(feature_size, patch, strict=True))
        if (columns * patch[0], rows * patch[1]) != feature_size:
            raise ValueError(
                f"features of {feature_size[0]}x{feature_size[1]} do not divide into patches of "
                f"{patch[0]}x{patch[1]}"
            )
        self.joint_tokens = nn.Parameter(torch.empty(1, joints, size.width))
        nn.init.trunc_normal_(self.joint_tokens, std=0.02)
        self.grid, self.patch = (rows, columns), patch[::-1]
        self.embed = nn.Linear(channels * patch[0] * patch[1], size.width)
        self.register_buffer("positions", sine_positions(columns, rows, size.width)[None])
        self.blocks = nn.ModuleList(
            Block(size.width, size.heads, size.mlp_ratio, norm_layer=nn.LayerNorm)
            for _ in range(size.blocks)
        )

    def forward(self, features: Tensor) -> Tensor:
        """`(N, C, h, w)` to `(N, K, width)`."""
        (rows, columns), (height, width) = self.grid, self.patch
        pixels = features.reshape(-1, features.shape[1], rows, height, columns, width)
        # The released order: patch by patch, each row by row, a pixel's channels together.
        patches = pixels.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        joints = self.joint_tokens.expand(features.shape[0], -1, -1)
        tokens = torch.cat((joints, self.embed(patches)), 1)
        positions = functional.pad(self.positions, (0, 0, joints.shape[1], 0))
        for block in self.blocks:
            tokens = block(tokens + positions)
        return tokens[:, : joints.shape[1]]


def sine_positions(columns: int, rows: int, width: int) -> Tensor:
    """Sines and cosines of each place's row and column: `(rows * columns, width)`.

    As Carion et al., "End-to-End Object Detection with Transformers" (ECCV 2020), `normalize` on:
    the first half of the channels tells the row, the second the column, at falling frequencies.
    """
    exponents = torch.arange(0, width // 2, 2) / (width // 2)
    frequencies = 10000.0**-exponents

    def waves(count: int) -> Tensor:
        phases = torch.arange(1, count + 1) / count * 2 * math.pi
        angles = phases[:, None] * frequencies
        return torch.stack((angles.sin(), angles.cos()), -1).flatten(1)

    across = waves(columns)[None].expand(rows, -1, -1)
    down = waves(rows)[:, None].expand(-1, columns, -1)
    return torch.cat((down, across), -1).flatten(0, 1)
