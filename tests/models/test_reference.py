"""The authors' arithmetic, against what their own code gave."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import models
from models import geometry, heatmap, reference
from models.checkpoints import rename
from models.coco import MIRRORED
from models.network import Architecture
from models.pose_model import Card, PoseModel
from models.reference import HEATMAP_RULES, SIMCC_RULES

from .conftest import SHARED, Golden
from .recipes_support import without_weights

Arrays = Mapping[str, Any]


def in_image(
    arrays: Arrays, points: Tensor, size: tuple[int, int], mapping: geometry.Mapping = "affine"
) -> Tensor:
    """Points in output pixels of that size, brought to the image as the fixture's box lies."""
    sizes = torch.tensor(arrays["scale200"]).double() * 200
    # One factor for both axes, the width's, as released.
    sizes[:, 1] = sizes[:, 0] * size[1] / size[0]
    affines = geometry.affines(torch.tensor(arrays["center"]), sizes, size, mapping=mapping)
    return geometry.apply_affines(geometry.invert_affines(affines), points)


def case_of(arrays: Arrays, case: str) -> Arrays:
    return {key.removeprefix(f"{case}/"): value for key, value in arrays.items()}


# --------------------------------------------------------------------------------------- heatmaps


@pytest.mark.parametrize(
    "case",
    ["noise", "gauss_s2", "gauss_s3", "gauss_s3_k11", "gauss_s1", "netlike", "degenerate"],
)
def test_darkpose(golden: Golden, case: str) -> None:
    arrays = case_of(golden("dark_official"), case)
    maps = torch.tensor(arrays["hm"])
    found = reference.decode_heatmaps(maps, HEATMAP_RULES["darkpose"], int(arrays["kernel"]))
    np.testing.assert_allclose(found[..., :2], arrays["refined"], atol=1e-4)
    np.testing.assert_array_equal(found[..., 2:], arrays["maxvals"])
    height, width = maps.shape[-2:]
    image = in_image(arrays, found[..., :2], (width, height), "darkpose")
    np.testing.assert_allclose(image, arrays["final_preds"], atol=1e-3)
    # So it is by way of the input's pixels, as a pose model has it.
    steps, origins = geometry.map_grid((width, height), 4, "darkpose")
    points = found[..., :2] * torch.tensor(steps) + torch.tensor(origins)
    image = in_image(arrays, points, (4 * width, 4 * height), "darkpose")
    np.testing.assert_allclose(image, arrays["final_preds"], atol=1e-3)


def test_hrnet(golden: Golden) -> None:
    arrays = golden("hrnet_official")
    maps = torch.tensor(arrays["decode/hm"])
    found = reference.decode_heatmaps(maps, HEATMAP_RULES["hrnet"])
    peaks, plain = arrays["decode/max_coords"], arrays["decode/preds_post0"]
    np.testing.assert_allclose(found[..., 2:], arrays["decode/maxvals"], atol=1e-6)
    for person in range(len(peaks)):
        # The fixture does not say where its boxes are: its peaks, whole pixels, do.
        scale = np.ptp(plain[person], axis=0) / np.ptp(peaks[person], axis=0)
        origin = plain[person].min(0) - peaks[person].min(0) * scale
        image = found[person, :, :2].numpy() * scale + origin
        np.testing.assert_allclose(image, arrays["decode/preds_post1"][person], atol=1e-3)


