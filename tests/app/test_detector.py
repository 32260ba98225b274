import ast
import copy
import math
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from ultralytics.data.augment import LetterBox
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import ops
from ultralytics.utils.nms import non_max_suppression

from app.detector import SAME_PERSON, Detections, YoloDetector, save_detector
from app.errors import NotFiniteError
from app.runtime import Runtime

CPU = torch.device("cpu")
SIZE = 160
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model():
    """A YOLO with random weights whose scores and boxes differ from place to place."""
    torch.manual_seed(0)
    model = DetectionModel("yolo11n.yaml", nc=1, verbose=False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # running means over the batch that follows
    pictures = np.stack([picture(SIZE, SIZE, seed) for seed in range(4)])
    batch = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255
    head = model.model[-1]
    with torch.no_grad():
        model.train()(batch)
        model.eval()
        for branches in (head.cv2, head.cv3):
            for branch in branches:
                branch[-1].register_forward_hook(normalise)
        model(batch)
    return model


def normalise(layer, inputs, output):
    """Give a layer outputs of mean 0 and spread 1, once."""
    layer._forward_hooks.clear()
    layer.weight.div_(output.std())
    layer.bias.sub_(output.mean()).div_(output.std())


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("detector") / "person-detector.safetensors"
    save_detector(model, path, SIZE)
    return path


@pytest.fixture(scope="module", params=["torch", "openvino"])
def detector(weights, request):
    return YoloDetector.load(weights, CPU, SIZE, Runtime(request.param, CPU))


@pytest.fixture(scope="module")
def saved(model):
    """The network with its weights as they were saved, as ultralytics itself would run it."""
    rounded = copy.deepcopy(model)
    for value in rounded.state_dict().values():
        if value.is_floating_point() and value.ndim > 1:
            value.copy_(value.half())
    return rounded.eval().fuse(verbose=False)


def picture(height, width, seed):
    """Coarse noise, so that shrinking it leaves something to see."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height))


def assert_same(ours, theirs):
    """The same people; where scores are equal their order is anybody's."""
    ours, theirs = (np.column_stack((found.boxes, 100 * found.scores)) for found in (ours, theirs))
    assert len(ours) == len(theirs) > 3
    distances = np.abs(ours[:, None] - theirs).max(-1)
    assert distances.min(0).max() < 0.1
    assert distances.min(1).max() < 0.1


@pytest.mark.parametrize("shape", [(120, SIZE), (SIZE, 97), (SIZE, SIZE), (37, SIZE)])
def test_it_finds_what_ultralytics_own_way_finds(detector, saved, shape):
    # As large as the network's input: a random network turns one rounded byte into other people,
    # and resizing has its own test below.
    image = picture(*shape, seed=3)
    canvas = LetterBox((SIZE, SIZE), auto=True, stride=32)(image=image)
    batch = torch.from_numpy(np.ascontiguousarray(canvas.transpose(2, 0, 1)))[None] / 255
    with torch.inference_mode():
        raw = saved(batch)
    found = non_max_suppression(raw, conf_thres=0.6, iou_thres=SAME_PERSON, max_det=1000)[0]
    boxes = ops.scale_boxes(batch.shape[2:], found[:, :4].clone(), shape).numpy()
    real = (boxes[:, 2:] > boxes[:, :2]).all(1)

    ours = detector([image], 0.6)[0]

    assert_same(ours, Detections(boxes[real], found[:, 4].numpy()[real]))


@pytest.mark.parametrize("shape", [(270, 480), (1080, 810), (333, 77), (20, 31), (1, 300)])
def test_letterboxes_are_those_of_ultralytics(detector, shape):
    image = picture(*shape, seed=4)
    theirs = LetterBox((SIZE, SIZE), auto=True, stride=32)(image=image)
    ours = detector._letterbox(image).canvas.numpy()
    assert ours.shape == theirs.shape
    np.testing.assert_array_equal(ours, theirs)


def test_an_image_finds_the_same_people_alone_and_in_a_batch(detector):
    shapes = [(120, 300), (300, 200), (240, 600), (64, 64), (120, 300), (1, 400)]
    images = [picture(*shape, seed) for seed, shape in enumerate(shapes)]
    together = detector(images, 0.5)
    assert len(together) == len(images)
    assert len({len(found.boxes) for found in together}) > 1
    for image, found in zip(images, together, strict=True):
        assert_same(found, detector([image], 0.5)[0])


def test_tensors_are_as_good_as_arrays(detector):
    image = picture(100, 140, 1)
    assert_same(detector([torch.from_numpy(image)], 0.5)[0], detector([image], 0.5)[0])


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", [0, 1])
def test_what_is_not_finite_is_not_nobody(detector, monkeypatch, part, number):
    run = detector._run

    def spoil(batch):
        raw = [tensor.clone() for tensor in run(batch)]
        raw[part][0, 0, 7] = number
        return tuple(raw)

    monkeypatch.setattr(detector, "_run", spoil)
    with pytest.raises(NotFiniteError):
        detector([picture(64, 96, 0)], 0.5)


def test_people_come_best_first_above_the_threshold_and_inside_of_the_image(detector):
    found = detector([picture(200, 320, 5)], 0.55)[0]
    assert len(found.scores) > 3
    assert (np.diff(found.scores) <= 0).all()
    assert (found.scores >= 0.55).all()
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert (found.boxes >= 0).all()
    assert (found.boxes <= (320, 200, 320, 200)).all()
    assert found.boxes.dtype == found.scores.dtype == np.float32


def test_boxes_are_in_the_pixels_of_the_image(detector):
    image = picture(100, SIZE, 6)
    # Halving this one is exact, so the network sees the same picture.
    doubled = image.repeat(2, 0).repeat(2, 1)
    small, large = detector([image, doubled], 0.5)
    assert_same(large, Detections(2 * small.boxes, small.scores))


def test_nobody_is_an_empty_array_of_the_right_shape(detector):
    for found in detector([picture(90, 120, 7), picture(120, 90, 8)], 1.1):
        assert found.boxes.shape == (0, 4)
        assert found.scores.shape == (0,)
        assert found.boxes.dtype == found.scores.dtype == np.float32


def test_only_the_person_of_eighty_classes_counts():
    torch.manual_seed(1)
    model = DetectionModel("yolo11n.yaml", nc=80, verbose=False)
    with torch.no_grad():
        for scores in model.model[-1].cv3:
            scores[-1].bias.fill_(-20)
            scores[-1].bias[16] = 3  # a dog everywhere
    dogs = YoloDetector(model, CPU, SIZE)
    assert len(dogs([picture(90, 120, 7)], 0.1)[0].boxes) == 0
    with torch.no_grad():
        for scores in model.model[-1].cv3:
            scores[-1].bias[0] = 5  # and a person
    assert len(dogs([picture(90, 120, 7)], 0.1)[0].boxes) > 0


def test_saving_keeps_the_network(model, detector):
    batch = torch.rand(1, 3, SIZE, SIZE)
    with torch.inference_mode():
        saved, original = detector._run(batch)[1][:, 0].sigmoid(), model(batch)[0][:, 4]
    assert (saved - original).abs().mean() < 0.01 < original.std()


@pytest.mark.parametrize("layout", ["yolov8n", "yolov10n", "yolo26n"])
def test_heads_of_other_generations_find_what_ultralytics_own_way_finds(layout):
    torch.manual_seed(2)
    model = DetectionModel(f"{layout}.yaml", nc=1, verbose=False).eval()
    theirs = copy.deepcopy(model).fuse(verbose=False)
    image = picture(64, 96, 9)
    canvas = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        raw = theirs(canvas)
    # Heads without NMS give what is left of it, but for people who overlap.
    found = raw[0][0] if raw[0].shape[-1] == 6 else non_max_suppression(raw, 1e-9, SAME_PERSON)[0]
    best = found[found[:, 4].argmax()]
    for runtime in ("torch", "openvino"):
        detector = YoloDetector(copy.deepcopy(model), CPU, 96, Runtime(runtime, CPU))
        people = detector([image], 0.0)[0]
        corners = best[:4].clamp(torch.zeros(4), torch.tensor([96.0, 64, 96, 64]))
        np.testing.assert_allclose(people.boxes[0], corners, atol=0.05)
        np.testing.assert_allclose(people.scores[0], best[4], atol=1e-5)


def test_a_head_that_is_no_detectors_is_refused(model):
    other = copy.deepcopy(model)
    other.model[-1] = nn.Identity()
    with pytest.raises(ValueError, match="head is a Identity, not one of YOLO"):
        YoloDetector(other, CPU, SIZE)


def test_a_fused_network_is_not_saved(saved, tmp_path):
    with pytest.raises(ValueError, match="fused"):
        save_detector(saved, tmp_path / "fused.safetensors", SIZE)


def test_a_file_that_is_no_detector_is_refused(weights, tmp_path):
    with pytest.raises(ValueError, match="no such detector file"):
        YoloDetector.load(tmp_path / "missing.safetensors", CPU, SIZE)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"damaged\.safetensors is not a detector"):
        YoloDetector.load(damaged, CPU, SIZE)
    with pytest.raises(ValueError, match="not a multiple of 32"):
        YoloDetector.load(weights, CPU, 100)


def test_ultralytics_neither_reports_nor_installs_nor_needs_a_home(tmp_path):
    program = (
        "import app.detector, ultralytics.utils as u; print(u.ONLINE, u.AUTOINSTALL, u.VERBOSE)"
    )
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("YOLO_")}
    environment = {**inherited, "HOME": "/nonexistent", "TMPDIR": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.split() == ["False", "False", "False"]
    assert ran.stderr == ""


def test_only_the_detector_knows_of_ultralytics():
    users = set()
    for path in [*ROOT.glob("app/**/*.py"), *ROOT.glob("models/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names.append(node.module or "")
            if any(name.split(".")[0] == "ultralytics" for name in names):
                users.add(path.relative_to(ROOT).as_posix())
    assert users == {"app/detector.py"}
