from __future__ import annotations

import numpy as np
import pytest
import torch

from models import geometry

from .conftest import Golden


def corners(xywh: np.ndarray) -> torch.Tensor:
    boxes = torch.tensor(xywh)
    return torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), 1)


def test_affines_and_their_inverses_agree_with_hrnet(golden: Golden) -> None:
    arrays = golden("hrnet_official")
    boxes = corners(arrays["affine/boxes_xywh"])
    forward = geometry.crop_affines(boxes, (192, 256), 1.25)
    np.testing.assert_allclose(forward, arrays["affine/fwd_192x256"], atol=1e-4)
    points = torch.tensor(arrays["affine/hm_pts"])[None].expand(len(boxes), -1, -1)
    back = geometry.invert_affines(geometry.crop_affines(boxes, (48, 64), 1.25))
    np.testing.assert_allclose(
        geometry.apply_affines(back, points), arrays["affine/transform_preds"], atol=1e-3
    )


def test_rotation_agrees_with_hrnet(golden: Golden) -> None:
    arrays = golden("hrnet_official")
    centres, sizes = geometry.crop_regions(corners(arrays["affine/boxes_xywh"]), (192, 256), 1.25)
    # HRNet counts angles the other way round.
    turned = geometry.affines(centres, sizes, (192, 256), torch.full((5,), -30.0))
    np.testing.assert_allclose(turned, arrays["affine/fwd_rot30"], atol=1e-4)


@pytest.mark.parametrize("box", [[0.0, 0, 10, 400], [5, 5, 300, 20], [7, 7, 7, 7]])
def test_regions_keep_the_aspect_and_hold_the_box(box: list[float]) -> None:
    centre, size = geometry.crop_regions(torch.tensor(box), (192, 256), 1.25)
    assert (size[0] / size[1]).item() == pytest.approx(192 / 256)
    low, high = centre - size / 2, centre + size / 2
    assert (low <= torch.tensor(box[:2])).all()
    assert (high >= torch.tensor(box[2:])).all()


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize(("mapping", "name"), [("affine", "udp0"), ("udp", "udp1")])
def test_affines_agree_with_mmpose(
    golden: Golden, index: int, mapping: geometry.Mapping, name: str
) -> None:
    arrays = golden("mmpose_codecs")
    boxes = torch.tensor(arrays["pre/bbox_xyxy"])[index, None]
    [affine] = geometry.crop_affines(boxes, (96, 128), mapping=mapping)
    np.testing.assert_allclose(affine, arrays[f"pre/{name}_{index}/M"], atol=1e-4)


@pytest.mark.parametrize(
    ("mapping", "name", "degrees"), [("affine", "udp0", -30.0), ("udp", "udp1", 30.0)]
)
def test_rotation_agrees_with_mmpose(
    golden: Golden, mapping: geometry.Mapping, name: str, degrees: float
) -> None:
    """mmpose turns UDP's crops the other way round."""
    centre, size = torch.tensor([[80.0, 60.0]]), torch.tensor([[60.0, 80.0]])
    [turned] = geometry.affines(centre, size, (192, 256), torch.tensor([degrees]), mapping)
    np.testing.assert_allclose(turned, golden("mmpose_codecs")[f"pre/{name}_M_rot30"], atol=1e-4)


@pytest.mark.parametrize("mapping", ["affine", "udp", "darkpose"])
def test_a_heatmaps_pixels_lie_on_the_inputs_as_both_lie_on_the_region(
    mapping: geometry.Mapping,
) -> None:
    boxes = torch.tensor([[10.0, 20.0, 110.0, 180.0]])
    to_input = geometry.crop_affines(boxes, (192, 256), mapping=mapping)
    to_map = geometry.crop_affines(boxes, (48, 64), mapping=mapping)
    points = torch.tensor([[[0.0, 0.0], [47.0, 63.0], [12.5, 40.25]]]).double()
    through_image = geometry.apply_affines(
        to_input, geometry.apply_affines(geometry.invert_affines(to_map), points)
    )
    steps, origins = geometry.map_grid((48, 64), 4, mapping)
    torch.testing.assert_close(
        points * torch.tensor(steps).double() + torch.tensor(origins).double(), through_image
    )


def test_an_unknown_mapping_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mapping must be one of .*'udp'.* not 'upd'"):
        geometry.crop_affines(torch.zeros(1, 4), (48, 64), mapping="upd")  # type: ignore[arg-type]


def test_round_trip() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(50, 4, generator=generator) * 100
    boxes[:, 2:] += boxes[:, :2] + 1
    affines = geometry.crop_affines(boxes, (192, 256))
    points = torch.rand(50, 17, 2, generator=generator).double() * 300
    crop = geometry.apply_affines(affines, points)
    torch.testing.assert_close(
        geometry.apply_affines(geometry.invert_affines(affines), crop), points
    )
