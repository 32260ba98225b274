"""Convolutions in eight bits: what their ranges are, what rounding does, what a file keeps."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from models.openvino_runtime import OpenVinoRunner
from models.quantisation import observed, quantised, ranges_path, read_ranges, write_ranges
from models.runtime import ConversionError


class Layers(nn.Module):
    """Two convolutions with what may lie between them, and one that sees nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 6, 3, padding=1, groups=2)
        self.unused = nn.Conv2d(3, 3, 1)

    def forward(self, crops: Tensor) -> Tensor:
        return torch.as_tensor(self.last(nn.functional.silu(self.norm(self.first(crops)))))


@pytest.fixture
def network() -> Layers:
    torch.manual_seed(0)
    return Layers().eval().requires_grad_(False)


def crops(count: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def seen(network: nn.Module, *batches: Tensor) -> dict[str, tuple[float, float]]:
    with observed(network) as ranges, torch.inference_mode():
        for batch in batches:
            network(batch)
    return dict(ranges)


def test_ranges_are_the_extremes_of_all_that_was_seen(network: Layers) -> None:
    one, two = crops(seed=1), 3 * crops(seed=2)
    ranges = seen(network, one, two)
    assert list(ranges) == ["first", "last"]
    both = torch.cat((one, two))
    assert ranges["first"] == (float(both.min()), float(both.max()))
    # SiLU's least value.
    assert -0.2785 < ranges["last"][0] < 0
    network(100 * one)
    assert ranges["first"][1] < 20


def test_zero_lies_in_every_range(network: Layers) -> None:
    assert seen(network, crops().abs() + 1)["first"][0] == 0.0


@pytest.mark.parametrize(("bits", "most"), [(8, 127), (7, 63)])
def test_what_comes_out_is_that_of_whole_numbers(network: Layers, bits: int, most: int) -> None:
    ranges = seen(network, crops())
    copy = quantised(network, ranges, bits)
    first = network.first
    least, largest = ranges["first"]
    scale = (largest - least) / 255
    zero = round(-least / scale)
    inputs = (crops() / scale).round().add(zero).clamp(0, 255) - zero
    scales = first.weight.abs().amax((1, 2, 3)) / most
    weights = (first.weight / scales[:, None, None, None]).round()
    assert weights.abs().max() == most
    whole = nn.functional.conv2d(inputs.double(), weights.double(), padding=1)
    expected = whole * scale * scales[:, None, None]
    found = cast(Layers, copy).first(crops())
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    # The network itself is as it was.
    assert not torch.equal(found, first(crops()))
    assert first.weight.unique().numel() > 200


def test_rounding_costs_little(network: Layers) -> None:
    copy = quantised(network, seen(network, crops()))
    expected, found = network(crops()), copy(crops())
    assert 0 < (found - expected).norm() < 0.03 * expected.norm()


def test_openvino_computes_the_same(network: Layers) -> None:
    ranges = seen(network, crops())
    runner = OpenVinoRunner(network, crops(2), False, 1, ranges, weight_bits=7)
    expected = quantised(network, ranges, weight_bits=7)(crops())
    torch.testing.assert_close(runner(crops()), expected, rtol=0, atol=0.03)
    exact = OpenVinoRunner(network, crops(2), False, 1)(crops())
    assert not torch.allclose(exact, runner(crops()), atol=1e-4)


def test_weights_of_seven_bits_are_multiplied_by_every_cpu() -> None:
    """All inputs and weights as large as they get: CPUs without VNNI would cut those of eight."""
    layer = nn.Conv2d(3, 8, 3, bias=False).requires_grad_(False)
    layer.weight.fill_(1.0)
    runner = OpenVinoRunner(layer, crops(2), False, 1, {"": (0.0, 1.0)}, weight_bits=7)
    ones = torch.ones(4, 3, 8, 8)
    torch.testing.assert_close(runner(ones), layer(ones), rtol=1e-4, atol=0)


def test_ranges_of_another_network_are_refused(network: Layers) -> None:
    with pytest.raises(ValueError, match="of another network, which has a head"):
        quantised(network, {"first": (-1.0, 1.0), "head": (0.0, 1.0)})
    with pytest.raises(ConversionError, match="of another network, which has a head"):
        OpenVinoRunner(network, crops(2), False, 1, {"head": (0.0, 1.0)})


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A weights file, of whatever kind."""
    path = tmp_path / "some.pth.tar"
    path.write_bytes(b"weights")
    return path


def test_they_are_kept_beside_the_weights(weights: Path) -> None:
    assert read_ranges(weights) is None
    path = write_ranges(weights, {"first": (-1.23456789, 2.0)})
    assert path == weights.parent / "some.pth.int8.json"
    assert read_ranges(weights) == {"first": (-1.235, 2.0)}
    weights.write_bytes(b"others")
    with pytest.raises(ValueError, match=r"int8.json is of other weights than some.pth.tar"):
        read_ranges(weights)


@pytest.mark.parametrize(
    "kept", ["[1, 2]", '{"ranges": {"first": 1}}', '{"ranges": {}}', "no JSON"]
)
def test_files_without_ranges_are_refused(weights: Path, kept: str) -> None:
    ranges_path(weights).write_text(kept)
    with pytest.raises(ValueError, match=r"some.pth.int8.json holds no ranges: \w+"):
        read_ranges(weights)
