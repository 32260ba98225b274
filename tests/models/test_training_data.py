from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from models import geometry
from models.network import Architecture
from models.pose_model import MEAN, STD, PoseModel
from models.skeletons import COCO, MPII
from models.training.datasets import CocoSet, DatasetError, is_crowd_like, read_keypoints
from models.training.loop import card_of, normalise, plain_samples
from models.training.people import Augmentation, People, Samples, in_order, loader
from tests.models.training_support import COLOURS, mpii_person, write_mpii


def test_augmented_joints_stay_on_their_dots(data: Path) -> None:
    people = People({"dots": 1.0}, data)
    varied = Augmentation(colour=0.0, cutout_probability=0.0, half_body_probability=0.0)
    samples = Samples(people, (96, 128), varied, seed=3)
    hits = tried = 0
    for crop, joints, labelled in (samples[1, row] for row in range(12)):
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
        Samples(people, (96, 128), Augmentation())[epoch, 5] for epoch in (1, 1, 2)
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


def edit(data: Path, folder: Path, person: dict[str, object] | None = None, **top: object) -> Path:
    """A copy of the set of dots in which the first person, or the file itself, is changed."""
    coco = json.loads((data / "dots.json").read_text()) | top
    coco["annotations"][0] |= person or {}
    (folder / "dots.json").write_text(json.dumps(coco))
    (folder / "dots").symlink_to(data / "dots")
    return folder


@pytest.mark.parametrize(
    ("person", "message"),
    [
        ({"keypoints": [1, 2, 3]}, r"dots.json: annotation 1: keypoints must be 17 x 3 numbers"),
        ({"keypoints": ["x"] * 51}, "keypoints must be 17 x 3 numbers, not"),
        ({"bbox": [1, 2, None, 4]}, "annotation 1: bbox must be 4 numbers"),
        ({"bbox": None}, "bbox must be 4 numbers, not None"),
        ({"image_id": 99}, "not in COCO layout: 99 is missing"),
    ],
)
def test_a_wrong_annotation_is_named(
    data: Path, tmp_path: Path, person: dict[str, object], message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        read_keypoints(edit(data, tmp_path, person), "dots")


def test_a_missing_picture_is_found_before_any_is_read(data: Path, tmp_path: Path) -> None:
    coco = json.loads((data / "dots.json").read_text())
    coco["images"][-1]["file_name"] = "nowhere.png"
    with pytest.raises(DatasetError, match=r"1 pictures of dots are missing.*'nowhere.png'"):
        People({"dots": 1.0}, edit(data, tmp_path, images=coco["images"]))


def test_a_damaged_picture_is_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "dots.json").write_bytes((data / "dots.json").read_bytes())
    (tmp_path / "dots").mkdir()
    for picture in (data / "dots").iterdir():
        (tmp_path / "dots" / picture.name).write_bytes(picture.read_bytes())
    (tmp_path / "dots" / "7.png").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"^picture '7.png' of dots does not decode$"):
        People({"dots": 1.0}, tmp_path)
    samples = Samples(People({"dots": 1.0}, tmp_path, memory=0), (48, 64))
    for workers in (0, 1):
        with pytest.raises(DatasetError, match=r"^picture '7.png' of dots does not decode$"):
            list(loader(samples, in_order(range(12), 4), workers))


def test_samples_are_alike_with_and_without_memory_and_with_workers(data: Path) -> None:
    keys = [[(0, 3), (0, 1), (0, 4)], [(1, 1), (1, 5)], [(2, 9), (7, 2)]]
    batches = []
    for memory, workers in ((1 << 30, 0), (100_000, 0), (0, 0), (0, 2)):
        people = People({"dots": 1.0}, data, memory)
        samples = Samples(people, (48, 64), Augmentation())
        batches.append(list(loader(samples, keys, workers)))
    for other in batches[1:]:
        for expected, found in zip(batches[0], other, strict=True):
            assert all(torch.equal(*pair) for pair in zip(expected, found, strict=True))


@pytest.mark.parametrize("mapping", ["affine", "udp", "darkpose"])
def test_plain_samples_are_what_a_model_is_fed(data: Path, mapping: geometry.Mapping) -> None:
    people = People({"dots": 1.0}, data)
    architecture = Architecture("dark", "regnetx_002", (48, 64), options={"mapping": mapping})
    model = PoseModel.fresh(card_of("dots", architecture))
    _, joints, _ = plain_samples(people, model)[0, 3]
    person = people.people[3]
    [affine] = model.affines(torch.from_numpy(person.box)[None])
    expected = geometry.apply_affines(affine, torch.from_numpy(person.keypoints[:, :2]))
    torch.testing.assert_close(joints, expected.float())


def test_a_network_of_bgr_is_fed_blue_first() -> None:
    architecture = Architecture("dark", "resnet50", (48, 64), options={"stride": 4})
    with torch.device("meta"):
        model = PoseModel.fresh(replace(card_of("dots", architecture), authors="official"))
    crops = torch.randint(0, 256, (2, 3, 64, 48), dtype=torch.uint8)
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    expected = (crops[:, [2, 1, 0]].float() / 255 - mean) / std
    torch.testing.assert_close(normalise(crops, model), expected)


