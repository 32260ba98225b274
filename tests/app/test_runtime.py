"""Networks run on what the setting and the device say, with the same answers everywhere."""

import logging
import sys

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import box_iou

import models
from app.cli import main
from app.main import build_detector, build_pipeline, build_runtime
from app.metrics import Metrics
from app.pipeline import Options
from app.runtime import Runtime
from app.settings import Settings
from models import cuda_graphs
from models.cuda_graphs import GraphRunner, GraphsBySize
from models.openvino_runtime import OpenVinoRunner
from models.runtime import TorchRunner, estimator
from tests.models.graphs_support import Recalled
from tests.photos import BUS, ZIDANE

CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
NAMES = Settings.model_fields["models"].default


@pytest.fixture(scope="module")
def pipelines():
    """The service's pipeline on each runtime."""
    return {
        runtime: build_pipeline(Settings(runtime=runtime, precision="float32"), Metrics())
        for runtime in ("torch", "openvino")
    }


@pytest.fixture(scope="module")
def photos():
    """The sample photos, and one of them in other shapes."""
    bus, zidane = (cv2.imread(str(path), cv2.IMREAD_COLOR_RGB) for path in (BUS, ZIDANE))
    return [bus, zidane, np.ascontiguousarray(bus[200:900]), cv2.resize(zidane, (300, 400))]


