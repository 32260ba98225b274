"""Every recipe that comes with posemux builds and learns; recipes extend and vary each other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models import pct
from models.complexity import complexity
from models.pose_model import PoseModel
from models.training import engine, loop, recipes
from models.training.recipes import (
    DetectorRecipe,
    PoseRecipe,
    RecipeError,
    Stage,
    TokenizerRecipe,
)

from .recipes_support import read, without_weights


def loss_of(recipe: PoseRecipe | TokenizerRecipe, model: PoseModel, device: str) -> Tensor:
    """The recipe's own loss for two random people; what it trains asks for gradients."""
    model.module().zero_grad()
    model.module().requires_grad_(False)
    with torch.device(device):
        width, height = model.input_size
        keypoints = torch.rand(2, 17, 2) * torch.tensor([width, height])
        labelled = torch.ones(2, 17)
        if isinstance(recipe, TokenizerRecipe):
            assert isinstance(model.representation, pct.PCT)
            tokenizer = model.representation.tokenizer.requires_grad_()
            # A hidden joint, or the vector that stands for one would not be asked for.
            kept = labelled * (torch.arange(17) > 0)
            return pct.tokenizer_loss(tokenizer(keypoints, kept), keypoints, labelled)
        frozen = all(stage.frozen for stage in recipe.stages)
        (model.network.head if frozen else model.network).requires_grad_()
        raw = model.network(torch.randn(2, 3, height, width))
        return model.representation.loss(raw, keypoints, labelled)


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_valid_and_builds(name: str) -> None:
    recipe = recipes.read(name)
    assert recipe.name == name
    for variant in recipes.variants(name):
        assert recipes.read(f"{name}@{variant}").name == f"{name}@{variant}"
    if not isinstance(recipe, DetectorRecipe):
        assert without_weights(name).input_size == recipe.architecture.input_size


@pytest.mark.parametrize(
    "name",
    [
        # One of each kind: the others differ in how deep or wide they are.
        "simba-res50-heatmap",
        "simba-res50-simcc",
        "res50-simcc-upfree",
        "mobilenetv2-simcc",
        "rtmpose-t",
        "hrnet-w32-heatmap",
        "tokenpose-s-v1-heatmap",
        "tokenpose-s-v1-simcc",
        "swin-base-heatmap",
        "pct-swin-base-tokenizer",
        "pct-swin-base",
        "pct-small",
        "vitpose-s",
        "vitpose-s@simple",
    ],
)
def test_gradients_reach_all_that_a_recipe_trains(name: str) -> None:
    model = without_weights(name)
    loss_of(read(name), model, "meta").backward()  # type: ignore[no-untyped-call]
    trained = {
        key: weight for key, weight in model.module().named_parameters() if weight.requires_grad
    }
    assert trained
    assert [key for key, weight in trained.items() if weight.grad is None] == []