def test_a_loader_draws_nothing_from_the_trainings_generator(data: Path) -> None:
    samples = Samples(People({"dots": 1.0}, data), (48, 64))
    before = torch.get_rng_state()
    assert len(list(loader(samples, in_order(range(5), 2)))) == 3
    assert torch.equal(torch.get_rng_state(), before)


def test_pictures_are_read_as_they_are_stored(data: Path, tmp_path: Path) -> None:
    edit(data, tmp_path)
    (tmp_path / "dots").unlink()
    (tmp_path / "dots").mkdir()
    _, jpeg = cv2.imencode(".jpg", np.zeros((120, 100, 3), np.uint8))
    # Exif: a single entry, orientation 6, which asks for a quarter turn.
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    marker = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big")
    turned = jpeg.tobytes()[:2] + marker + exif + jpeg.tobytes()[2:]
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape[:2] == (100, 120)
    for picture in (data / "dots").iterdir():
        (tmp_path / "dots" / picture.name).write_bytes(turned)
    assert People({"dots": 1.0}, tmp_path).image(0).shape[:2] == (120, 100)


# ----------------------------------------------------------------------------- other skeletons


def test_the_published_layout_of_coco_is_found(data: Path, tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    annotations = tmp_path / "annotations" / "person_keypoints_tiny2017.json"
    annotations.write_bytes((data / "dots.json").read_bytes())
    (tmp_path / "tiny2017").symlink_to(data / "dots")
    assert len(read_keypoints(tmp_path, "tiny2017").people) == 12


def test_a_set_brings_its_own_joints(data: Path, tmp_path: Path) -> None:
    coco = json.loads((data / "dots.json").read_text())
    for person in coco["annotations"]:
        person |= {"keypoints": person["keypoints"][15:24], "num_keypoints": 3}
    hands = [{"id": 1, "name": "person", "keypoints": ["left_hand", "right_hand", "head"]}]
    edit(data, tmp_path, annotations=coco["annotations"], categories=hands)
    read = read_keypoints(tmp_path, "dots")
    assert read.skeleton.names == ("left_hand", "right_hand", "head")
    assert read.skeleton.mirrored == (1, 0, 2)
    assert read.people[0].keypoints.shape == (3, 3)
    (tmp_path / "mine.json").write_bytes((data / "dots.json").read_bytes())
    (tmp_path / "mine").symlink_to(data / "dots")
    with pytest.raises(DatasetError, match="dots has other joints than mine"):
        People({"mine": 1.0, "dots": 1.0}, tmp_path)


def test_mpii_is_read_as_hrnet_reads_it(data: Path, tmp_path: Path) -> None:
    people = [mpii_person(), mpii_person(image="4.png"), mpii_person(scale=-1)]
    write_mpii(data, tmp_path, people)
    read = read_keypoints(tmp_path, "train")
    assert read.skeleton is MPII
    assert [person.file_name for person in read.people] == ["3.png", "4.png"]
    assert [person.image_id for person in read.people] == [0, 1]
    first = read.people[0]
    # Coordinates count from 0, and the centre is 15 * 0.4 further down.
    assert first.keypoints[0].tolist() == [10, 20, 2]
    assert first.keypoints[15, 2] == 0
    np.testing.assert_allclose(first.box, [50 - 40, 66 - 40, 50 + 40, 66 + 40])


@pytest.mark.parametrize(
    ("people", "message"),
    [
        (
            [{"image": "3.png"}],
            r"train.json: person 0 is not in MPII's layout: 'center' is missing",
        ),
        ([mpii_person(), [1]], "person 1 is not in MPII's layout: list"),
        ([mpii_person(joints=[[1, 2]])], "person 0: joints must be 16 x 2 numbers"),
        ([mpii_person(scale="big")], "scale must be one number, not big"),
        ([mpii_person(joints_vis=[0] * 16)], "nobody in train has labelled keypoints"),
        ([mpii_person(image="no.png")], "1 pictures of train are missing, the first is 'no.png'"),
    ],
)
def test_a_wrong_mpii_file_is_one_clear_error(
    data: Path, tmp_path: Path, people: list[object], message: str
) -> None:
    write_mpii(data, tmp_path, people)
    with pytest.raises(DatasetError, match=message):
        read_keypoints(tmp_path, "train")


def test_skeletons_mirror_and_split_by_their_names() -> None:
    # HRNet, lib/dataset/coco.py and mpii.py.
    assert COCO.flip_pairs == tuple((left, left + 1) for left in range(1, 17, 2))
    assert [j for j, upper in enumerate(COCO.upper_body) if upper] == list(range(11))
    assert MPII.flip_pairs == ((0, 5), (1, 4), (2, 3), (10, 15), (11, 14), (12, 13))
    assert [j for j, upper in enumerate(MPII.upper_body) if upper] == list(range(7, 16))
