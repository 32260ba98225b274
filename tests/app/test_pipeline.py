import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry
from torch import nn

import models
from app.detector import Detections
from app.engine import Engine
from app.errors import NotFiniteError
from app.metrics import Metrics
from app.pipeline import Options, Pipeline, oks_nms
from models import cuda_graphs
from models.calibration import Calibration
from models.coco import OKS_SIGMAS
from models.cuda_graphs import GraphRunner
from models.export import ImageToPoses
from models.heatmap import Heatmap
from models.network import Architecture
from models.pose_model import MEAN, STD, Card, PoseModel
from models.runtime import TorchRunner, estimator
from models.simcc import SimCC
from tests.models.graphs_support import Recalled

CPU = torch.device("cpu")
FIXTURES = Path(__file__).parents[3] / "shared/reference/fixtures"
SIZE = (48, 64)

#: Joints in the order of COCO, and the colour of the spot at which each of them is found. Joints
#: that mirror each other share one, so that a mirrored person is a person.
COLOURS = [(joint + 1) // 2 % 3 for joint in range(17)]


class Colours(nn.Module):
    """A heatmap for each joint that is as bright as the joint's colour."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(STD).view(1, 3, 1, 1), requires_grad=False)
        self.crops_seen = []

    def forward(self, crops):
        self.crops_seen.append(len(crops))
        colours = crops * self.weight + torch.tensor(MEAN).view(1, 3, 1, 1)
        return colours[:, COLOURS]


def card(representation, backbone="test_resnet.r160_in1k", authors=None, **options):
    architecture = Architecture(representation, backbone, **options)
    return Card("test", architecture, "", "", "", "", "", authors=authors)


@pytest.fixture
def spotter():
    """A pose model that finds the joints of people who are a red, a green and a blue spot."""
    representation = Heatmap(input_size=SIZE, stride=1)
    return PoseModel(card("dark", input_size=SIZE), Colours(), representation)


NOBODY = Detections(np.empty((0, 4), np.float32), np.empty(0, np.float32))


class KnownPeople:
    """A detector that has been told who is where, by the image's size."""

    def __init__(self, people):
        self.people = people
        self.calls = []

    def __call__(self, images, min_score):
        self.calls.append((len(images), min_score))
        found = [self.people.get(tuple(image.shape[:2]), NOBODY) for image in images]
        kept = [(people, people.scores >= min_score) for people in found]
        return [Detections(people.boxes[keep], people.scores[keep]) for people, keep in kept]


def draw(shape, people):
    """An image of people, `(P, 3, 2)`: each a red, a green and a blue spot."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    image = np.zeros((*shape, 3))
    for person in people:
        for colour, (x, y) in enumerate(person):
            image[..., colour] += 250 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18)
    return image.clip(0, 255).round().astype(np.uint8)


def boxes_of(people):
    people = np.asarray(people, np.float32)
    return np.concatenate((people.min(1) - 15, people.max(1) + 15), -1)


PEOPLE = {
    (150, 200): [[(40, 40), (60, 50), (50, 90)], [(140, 50), (130, 70), (150.5, 110.25)]],
    (220, 130): [[(60, 60), (70, 90), (50, 150)]],
    (100, 100): [],
}
IMAGES = {shape: draw(shape, people) for shape, people in PEOPLE.items()}
SHAPES = list(PEOPLE)


def detections(shape, scores=(0.9, 0.8)):
    people = PEOPLE[shape]
    if not people:
        return NOBODY
    return Detections(boxes_of(people), np.array(scores[: len(people)], np.float32))


def pipeline_of(model, detector=None, max_batch_people=64, metrics=None, as_authors=False):
    detector = detector or KnownPeople({shape: detections(shape) for shape in SHAPES})
    return Pipeline(detector, {"spots": model}, CPU, max_batch_people, metrics, as_authors)


def assert_at(poses, people, atol=0.5):
    assert poses.keypoints.shape == (len(people), 17, 3)
    for keypoints, person in zip(poses.keypoints, people, strict=True):
        np.testing.assert_allclose(keypoints[:, :2], np.array(person)[COLOURS], atol=atol)


def test_people_of_several_images_are_found_where_they_are(spotter):
    answers = pipeline_of(spotter)([IMAGES[shape] for shape in SHAPES], [Options("spots")] * 3)
    for poses, shape in zip(answers, SHAPES, strict=True):
        assert_at(poses, PEOPLE[shape])
        np.testing.assert_array_equal(poses.boxes, detections(shape).boxes)
        assert poses.model == "spots"
    assert spotter.network.crops_seen == [3]


@pytest.mark.parametrize("mapping", ["udp", "darkpose"])
def test_people_are_found_on_crops_of_other_conventions(mapping):
    options = {"mapping": mapping}
    model = PoseModel(
        card("dark", input_size=SIZE, options=options),
        Colours(),
        Heatmap(input_size=SIZE, stride=1, **options),
    )
    shape = (150, 200)
    for flip_test in (False, True):
        poses = pipeline_of(model)([IMAGES[shape]], [Options("spots", flip_test=flip_test)])[0]
        assert_at(poses, PEOPLE[shape])


def test_a_network_of_bgr_sees_blue_first():
    heatmaps = Heatmap(input_size=SIZE, stride=1)
    of_bgr = card("dark", "resnet50", "official", input_size=SIZE)
    shape = (150, 200)
    poses = pipeline_of(PoseModel(of_bgr, Colours(), heatmaps))([IMAGES[shape]], [Options("spots")])
    assert_at(poses[0], [person[::-1] for person in PEOPLE[shape]])


def test_the_authors_flip_test_merges_heatmaps_with_their_bias(spotter):
    shape = (150, 200)
    alone, flipped = (
        pipeline_of(spotter, as_authors=True)([IMAGES[shape]], [Options("spots", flip_test=flip)])
        for flip in (False, True)
    )
    assert_at(alone[0], PEOPLE[shape])
    # mmpose's shift is meant for a stride of 4: at 1 it is a pixel too much, and the mean half.
    affines = spotter.affines(torch.from_numpy(boxes_of(PEOPLE[shape])))
    bias = 0.5 / affines[:, 0, 0, None].numpy()
    found = flipped[0].keypoints[..., 0] - alone[0].keypoints[..., 0]
    np.testing.assert_allclose(found, np.broadcast_to(bias, found.shape), atol=0.1)


class Undecided(nn.Module):
    """SimCC logits that prefer one bin a little, the same one in every crop."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, crops):
        x, y = torch.zeros(len(crops), 17, 96), torch.zeros(len(crops), 17, 128)
        x[..., 40], y[..., 50] = 1, 1
        return x, y


def test_the_authors_scores_count_from_their_own_threshold_on():
    """SimDR*'s, whose scores are small."""
    model = PoseModel(card("simcc", input_size=SIZE), Undecided(), SimCC(SIZE))
    shape = (220, 130)
    poses = pipeline_of(model, as_authors=True)([IMAGES[shape]], [Options("spots")])[0]
    probability = np.e / (np.e + 127)
    assert 0.005 < probability < 0.03
    np.testing.assert_allclose(poses.keypoints[..., 2], probability, rtol=1e-5)
    np.testing.assert_allclose(poses.scores, 0.9 * probability, rtol=1e-5)


def test_a_batch_of_few_people_changes_no_answer(spotter):
    images, options = [IMAGES[shape] for shape in SHAPES], [Options("spots")] * 3
    at_once = pipeline_of(spotter)(images, options)
    one_by_one = pipeline_of(spotter, max_batch_people=1)(images, options)
    assert spotter.network.crops_seen == [3, 1, 1, 1]
    for one, other in zip(at_once, one_by_one, strict=True):
        np.testing.assert_allclose(one.keypoints, other.keypoints, atol=1e-4)


def test_own_boxes_keep_their_order_and_nobody_is_looked_for(spotter):
    detector = KnownPeople({})
    shape = (150, 200)
    boxes = boxes_of(PEOPLE[shape])[[1, 0, 1]]
    poses = pipeline_of(spotter, detector)([IMAGES[shape]], [Options("spots", boxes=boxes)])[0]
    assert detector.calls == []
    assert_at(poses, [PEOPLE[shape][index] for index in (1, 0, 1)])
    np.testing.assert_array_equal(poses.boxes, boxes)


def test_the_detector_gets_all_that_need_it_at_the_lowest_threshold(spotter):
    shape, other = (150, 200), (220, 130)
    detector = KnownPeople({shape: detections(shape, (0.9, 0.25)), other: detections(other)})
    options = [
        Options("spots", min_score=0.5),
        Options("spots", boxes=boxes_of(PEOPLE[other])),
        Options("spots", min_score=0.2),
        Options("spots", min_score=0.2, max_people=1),
    ]
    images = [IMAGES[shape], IMAGES[other], IMAGES[shape], IMAGES[shape]]
    answers = pipeline_of(spotter, detector)(images, options)
    assert detector.calls == [(3, 0.2)]
    assert [len(poses.scores) for poses in answers] == [1, 1, 2, 1]


def test_scores_are_the_box_times_the_joints_that_are_seen(spotter):
    shape = (150, 200)
    image = IMAGES[shape].copy()
    image[..., 1] //= 2  # greens are half sure
    image[..., 2] //= 10  # blues do not count
    poses = pipeline_of(spotter)([image], [Options("spots")])[0]
    seen = np.where(poses.keypoints[..., 2] > 0.2, poses.keypoints[..., 2], np.nan)
    np.testing.assert_allclose(poses.scores, [0.9, 0.8] * np.nanmean(seen, 1), rtol=1e-5)
    assert np.isnan(seen).any()


def test_calibrated_scores_count_from_a_lower_threshold_on(spotter):
    shape = (150, 200)
    image = IMAGES[shape].copy()
    image[..., 2] //= 10
    identity = Calibration((1.0, 1.0), (0.0,) * 17)
    known = replace(spotter.card, calibration=identity)
    calibrated = PoseModel(known, spotter.network, spotter.representation)
    raw = pipeline_of(spotter)([image], [Options("spots")])[0]
    poses = pipeline_of(calibrated)([image], [Options("spots")])[0]
    np.testing.assert_allclose(poses.keypoints, raw.keypoints, atol=2e-4)
    np.testing.assert_allclose(
        poses.scores, [0.9, 0.8] * poses.keypoints[..., 2].mean(1), rtol=1e-5
    )
    assert (poses.scores < raw.scores - 0.1).all()


def test_a_person_without_a_joint_scores_nothing(spotter):
    black = np.zeros((50, 60, 3), np.uint8)
    boxes = np.array([[5, 5, 25, 45]], np.float32)
    poses = pipeline_of(spotter)([black], [Options("spots", boxes=boxes)])[0]
    assert poses.scores.tolist() == [0]


def test_detected_people_come_best_first_and_duplicates_go(spotter):
    shape = (150, 200)
    known = detections(shape)
    twice = Detections(
        np.concatenate((known.boxes[:1], known.boxes[:1] + 1, known.boxes[1:])),
        np.array([0.9, 0.85, 0.8], np.float32),
    )
    image = IMAGES[shape].copy()
    image[:, :100] //= 2  # the first person turns out to be the lesser one
    poses = pipeline_of(spotter, KnownPeople({shape: twice}))([image], [Options("spots")])[0]
    assert (np.diff(poses.scores) < 0).all()
    assert_at(poses, [PEOPLE[shape][1], PEOPLE[shape][0]])
    np.testing.assert_array_equal(poses.boxes, known.boxes[::-1])


def test_flipping_finds_the_same_joints_for_those_who_ask(spotter):
    images = [IMAGES[(150, 200)], IMAGES[(220, 130)]]
    options = [Options("spots", flip_test=True), Options("spots")]
    metrics = Metrics()
    flipped = pipeline_of(spotter, metrics=metrics)(images, options)
    assert_at(flipped[0], PEOPLE[(150, 200)])
    assert_at(flipped[1], PEOPLE[(220, 130)])
    assert spotter.network.crops_seen == [5]


def test_flipping_keeps_within_the_largest_batch(spotter):
    shape = (150, 200)
    options = [Options("spots", flip_test=True)]
    pipeline_of(spotter, max_batch_people=2)([IMAGES[shape]], options)
    assert spotter.network.crops_seen == [2, 2]


def test_each_pose_model_has_batches_of_its_own(spotter):
    other = PoseModel(spotter.card, Colours(), spotter.representation)
    known = KnownPeople({shape: detections(shape) for shape in SHAPES})
    pipeline = Pipeline(known, {"one": spotter, "two": other}, CPU, 64)
    shapes = [(150, 200), (220, 130), (150, 200)]
    options = [Options("one"), Options("two"), Options("one")]
    answers = pipeline([IMAGES[shape] for shape in shapes], options)
    assert spotter.network.crops_seen == [4]
    assert other.network.crops_seen == [1]
    for poses, shape, option in zip(answers, shapes, options, strict=True):
        assert_at(poses, PEOPLE[shape])
        assert poses.model == option.model


def test_nobody_is_an_empty_answer(spotter):
    for options in (Options("spots"), Options("spots", boxes=np.empty((0, 4), np.float32))):
        poses = pipeline_of(spotter)([IMAGES[(100, 100)]], [options])[0]
        assert poses.boxes.shape == (0, 4)
        assert poses.scores.shape == (0,)
        assert poses.keypoints.shape == (0, 17, 3)
    assert spotter.network.crops_seen == []
    assert pipeline_of(spotter)([], []) == []


def test_a_box_without_an_area_breaks_nothing(spotter):
    boxes = np.array([[20, 20, 20, 20], [10, 10, 10, 40]], np.float32)
    poses = pipeline_of(spotter)([IMAGES[(100, 100)]], [Options("spots", boxes=boxes)])[0]
    assert np.isfinite(poses.keypoints).all()


def test_what_is_no_number_is_not_returned(spotter):
    spotter.network.weight[:] = torch.nan
    with pytest.raises(NotFiniteError):
        pipeline_of(spotter)([IMAGES[(150, 200)]], [Options("spots")])


class Poisoned:
    """What runs a network, and then spoils one number of its output for the second crop."""

    def __init__(self, run, number):
        self.run = run
        self.number = number

    def __call__(self, crops):
        raw = self.run(crops)
        parts = [part.clone() for part in (raw if isinstance(raw, tuple) else (raw,))]
        spoilt = parts[-1][1]
        spoilt[tuple(side // 2 for side in spoilt.shape)] = self.number
        return tuple(parts) if isinstance(raw, tuple) else parts[0]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("flip_test", [False, True])
@pytest.mark.parametrize("name", ["simcc-small", "dark-small", "pct-small"])
def test_one_number_that_is_not_finite_is_found(bundled, name, flip_test, number):
    model = bundled[name]
    poisoned = {name: estimator(model, Poisoned(TorchRunner(model.network), number))}
    pipeline = Pipeline(KnownPeople({}), {name: model}, CPU, 64, estimators=poisoned)
    boxes = boxes_of(PEOPLE[(150, 200)])
    with pytest.raises(NotFiniteError):
        pipeline([IMAGES[(150, 200)]], [Options(name, boxes=boxes, flip_test=flip_test)])


@pytest.fixture(scope="module")
def bundled():
    return {name: models.load(name) for name in ("simcc-small", "dark-small", "pct-small")}


@pytest.mark.parametrize("name", ["simcc-small", "dark-small", "pct-small"])
def test_answers_may_lie_in_memory_that_is_written_to_again(bundled, name, monkeypatch):
    """As those out of CUDA graphs do, here in several parts, mirrored and explained."""
    monkeypatch.setattr(cuda_graphs, "_Capture", Recalled)
    model = bundled[name]
    width, height = model.input_size
    compute = estimator(model, TorchRunner(model.network))
    graphs = GraphRunner(compute, (3, height, width), torch.float32, CPU, (1, 2))
    boxes = boxes_of([*PEOPLE[(150, 200)], *PEOPLE[(220, 130)]])
    images = [IMAGES[(150, 200)], IMAGES[(220, 130)]]
    options = [
        Options(name, boxes=boxes, explain=True),
        Options(name, boxes=boxes[:1], flip_test=True),
    ]
    found, expected = (
        Pipeline(KnownPeople({}), {name: model}, CPU, 2, estimators=estimators)(images, options)
        for estimators in ({name: graphs}, None)
    )
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.keypoints, theirs.keypoints, atol=1e-3)
    pairs = zip(found[0].explanations, expected[0].explanations, strict=True)
    for ours, theirs in pairs:
        for key, value in theirs.seen.items():
            np.testing.assert_allclose(ours.seen[key], value, atol=1e-4)


def test_only_the_image_of_what_is_not_finite_fails(spotter):
    """Through the engine, which takes a failing batch apart."""

    class Blind(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, crops):
            brightest = crops.flatten(1).amax(1)[:, None, None, None]
            return self.network(crops).where(brightest < 2, torch.nan)

    spotter.network = Blind(spotter.network)
    registry = CollectorRegistry()
    known = KnownPeople({shape: detections(shape) for shape in SHAPES})
    pipeline = Pipeline(known, {"spots": spotter}, CPU, 64)
    dim, bright = IMAGES[(150, 200)] // 2, IMAGES[(150, 200)]
    engine = Engine(
        lambda: pipeline,
        max_queue=8,
        max_pixels_in_flight=10**9,
        max_batch_images=8,
        max_batch_people=64,
        heartbeat_seconds=30,
        metrics=Metrics(registry),
    )
    engine.start()
    with engine._changed:
        assert engine._changed.wait_for(lambda: engine.ready, 10)
        futures = [
            engine.submit(image, Options("spots"), "a", time.monotonic() + 10)
            for image in (dim, bright, dim)
        ]
    with pytest.raises(NotFiniteError):
        futures[1].result(10)
    for future in (futures[0], futures[2]):
        assert_at(future.result(10), PEOPLE[(150, 200)])
    assert registry.get_sample_value("pose_failed_images_total", {"reason": "not-finite"}) == 1
    assert engine.drain(10)


def test_timings_and_metrics_tell_what_was_done(spotter):
    registry = CollectorRegistry()
    pipeline = pipeline_of(spotter, max_batch_people=2, metrics=Metrics(registry))
    assert 0 < pipeline.warm_up()["spots"] < 10
    assert registry.get_sample_value("pose_images_total") == 0

    answers = pipeline([IMAGES[shape] for shape in SHAPES], [Options("spots")] * 3)

    def value(name, **labels):
        return registry.get_sample_value(name, labels)

    assert set(answers[0].timings) == {"detect", "crop", "pose", "postprocess"}
    assert all(seconds > 0 for seconds in answers[0].timings.values())
    assert value("pose_images_total") == 3
    assert value("pose_persons_total", representation="dark") == 3
    assert value("pose_stage_duration_seconds_count", stage="pose") == 1
    assert value("pose_batch_size_sum", stage="detect") == 3
    assert value("pose_batch_size_count", stage="pose") == 2
    assert value("pose_batch_size_sum", stage="pose") == 3
    labels = {"model": "spots", "representation": "dark", "device": "cpu"}
    assert value("pose_model_info", backbone="test_resnet.r160_in1k", **labels) == 1


@pytest.mark.parametrize(
    ("representation", "options"),
    [
        ("simcc", {"input_size": (64, 96), "options": {"feature_stride": 32}}),
        ("dark", {"input_size": (64, 96), "options": {"stride": 4}}),
    ],
)
def test_real_networks_give_every_image_its_own_poses(representation, options):
    torch.manual_seed(0)
    model = PoseModel.fresh(card(representation, **options)).eval()
    pipeline = pipeline_of(model)
    images = [IMAGES[shape] for shape in SHAPES]
    asked = [Options("spots", flip_test=flip) for flip in (True, False, True)]
    together = pipeline(images, asked)
    for image, option, poses in zip(images, asked, together, strict=True):
        alone = pipeline([image], [option])[0]
        np.testing.assert_allclose(poses.keypoints, alone.keypoints, atol=1e-2)
        np.testing.assert_allclose(poses.scores, alone.scores, atol=1e-4)


@pytest.mark.parametrize("mapping", ["affine", "udp", "darkpose"])
@pytest.mark.parametrize("backbone", ["resnet18", "test_resnet.r160_in1k"], ids=["BGR", "RGB"])
def test_what_is_exported_answers_as_the_pipeline_does(backbone, mapping):
    torch.manual_seed(0)
    options = {"stride": 4, "mapping": mapping}
    known = card("dark", backbone, "official", input_size=(48, 64), pyramid=16, options=options)
    model = PoseModel.fresh(known).eval()
    torch.nn.init.normal_(model.network.head.final_layer.weight)
    assert model.bgr == (backbone == "resnet18")
    shape = (150, 200)
    boxes = np.concatenate((boxes_of(PEOPLE[shape]), [[-20, -30, 40, 60], [150, 90, 230, 180]]))
    given = boxes.astype(np.float32)
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    [poses] = pipeline_of(model)([image], [Options("spots", boxes=given)])
    with torch.inference_mode():
        exported = ImageToPoses(model)(torch.from_numpy(image), torch.from_numpy(given))
    # The two sample alike to a hundredth of a grey level, which is much to a random network's
    # flattest peaks; a wrong colour or mapping is off by pixels.
    np.testing.assert_allclose(exported, poses.keypoints, atol=0.1)


@pytest.mark.skipif(
    not FIXTURES.is_dir(), reason="the reference's golden numbers are not beside this repository"
)
@pytest.mark.parametrize("threshold", [0.9, 0.5])
def test_suppression_is_that_of_hrnet(threshold):
    golden = np.load(FIXTURES / "hrnet_official.npz")
    kept = oks_nms(
        golden["nms/keypoints"], golden["nms/score"], golden["nms/area"], threshold, OKS_SIGMAS
    )
    np.testing.assert_array_equal(kept, golden[f"nms/keep_{threshold}"])


@pytest.mark.skipif(
    not FIXTURES.is_dir(), reason="the reference's golden numbers are not beside this repository"
)
def test_poses_are_as_alike_as_hrnet_says():
    golden = np.load(FIXTURES / "hrnet_official.npz")
    keypoints, areas = golden["nms/keypoints"], golden["nms/area"]
    for other, similarity in enumerate(golden["nms/oks_0to_rest"], 1):
        pair = [0, other]
        # One of the two goes exactly where the threshold is below their similarity.
        for threshold, left in ((similarity - 1e-6, 1), (similarity + 1e-6, 2)):
            kept = oks_nms(
                keypoints[pair], np.array([0.9, 0.8]), areas[pair], threshold, OKS_SIGMAS
            )
            assert len(kept) == left


def greedy(keypoints, scores, areas, threshold):
    """The textbook's loop."""
    left, kept = list(np.argsort(-scores)), []
    while left:
        best = left.pop(0)
        kept.append(best)
        squares = ((keypoints[left, :, :2] - keypoints[best, :, :2]) ** 2).sum(-1)
        area = (areas[left] + areas[best]) / 2
        oks = np.exp(-squares / (2 * np.array(OKS_SIGMAS)) ** 2 / area[:, None] / 2).mean(-1)
        left = [person for person, same in zip(left, oks, strict=True) if same <= threshold]
    return kept


def test_suppression_is_greedy_through_chains_of_neighbours():
    # In a chain only every other link stays: whom the best suppresses cannot suppress the next.
    rng = np.random.default_rng(0)
    for length in (1, 2, 30):
        keypoints = rng.uniform(0, 100, (17, 3)) + np.arange(length)[:, None, None] * 4.0
        scores, areas = rng.uniform(size=length), np.full(length, 1000.0)
        for threshold in (0.3, 0.5, 0.9):
            kept = oks_nms(keypoints, scores, areas, threshold, OKS_SIGMAS).tolist()
            assert kept == greedy(keypoints, scores, areas, threshold)
    assert 5 < len(oks_nms(keypoints, scores, areas, 0.3, OKS_SIGMAS)) < 25


def test_explanations_are_told_to_those_who_ask(spotter):
    options = [Options("spots", explain=shape != (220, 130)) for shape in SHAPES]
    plain = pipeline_of(spotter)([IMAGES[shape] for shape in SHAPES], [Options("spots")] * 3)
    for most in (64, 1):
        answers = pipeline_of(spotter, max_batch_people=most)(
            [IMAGES[shape] for shape in SHAPES], options
        )
        assert [poses.explanations is None for poses in answers] == [False, True, False]
        assert answers[2].explanations == ()
        for poses, before in zip(answers, plain, strict=True):
            np.testing.assert_allclose(poses.keypoints, before.keypoints, atol=1e-4)
            for told, keypoints in zip(poses.explanations or (), poses.keypoints, strict=False):
                assert told.crop_size == SIZE
                maps = told.seen["maps"].reshape(17, *SIZE[::-1])
                rows, columns = np.unravel_index(maps.reshape(17, -1).argmax(1), maps.shape[1:])
                found = told.crop_to_image @ np.stack((columns, rows, np.ones(17)))
                assert np.abs(found.T - keypoints[:, :2]).max() < 3


def test_explanations_follow_their_people_when_these_are_sorted(spotter):
    shape = (150, 200)
    people = detections(shape, (0.3, 0.9))
    twice = Detections(people.boxes[[0, 1, 1]], np.array([0.35, 0.9, 0.8], np.float32))
    options = [Options("spots", explain=True, flip_test=True)]
    poses = pipeline_of(spotter, KnownPeople({shape: twice}))([IMAGES[shape]], options)[0]
    assert len(poses.scores) == len(poses.explanations) == 2
    for told, box in zip(poses.explanations, poses.boxes, strict=True):
        middle = told.crop_to_image @ (SIZE[0] / 2, SIZE[1] / 2, 1)
        np.testing.assert_allclose(middle, (box[:2] + box[2:]) / 2, atol=1e-3)
