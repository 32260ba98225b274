"""Swin's fused attention says what timm's says, also after its weights have changed."""

from __future__ import annotations

import torch
from timm.models.swin_transformer_v2 import WindowAttention
from torch import Tensor, nn

from models.backbones.swin import SwinSize, pose_swin


def small() -> nn.Module:
    torch.manual_seed(0)
    network, _ = pose_swin(SwinSize(16, (2, 2, 1, 1), (1, 2, 2, 4), 0.0), (256, 256))
    with torch.no_grad():
        for name, weight in network.named_parameters():
            # Blocks begin as identities, biases as zero, and all heads as sharp as each other.
            if "norm" in name or name.endswith(("_bias", "logit_scale")):
                weight.add_(0.5 * torch.randn_like(weight))
    return network.eval()


def by_timm(network: nn.Module, crops: Tensor) -> Tensor:
    kinds = {part: type(part) for part in network.modules() if isinstance(part, WindowAttention)}
    assert kinds
    for part in kinds:
        part.__class__ = WindowAttention
    expected: Tensor = network(crops)[0]
    for part, kind in kinds.items():
        part.__class__ = kind
    return expected


def test_attention_is_timms_whatever_was_computed_before() -> None:
    network, crops = small(), torch.randn(2, 3, 256, 256)
    with torch.inference_mode():
        first = by_timm(network, crops)
        for _ in range(2):
            torch.testing.assert_close(network(crops)[0], first, atol=1e-5, rtol=1e-4)
    other = {key: 1.5 * value for key, value in network.state_dict().items()}
    network.load_state_dict(other)
    with torch.inference_mode():
        second = by_timm(network, crops)
        assert (second - first).abs().max() > 0.01
        torch.testing.assert_close(network(crops)[0], second, atol=1e-5, rtol=1e-4)


def test_what_is_kept_for_inference_keeps_no_gradient_away() -> None:
    network, crops = small(), torch.randn(1, 3, 256, 256)
    with torch.inference_mode():
        network(crops)
    found = network(crops)[0]
    (found * torch.randn_like(found)).sum().backward()
    tables = [weight for name, weight in network.named_parameters() if "cpb_mlp" in name]
    assert tables
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in tables)