def assert_same(ours, theirs):
    assert len(ours.scores) == len(theirs.scores)
    np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=0.5)
    np.testing.assert_allclose(ours.keypoints[..., :2], theirs.keypoints[..., :2], atol=0.5)
    np.testing.assert_allclose(ours.keypoints[..., 2], theirs.keypoints[..., 2], atol=0.01)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_both_runtimes_find_the_same_people(pipelines, photos, name):
    options = [Options(name)] * len(photos)
    expected = pipelines["torch"](photos, options)
    assert sum(len(poses.scores) for poses in expected) >= 6
    for ours, theirs in zip(pipelines["openvino"](photos, options), expected, strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_both_runtimes_agree_on_a_mirrored_crowd(pipelines, photos, name):
    box = np.array([52, 396, 246, 902], np.float32)
    crowd = box + np.random.default_rng(0).uniform(-20, 20, (9, 4)).astype(np.float32)
    options = [Options(name, boxes=crowd, flip_test=True)]
    found, expected = (pipelines[key](photos[:1], options) for key in ("openvino", "torch"))
    assert_same(found[0], expected[0])


@pytest.fixture(params=[7, 0], ids=["AVX2", "neither"])
def weight_bits(request, monkeypatch):
    """What the CPU multiplies by eight bits: this one does the former anyhow, if slowly."""
    monkeypatch.setattr("app.runtime.cpus.weight_bits", lambda: request.param)
    return request.param


def test_the_detector_is_in_int8_where_the_cpu_has_instructions(weight_bits, photos):
    exact = build_detector(Settings(precision="float32"))(photos, 0.3)
    found = build_detector(Settings())(photos, 0.3)
    assert sum(len(people.boxes) for people in exact) >= 6
    for ours, theirs in zip(found, exact, strict=True):
        # Those who are hardly found may come and go.
        sure = theirs.scores > 0.6
        if not sure.any():
            continue
        boxes = (torch.from_numpy(some) for some in (theirs.boxes[sure], ours.boxes))
        shared, same = box_iou(*boxes).max(1)
        assert (shared > 0.85).all()
        np.testing.assert_allclose(ours.scores[same], theirs.scores[sure], atol=0.05)
    scores = [np.concatenate([people.scores for people in some]) for some in (found, exact)]
    assert np.array_equal(*scores) == (not weight_bits)


EXAMPLE = torch.zeros(2, 3, 4, 4)


def rounds(runner, layer):
    crops = torch.linspace(-1, 1, 96).view(2, 3, 4, 4)
    return not torch.allclose(runner(crops), layer(crops), atol=1e-5)


def test_int8_is_for_networks_that_know_their_ranges(weight_bits):
    layer, ranges = nn.Conv2d(3, 2, 1).requires_grad_(False), {"": (-1.0, 1.0)}
    auto, exact = Runtime("auto", CPU), Runtime("auto", CPU, precision="float32")
    assert rounds(auto("layer", layer, EXAMPLE, ranges=ranges), layer) == bool(weight_bits)
    assert not rounds(auto("layer", layer, EXAMPLE), layer)
    assert not rounds(exact("layer", layer, EXAMPLE, ranges=ranges), layer)
    assert not rounds(Runtime("torch", CPU)("layer", layer, EXAMPLE, ranges=ranges), layer)


def test_what_int8_cannot_run_is_float32s(monkeypatch, caplog):
    monkeypatch.setattr("app.runtime.cpus.weight_bits", lambda: 7)
    layer, strangers = nn.Conv2d(3, 2, 1).requires_grad_(False), {"head": (-1.0, 1.0)}
    runner = Runtime("auto", CPU)("layer", layer, EXAMPLE, ranges=strangers)
    assert isinstance(runner, OpenVinoRunner)
    assert not rounds(runner, layer)
    assert "layer runs in float32, not in int8: it has ranges of another network" in caplog.text
    with pytest.raises(ValueError, match=r"POSE_PRECISION=int8 cannot run layer: it has ranges of"):
        Runtime("auto", CPU, precision="int8")("layer", layer, EXAMPLE, ranges=strangers)


def test_int8_or_nothing(monkeypatch):
    monkeypatch.setattr("app.runtime.cpus.weight_bits", lambda: 7)
    layer = nn.Conv2d(3, 2, 1).requires_grad_(False)
    wanted = Runtime("auto", CPU, precision="int8")
    assert rounds(wanted("layer", layer, EXAMPLE, ranges={"": (-1.0, 1.0)}), layer)
    with pytest.raises(ValueError, match=r"ranges of layer are not known: `posemux quantise`"):
        wanted("layer", layer, EXAMPLE)
    with pytest.raises(ValueError, match="accepted here are auto and float32"):
        Runtime("torch", CPU, precision="int8")
    monkeypatch.setattr("app.runtime.cpus.weight_bits", lambda: 0)
    with pytest.raises(ValueError, match="a CPU with AVX2 or VNNI instructions"):
        Runtime("auto", CPU, precision="int8")


class Unheard(nn.Module):
    """An operation that OpenVINO does not have."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, crops):
        return torch.linalg.svdvals(crops) * self.weight


@pytest.mark.parametrize(
    ("asked", "setting"),
    [({"choice": "graphs"}, "RUNTIME=graphs"), ({"precision": "float16"}, "PRECISION=float16")],
)
def test_some_of_it_is_for_gpus(asked, setting):
    with pytest.raises(ValueError, match=f"POSE_{setting} is for a GPU, and the device is cpu"):
        Runtime(**{"choice": "auto", **asked}, device=CPU)


@pytest.fixture
def graphs(monkeypatch):
    """A runtime of CUDA graphs, which computes on the CPU."""
    monkeypatch.setattr(cuda_graphs, "_Capture", Recalled)
    runtime = Runtime("graphs", torch.device("cuda"))
    monkeypatch.setattr(runtime, "_device", CPU)
    return runtime


def test_graphs_hold_all_from_crops_to_joints(graphs):
    model = models.load("dark-small")
    graphed = graphs.estimator("dark-small", model, 4)
    assert isinstance(graphed, GraphRunner)
    crops = torch.rand(7, 3, 256, 192)
    [_, found], [_, expected] = graphed(crops), estimator(model, TorchRunner(model.network))(crops)
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=0)
    assert isinstance(graphs("the detector", model.network, crops, any_size=True), GraphsBySize)


@pytest.mark.parametrize("fault", ["other answers", "no answer"])
def test_graphs_that_answer_otherwise_are_not_taken(graphs, monkeypatch, fault):
    class Faulty(Recalled):
        def __call__(self, compute, batch):
            _, outputs = super().__call__(compute, batch)
            if fault == "no answer":
                raise RuntimeError("operation not permitted when stream is capturing\nand more")
            outputs[0].zero_()
            return (lambda: None), outputs

    monkeypatch.setattr(cuda_graphs, "_Capture", Faulty)
    with pytest.raises(ValueError, match=r"^POSE_RUNTIME=graphs cannot run dark-small: [^\n]+$"):
        graphs.estimator("dark-small", models.load("dark-small"), 2)


@needs_cuda
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_graphs_find_the_same_people(pipelines, photos, precision):
    settings = Settings(runtime="graphs", device="cuda", precision=precision)
    graphed = build_pipeline(settings, Metrics())
    for name in NAMES:
        options = [Options(name)] * len(photos)
        expected = pipelines["torch"](photos, options)
        for ours, theirs in zip(graphed(photos, options), expected, strict=True):
            assert len(ours.scores) == len(theirs.scores)
            off = np.abs(ours.keypoints - theirs.keypoints)[theirs.keypoints[..., 2] > 0.5]
            # Noise has many equal peaks, and half precision moves a few joints further.
            assert np.quantile(off[:, :2], 0.9) < (0.5 if precision == "float32" else 1.5)


def test_auto_takes_openvino_on_a_cpu_where_it_can(caplog):
    auto, layer = Runtime("auto", CPU), nn.Conv2d(3, 2, 1).requires_grad_(False)
    with caplog.at_level(logging.WARNING):
        assert isinstance(auto("layer", layer, EXAMPLE), OpenVinoRunner)
        assert caplog.records == []
        assert isinstance(auto("svd-small", Unheard(), EXAMPLE), TorchRunner)
    [record] = caplog.records
    assert record.getMessage().startswith("svd-small runs on torch, because OpenVINO cannot")
    assert "\n" not in record.getMessage()
    assert isinstance(Runtime("torch", CPU)("layer", layer, EXAMPLE), TorchRunner)
    gpu = Runtime("auto", torch.device("cuda"))
    assert isinstance(gpu("layer", layer, EXAMPLE), TorchRunner)


def test_openvino_or_nothing():
    with pytest.raises(ValueError, match=r"POSE_RUNTIME=openvino cannot run svd-small: [^\n]+$"):
        Runtime("openvino", CPU)("svd-small", Unheard(), EXAMPLE)
    with pytest.raises(ValueError, match=r"on the CPU, not on cuda:0: accepted .* auto and torch"):
        Runtime("openvino", torch.device("cuda:0"))


def test_without_openvino_auto_goes_on(caplog, monkeypatch):
    for name in ("openvino", "models.openvino_runtime"):
        monkeypatch.setitem(sys.modules, name, None)
    layer = nn.Conv2d(3, 2, 1)
    assert isinstance(Runtime("auto", CPU)("layer", layer, EXAMPLE), TorchRunner)
    assert "layer runs on torch" in caplog.text
    monkeypatch.setattr("app.runtime.find_spec", lambda _: None)
    with pytest.raises(ValueError, match="openvino is not installed"):
        Runtime("openvino", CPU)


def test_a_service_whose_runtime_is_missing_does_not_start(monkeypatch, capsys):
    monkeypatch.setenv("POSE_RUNTIME", "openvino")
    monkeypatch.setattr("app.runtime.find_spec", lambda _: None)
    assert main(["serve", "--port", "0"]) == 2
    assert capsys.readouterr().err == (
        "posemux: POSE_RUNTIME=openvino, but openvino is not installed\n"
    )


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.get_num_threads
    torch.set_num_threads(before)


def test_networks_take_no_more_threads_than_there_are(threads, monkeypatch):
    monkeypatch.setattr("app.main._TORCH_THREADS", 4)
    monkeypatch.setattr("app.main.cpus.available", lambda: 3)
    build_runtime(Settings())
    assert threads() == 3
    monkeypatch.setattr("app.main.cpus.available", lambda: 5)
    build_runtime(Settings())
    assert threads() == 4
    build_runtime(Settings(compute_threads=5))
    assert threads() == 5


@pytest.mark.parametrize(("runtime", "left"), [("openvino", 1), ("torch", 3)])
def test_torch_keeps_no_threads_that_it_has_no_network_for(threads, runtime, left):
    build_pipeline(Settings(runtime=runtime, compute_threads=3), Metrics())
    assert threads() == left
