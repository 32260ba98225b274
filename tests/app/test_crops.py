from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from app.crops import ImageBatch, crop
from models.crops import CropForm, cut_out, warp_out
from models.geometry import apply_affines, crop_affines, invert_affines

CPU = torch.device("cpu")
FIXTURES = Path(__file__).parents[3] / "shared/reference/fixtures"
GREY_LEVELS = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}

needs_fixtures = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason="the reference's golden numbers are not beside this repository"
)


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def crops_of(images, owners, affines, size=(48, 64), **normalisation):
    batch = ImageBatch.upload(images, CPU)
    form = CropForm(size, **normalisation or GREY_LEVELS)
    crops = crop(batch, torch.tensor(owners), affines, form)
    return crops.permute(0, 2, 3, 1).numpy()


def test_a_batch_gives_every_image_back():
    images = [picture(5, 7), picture(1, 1, 1), picture(9, 2, 2)]
    batch = ImageBatch.upload(images, CPU)
    for index, image in enumerate(images):
        np.testing.assert_array_equal(batch[index].numpy(), image)


def test_upload_takes_views_and_read_only_arrays():
    image = picture(6, 8)[::-1, ::2]
    image.flags.writeable = False
    np.testing.assert_array_equal(ImageBatch.upload([image], CPU)[0].numpy(), image)


def test_crops_are_what_opencv_warps():
    image = picture(90, 120)
    boxes = torch.tensor(
        [[20.0, 10, 70, 80], [-30, -20, 25, 40], [60, 30, 61, 33], [0, 0, 120, 90]]
    )
    affines = crop_affines(boxes, (48, 64))
    ours = crops_of([image], [0] * 4, affines)
    for mine, affine in zip(ours, affines.numpy(), strict=True):
        theirs = cv2.warpAffine(image, affine, (48, 64), flags=cv2.INTER_LINEAR)
        # Theirs is rounded to whole grey levels, and up to OpenCV 4 so are source positions, to
        # 1/32 of a pixel: on noise that is several levels.
        tolerance = 1 if int(cv2.__version__.split(".")[0]) >= 5 else 16
        np.testing.assert_allclose(mine, theirs, atol=tolerance)


@pytest.mark.parametrize("bgr", [False, True])
def test_crops_on_the_host_are_those_of_the_gather(bgr):
    images = [picture(90, 120, 1), picture(33, 50, 2), picture(1, 1, 3)]
    boxes = [[20.0, 10, 70, 80], [-30, -20, 25, 40], [60, 30, 61, 33], [0, 0, 120, 90]]
    boxes += [[10, 10, 10, 10], [119, 80, 190, 130], [-90, -90, -40, -40], [0, 0, 1e5, 1e5]]
    owners = torch.tensor([0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2])
    affines = crop_affines(torch.tensor(boxes * 3), (48, 64))
    form = CropForm((48, 64), (0.5, 0.4, 0.3), (0.1, 0.2, 0.3), bgr)
    ours = warp_out(images, owners, affines, form)
    batch = ImageBatch.upload(images, CPU)
    shapes = torch.tensor(batch.shapes)[owners]
    starts = torch.tensor(batch.starts)[owners]
    theirs = cut_out(batch.pixels, *shapes.T, starts, affines, form)
    # A hundredth of a grey level; OpenCV's positions are in single precision.
    torch.testing.assert_close(ours, theirs, atol=0.02 / 255 / min(form.std), rtol=0)


def test_crops_of_large_regions_are_rounded_to_grey_levels():
    image = picture(1100, 1000)
    affines = crop_affines(torch.tensor([[0.0, 0, 999, 1099], [0, 0, 90, 100]]), (48, 64))
    large, small = crops_of([image], [0, 0], affines)
    for found, affine, rounded in ((large, affines[0], True), (small, affines[1], False)):
        expected = cv2.warpAffine(image.astype(np.float32), affine.numpy(), (48, 64))
        np.testing.assert_allclose(found, expected, atol=0.51 if rounded else 0.02)
        assert np.allclose(found, found.round(), atol=1e-3) == rounded


@needs_fixtures
@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(("mapping", "name"), [("affine", "udp0"), ("udp", "udp1")])
def test_crops_are_those_of_mmpose(index, mapping, name):
    golden = np.load(FIXTURES / "mmpose_codecs.npz")
    boxes = torch.from_numpy(golden["pre/bbox_xyxy"])[index, None]
    affines = crop_affines(boxes, (96, 128), mapping=mapping)
    ours = crops_of([golden["pre/img_bgr"]], [0], affines, (96, 128))[0]
    np.testing.assert_allclose(ours, golden[f"pre/{name}_{index}/crop"], atol=1)


