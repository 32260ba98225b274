"""OpenVINO answers as PyTorch does, or says that it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import models
from models import catalogue
from models.openvino_runtime import OpenVinoRunner
from models.pct import MixerSize, PCTHead
from models.pose_model import PoseModel
from models.runtime import ConversionError, TorchRunner
from models.training.loop import card_of

from .recipes_support import read
from .test_pose_model import bus_crops

ROOT = Path(__file__).parents[2]

Pair = tuple[PoseModel, OpenVinoRunner]


@pytest.fixture(scope="module", params=catalogue.bundled())
def pair(request: pytest.FixtureRequest) -> Pair:
    """A bundled model, and what runs its network."""
    model = models.load(request.param)
    return model, OpenVinoRunner(model.network, example(model.input_size), False, 1)


def example(size: tuple[int, int], people: int = 2) -> Tensor:
    width, height = size
    return torch.randn(people, 3, height, width, generator=torch.Generator().manual_seed(1))


def outputs(raw: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return raw if isinstance(raw, tuple) else (raw,)


@torch.inference_mode()
def test_batches_of_any_size_are_answered_as_by_torch(pair: Pair) -> None:
    model, runner = pair
    crops = torch.cat((bus_crops(model.input_size), example(model.input_size, 38)))
    expected = model.network(crops)
    for count in (1, 3, 40):
        found = runner(crops[:count])
        assert isinstance(found, tuple) == isinstance(expected, tuple)
        for ours, theirs in zip(outputs(found), outputs(expected), strict=True):
            assert ours.dtype == torch.float32
            atol = 1e-4 * float(theirs.abs().max())
            torch.testing.assert_close(ours, theirs[:count], rtol=0, atol=atol)


@torch.inference_mode()
def test_crops_may_lie_in_memory_as_they_like_and_answers_stay(pair: Pair) -> None:
    model, runner = pair
    crops = example(model.input_size)
    first = outputs(runner(crops))
    kept = [part.clone() for part in first]
    again = outputs(runner(crops.contiguous(memory_format=torch.channels_last)))
    runner(example(model.input_size) * 2)
    for before, part, same in zip(kept, first, again, strict=True):
        assert torch.equal(part, before)
        assert torch.equal(part, same)


@pytest.mark.parametrize(
    ("recipe", "size"),
    [("rtmpose-t", (64, 64)), ("vitpose-s", (32, 64)), ("tokenpose-s-v1-heatmap", (48, 64))],
)
def test_what_published_networks_are_made_of_is_known(recipe: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    architecture = replace(read(recipe).architecture, input_size=size)
    if architecture.tokens is not None:
        architecture = replace(architecture, tokens=replace(architecture.tokens, blocks=1))
    network = PoseModel.fresh(card_of(recipe, architecture)).eval().network
    OpenVinoRunner(network, example(size), False, 1)


def test_the_classifier_of_pct_is_known() -> None:
    torch.manual_seed(0)
    head = PCTHead(3, (4, 6), 34, 64, 8, 1, MixerSize(1, 16, 16, 16)).eval().requires_grad_(False)
    OpenVinoRunner(head, example((4, 6)), False, 1)


class Pooled(nn.Module):
    """As many numbers as there are cells of two by two."""

    def forward(self, crops: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(crops, 2).flatten(1)


def test_sizes_may_differ_where_they_are_said_to() -> None:
    runner = OpenVinoRunner(Pooled(), example((4, 6)), True, 1)
    for size in ((4, 6), (8, 2), (2, 2)):
        crops = example(size, 9)
        torch.testing.assert_close(runner(crops), Pooled()(crops))
    with pytest.raises(RuntimeError):
        OpenVinoRunner(Pooled(), example((4, 6)), False, 1)(example((8, 2)))


@pytest.mark.parametrize("threads", [2, 3])
def test_crops_side_by_side_keep_their_order(threads: int) -> None:
    runner = OpenVinoRunner(Pooled(), example((4, 6)), True, threads)
    crops = example((4, 6), 8)
    first = runner(crops[:1])
    for count in range(1, 9):
        torch.testing.assert_close(runner(crops[:count]), Pooled()(crops[:count]))
    # What was answered before is not written over.
    torch.testing.assert_close(first, Pooled()(crops[:1]))


class Counted(nn.Module):
    """Takes the batch's size for a number that never changes."""

    def forward(self, crops: Tensor) -> Tensor:
        return crops.mean((2, 3)) + torch.arange(int(crops.shape[0]))[:, None]


class Stateful(nn.Module):
    """Takes a picture for a number that never changes."""

    def forward(self, crops: Tensor) -> Tensor:
        return crops.mean((2, 3)) + float(crops.sum())


class Unheard(nn.Module):
    """An operation that OpenVINO does not have."""

    def forward(self, crops: Tensor) -> Tensor:
        return torch.linalg.svdvals(crops)


class Broken(nn.Module):
    def forward(self, crops: Tensor) -> Tensor:
        raise KeyError("no such\nthing")


@pytest.mark.parametrize("network", [Counted(), Stateful(), Unheard(), Broken()])
def test_what_cannot_be_converted_is_one_clear_error(network: nn.Module) -> None:
    with pytest.raises(ConversionError, match=r"^[^\n]+$"):
        OpenVinoRunner(network, example((4, 6)), False, 1)


def test_a_fixed_number_of_crops_is_found_before_anything_runs() -> None:
    with pytest.raises(ConversionError, match="tracing fixed the number of crops"):
        OpenVinoRunner(Counted(), example((4, 6)), False, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_runs_a_network_in_the_type_of_its_weights(dtype: torch.dtype) -> None:
    layer = nn.Conv2d(3, 2, 1).to(dtype)
    crops = example((4, 6))
    found = TorchRunner(layer)(crops)
    assert found.dtype == dtype
    torch.testing.assert_close(found, layer(crops.to(dtype)))


def test_nobody_is_numbered_or_told_on(tmp_path: Path) -> None:
    script = (
        "import sys, torch\n"
        "from models.openvino_runtime import OpenVinoRunner\n"
        "layer = torch.nn.Conv2d(3, 2, 1).requires_grad_(False)\n"
        "OpenVinoRunner(layer, torch.zeros(2, 3, 4, 4), False, 1)\n"
        "assert not any(name.startswith('openvino_telemetry.') for name in sys.modules)\n"
    )
    environment = os.environ | {"HOME": str(tmp_path), "CI": ""}
    subprocess.run([sys.executable, "-c", script], env=environment, cwd=ROOT, check=True)
    assert list(tmp_path.iterdir()) == []