@pytest.mark.parametrize(
    "name",
    [
        "simba-res50-heatmap@dark@64x64",
        "res50-simcc-upfree@equal@64x64",
        "rtmpose-t@64x64",
        "tokenpose-s-v1-heatmap@64x64",
        "tokenpose-s-v1-simcc@64x64",
        "tokenpose-s-v1-simcc@equal@64x64@k2",
        "tokenpose-s-v1-simcc@laplace@64x64@k1.5",
        "tokenpose-s-v1-simcc@unsmoothed@64x64@k1",
        "pct-small-tokenizer",
    ],
)
def test_losses_and_gradients_are_finite(name: str) -> None:
    torch.manual_seed(0)
    recipe = read(name)
    model = PoseModel.fresh(loop.card_of(name, recipe.architecture))
    loss = loss_of(recipe, model, "cpu")
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite()
    assert loss > 0
    gradients = [weight.grad for weight in model.module().parameters() if weight.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


BASE = """
kind = "pose"
name = "base"
train = { dots = 1.0 }
validate = "dots"

[architecture]
representation = "simcc"
backbone = "regnetx_002"
input_size = [64, 64]
pyramid = 16
options = { feature_stride = 8, k = 2.0 }

[[stages]]
epochs = 1
learning_rate = 0.001

[variants.fine.architecture.options]
k = 3.0

[variants.free.architecture]
pyramid = false
options = { feature_stride = 32 }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base.toml").write_text(BASE)
    return tmp_path


def read_file(path: Path, variants: str = "") -> PoseRecipe:
    recipe = recipes.read(f"{path}{variants}")
    assert isinstance(recipe, PoseRecipe)
    return recipe


def test_variants_lie_on_the_recipe_in_their_order(folder: Path) -> None:
    path = folder / "base.toml"
    both = read_file(path, "@fine@free")
    assert both.name == "base@fine@free"
    assert both.architecture.options == {"feature_stride": 32, "k": 3.0}
    assert not both.architecture.pyramid
    assert read_file(path).architecture.options == {"feature_stride": 8, "k": 2.0}


def test_sets_are_taken_over_all_together_or_not_at_all(folder: Path) -> None:
    (folder / "child.toml").write_text("extends = 'base.toml'\ntrain = { other = 0.5 }")
    assert read_file(folder / "child.toml").train == {"other": 0.5}


def test_a_recipe_changes_what_it_says_of_the_one_it_extends(folder: Path) -> None:
    (folder / "child.toml").write_text(
        "extends = 'base.toml'\nname = 'child'\nbatch = 8\n"
        "[[stages]]\nepochs = 3\nlearning_rate = 0.01\nmilestones = [1, 2]\n"
        "[variants.fine.architecture.options]\nspread = 3.0"
    )
    child = read_file(folder / "child.toml")
    assert (child.name, child.batch, child.validate) == ("child", 8, "dots")
    assert child.stages == (Stage(3, 0.01, milestones=(1, 2)),)
    assert child.architecture == read_file(folder / "base.toml").architecture
    fine = read_file(folder / "child.toml", "@fine").architecture.options
    assert fine == {"feature_stride": 8, "k": 3.0, "spread": 3.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind = 'pose'\nlearning_speed = 3", "unknown key"),
        ("kind = 'sculpture'", "kind must be one of"),
        ("kind = 'pose'\n[architecture]\nrepresentation = 'simcc'", "not an architecture"),
        ("kind = ", "Invalid value"),
        ("extends = 'base.toml'\nbatch = 'many'", "batch: .*valid integer.*'many'"),
        ("extends = 'base.toml'\nvalidate_every = 0", "validate_every: .*greater than 0"),
        (
            "extends = 'base.toml'\nstages = [{epochs = 1}]",
            "learning_rate: Field required",
        ),
        (
            "extends = 'base.toml'\nstages = [{epochs = 1, speed = 1}]",
            "unknown key 'speed'; known are epochs",
        ),
        ("extends = 'base.toml'\nstages = 3", "stages: .*valid tuple"),
        ("extends = 'base.toml'\naugmentation = {colour = 'x'}", "colour: .*valid number"),
        ("extends = 'base.toml'\naugmentation = 3", "augmentation must be a table"),
        (
            "extends = 'base.toml'\noptimizer = 'sgd'",
            "optimizer: Input should be 'adamw' or 'adam'",
        ),
        ("extends = 'nothing'", "no recipe 'nothing'"),
        ("extends = 'wrong.toml'", "extends itself"),
        ("extends = 3", "extends must be the name or the file of a recipe, not 3"),
        ("extends = 'base.toml'\n[variants]\nfine = 3", "variants must be a table of tables"),
    ],
)
def test_a_wrong_recipe_is_one_clear_error(folder: Path, text: str, message: str) -> None:
    (folder / "wrong.toml").write_text(text)
    with pytest.raises(RecipeError, match=message):
        recipes.read(str(folder / "wrong.toml"))


def test_an_unknown_recipe_or_variant_names_the_known(folder: Path) -> None:
    with pytest.raises(RecipeError, match="simcc-small"):
        recipes.read("simcc-huge")
    with pytest.raises(RecipeError, match="no variant 'coarse'; known are fine, free"):
        read_file(folder / "base.toml", "@coarse")
    with pytest.raises(RecipeError, match="no variant '64x64'; known are none"):
        recipes.read("dark-small@64x64")


def test_the_rate_falls_at_milestones() -> None:
    rates = [engine.schedule(step, 1000, falls=(600, 800)) for step in (50, 100, 600, 601, 801)]
    assert rates == pytest.approx([0.5, 1, 1, 0.1, 0.01])
    assert engine.schedule(1000, 1000) == pytest.approx(engine.FINAL_SHARE)


def documented() -> dict[str, tuple[str, float, float]]:
    """The rows of docs/recipes.md: input size, parameters and GMACs by recipe."""
    text = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.endswith("` |")]
    return {row[6].strip("`"): (row[2], float(row[3]), float(row[4])) for row in cells}


def test_the_documented_recipes_are_those_that_there_are() -> None:
    table = documented()
    for name, (size, _, _) in table.items():
        width, height = read(name).architecture.input_size
        assert size == f"{height}x{width}", name
    papers = {path.stem for path in (recipes.FOLDER / "papers").glob("*.toml")}
    missing = papers - {name.partition("@")[0] for name in table}
    assert {name for name in missing if not name.endswith("-tokenizer")} == set()


@pytest.mark.parametrize("name", ["simba-res50-heatmap", "res50-simcc-upfree@equal"])
def test_the_documented_costs_are_the_counted_ones(name: str) -> None:
    _, parameters, gmacs = documented()[name]
    found = complexity(loop.card_of(name, read(name).architecture))
    assert (round(found.parameters / 1e6, 1), round(found.gmacs, 2)) == (parameters, gmacs)
