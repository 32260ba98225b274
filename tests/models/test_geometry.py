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
    turned = geometry.affines(centres, 192 / sizes[:, 0], (192, 256), torch.full((5,), -30.0))
    np.testing.assert_allclose(turned, arrays["affine/fwd_rot30"], atol=1e-4)


@pytest.mark.parametrize("box", [[0.0, 0, 10, 400], [5, 5, 300, 20], [7, 7, 7, 7]])
def test_regions_keep_the_aspect_and_hold_the_box(box: list[float]) -> None:
    centre, size = geometry.crop_regions(torch.tensor(box), (192, 256), 1.25)
    assert (size[0] / size[1]).item() == pytest.approx(192 / 256)
    low, high = centre - size / 2, centre + size / 2
    assert (low <= torch.tensor(box[:2])).all()
    assert (high >= torch.tensor(box[2:])).all()


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
