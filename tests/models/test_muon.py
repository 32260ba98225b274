from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from models.training.muon import Muon, orthogonal

RATE = 0.01


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 32, 3, bias=False), nn.BatchNorm2d(32), nn.Flatten(), nn.Linear(32, 8)
    )


def gradients(model: nn.Module, seeds: range) -> Iterator[None]:
    """Fill in random gradients, once for each seed."""
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        yield


@pytest.mark.parametrize("shape", [(64, 576), (576, 64), (17, 17)])
def test_the_nearest_orthogonal_matrix_is_found(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    left, _, right = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
    # Directions a hundred times as strong as others.
    strengths = torch.logspace(-2, 0, len(right))
    found = orthogonal(left * strengths @ right)
    along = (left.T @ found @ right.T).diagonal()
    assert along.min() > 0.6
    assert along.max() < 1.25
    assert (found - left * along @ right).norm() < 1e-3 * found.norm()


def test_nothing_has_no_direction() -> None:
    assert torch.equal(orthogonal(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_matrices_step_as_far_as_adamw_and_all_else_with_it() -> None:
    ours, theirs = network(), network()
    before = [parameter.detach().clone() for parameter in ours.parameters()]
    muon, adamw = Muon(ours.parameters(), RATE), AdamW(theirs.parameters(), RATE, weight_decay=0)
    for _ in zip(gradients(ours, range(1)), gradients(theirs, range(1)), strict=True):
        muon.step()
        adamw.step()
    for start, own, other in zip(before, ours.parameters(), theirs.parameters(), strict=True):
        if own.ndim == 1:
            assert torch.equal(own, other)
            continue
        step = own.detach() - start
        # Liu et al., section 2.2: what steps of AdamW are in the long run.
        assert step.square().mean().sqrt().item() == pytest.approx(0.2 * RATE, rel=0.25)
        assert (step * own.grad).sum() < 0


def test_weights_decay_apart_from_their_gradients() -> None:
    model = nn.Linear(4, 4)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = Muon(model.parameters(), RATE, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for start, parameter in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(parameter.detach(), start * (1 - 0.5 * RATE))


def test_what_has_no_gradient_stays() -> None:
    model = network()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    Muon(model.parameters(), RATE, weight_decay=0.5).step()
    assert all(map(torch.equal, before, model.parameters()))


def test_it_goes_on_from_its_state_at_any_learning_rate() -> None:
    def steps(optimizer: Muon, model: nn.Module, seeds: range) -> None:
        for seed, _ in zip(seeds, gradients(model, seeds), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = RATE / (1 + seed)
            optimizer.step()

    whole = network()
    steps(Muon(whole.parameters(), RATE, weight_decay=0.1), whole, range(4))

    model = network()
    first = Muon(model.parameters(), RATE, weight_decay=0.1)
    steps(first, model, range(2))
    second = Muon(model.parameters(), 1.0)
    second.load_state_dict(first.state_dict())
    steps(second, model, range(2, 4))
    assert all(map(torch.equal, whole.parameters(), model.parameters()))
