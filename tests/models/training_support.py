"""A set of people that is quickly learned, and trainings that are quickly done."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from models.network import Architecture
from models.training.recipes import PoseRecipe, Stage

COLOURS = np.random.default_rng(0).integers(60, 255, (17, 3)).tolist()


def write_dots(folder: Path) -> None:
    """A set of 12 pictures of stick figures, whose joints are coloured dots, and their poses."""
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


def mpii_person(**changes: object) -> dict[str, object]:
    """A person as HRNet's json lists of MPII have it; the left wrist is not labelled."""
    joints = [[11 + 3 * joint, 21 + 5 * joint] for joint in range(16)]
    person = {"image": "3.png", "center": [51, 61], "scale": 0.4, "joints": joints}
    return {**person, "joints_vis": [1] * 15 + [0], **changes}


def write_mpii(data: Path, folder: Path, people: Sequence[object] | None = None) -> None:
    """A set `train` in MPII's published layout; twelve times the same person if none are given."""
    (folder / "annot").mkdir()
    same = [mpii_person(image=f"{number}.png") for number in range(12)]
    (folder / "annot" / "train.json").write_text(json.dumps(same if people is None else people))
    (folder / "images").symlink_to(data / "dots")