@pytest.mark.parametrize(
    ("rule", "key"), [("mmpose", "msra"), ("mmpose-dark", "msra_unbiased"), ("mmpose-udp", "udp")]
)
@pytest.mark.parametrize(("maps", "name"), [("{}/enc_hm", "dec_of_enc"), ("noisehm", "dec_noise")])
def test_mmpose(golden: Golden, rule: str, key: str, maps: str, name: str) -> None:
    arrays = golden("mmpose_codecs")
    given = torch.tensor(arrays[maps.format(key)])[None]
    found = reference.decode_heatmaps(given, HEATMAP_RULES[rule])
    mapping: geometry.Mapping = "udp" if rule == "mmpose-udp" else "affine"
    steps, _ = geometry.map_grid((48, 64), 4, mapping)
    points = found[..., :2] * torch.tensor(steps)
    if rule == "mmpose-udp":
        # mmpose stretches UDP's crops so that its other mapping to the image fits.
        points = points * torch.tensor([192 / 191, 256 / 255])
    expected = arrays[f"{key}/{name}"]
    # Of an empty map mmpose's UDP says nan; here it is where all joints without a peak are.
    known = np.isfinite(expected)
    assert (~known).sum() == (2 if (rule, name) == ("mmpose-udp", "dec_of_enc") else 0)
    np.testing.assert_allclose(points.numpy()[known], expected[known], atol=1e-4)
    np.testing.assert_array_equal(found[..., 2], arrays[f"{key}/{name}_s"])
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("kernel", [3, 11])
def test_the_udp_decoding_of_mmpose_0x_and_vitpose(golden: Golden, kernel: int) -> None:
    maps = torch.tensor(golden("mmpose_codecs")["noisehm"])[None]
    found = reference.decode_heatmaps(maps, HEATMAP_RULES["mmpose-0.x-udp"], kernel)
    expected = golden("rtmlib")[f"vit/post_dark_udp_k{kernel}"]
    np.testing.assert_allclose(found[..., :2], expected, atol=1e-4)


def test_mirrored_heatmaps(golden: Golden) -> None:
    arrays = golden("hrnet_official")
    maps = torch.tensor(arrays["flip/in"])
    mirrored = [0, 2, 1, 4, 3, 5]
    for shift, key in ((False, "flip_back"), (True, "shifted")):
        merged = reference.merge_heatmaps(torch.zeros_like(maps), maps, mirrored, shift)
        np.testing.assert_allclose(merged * 2, arrays[f"flip/{key}"], atol=1e-6)
    arrays = golden("mmpose_codecs")
    maps = torch.tensor(arrays["flip/in"])
    for shift in (False, True):
        candidates = [
            (reference.merge_heatmaps(torch.zeros_like(maps), maps, order, shift) * 2).numpy()
            for order in ([0, 2, 1, 3], [1, 0, 3, 2], [0, 1, 3, 2])
        ]
        # The fixture does not name its pairs.
        expected = arrays[f"flip/out_shift{int(shift)}"]
        assert any(np.allclose(found, expected, atol=1e-6) for found in candidates)


def test_a_joint_without_a_peak_is_where_its_authors_put_it() -> None:
    maps = torch.full((1, 2, 16, 12), -1.0)
    maps[0, 1, 8, 6] = 1
    for name, absent in {"hrnet": 0, "darkpose": 0, "mmpose": -1, "mmpose-0.x": -1}.items():
        found = reference.decode_heatmaps(maps, HEATMAP_RULES[name], 3)
        assert found[0, 0].tolist() == [absent, absent, -1]
        assert found[0, 1].tolist() == [6, 8, 1]


def test_only_mmpose_1x_shifts_along_a_border() -> None:
    maps = torch.zeros(1, 1, 16, 12)
    maps[0, 0, 8, 1] = 1
    maps[0, 0, 9, 1] = 0.5
    places = {
        name: reference.decode_heatmaps(maps, HEATMAP_RULES[name])[0, 0, :2].tolist()
        for name in ("hrnet", "mmpose-0.x", "mmpose")
    }
    assert places == {"hrnet": [1, 8], "mmpose-0.x": [1, 8], "mmpose": [1, 8.25]}


# ------------------------------------------------------------------------------------------ SimCC


@pytest.mark.parametrize(
    "case", ["simdr_k2_256x192", "sasimdr_k2_256x192", "simdr_k3_128", "sasimdr_k1.5_384x288"]
)
@pytest.mark.parametrize(("flip", "shift"), [(False, False), (True, False), (True, True)])
def test_simdr(golden: Golden, case: str, flip: bool, shift: bool) -> None:
    arrays = case_of(golden("simcc_official"), case)
    rule = replace(SIMCC_RULES["simdr" if case[:2] == "si" else "sa-simdr"], shift=shift)
    raw, flipped = (
        (torch.tensor(arrays[f"x{end}"]), torch.tensor(arrays[f"y{end}"])) for end in ("", "_flip")
    )
    merged = reference.merge_simcc(raw, flipped if flip else None, MIRRORED, rule)
    found = reference.decode_simcc(*merged, float(arrays["k"]), rule)
    width, height = arrays["size_wh"].tolist()
    expected = arrays[f"preds_flip{int(flip)}_shift{int(shift)}"]
    image = in_image(arrays, found[..., :2], (width, height))
    np.testing.assert_allclose(image, expected[..., :2], atol=1e-3)
    np.testing.assert_allclose(found[..., 2], expected[..., 2], atol=1e-6)


