from __future__ import annotations

import numpy as np
import pytest
import torch

from models import heatmap, simcc

from .conftest import Golden

CASES = [
    ("simdr_k2_256x192", "max"),
    ("sasimdr_k2_256x192", "min"),
    ("simdr_k3_128", "max"),
    ("sasimdr_k1.5_384x288", "min"),
]


@pytest.mark.parametrize(("case", "score"), CASES)
def test_decode_agrees_with_the_authors(golden: Golden, case: str, score: simcc.Score) -> None:
    arrays = golden("simcc_official")
    decoded = simcc.decode(
        torch.tensor(arrays[f"{case}/x"]),
        torch.tensor(arrays[f"{case}/y"]),
        float(arrays[f"{case}/k"]),
        score,
    ).numpy()
    expected = arrays[f"{case}/preds_flip0_shift0"]
    # The reference maps to image pixels with one factor for both axes, the width's.
    size, centre = arrays[f"{case}/size_wh"], arrays[f"{case}/center"]
    factor = arrays[f"{case}/scale200"][:, 0] * 200 / size[0]
    image = (decoded[..., :2] - size / 2) * factor[:, None, None] + centre[:, None]
    np.testing.assert_allclose(image, expected[..., :2], atol=1e-3)
    np.testing.assert_allclose(decoded[..., 2], expected[..., 2], atol=1e-6)


def test_gaussian_targets_agree_with_the_authors(golden: Golden) -> None:
    arrays = golden("simcc_official")
    joints = torch.tensor(arrays["target/joints"])[:, :2].double()
    labelled = torch.tensor(arrays["target/vis"])[:, 0]
    x, y, weights = simcc.encode(joints, labelled, (192, 256), 2.0, "gaussian", 4.0)
    expected = arrays["target/sa_weight"][:, 0]
    np.testing.assert_array_equal(weights, expected)
    counted = expected > 0
    np.testing.assert_allclose(x[counted], arrays["target/sa_x"][counted], atol=1e-6)
    np.testing.assert_allclose(y[counted], arrays["target/sa_y"][counted], atol=1e-6)


def test_hard_targets_agree_with_the_authors(golden: Golden) -> None:
    arrays = golden("simcc_official")
    joints = torch.tensor(arrays["target/joints"])[:, :2].double()
    labelled = torch.tensor(arrays["target/vis"])[:, 0]
    x, y, weights = simcc.encode(joints, labelled, (192, 256), 2.0, "none")
    np.testing.assert_array_equal(
        torch.stack((x.argmax(1), y.argmax(1)), 1), arrays["target/hard_label"]
    )
    np.testing.assert_array_equal(weights, arrays["target/hard_weight"][:, 0])


def test_loss_and_gradient_agree_with_the_authors(golden: Golden) -> None:
    arrays = golden("simcc_official")
    x = torch.tensor(arrays["loss/x"], requires_grad=True)
    y = torch.tensor(arrays["loss/y"], requires_grad=True)
    value = simcc.loss(
        x,
        y,
        torch.tensor(arrays["loss/tx"]),
        torch.tensor(arrays["loss/ty"]),
        torch.tensor(arrays["loss/w"])[..., 0],
    )
    value.backward()
    assert value.item() == pytest.approx(float(arrays["loss/KLDiscret"]), rel=1e-5)
    np.testing.assert_allclose(x.grad, arrays["loss/KLDiscret_gx"], atol=1e-7)
    np.testing.assert_allclose(y.grad, arrays["loss/KLDiscret_gy"], atol=1e-7)


@pytest.mark.parametrize(
    ("smoothing", "spread"), [("gaussian", 4.0), ("laplace", 4.0), ("equal", 0.1), ("none", 0.0)]
)
@pytest.mark.parametrize("k", [1.0, 1.5, 2.0, 3.0])
def test_targets_are_distributions_that_decode_to_their_joint(
    smoothing: simcc.Smoothing, spread: float, k: float
) -> None:
    joints = 60 + 70 * torch.rand(8, 17, 2, generator=torch.Generator().manual_seed(0))
    x, y, weights = simcc.encode(joints, torch.ones(8, 17), (192, 256), k, smoothing, spread)
    assert (x.shape[-1], y.shape[-1]) == (int(192 * k), int(256 * k))
    # Sampling a peaked density at whole bins is not exactly normalised.
    torch.testing.assert_close(x.sum(-1), torch.ones(8, 17), atol=0.01, rtol=0)
    assert weights.min() == 1
    decoded = simcc.decode(x.log(), y.log(), k)[..., :2]
    assert (decoded - joints).abs().max() <= 0.5 / k + 1e-4


def test_unknown_smoothing_is_refused() -> None:
    with pytest.raises(ValueError, match="smoothing must be"):
        simcc.encode(torch.zeros(1, 2), torch.ones(1), (8, 8), smoothing="uniform")  # type: ignore[arg-type]


def test_the_score_is_relative_to_the_target() -> None:
    representation = simcc.SimCC((192, 256), k=2.0, spread=6.0)
    joints = torch.tensor([[[50.0, 60.0], [100.0, 120.0]]])
    x, y, _ = simcc.encode(joints, torch.ones(1, 2), (192, 256), 2.0, "gaussian", 6.0)
    exact = representation.decode((x.log(), y.log()))
    torch.testing.assert_close(exact[..., 2], torch.ones(1, 2), atol=0.01, rtol=0)
    vague = representation.decode((x.log() / 9, y.log() / 9))
    assert vague[..., 2].max() < 0.5


@pytest.mark.parametrize(("stride", "maps"), [(8, 1), (32, 28)])
def test_head_with_and_without_upsampling(stride: int, maps: int) -> None:
    representation = simcc.SimCC((192, 256), feature_stride=stride, maps=maps)
    head = representation.head(16, 17)
    x, y = head(torch.randn(2, 16, 256 // stride, 192 // stride))
    assert (x.shape, y.shape) == ((2, 17, 384), (2, 17, 512))


def test_a_fresh_head_on_heatmaps_finds_the_joints_at_once() -> None:
    representation = simcc.SimCC((192, 256))
    head = representation.head(17, 17)
    with torch.no_grad():
        head.final_layer.weight.copy_(torch.eye(17)[..., None, None])
        head.final_layer.bias.zero_()  # type: ignore[union-attr]
    joints = 20 + 140 * torch.rand(8, 17, 2, generator=torch.Generator().manual_seed(0))
    maps, _ = heatmap.encode(joints, torch.ones(8, 17), (48, 64))
    with torch.inference_mode():
        decoded = representation.decode(head(maps))
    assert (decoded[..., :2] - joints).abs().mean() < 1.5
