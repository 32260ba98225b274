"""Published checkpoints: their key names in terms of ours.

The names of HRNet, SimpleBaselines, SimDR/SimCC (leeyegy/SimCC), their mmpose 0.x and 1.x versions
(`backbone.`, `head.` or `keypoint_head.`) and PCT are told apart by their prefixes alone, so that
one list of rules serves them all. Values are taken over as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

#: What is left out: PCT's second, identical backbone, which only its training reads, and tables
#: that are computed from the window size.
_LEFT_OUT = re.compile(r"extra_backbone\.|.*\.relative_(coords_table|position_index)$")

#: Patterns and what they become: a key follows every rule that matches, in this order.
_RULES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^module\.", ""),
    (r"^keypoint_head\.tokenizer\.", "representation.tokenizer."),
    (r"^(keypoint_)?head\.(deconv_head\.)?", "network.head."),
    (r"^(final_layer|mlp_head_[xy])\.", r"network.head.\1."),
    (r"^(network\.head\.)?deconv_layers\.", "network.deconvolution."),
    (r"^backbone\.", "network.backbone."),
    (r"^(?!network\.|representation\.)", "network.backbone."),
    (r"\.rpe_mlp\.", ".cpb_mlp."),
    (r"^network\.backbone\.norm3\.", "network.backbone.norm."),
    # PCT merges patches at the end of a stage, timm at the next one's start.
    (
        r"(?<=^network\.backbone\.layers\.)\d+(?=\.downsample\.)",
        lambda stage: str(int(stage[0]) + 1),
    ),
)


def rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published checkpoint's tensors under the keys of `PoseModel.module()`."""
    return {_renamed(key): value for key, value in tensors.items() if not _LEFT_OUT.match(key)}


def _renamed(key: str) -> str:
    for pattern, replacement in _RULES:
        key = re.sub(pattern, replacement, key)
    return key
