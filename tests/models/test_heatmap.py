from __future__ import annotations

import numpy as np
import pytest
import torch

from models import heatmap
from models.geometry import Mapping

from .conftest import Golden

DARK_CASES = [
    "noise",
    "gauss_s2",
    "gauss_s3",
    "gauss_s3_k11",
    "gauss_s1",
    "netlike",
    "degenerate",
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", DARK_CASES)
def test_dark_agrees_with_darkpose(golden: Golden, case: str, dtype: torch.dtype) -> None:
    arrays = golden("dark_official")
    heatmaps = torch.tensor(arrays[f"{case}/hm"], dtype=dtype)
    decoded = heatmap.decode(heatmaps, "dark", int(arrays[f"{case}/kernel"]))
    assert decoded.dtype == dtype
    np.testing.assert_allclose(decoded[..., :2], arrays[f"{case}/refined"], atol=1e-4)
    np.testing.assert_allclose(decoded[..., 2:], arrays[f"{case}/maxvals"], atol=1e-6)


def test_dark_without_refinement_is_argmax(golden: Golden) -> None:
    arrays = golden("dark_official")
    decoded = heatmap.decode(torch.tensor(arrays["noise/hm"]), "argmax")
    np.testing.assert_array_equal(decoded[..., :2], arrays["noise/max_coords"])


@pytest.mark.parametrize(("method", "key"), [("shift", "preds_post1"), ("argmax", "preds_post0")])
def test_quarter_shift_agrees_with_hrnet(golden: Golden, method: str, key: str) -> None:
    arrays = golden("hrnet_official")
    heatmaps = torch.tensor(arrays["decode/hm"])
    decoded = heatmap.decode(heatmaps, method)[..., :2]  # type: ignore[arg-type]
    # The reference answers in image pixels, through an affine that differs between its two
    # pictures: recover it from the integer peaks, which both have.
    peaks = arrays["decode/max_coords"]
    plain = arrays["decode/preds_post0"]
    for picture in range(len(peaks)):
        spread = np.ptp(peaks[picture], axis=0)
        scale = np.ptp(plain[picture], axis=0) / spread
        origin = plain[picture].min(0) - peaks[picture].min(0) * scale
        np.testing.assert_allclose(
            decoded[picture].numpy() * scale + origin, arrays[f"decode/{key}"][picture], atol=1e-3
        )
    np.testing.assert_allclose(
        heatmap.decode(heatmaps, "shift")[..., 2:], arrays["decode/maxvals"], atol=1e-6
    )


def test_biased_targets_agree_with_hrnet(golden: Golden) -> None:
    arrays = golden("hrnet_official")
    joints = torch.tensor(arrays["target/joints"])[:, :2].double()
    labelled = torch.tensor(arrays["target/vis"])[:, 0]
    maps, weights = heatmap.encode(joints, labelled, (48, 64), unbiased=False)
    np.testing.assert_allclose(maps, arrays["target/heatmaps"], atol=1e-6)
    np.testing.assert_array_equal(weights, arrays["target/weight"][:, 0])


def test_loss_agrees_with_hrnet_with_and_without_weights(golden: Golden) -> None:
    arrays = golden("hrnet_official")
    heatmaps = torch.tensor(arrays["loss/out"], requires_grad=True)
    targets, weights = torch.tensor(arrays["loss/gt"]), torch.tensor(arrays["loss/w"])[..., 0]
    value = heatmap.loss(heatmaps, targets, weights)
    assert value.item() == pytest.approx(float(arrays["loss/JointsMSE"]), rel=1e-6)
    value.backward()
    # The fixture has no gradients; that of half a mean square is the weighted difference's share.
    slope = weights[..., None, None].square() * (heatmaps - targets) / heatmaps.numel()
    torch.testing.assert_close(heatmaps.grad, slope)
    unweighted = heatmap.loss(heatmaps, targets, torch.ones_like(weights))
    assert unweighted.item() == pytest.approx(float(arrays["loss/JointsMSE_now"]), rel=1e-6)


def test_mmposes_loss_is_twice_ours(golden: Golden) -> None:
    # Its KeypointMSELoss lacks the half; for weights of 0 and 1 there is no other difference.
    arrays = golden("mmpose_codecs")
    value = heatmap.loss(*(torch.tensor(arrays[f"mse/{name}"]) for name in ("o", "g", "w")))
    assert 2 * value.item() == pytest.approx(float(arrays["mse/loss"]), rel=1e-6)


@pytest.mark.parametrize(
    ("case", "unbiased", "mapping"),
    [("msra", False, "affine"), ("msra_unbiased", True, "affine"), ("udp", True, "udp")],
)
def test_targets_agree_with_mmpose(
    golden: Golden, case: str, unbiased: bool, mapping: Mapping
) -> None:
    arrays = golden("mmpose_codecs")
    joints, labelled = torch.tensor(arrays["kp"]).double(), torch.tensor(arrays["vis"])
    maps, weights = heatmap.encode(joints, labelled, (48, 64), 4, 2.0, unbiased, mapping)
    np.testing.assert_allclose(maps[0], arrays[f"{case}/enc_hm"], atol=5e-6)
    np.testing.assert_array_equal(weights, arrays[f"{case}/enc_w"])


@pytest.mark.parametrize("maps", ["enc", "noise"])
@pytest.mark.parametrize(("case", "method"), [("msra", "shift"), ("msra_unbiased", "dark")])
def test_decode_agrees_with_mmpose(
    golden: Golden, case: str, method: heatmap.Method, maps: str
) -> None:
    arrays = golden("mmpose_codecs")
    heatmaps = arrays["noisehm"] if maps == "noise" else arrays[f"{case}/enc_hm"]
    key = f"{case}/dec_noise" if maps == "noise" else f"{case}/dec_of_enc"
    decoded = heatmap.decode(torch.tensor(heatmaps), method).numpy()
    # mmpose puts a joint without a positive peak at -1, HRNet and we at 0. And mmpose shifts on
    # each axis for itself where HRNet and we leave a peak at the border of either alone.
    peaks = heatmap.decode(torch.tensor(heatmaps), "argmax").numpy()
    inner = ((peaks[:, :2] > 1) & (peaks[:, :2] < [47, 63])).all(1) & (peaks[:, 2] > 0)
    assert inner.sum() >= 3
    expected = arrays[key][0]
    np.testing.assert_allclose(decoded[inner, :2] * 4, expected[inner], atol=1e-4)
    np.testing.assert_allclose(decoded[:, 2], arrays[f"{key}_s"][0], atol=1e-6)


@pytest.mark.parametrize("mapping", ["affine", "udp", "darkpose"])
def test_dark_reads_back_what_unbiased_targets_wrote(mapping: Mapping) -> None:
    generator = torch.Generator().manual_seed(0)
    joints = 40 + 110 * torch.rand(64, 17, 2, generator=generator, dtype=torch.float64)
    maps, _ = heatmap.encode(joints, torch.ones(64, 17), (48, 64), mapping=mapping)
    decoded = heatmap.Heatmap((192, 256), mapping=mapping).decode(maps)[..., :2]
    # UDP's targets end at 3 sigma, where the blur still sees them.
    assert (decoded - joints).norm(dim=-1).max() < (0.06 if mapping == "udp" else 0.01)


def test_any_leading_batch_and_no_neighbours_influence() -> None:
    maps = torch.randn(2, 3, 5, 20, 16, generator=torch.Generator().manual_seed(1))
    decoded = heatmap.decode(maps)
    assert decoded.shape == (2, 3, 5, 3)
    torch.testing.assert_close(heatmap.decode(maps[1, 2, 4]), decoded[1, 2, 4])


@pytest.mark.parametrize(("method", "kernel"), [("taylor", 11), ("dark", 10)])
def test_unknown_ways_to_decode_are_refused(method: str, kernel: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        heatmap.decode(torch.zeros(1, 8, 8), method, kernel)  # type: ignore[arg-type]


def test_unlabelled_joints_do_not_teach() -> None:
    representation = heatmap.Heatmap((192, 256))
    raw = torch.randn(2, 17, 64, 48, requires_grad=True)
    labelled = torch.ones(2, 17)
    labelled[:, 3] = 0
    representation.loss(raw, torch.full((2, 17, 2), 50.0), labelled).backward()
    assert raw.grad is not None
    assert raw.grad[:, 3].abs().max() == 0
    assert raw.grad[:, 4].abs().max() > 0


def test_what_inference_left_behind_does_not_keep_gradients_away():
    heatmaps = torch.rand(1, 2, 9, 7, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        # A kernel that no other test uses: what is kept for it is made here.
        expected = heatmap.decode(heatmaps, "dark", 3)
    found = heatmap.decode(heatmaps.requires_grad_(), "dark", 3)
    assert torch.equal(found.detach(), expected)


@pytest.mark.parametrize("mapping", ["affine", "udp", "darkpose"])
def test_the_maps_lie_where_the_joints_are_decoded(mapping: Mapping) -> None:
    representation = heatmap.Heatmap((48, 64), mapping=mapping)
    keypoints = torch.rand(2, 17, 2) * torch.tensor([44.0, 60.0])
    maps, _ = heatmap.encode(keypoints, torch.ones(2, 17), (12, 16), sigma=1, mapping=mapping)
    told = representation.explain(maps - 1e-3)
    assert told["maps"].shape == (2, 17, 16, 12)
    assert told["maps"].min() == 0
    peak = told["maps"].flatten(2).argmax(-1)
    pixels = torch.stack((peak % 12, peak // 12), -1)
    places = told["origins"][:, None] + told["steps"][:, None] * pixels
    assert (places - keypoints).abs().max() <= 0.51 * told["steps"].max()
