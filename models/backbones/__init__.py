"""Backbones by name: timm's, and what timm and torchvision do not already have."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import timm
from torch import nn

from models.backbones.deconvolution import Deconvolution, DeconvolutionSize
from models.backbones.hrnet import hrnet_stem, pose_hrnet
from models.backbones.mobilenet import pose_mobilenetv2
from models.backbones.pyramid import Pyramid
from models.backbones.swin import SwinSize, pose_swin
from models.backbones.tokenpose import JointTokens, TokenSize
from models.backbones.vit import ViTSize, pose_vit

__all__ = [
    "Deconvolution",
    "DeconvolutionSize",
    "JointTokens",
    "Pyramid",
    "TokenSize",
    "build_backbone",
]

#: A backbone, which returns a list of feature maps, and the channels of each by its stride.
Built = tuple[nn.Module, dict[int, int]]

#: The published backbones that are not a timm model as it stands; each takes the input size.
_OWN: dict[str, Callable[[tuple[int, int]], Built]] = {
    "pose_hrnet_w32": partial(pose_hrnet, "hrnet_w32"),
    "pose_hrnet_w48": partial(pose_hrnet, "hrnet_w48"),
    "hrnet_stem": hrnet_stem,
    "pose_mobilenetv2": pose_mobilenetv2,
    "pct_swin_base": partial(pose_swin, SwinSize(128, (2, 2, 18, 2), (4, 8, 16, 32), 0.3)),
    "pct_swin_large": partial(pose_swin, SwinSize(192, (2, 2, 18, 2), (6, 12, 24, 48), 0.5)),
    "pct_swin_huge": partial(pose_swin, SwinSize(256, (2, 2, 42, 2), (8, 16, 32, 64), 0.55)),
    "pose_vit_small": partial(pose_vit, ViTSize(384, 12, 12, 0.1)),
    "pose_vit_base": partial(pose_vit, ViTSize(768, 12, 12, 0.3)),
    "pose_vit_large": partial(pose_vit, ViTSize(1024, 24, 16, 0.5)),
    "pose_vit_huge": partial(pose_vit, ViTSize(1280, 32, 16, 0.55)),
}


def build_backbone(name: str, input_size: tuple[int, int]) -> Built:
    """A backbone with random weights.

    Args:
        name: one of this package's own, else a timm model's.
        input_size: width and height in pixels, which windows and learnt positions depend on.

    Raises:
        RuntimeError: timm does not know the name, or the backbone cannot take that input size.
    """
    if name in _OWN:
        return _OWN[name](input_size)
    backbone = timm.create_model(name, features_only=True)
    info: Any = backbone.feature_info
    return backbone, dict(zip(info.reduction(), info.channels(), strict=True))
