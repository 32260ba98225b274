from __future__ import annotations

import numpy as np
import pytest
import torch

from models import heatmap, reference, simcc

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


def equal_targets(golden: Golden, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The targets of the fixture's labels, which are in bins, with the rest shared equally."""
    arrays = golden("simcc_official")
    labels = torch.tensor(arrays["loss/label"]).float()
    bins = (arrays["loss/x"].shape[-1], arrays["loss/y"].shape[-1])
    x, y, _ = simcc.encode(labels, torch.ones(labels.shape[:-1]), bins, 1.0, "equal", spread)
    return x, y


def test_equal_smoothing_loss_and_gradient_agree_with_the_authors(golden: Golden) -> None:
    arrays = golden("simcc_official")
    x = torch.tensor(arrays["loss/x"], requires_grad=True)
    y = torch.tensor(arrays["loss/y"], requires_grad=True)
    weights = torch.tensor(arrays["loss/w"])[..., 0]
    value = simcc.loss(x, y, *equal_targets(golden, 0.2), weights)
    value.backward()
    assert value.item() == pytest.approx(float(arrays["loss/NMTNORM_ls0.2"]), rel=1e-5)
    np.testing.assert_allclose(x.grad, arrays["loss/NMTNORM_ls0.2_gx"], atol=1e-7)
    np.testing.assert_allclose(y.grad, arrays["loss/NMTNORM_ls0.2_gy"], atol=1e-7)


def test_the_authors_other_loss_is_ours_times_bins_and_joints(golden: Golden) -> None:
    # NMTCritierion sums over bins and joints where ours is the mean: each axis has its own factor.
    arrays = golden("simcc_official")
    x = torch.tensor(arrays["loss/x"], requires_grad=True)
    y = torch.tensor(arrays["loss/y"], requires_grad=True)
    x_targets, y_targets = equal_targets(golden, 0.1)
    weights = torch.tensor(arrays["loss/w"])[..., 0]
    # Logits that are the targets' own logarithm add nothing for their axis.
    x_part = simcc.loss(x, y_targets.log(), x_targets, y_targets, weights)
    y_part = simcc.loss(x_targets.log(), y, x_targets, y_targets, weights)
    joints, x_bins, y_bins = x.shape[1], x.shape[2], y.shape[2]
    value = joints * (x_bins * x_part + y_bins * y_part)
    value.backward()
    assert value.item() == pytest.approx(float(arrays["loss/NMT_ls0.1"]), rel=1e-5)
    np.testing.assert_allclose(x.grad, arrays["loss/NMT_ls0.1_gx"], atol=1e-6)
    np.testing.assert_allclose(y.grad, arrays["loss/NMT_ls0.1_gy"], atol=1e-6)


@pytest.mark.parametrize(
    ("case", "sharpness", "weighted"),
    [("kl_plain", None, True), ("kl_rtm", 10, True), ("kl_rtm_b10l10_now", 10, False)],
)
def test_mmposes_loss_is_ours_times_the_batch(
    golden: Golden, case: str, sharpness: int | None, weighted: bool
) -> None:
    # mmpose's KLDiscretLoss sums over the batch where ours is the mean. RTMPose's takes both sides'
    # softmax after multiplying them with 10.
    arrays = golden("mmpose_codecs")
    x = torch.tensor(arrays["loss/x"], requires_grad=True)
    y = torch.tensor(arrays["loss/y"])
    targets = [torch.tensor(arrays[f"loss/g{axis}"]) for axis in "xy"]
    weights = torch.tensor(arrays["loss/w"]) if weighted else torch.ones(x.shape[:2])
    logits = (x, y)
    if sharpness is not None:
        targets = [(sharpness * target).softmax(-1) for target in targets]
        logits = (sharpness * x, sharpness * y)
    value = len(x) * simcc.loss(*logits, *targets, weights)
    value.backward()
    assert value.item() == pytest.approx(float(arrays[f"loss/{case}"]), rel=1e-5)
    np.testing.assert_allclose(x.grad, arrays[f"loss/{case}_gx"], atol=1e-6)


@pytest.mark.parametrize(
    ("case", "smoothing", "spreads", "peak_one"),
    [
        ("gauss_norm_s6", "gaussian", (6.0, 6.0), False),
        ("gauss_nonorm_rtm", "gaussian", (4.9, 5.66), True),
        ("std_ls0", "none", (0.0, 0.0), False),
        ("std_ls0.1", "equal", (0.1, 0.1), False),
    ],
)
def test_targets_agree_with_mmpose_where_it_counts_a_joint(
    golden: Golden,
    case: str,
    smoothing: simcc.Smoothing,
    spreads: tuple[float, float],
    peak_one: bool,
) -> None:
    # mmpose rounds a Gaussian's centre to a whole bin, and RTMPose scales it to a height of 1.
    arrays = golden("mmpose_codecs")
    labelled = torch.tensor(arrays["vis"])
    keypoints = (torch.tensor(arrays["kp"]).double() * 2).round() / 2
    counted = arrays[f"simcc_enc/{case}/w"] > 0
    assert counted.sum() >= 5
    for axis, spread in enumerate(spreads):
        *targets, weights = simcc.encode(keypoints, labelled, (192, 256), 2.0, smoothing, spread)
        height = spread * np.sqrt(2 * np.pi) if peak_one else 1.0
        ours = targets[axis].numpy() * height
        expected = arrays[f"simcc_enc/{case}/{'xy'[axis]}"]
        np.testing.assert_allclose(ours[counted], expected[counted], atol=1e-6)
        if smoothing == "gaussian":
            # It takes three spreads for bins; the authors, whom we follow, for pixels.
            assert (weights.numpy()[counted] == 1).all()
        else:
            np.testing.assert_array_equal(weights, counted)


def test_rtmposes_targets_agree_with_mmpose(golden: Golden) -> None:
    # mmpose rounds the centre to a whole bin, writes the sigmas down to two digits and leaves the
    # softmax of the ten times larger Gaussian to its loss.
    arrays = golden("mmpose_codecs")
    keypoints = (torch.tensor(arrays["kp"]).double() * 2).round() / 2
    labelled = torch.tensor(arrays["vis"])
    *targets, weights = simcc.encode(keypoints, labelled, (192, 256), 2.0, "ordinal")
    expected_weights = arrays["simcc_enc/gauss_nonorm_rtm/w"]
    np.testing.assert_array_equal(weights, expected_weights)
    assert 0 < expected_weights.mean() < 1
    for target, axis in zip(targets, "xy", strict=True):
        heights = torch.tensor(arrays[f"simcc_enc/gauss_nonorm_rtm/{axis}"])
        expected = (10 * heights).softmax(-1)[expected_weights > 0]
        np.testing.assert_allclose(target[expected_weights > 0], expected, rtol=5e-3)


@pytest.mark.parametrize(
    ("smoothing", "spread"),
    [("gaussian", 4.0), ("laplace", 4.0), ("equal", 0.1), ("none", 0.0), ("ordinal", 0.0)],
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


def test_rtmposes_score_and_loss_are_relative_to_its_target() -> None:
    representation = simcc.SimCC((192, 256), smoothing="ordinal", attention=256)
    joints = torch.tensor([[[50.0, 60.0], [100.0, 120.0]]])
    bins = [torch.arange(384.0), torch.arange(512.0)]
    # What its logits are trained to be: Gaussians of height 1, here of sigma 4.9 and 5.66 bins.
    exact = tuple(
        torch.exp(-((index - 2 * joints[..., axis, None]) ** 2) / (2 * sigma**2))
        for axis, (index, sigma) in enumerate(zip(bins, (4.9, 5.66), strict=True))
    )
    decoded = representation.decode(exact)
    torch.testing.assert_close(decoded[..., :2], joints)
    torch.testing.assert_close(decoded[..., 2], torch.ones(1, 2), atol=0.01, rtol=0)
    rule = reference.SIMCC_RULES["mmpose-simcc"]
    authors = reference.decode_simcc(*exact, 2.0, rule)
    torch.testing.assert_close(authors[..., 2], torch.ones(1, 2))
    vague = tuple(0.3 * logits for logits in exact)
    assert representation.decode(vague)[..., 2].max() < 0.2
    labelled = torch.ones(1, 2)
    assert representation.loss(exact, joints, labelled) < 1e-6
    assert representation.loss(vague, joints, labelled) > 1e-4


def test_attention_gates_a_sum_over_joints() -> None:
    torch.manual_seed(0)
    unit = simcc.GatedAttention(32)
    joints = torch.randn(5, 32)
    with torch.inference_mode():
        for weights in unit.parameters():
            torch.nn.init.normal_(weights)
        found = unit(joints[None])[0]
        lengths = joints.square().mean(-1, keepdim=True).sqrt()
        wide = torch.nn.functional.silu(unit.uv(joints / lengths * unit.ln.g))
        gates, values, shared = wide[:, :64], wide[:, 64:128], wide[:, 128:]
        for joint in range(5):
            query = shared[joint] * unit.gamma[0] + unit.beta[0]
            gathered = torch.zeros(64)
            for other in range(5):
                key = shared[other] * unit.gamma[1] + unit.beta[1]
                gathered += torch.relu(query @ key / 128**0.5) ** 2 * values[other]
            expected = unit.o(gates[joint] * gathered) + unit.res_scale["scale"] * joints[joint]
            torch.testing.assert_close(found[joint], expected, rtol=1e-4, atol=1e-3)


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


@pytest.mark.parametrize("smoothing", ["gaussian", "ordinal"])
def test_the_distributions_peak_where_the_joint_is_decoded(smoothing: simcc.Smoothing) -> None:
    size, k = (48, 64), 2.0
    representation = simcc.SimCC(size, k, smoothing)
    raw = tuple(torch.randn(2, 17, bins) for bins in representation.bins)
    told = representation.explain(raw)
    for axis, name in enumerate("xy"):
        assert told[name].shape == (2, 17, size[axis] * k)
        np.testing.assert_allclose(told[name].sum(-1), 1, rtol=1e-5)
        places = (
            told["origins"][:, axis, None] + told[name].argmax(-1) * told["steps"][:, axis, None]
        )
        torch.testing.assert_close(places, representation.decode(raw)[..., axis])
