from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import models
from models.checkpoints import WeightsError, read_tensors
from models.training import loop, recipes
from models.training.datasets import DatasetError
from models.training.recipes import RecipeError, Stage, TokenizerRecipe
from tests.models.training_support import PCT, RECIPE


def test_training_makes_weights_that_load(data: Path, tmp_path: Path) -> None:
    path = loop.train_pose(RECIPE, data, tmp_path, "cpu")
    assert models.load(weights=path).card.architecture == RECIPE.architecture
    lines = [json.loads(line) for line in (path.parent / "curve.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert "AP50" in lines[1]


def test_the_optimizer_and_the_milestones_are_the_recipes(data: Path, tmp_path: Path) -> None:
    stepped = Stage(2, 0.001, milestones=(1,))
    adam = replace(RECIPE, optimizer="adam", weight_decay=0.0, stages=(stepped,))
    path = loop.train_pose(adam, data, tmp_path, "cpu")
    saved = torch.load(path.with_name("checkpoint.pt"), weights_only=True)["optimizer"]
    [group] = saved["param_groups"]
    assert group["lr"] == pytest.approx(0.0001)
    assert group["weight_decay"] == 0
    # Only AdamW takes the decay off the weights themselves.
    assert not group["decoupled_weight_decay"]


def test_a_folder_belongs_to_one_recipe(data: Path, tmp_path: Path) -> None:
    loop.train_pose(replace(RECIPE, stages=(Stage(1, 0.001),)), data, tmp_path, "cpu")
    with pytest.raises(RecipeError, match="another recipe"):
        loop.train_pose(RECIPE, data, tmp_path, "cpu")


def test_frozen_stages_teach_only_the_head(data: Path, tmp_path: Path) -> None:
    start = loop.train_pose(
        replace(RECIPE, name="start", stages=(Stage(1, 0.001),)), data, tmp_path, "cpu"
    )
    frozen = replace(RECIPE, name="frozen", start="start", stages=(Stage(1, 0.001, frozen=True),))
    end = loop.train_pose(frozen, data, tmp_path, "cpu")
    before, after = (read_tensors(path) for path in (start, end))
    same = {key for key in before if torch.equal(before[key], after[key])}
    assert {key for key in before if not key.startswith("network.head.")} <= same
    assert "network.head.mlp_head_x.weight" not in same


def test_a_network_grows_out_of_a_smaller_one(data: Path, tmp_path: Path) -> None:
    small = replace(RECIPE, name="small", stages=(Stage(1, 0.001),))
    loop.train_pose(small, data, tmp_path, "cpu")
    large = replace(
        small,
        name="large",
        architecture=replace(small.architecture, backbone="regnetx_004"),
        start="small",
    )
    with pytest.raises(RecipeError, match=r"small\.safetensors does not fit large"):
        loop.train_pose(large, data, tmp_path, "cpu")
    grown = read_tensors(loop.train_pose(replace(large, grow=True), data, tmp_path, "cpu"))
    assert grown["network.backbone.s4.b12.conv1.conv.weight"].shape == (384, 384, 1, 1)
    with pytest.raises(RecipeError, match=r"large\.safetensors cannot grow into back: .* has"):
        loop.train_pose(
            replace(small, name="back", start="large", grow=True), data, tmp_path, "cpu"
        )


def test_pct_trains_in_two_stages(data: Path, tmp_path: Path) -> None:
    stage_one = TokenizerRecipe("codes", PCT, "poses.npz", "dots", epochs=3, batch=64)
    path = loop.train_tokenizer(stage_one, data, tmp_path, "cpu")
    errors = [
        json.loads(line)["mean_error_px"]
        for line in (path.parent / "curve.jsonl").read_text().splitlines()
    ]
    assert errors[-1] < errors[0]
    stage_two = replace(
        RECIPE, name="pct", architecture=PCT, tokenizer="codes", stages=(Stage(1, 0.001),)
    )
    trained = read_tensors(loop.train_pose(stage_two, data, tmp_path, "cpu"))
    tokenizer = read_tensors(path)
    assert all(key.startswith("representation.") for key in tokenizer)
    assert all(torch.equal(tokenizer[key], trained[key]) for key in tokenizer)
    loaded = models.load_tokenizer(path)
    assert torch.equal(loaded.codebook, tokenizer["representation.tokenizer.codebook"].float())
    assert not loaded.training
    with pytest.raises(models.WeightsError, match=r"^[^\n]*is PCT's tokenizer alone[^\n]*$"):
        models.load(weights=path)


def test_a_training_starts_from_files_too(data: Path, tmp_path: Path) -> None:
    """Of a start also the maps, and of a tokenizer's file, under its authors' keys, that alone."""
    on_maps = replace(PCT, pyramid=16, options={**PCT.options, "feature_stride": 8})
    stage_one = TokenizerRecipe("codes", on_maps, "poses.npz", "dots", epochs=1, batch=64)
    tokenizer = read_tensors(loop.train_tokenizer(stage_one, data, tmp_path, "cpu"))
    published = {
        key.replace("representation.", "keypoint_head."): value.float()
        for key, value in tokenizer.items()
    }
    published["extra_backbone.norm.weight"] = torch.ones(3)
    published["keypoint_head.final_layer.weight"] = torch.ones(17, 16, 1, 1)
    torch.save({"state_dict": published, "meta": {}}, tmp_path / "codes.pth")
    start = loop.train_pose(
        replace(RECIPE, name="start", stages=(Stage(1, 0.001),)), data, tmp_path, "cpu"
    )
    stage_two = replace(
        RECIPE,
        name="pct",
        architecture=on_maps,
        tokenizer=str(tmp_path / "codes.pth"),
        start=str(start),
        stages=(Stage(1, 1e-12),),
        weight_decay=0.0,
    )
    trained = read_tensors(loop.train_pose(stage_two, data, tmp_path, "cpu"))
    assert all(torch.equal(tokenizer[key], trained[key]) for key in tokenizer)
    for key in ("network.head.final_layer.weight", "network.backbone.stem.conv.weight"):
        torch.testing.assert_close(trained[key], read_tensors(start)[key])
    with pytest.raises(WeightsError, match=r"nowhere\.pth cannot be read"):
        loop.train_pose(
            replace(stage_two, name="lost", tokenizer="nowhere.pth"), data, tmp_path, "cpu"
        )


def test_image_guided_models_are_not_trained(data: Path, tmp_path: Path) -> None:
    recipe = recipes.read("pct-swin-base@guided")
    assert isinstance(recipe, recipes.PoseRecipe)
    with pytest.raises(RecipeError, match="pct-swin-base@guided is image-guided"):
        loop.train_pose(recipe, data, tmp_path, "cpu")


def test_a_folder_without_a_checkpoint_takes_another_recipe(data: Path, tmp_path: Path) -> None:
    one_epoch = replace(RECIPE, stages=(Stage(1, 0.001),))
    with pytest.raises(DatasetError, match="missing"):
        loop.train_pose(replace(one_epoch, train={"typo": 1.0}), data, tmp_path, "cpu")
    assert loop.train_pose(one_epoch, data, tmp_path, "cpu").is_file()


def test_a_damaged_start_is_one_clear_error(data: Path, tmp_path: Path) -> None:
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "start.safetensors").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match=r"^[^\n]*start.safetensors cannot be read[^\n]*$"):
        loop.train_pose(replace(RECIPE, start="start"), data, tmp_path, "cpu")


def test_a_training_that_starts_from_nowhere_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="train that first"):
        loop.train_pose(replace(RECIPE, start="nowhere"), data, tmp_path, "cpu")
