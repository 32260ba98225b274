from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import models
from models import catalogue, cuda_graphs
from models.cuda_graphs import GraphRunner, GraphsBySize, bucket_of, buckets
from models.layouts import architecture_of
from models.pose_model import PoseModel
from models.runtime import TorchRunner, estimator
from models.training.loop import card_of
from tests.models.graphs_support import Recalled

CPU = torch.device("cpu")
SHAPE = (3, 8, 6)

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def test_buckets_are_dense_enough_to_waste_little():
    assert buckets(128) == (1, 2, 4, *range(8, 129, 8))
    assert buckets(64)[-2:] == (56, 64)
    assert buckets(1) == (1,)
    assert buckets(50) == (1, 2, 4, 8, 16, 24, 32, 40, 48, 50)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        buckets(0)


def test_a_bucket_is_the_smallest_that_holds_the_batch():
    sizes = buckets(128)
    for count in range(1, 129):
        bucket = bucket_of(count, sizes)
        assert bucket in sizes
        assert [size for size in sizes if count <= size < bucket] == []
    for count in (0, 129):
        with pytest.raises(ValueError, match=f"1 to 128 rows, not {count}"):
            bucket_of(count, sizes)


@pytest.fixture
def captured(monkeypatch):
    """Runners work without a GPU."""
    monkeypatch.setattr(cuda_graphs, "_Capture", Recalled)


def two_sums(batch):
    """Of each row: its sum, and the sums of its colours."""
    return batch.float().sum((1, 2, 3)), batch.float().sum((2, 3))


@pytest.mark.usefixtures("captured")
@pytest.mark.parametrize("count", [1, 2, 3, 8, 9, 16, 17, 40])
def test_a_batch_of_any_size_is_computed(count):
    runner = GraphRunner(two_sums, SHAPE, torch.float32, CPU, buckets(16))
    # Larger values first: what they leave behind must not be felt.
    runner(torch.full((16, *SHAPE), 1e6))
    batch = torch.randn(count, *SHAPE)
    for found, expected in zip(runner(batch), two_sums(batch), strict=True):
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("captured")
def test_one_output_is_as_good_as_several():
    runner = GraphRunner(lambda batch: batch + 1, SHAPE, torch.float32, CPU, buckets(4))
    for count in (3, 9):
        batch = torch.randn(count, *SHAPE)
        torch.testing.assert_close(runner(batch), batch + 1)


@pytest.mark.usefixtures("captured")
def test_outputs_may_lie_in_tuples_of_tuples():
    def compute(batch):
        return two_sums(batch), batch + 1

    runner = GraphRunner(compute, SHAPE, torch.float32, CPU, buckets(4))
    for count in (3, 9):
        batch = torch.randn(count, *SHAPE)
        torch.testing.assert_close(runner(batch), compute(batch))


@pytest.mark.usefixtures("captured")
def test_pictures_of_several_sizes_have_graphs_of_their_own(small):
    captures = []

    class Counted(Recalled):
        def __call__(self, compute, batch):
            captures.append(tuple(batch.shape))
            return super().__call__(compute, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_graphs, "_Capture", Counted)
        runner = GraphsBySize(small, CPU, most=2, sizes=(1, 4))
        # The third size has to do without.
        for height, width in ((8, 6), (6, 8), (8, 6), (10, 10), (6, 8)):
            for count in (3, 1, 6):
                batch = torch.randn(count, 3, height, width)
                torch.testing.assert_close(runner(batch), small(batch))
    assert captures == [(4, 3, 8, 6), (1, 3, 8, 6), (4, 3, 6, 8), (1, 3, 6, 8)]


@pytest.mark.usefixtures("captured")
def test_an_empty_batch_is_refused():
    runner = GraphRunner(two_sums, SHAPE, torch.float32, CPU, buckets(4))
    with pytest.raises(ValueError, match="1 to 4 rows, not 0"):
        runner(torch.empty(0, *SHAPE))


