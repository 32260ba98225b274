"""A grown network computes what the smaller one does, and then learns with all that it has."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.network import Architecture, Network, build_representation
from models.training.growing import grow

OPTIONS = {"stride": 4, "sigma": 2.0}


def network(backbone: str) -> nn.Module:
    architecture = Architecture("dark", backbone, (64, 64), 16, OPTIONS)
    return Network(architecture, build_representation(architecture))


@pytest.fixture
def small() -> nn.Module:
    """A network whose blocks all add something, and whose statistics are its own."""
    torch.manual_seed(0)
    made = network("regnetx_002")
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
    return made


@pytest.fixture
def large(small: nn.Module) -> nn.Module:
    """Wider, deeper, and with groups of 16 channels where the small one has 8."""
    made = network("regnetx_004")
    made.load_state_dict(grow(small.state_dict(), made))
    return made


def test_a_grown_network_computes_what_the_small_one_computes(
    small: nn.Module, large: nn.Module
) -> None:
    crops = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, got = small.eval()(crops), large.eval()(crops)
    assert (got - expected).abs().max() < 1e-4 * expected.std()


def test_what_is_new_learns(large: nn.Module) -> None:
    """After a step the added blocks and channels have a part in the result, and a gradient."""
    crops = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(large.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        large.train()(crops).square().mean().backward()
        optimizer.step()
    weights = dict(large.named_parameters())
    for name, new in (
        ("backbone.s3.b7.conv1.conv.weight", slice(None)),
        ("backbone.s3.b1.conv2.conv.weight", slice(152, None)),
        ("pyramid.lateral.32.0.weight", (slice(None), slice(368, None))),
    ):
        gradient = weights[name].grad
        assert gradient is not None
        assert gradient[new].abs().max() > 0, name


def test_a_larger_network_does_not_fit_into_a_smaller_one(large: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"conv1\.conv\.weight has .* cannot hold"):
        grow(large.state_dict(), network("regnetx_002"))


def test_groups_that_lie_across_those_of_the_larger_network_are_refused() -> None:
    small, large = nn.Conv2d(12, 12, 1, groups=1), nn.Conv2d(12, 12, 1, groups=2)
    with pytest.raises(ValueError, match=r"0\.weight has groups that lie across"):
        grow({f"0.{key}": value for key, value in small.state_dict().items()}, nn.Sequential(large))