def test_crops_in_bgr_are_normalised_as_if_they_were_rgb():
    image, statistics = picture(40, 60), {"mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.3)}
    affines = crop_affines(torch.tensor([[5.0, 5, 50, 35]]), (48, 64))
    found = crops_of([image], [0], affines, bgr=True, **statistics)
    expected = crops_of([image[..., ::-1]], [0], affines, **statistics)
    np.testing.assert_array_equal(found, expected)


def test_people_of_several_images_share_a_batch_without_mixing():
    images = [picture(40, 60, 1), picture(70, 30, 2), picture(8, 8, 3)]
    boxes = torch.tensor([[5.0, 5, 25, 65], [10, 2, 50, 38], [1, 1, 6, 6], [0, 10, 30, 60]])
    owners = [1, 0, 2, 1]
    affines = crop_affines(boxes, (48, 64))
    together = crops_of(images, owners, affines)
    for person, owner in enumerate(owners):
        alone = crops_of([images[owner]], [0], affines[person, None])[0]
        np.testing.assert_array_equal(together[person], alone)


def test_beyond_the_border_there_is_black_before_normalisation():
    image = np.full((20, 20, 3), 255, np.uint8)
    affines = crop_affines(torch.tensor([[-100.0, -100, -50, -50]]), (48, 64))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    crops = crops_of([image], [0], affines, mean=mean, std=std)
    np.testing.assert_allclose(crops[0, 3, 5], -np.array(mean) / std, rtol=1e-5)


def test_normalisation_keeps_the_colours_apart():
    image = np.full((20, 20, 3), (255, 51, 0), np.uint8)
    affines = torch.eye(2, 3, dtype=torch.float64)[None]
    crops = crops_of([image], [0], affines, (4, 4), mean=(0.5, 0.1, 0.2), std=(0.5, 0.2, 0.1))
    np.testing.assert_allclose(crops[0, 1, 1], (1.0, 0.5, -2.0), rtol=1e-5)


def test_a_box_without_an_area_still_gives_a_crop():
    affines = crop_affines(torch.tensor([[10.0, 10, 10, 10]]), (48, 64))
    crops = crops_of([picture(20, 20)], [0], affines)
    assert crops.shape == (1, 64, 48, 3)
    assert np.isfinite(crops).all()


def test_points_come_back_to_where_they_were_cut_from():
    image = np.zeros((100, 140, 3), np.uint8)
    image[61, 37] = 255
    affines = crop_affines(torch.tensor([[20.0, 40, 60, 90]]), (96, 128))
    crops = crops_of([image], [0], affines, (96, 128))[0, ..., 0]
    y, x = np.unravel_index(crops.argmax(), crops.shape)
    back = apply_affines(invert_affines(affines), torch.tensor([[[float(x), float(y)]]]))
    np.testing.assert_allclose(back[0, 0], (37, 61), atol=0.5)


class Uploads(TorchDispatchMode):
    """Counts the tensors that are made of Python numbers or lists."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.count += function is torch.ops.aten.lift_fresh.default
        return function(*arguments, **(options or {}))


def test_crops_bring_nothing_more_to_the_device():
    batch = ImageBatch.upload([picture(90, 120)], CPU)
    affines = crop_affines(torch.tensor([[20.0, 10, 70, 80]]), (48, 64))
    heights, widths, starts = batch.layout.unbind(-1)
    form = CropForm((48, 64), **GREY_LEVELS)
    given = (batch.pixels, heights, widths, starts, affines, form)
    cut_out(*given)
    with Uploads() as uploads:
        cut_out(*given)
    assert uploads.count == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_crops_are_the_same_on_cuda():
    images = [picture(90, 120, 1), picture(33, 50, 2)]
    affines = crop_affines(torch.tensor([[20.0, 10, 70, 80], [-5, 4, 60, 30]]), (48, 64))
    owners, form = torch.tensor([0, 1]), CropForm((48, 64), **GREY_LEVELS)
    here, there = (
        crop(ImageBatch.upload(images, device), owners, affines, form).cpu()
        for device in (CPU, torch.device("cuda"))
    )
    torch.testing.assert_close(here, there, atol=1e-2, rtol=0)