def test_the_largest_is_captured_first(monkeypatch):
    captures = []
    monkeypatch.setattr(
        cuda_graphs, "_Capture", lambda device: captures.append(Recalled(device)) or captures[0]
    )
    GraphRunner(two_sums, SHAPE, torch.float32, CPU, buckets(16))
    assert captures[0].sizes == [16, 8, 4, 2, 1]


@pytest.mark.usefixtures("captured")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_batches_become_what_the_network_computes_in(dtype):
    seen = []

    def compute(batch):
        seen.append((batch.dtype, batch.is_contiguous(memory_format=torch.channels_last)))
        return batch

    runner = GraphRunner(compute, SHAPE, dtype, CPU, buckets(8))
    batch = torch.randn(3, *SHAPE)
    torch.testing.assert_close(runner(batch), batch.to(dtype))
    assert set(seen) == {(dtype, True)}


@pytest.mark.usefixtures("captured")
def test_the_next_batch_takes_the_last_ones_memory():
    runner = GraphRunner(lambda batch: batch + 1, SHAPE, torch.float32, CPU, (4,))
    first = runner(torch.zeros(4, *SHAPE))
    second = runner(torch.ones(4, *SHAPE))
    assert first.data_ptr() == second.data_ptr()
    assert (first == 2).all()


class OffTheDevice(TorchDispatchMode):
    """Notes each operation that a graph cannot hold: it reads back, or brings something along."""

    def __init__(self):
        super().__init__()
        self.noted = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        tensors = [x for x in tree_leaves((arguments, options, result)) if torch.is_tensor(x)]
        # What a Python number or list becomes a tensor through.
        made_on_host = function is torch.ops.aten.lift_fresh.default
        if made_on_host or any(tensor.device.type != "meta" for tensor in tensors):
            self.noted.append(str(function))
        return result


@pytest.mark.parametrize(
    "name",
    [*catalogue.bundled(), "rtmpose-m", "pct-swin-base"],
)
def test_from_crops_to_joints_nothing_leaves_the_device(name):
    known = name in models.names()
    card = models.card(name) if known else card_of(name, architecture_of(name))
    # A device without data: whoever wants to read a number fails.
    with torch.device("meta"):
        model = PoseModel.fresh(card).eval()
    width, height = model.input_size
    crops = torch.empty(2, 3, height, width, device="meta")
    estimate = estimator(model, TorchRunner(model.network))
    with torch.inference_mode():
        # What the first call keeps, a warm-up brings to the device before anything is captured.
        estimate(crops)
        with OffTheDevice() as watch:
            estimate(crops)
    assert watch.noted == []


# ----------------------------------------------------------------------------------- with a GPU


@pytest.fixture
def small():
    """A network whose kernels depend on the batch's size."""
    torch.manual_seed(0)
    layers = OrderedDict(
        first=nn.Conv2d(3, 16, 3, padding=1), norm=nn.BatchNorm2d(16), last=nn.Conv2d(16, 4, 1)
    )
    return nn.Sequential(layers).eval().requires_grad_(False)


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_graphs_compute_what_the_network_does(small, dtype):
    device = torch.device("cuda")
    network = small.to(device, dtype).to(memory_format=torch.channels_last)
    runner = GraphRunner(network, SHAPE, dtype, device, buckets(16))
    for count in (16, 1, 9, 3, 40, 2):
        batch = torch.randn(count, *SHAPE, device=device)
        found = runner(batch)
        expected = network(batch.to(dtype))
        torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)


@needs_cuda
@pytest.mark.parametrize("name", catalogue.bundled())
def test_graphs_find_the_joints_that_the_network_finds(name):
    device = torch.device("cuda")
    model = models.load(name, device=device)
    width, height = model.input_size

    def estimate(crops):
        return model.decode(model.network(crops))

    runner = GraphRunner(estimate, (3, height, width), torch.float32, device, buckets(8))
    crops = torch.randn(11, 3, height, width, device=device)
    with torch.inference_mode():
        expected = estimate(crops)
    # Convolutions that were tried out may round otherwise, and noise has many equal peaks.
    distances = (runner(crops)[..., :2] - expected[..., :2]).norm(dim=-1)
    assert (distances < 0.5).float().mean() > 0.95
