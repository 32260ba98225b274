"""PCT's backbone: timm's Swin Transformer V2 with its own windows.

Liu et al., "Swin Transformer V2" (CVPR 2022), as `SwinV2TransformerRPE2FC` of
github.com/Gengzigang/PCT sets it up: windows of 16, position tables that are scaled to the windows
of 12 that it was pre-trained with, and the last features normalised.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.layers.norm import LayerNorm
from timm.models.swin_transformer_v2 import (
    SwinTransformerV2,
    SwinTransformerV2Block,
    WindowAttention,
)
from torch import Tensor, nn
from torch.nn import functional

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


class _FusedAttention(WindowAttention):
    """timm's attention in one kernel, whose position biases are computed once for inference.

    The same numbers but for rounding. On two threads Swin-B with a heatmap head takes 0.62 of the
    time for eight crops, and 0.68 for one: the attention matrix is never written down.
    """

    _kept: Tensor | None = None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Windows `(N * windows, tokens, C)`, masks `(windows, tokens, tokens)`: see timm's."""
        number, tokens, width = x.shape
        offsets = torch.cat((self.q_bias, self.k_bias, self.v_bias))  # type: ignore[arg-type]
        projected = functional.linear(x, self.qkv.weight, offsets)
        parts = projected.view(number, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        # Windows that have masks of their own stand beside the heads: so all crops share the bias.
        windows = 1 if mask is None else len(mask)
        shape = (number // windows, windows * self.num_heads, tokens, -1)
        q, k, v = (part.reshape(shape) for part in parts.unbind(0))
        # A cosine of at most 100 times (Swin V2, section 3.2).
        scale = self.logit_scale.clamp(max=math.log(100)).exp().repeat(windows, 1, 1)
        attended = functional.scaled_dot_product_attention(
            functional.normalize(q, dim=-1) * scale,
            functional.normalize(k, dim=-1),
            v,
            attn_mask=self._bias(mask).to(v.dtype),
            dropout_p=self.attn_drop.p if self.training else 0.0,
            scale=1.0,
        )
        joined = attended.view(number, self.num_heads, tokens, -1).transpose(1, 2)
        return cast(Tensor, self.proj_drop(self.proj(joined.reshape(number, tokens, width))))

    def _bias(self, mask: Tensor | None) -> Tensor:
        """What is added to the cosines: `(1, windows * heads, tokens, tokens)`."""
        if self._kept is not None and not torch.is_grad_enabled():
            return self._kept
        tokens = self.window_size[0] * self.window_size[1]
        table = self.cpb_mlp(self.relative_coords_table).view(-1, self.num_heads)
        bias = table[cast(Tensor, self.relative_position_index).flatten()].view(tokens, tokens, -1)
        bias = 16 * torch.sigmoid(bias.permute(2, 0, 1))
        if mask is not None:
            bias = (bias + mask[:, None]).flatten(0, 1)
        bias = bias[None].contiguous()
        if not self.training and not torch.is_grad_enabled():
            self._kept = bias
        return bias

    def train(self, mode: bool = True) -> _FusedAttention:
        """Forget the bias, which training changes."""
        self._kept = None
        super().train(mode)
        return self

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> Any:
        self._kept = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._kept = None
        super()._load_from_state_dict(*arguments)


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
    for block in network.modules():
        if isinstance(block, SwinTransformerV2Block):
            # Not built anew: the same weights, whose first values are timm's.
            block.attn.__class__ = _FusedAttention
    return network, {32: network.num_features}