def simcc_logits(golden: Golden) -> tuple[Tensor, Tensor]:
    arrays = golden("mmpose_codecs")
    return torch.tensor(arrays["simcc_dec/x"]), torch.tensor(arrays["simcc_dec/y"])


def test_mmposes_simcc(golden: Golden) -> None:
    arrays = golden("mmpose_codecs")
    found = reference.decode_simcc(*simcc_logits(golden), 2.0, SIMCC_RULES["mmpose-simcc"])
    np.testing.assert_array_equal(found[..., :2], arrays["simcc_dec/plain/kp"])
    np.testing.assert_array_equal(found[..., 2], arrays["simcc_dec/plain/s"])
    assert (found[..., :2] == -0.5).any(), "a joint whose logits are all below 0"


def test_mmposes_mirrored_simcc(golden: Golden) -> None:
    arrays, flipped = golden("mmpose_codecs"), simcc_logits(golden)
    raw = (torch.zeros_like(flipped[0]), torch.zeros_like(flipped[1]))
    x, y = reference.merge_simcc(raw, flipped, MIRRORED, SIMCC_RULES["mmpose-simcc"])
    np.testing.assert_allclose(x[:, :3] * 2, arrays["simcc_dec/flip_x_sum_check"], atol=1e-6)
    np.testing.assert_allclose(y[:, :3] * 2, arrays["simcc_dec/flip_y_check"], atol=1e-6)


def test_rtmlib(golden: Golden) -> None:
    arrays = golden("rtmlib")
    found = reference.decode_simcc(*simcc_logits(golden), 2.0, SIMCC_RULES["rtmlib"])
    np.testing.assert_array_equal(found[..., :2] * 2, arrays["simcc/locs"])
    np.testing.assert_allclose(found[..., 2], arrays["simcc/vals_mean"], atol=1e-6)


# -------------------------------------------------------------------------------------------- PCT


