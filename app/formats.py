"""Result files of many pictures: COCO, YOLO and CSV.

Each writer takes the entries of a journal, one at a time, so that it needs no more memory for a
million pictures than for one, and each file is there as a whole or not at all.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from app.journal import Entry
from app.render import MIN_JOINT_SCORE
from models.files import replacing
from models.skeletons import Skeleton

#: Gives the entries anew each time it is called.
Entries = Callable[[], Iterable[Entry]]

_PERSON = 1
#: COCO's and Ultralytics' word for a joint that is labelled and seen.
_VISIBLE = 2


@dataclass(frozen=True, slots=True)
class Written:
    """What a writer has written."""

    paths: list[Path]
    """The files, or the folder where there is one for each picture."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Pictures that the format has no place for, by name, and why."""


def write_coco(entries: Entries, folder: Path, skeleton: Skeleton) -> Written:
    """Write `results.json` and `annotations.json`.

    The first is a COCO results list, with the joints' scores: `COCO.loadRes` takes it. The second
    is a COCO data set with the images that its ids stand for, and the same people as annotations:
    joints of scores below 0.3 are unlabelled, the others visible. Ids count from 1, images in the
    order of their names.
    """
    results, annotations = folder / "results.json", folder / "annotations.json"
    categories = [
        {
            "id": _PERSON,
            "name": "person",
            "supercategory": "person",
            "keypoints": skeleton.names,
            # COCO counts joints from 1.
            "skeleton": [[first + 1, last + 1] for first, last in skeleton.limbs],
        }
    ]
    info = {"description": "people found by posemux"}
    with replacing(results) as path:
        with _text(path) as file:
            file.writelines(_json_list(_coco_results(entries())))
        with _text(path.with_name(annotations.name)) as file:
            file.write(f'{{"info": {json.dumps(info)},\n"images": ')
            file.writelines(_json_list(_coco_images(entries())))
            file.write(f',\n"categories": {json.dumps(categories)},\n"annotations": ')
            file.writelines(_json_list(_coco_annotations(entries())))
            file.write("}\n")
    return Written([results, annotations])


def _coco_images(entries: Iterable[Entry]) -> Iterator[dict[str, Any]]:
    for image_id, entry in enumerate(entries, 1):
        size = {"width": entry.width, "height": entry.height}
        yield {"id": image_id, "file_name": entry.name, **size}


def _coco_results(entries: Iterable[Entry]) -> Iterator[dict[str, Any]]:
    for image_id, entry in enumerate(entries, 1):
        for person in entry.people:
            yield {"image_id": image_id, "category_id": _PERSON, **person}


def _coco_annotations(entries: Iterable[Entry]) -> Iterator[dict[str, Any]]:
    for number, result in enumerate(_coco_results(entries), 1):
        joints = _joints(result)
        seen = joints[:, 2] >= MIN_JOINT_SCORE
        joints = np.where(seen[:, None], joints, 0)
        joints[:, 2] = np.where(seen, _VISIBLE, 0)
        yield {
            "id": number,
            **result,
            "area": round(result["bbox"][2] * result["bbox"][3], 2),
            "iscrowd": 0,
            "num_keypoints": int(seen.sum()),
            "keypoints": joints.ravel().tolist(),
        }


def write_yolo(entries: Entries, folder: Path, skeleton: Skeleton) -> Written:
    """Write `data.yaml`, and a file of labels for each picture below `labels`.

    They are Ultralytics' for pose: for each person a line of the class, 0, the middle and size of
    the box and each joint, as parts of the picture's width and height, and whether the joint is
    seen. Unseen, 0 0 0, are those of scores below 0.3 and those outside of the picture. Where
    nobody was found the file is empty. Ultralytics looks for the labels of `images/x.jpg` in
    `labels/x.txt`.
    """
    left_out: dict[str, str] = {}
    taken: set[str] = set()
    labels = folder / "labels"
    for entry in entries():
        path = (labels / entry.name).with_suffix(".txt")
        if str(path) in taken:
            left_out[entry.name] = f"{path} is another picture's: accepted are names that differ"
            continue
        taken.add(str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text("".join(_yolo_line(person, entry) for person in entry.people))
    data = folder / "data.yaml"
    with replacing(data) as temporary:
        temporary.write_text(
            "# People found by posemux. Ultralytics takes it if the pictures are in images/.\n"
            "train: images\n"
            "val: images\n"
            f"kpt_shape: [{skeleton.joints}, 3]\n"
            f"flip_idx: {list(skeleton.mirrored)}\n"
            "names:\n"
            "  0: person\n"
            "kpt_names:\n"
            f"  0: {json.dumps(skeleton.names)}\n"
        )
    return Written([labels, data], left_out)


def _yolo_line(person: dict[str, Any], entry: Entry) -> str:
    size = np.array([entry.width, entry.height])
    left_top, extent = np.split(np.array(person["bbox"]), 2)
    # Ultralytics refuses what lies outside.
    first = np.clip(left_top, 0, size) / size
    last = np.clip(left_top + extent, 0, size) / size
    joints = _joints(person)
    points = joints[:, :2] / size
    seen = (joints[:, 2] >= MIN_JOINT_SCORE) & ((points >= 0) & (points <= 1)).all(1)
    row = [
        *((first + last) / 2, last - first),
        *(
            np.append(point, _VISIBLE) if is_seen else (0, 0, 0)
            for point, is_seen in zip(points, seen, strict=True)
        ),
    ]
    return " ".join(["0", *(f"{value:.6g}" for part in row for value in part)]) + "\n"


def write_csv(entries: Entries, folder: Path, skeleton: Skeleton) -> Written:
    """Write `poses.csv`: a line for each person, pictures with nobody have none."""
    joints = [f"{name}_{part}" for name in skeleton.names for part in ("x", "y", "score")]
    box = ("box_x", "box_y", "box_width", "box_height")
    header = ["image", "image_width", "image_height", "person", "score", *box, *joints]
    with replacing(folder / "poses.csv") as path, _text(path) as file:
        rows = csv.writer(file)
        rows.writerow(header)
        for entry in entries():
            image = (entry.name, entry.width, entry.height)
            for number, person in enumerate(entry.people):
                rows.writerow(
                    [*image, number, person["score"], *person["bbox"], *person["keypoints"]]
                )
    return Written([folder / "poses.csv"])


#: By name.
WRITERS: dict[str, Callable[[Entries, Path, Skeleton], Written]] = {
    "coco": write_coco,
    "yolo": write_yolo,
    "csv": write_csv,
}


def _joints(person: dict[str, Any]) -> npt.NDArray[np.float64]:
    return np.array(person["keypoints"], np.float64).reshape(-1, 3)


def _json_list(items: Iterable[dict[str, Any]]) -> Iterator[str]:
    """A list in JSON, an item a line."""
    yield "["
    for number, item in enumerate(items):
        yield (",\n" if number else "\n") + json.dumps(item)
    yield "]"


def _text(path: Path) -> TextIO:
    # Names of files are bytes: those that are no UTF-8 are written as they are.
    return path.open("w", encoding="utf-8", errors="surrogateescape", newline="")
