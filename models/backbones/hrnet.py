"""The HRNet of pose networks: timm's, without what only its classifiers need.

Sun et al., "Deep High-Resolution Representation Learning for Human Pose Estimation" (CVPR 2019).
With the names of the published checkpoints, which timm shares.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, cast

import timm
from torch import Tensor, nn


def pose_hrnet(name: str, _: tuple[int, int]) -> tuple[nn.Module, dict[int, int]]:
    """The branch of stride 4 of a timm HRNet, before the classifier widens it.

    The published pose networks read that branch alone, so the last fusion has no other outputs.
    """
    # timm's features are lists and a network's attributes modules, which its types do not tell.
    network: Any = timm.create_model(
        name, features_only=True, feature_location="", out_indices=(1,)
    )
    last = network.stage4[-1]
    last.fuse_layers = last.fuse_layers[:1]
    [channels] = network.feature_info.channels()
    return cast(nn.Module, network), {4: channels}


class _Stem(nn.Sequential):
    def forward(self, x: Tensor) -> list[Tensor]:
        """`(N, 3, H, W)` to `[(N, 256, H / 4, W / 4)]`."""
        return [super().forward(x)]  # type: ignore[no-untyped-call]


def hrnet_stem(_: tuple[int, int]) -> tuple[nn.Module, dict[int, int]]:
    """HRNet up to the end of its first stage, as TokenPose-S reads it (section 4.1, "stem-net")."""
    network = timm.create_model("hrnet_w32", features_only=True, out_indices=(1,))
    names = ("conv1", "bn1", "act1", "conv2", "bn2", "act2", "layer1")
    return _Stem(OrderedDict((name, network.get_submodule(name)) for name in names)), {4: 256}