def test_pcts_whole_detector(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published classifier with its backbone, flip test and mapping to the image."""
    arrays, shapes = golden("pct_official"), published_shapes("pct_official__pct_base_classifier")
    monkeypatch.syspath_prepend(str(SHARED / "reference" / "fixtures"))
    import procw

    model = PoseModel.fresh(models.card("official-pct-swin-base-256x256"))
    # The second backbone is not read: it need not be made up.
    weights = {
        key: torch.from_numpy(np.asarray(procw.proc(key, shape)))
        for key, shape in shapes.items()
        if not key.startswith("extra_backbone.")
    }
    model.fill(rename(weights), Path("pct")).eval()
    crops = torch.from_numpy(procw.inp(44, (2, 3, 256, 256)))
    with torch.inference_mode():
        raw, flipped = model.network(crops), model.network(crops.flip(-1))
        for flip, mirror in ((0, None), (1, flipped)):
            found = reference.decode(model, raw, mirror)
            boxes = torch.tensor(arrays[f"det/boxes_flip{flip}"])
            given = {"center": boxes[:, :2].numpy(), "scale200": boxes[:, 2:4].numpy()}
            image = in_image(given, found[..., :2], model.input_size)
            expected = arrays[f"det/preds_flip{flip}"]
            np.testing.assert_allclose(image, expected[..., :2], atol=1e-2)
            np.testing.assert_allclose(found[..., 2], expected[..., 2], rtol=1e-4)


def published_shapes(layout: str) -> dict[str, list[int]]:
    path = SHARED / "reference" / "keys" / f"{layout}.json"
    shapes: dict[str, list[int]] = json.loads(path.read_text())
    return shapes


# --------------------------------------------------------------------------------- a model's rule


def small_model(authors: Any, **architecture: Any) -> PoseModel:
    built = Architecture.parse({"backbone": "regnetx_002", **architecture})
    return PoseModel.fresh(Card("small", built, "", "", "", "", "", authors=authors))


HEATMAPS = {"representation": "dark", "input_size": [48, 64]}


@pytest.mark.parametrize(
    ("authors", "options", "bias"),
    [
        # On ordinary crops a map that is mirrored back is 3 input pixels too far to the left, a
        # shifted one 1 to the right; on the others it is where it should be. The mean has half.
        ("official", {"method": "shift"}, 0.5),
        ("official", {"mapping": "darkpose"}, 0.0),
        ("mmpose", {}, 0.5),
        ("mmpose", {"mapping": "udp"}, 0.0),
        ("mmpose-0.x", {"mapping": "udp"}, 0.0),
    ],
)
def test_the_flip_test_has_its_authors_bias(
    authors: Any, options: dict[str, Any], bias: float
) -> None:
    model = small_model(authors, **HEATMAPS, options=options)
    joints = torch.tensor([20.0, 30.0]).expand(1, 17, 2) + 0.37
    mirror = torch.stack((47 - joints[..., 0], joints[..., 1]), -1)
    raw, flipped = (
        heatmap.encode(points, torch.ones(1, 17), (12, 16), mapping=model.mapping)[0]
        for points in (joints, mirror)
    )
    # A quarter of a heatmap pixel is a whole one of the input.
    tolerance = 1.0 if options.get("method") == "shift" else 0.06
    found = reference.decode(model, raw, flipped)[..., :2]
    assert (found[..., 0] - joints[..., 0] - bias).abs().max() < tolerance
    ours = model.flip_merge(model.decode(raw), model.decode(flipped))
    assert (ours[..., :2] - joints).abs().max() < tolerance


def test_scores_are_the_authors_own_and_not_cut() -> None:
    model = small_model(None, **HEATMAPS)
    maps = torch.zeros(1, 17, 16, 12)
    maps[0, :, 8, 6] = torch.linspace(-0.5, 1.5, 17)
    expected = maps[0, :, 8, 6].clamp_min(0)
    torch.testing.assert_close(reference.decode(model, maps)[0, :, 2], expected)
    torch.testing.assert_close(model.decode(maps)[0, :, 2], expected.clamp_max(1))


@pytest.mark.parametrize("representation", models.REPRESENTATIONS)
def test_every_bundled_model_can_be_read_as_its_papers_authors_would(representation: str) -> None:
    model = models.load(models.default(representation))
    width, height = model.input_size
    crops = torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        raw, flipped = model.network(crops), model.network(crops.flip(-1))
        alone, merged = reference.decode(model, raw), reference.decode(model, raw, flipped)
    assert alone.shape == merged.shape == (3, 17, 3)
    assert torch.isfinite(merged).all()
    assert not torch.equal(alone, merged)
    copied = merged[..., 2].unique(dim=1).shape[1] == 1
    assert copied == (representation == "pct")


def test_people_do_not_influence_each_other() -> None:
    maps = torch.randn(4, 17, 16, 12, generator=torch.Generator().manual_seed(2))
    # Nothing above 0 in a first and in a last joint, whose neighbours UDP's step then reads.
    maps[1, 0] = maps[2, 16] = -1
    for name, rule in HEATMAP_RULES.items():
        together = reference.decode_heatmaps(maps, rule, 3)
        for person in range(4):
            alone = reference.decode_heatmaps(maps[person, None], rule, 3)
            torch.testing.assert_close(together[person, None], alone, msg=name)


def test_mpiis_joints_are_mirrored_as_mpiis() -> None:
    model = without_weights("hrnet-w32-heatmap@mpii")
    maps = torch.zeros(1, 16, 64, 64)
    # Seen only in the mirror image, where the right ankle looks like the left one.
    flipped = maps.clone()
    flipped[0, 5, 20, 40] = 1
    found = reference.decode(model, maps, flipped)
    assert found[0, :, 2].tolist() == [0.5] + [0.0] * 15
    assert found[0, 0, :2].tolist() == [4 * (63 - 40 + 1), 4 * 20]
