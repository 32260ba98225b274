from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import models
from models.network import Architecture
from models.training import loop, recipes
from models.training.datasets import CocoSet, DatasetError, is_crowd_like
from models.training.people import Augmentation, People, Samples
from models.training.recipes import PoseRecipe, RecipeError, Stage, TokenizerRecipe

COLOURS = np.random.default_rng(0).integers(60, 255, (17, 3)).tolist()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of 12 pictures of stick figures, whose joints are coloured dots, and their poses."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "dots").mkdir()
    rng = np.random.default_rng(1)
    images, annotations = [], []
    for number in range(12):
        picture = np.full((120, 100, 3), 40, np.uint8)
        joints = rng.uniform((20, 15), (80, 105), (17, 2)).round(1)
        for (x, y), colour in zip(joints, COLOURS, strict=True):
            cv2.circle(picture, (round(x), round(y)), 4, colour, -1)
        name = f"{number}.png"
        cv2.imwrite(str(folder / "dots" / name), picture[..., ::-1])
        images.append({"id": number, "file_name": name, "width": 100, "height": 120})
        annotations.append(
            {
                "id": number + 1,
                "image_id": number,
                "category_id": 1,
                "iscrowd": 0,
                "area": 6000,
                "bbox": [18, 13, 64, 94],
                "num_keypoints": 17,
                "keypoints": np.concatenate((joints, np.full((17, 1), 2)), 1).flatten().tolist(),
            }
        )
    person = [{"id": 1, "name": "person"}]
    coco = {"images": images, "annotations": annotations, "categories": person}
    (folder / "dots.json").write_text(json.dumps(coco))
    poses = np.array([entry["keypoints"] for entry in annotations] * 60).reshape(-1, 17, 3)
    np.savez(
        folder / "poses.npz",
        keypoints=poses.astype(np.int16),
        bbox_xywh=np.array([[18, 13, 64, 94]] * len(poses), np.float32),
    )
    return folder


RECIPE = PoseRecipe(
    name="tiny",
    architecture=Architecture("simcc", "regnetx_002", (64, 64), 16, {"feature_stride": 8}),
    train={"dots": 1.0},
    validate="dots",
    stages=(Stage(1, 0.001), Stage(1, 0.001, frozen=True)),
    batch=4,
    ema=0.5,
)

MIXER = {"blocks": 1, "width": 16, "channel_hidden": 16, "token_hidden": 16}
PCT = Architecture(
    "pct",
    "regnetx_002",
    (64, 64),
    0,
    {
        **{"tokens": 8, "entries": 32, "dimension": 16, "encoder": MIXER, "decoder": MIXER},
        **{"modulation_channels": 8, "modulation_blocks": 1, "mixer": MIXER, "unit": 16.0},
    },
)


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_valid_and_builds(name: str) -> None:
    recipe = recipes.read(name)
    assert recipe.name == name
    if not isinstance(recipe, recipes.DetectorRecipe):
        models.PoseModel.fresh(loop.card_of(name, recipe.architecture))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind = 'pose'\nlearning_speed = 3", "unknown key"),
        ("kind = 'sculpture'", "kind must be one of"),
        ("kind = 'pose'\n[architecture]\nrepresentation = 'simcc'", "not an architecture"),
        ("kind = ", "Invalid value"),
    ],
)
def test_a_wrong_recipe_is_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "wrong.toml").write_text(text)
    with pytest.raises(RecipeError, match=message):
        recipes.read(str(tmp_path / "wrong.toml"))


def test_an_unknown_recipe_names_the_known() -> None:
    with pytest.raises(RecipeError, match="simcc-small"):
        recipes.read("simcc-huge")


def test_training_makes_weights_that_load(data: Path, tmp_path: Path) -> None:
    path = loop.train_pose(RECIPE, data, tmp_path, "cpu")
    assert models.load(weights=path).card.architecture == RECIPE.architecture
    lines = [json.loads(line) for line in (path.parent / "curve.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert "AP50" in lines[1]


def test_a_killed_training_goes_on_with_the_same_result(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = loop.train_pose(RECIPE, data, tmp_path / "whole", "cpu")

    def killed(*_: object) -> dict[str, float]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        # Validation comes after the second epoch: by then the first one's checkpoint is written.
        patched.setattr(loop, "validate", killed)
        with pytest.raises(KeyboardInterrupt):
            loop.train_pose(RECIPE, data, tmp_path / "killed", "cpu")
    resumed = loop.train_pose(RECIPE, data, tmp_path / "killed", "cpu")
    expected, found = (models.pose_model.read_tensors(path) for path in (whole, resumed))
    assert all(torch.equal(expected[key], found[key]) for key in expected)


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
    before, after = (models.pose_model.read_tensors(path) for path in (start, end))
    same = {key for key in before if torch.equal(before[key], after[key])}
    assert {key for key in before if not key.startswith("network.head.")} <= same
    assert "network.head.mlp_head_x.weight" not in same


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
    trained = models.pose_model.read_tensors(loop.train_pose(stage_two, data, tmp_path, "cpu"))
    tokenizer = models.pose_model.read_tensors(path)
    frozen = [key for key in tokenizer if key.startswith("representation.")]
    assert frozen
    assert all(torch.equal(tokenizer[key], trained[key]) for key in frozen)


def test_a_training_that_starts_from_nowhere_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="train that first"):
        loop.train_pose(replace(RECIPE, start="nowhere"), data, tmp_path, "cpu")


def test_augmented_joints_stay_on_their_dots(data: Path) -> None:
    people = People({"dots": 1.0}, data)
    varied = Augmentation(colour=0.0, cutout_probability=0.0, half_body_probability=0.0)
    samples = Samples(people, range(12), (96, 128), varied, (3, 1))
    hits = tried = 0
    for crop, joints, labelled in samples:
        mirrored = bool(np.random.default_rng(0).random() > 2)
        assert not mirrored
        assert labelled.min() == 1
        for joint, (x, y) in enumerate(joints.round().long().tolist()):
            if 2 <= x < 94 and 2 <= y < 126:
                pixel = crop[:, y, x].int()
                distances = (pixel - torch.tensor(COLOURS)).abs().sum(1)
                tried += 1
                hits += int(distances.argmin() == joint and distances.min() < 30)
    assert tried > 150
    # Dots may cover each other; mirroring swaps left and right, and the picture's dots with them.
    assert hits / tried > 0.35


def test_the_same_seed_and_epoch_give_the_same_sample(data: Path) -> None:
    people = People({"dots": 1.0}, data)
    first, again, other = (
        Samples(people, [5], (96, 128), Augmentation(), (0, epoch))[0] for epoch in (1, 1, 2)
    )
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])


def test_shares_decide_how_many_an_epoch_sees(data: Path) -> None:
    people = People({"dots": 0.5}, data)
    first, second = (people.epoch(np.random.default_rng(seed)) for seed in (0, 1))
    assert len(first) == 6
    assert set(first) != set(second)


def test_crowds_without_their_mark_are_recognised() -> None:
    people = np.array([[10, 10, 5, 9], [20, 10, 5, 9], [30, 10, 5, 9], [0, 0, 60, 40]], np.float32)
    assert is_crowd_like(people, np.array([False] * 4)).tolist() == [False, False, False, True]
    assert not is_crowd_like(people, np.array([True] * 4)).any()


@pytest.mark.parametrize(
    "fault", ["no annotations", "no pictures", "no layout", "a missing picture"]
)
def test_an_unusable_set_is_one_clear_error(data: Path, tmp_path: Path, fault: str) -> None:
    annotations = tmp_path / "dots.json"
    if fault != "no annotations":
        annotations.write_bytes((data / "dots.json").read_bytes())
    if fault != "no pictures":
        (tmp_path / "dots").mkdir()
    if fault == "no layout":
        annotations.write_text("[1, 2]")
    with pytest.raises(DatasetError, match=r"missing|pictures|layout"):
        People({"dots": 1.0}, tmp_path)


def test_nobody_with_joints_is_an_error(data: Path, tmp_path: Path) -> None:
    coco = json.loads((data / "dots.json").read_text())
    for person in coco["annotations"]:
        person["num_keypoints"] = 0
    (tmp_path / "dots.json").write_text(json.dumps(coco))
    (tmp_path / "dots").symlink_to(data / "dots")
    assert len(CocoSet(tmp_path, "dots")) == 12
    with pytest.raises(DatasetError, match="nobody"):
        People({"dots": 1.0}, tmp_path)
