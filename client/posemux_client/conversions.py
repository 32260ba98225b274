"""Poses as what other tools take.

Those that a tool has classes for become these, and the tool must be installed; the others become
what its files hold, to be written with `json`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr

import numpy as np
import numpy.typing as npt

from posemux_client.results import Model, Poses

if TYPE_CHECKING:
    import fiftyone
    import supervision

#: Joints of lower scores are left out where a format only knows joints that are there.
MIN_JOINT_SCORE = 0.3

_PERSON = "person"


def to_mmpose(poses: Poses) -> dict[str, npt.NDArray[np.float32]]:
    """What mmpose's `InstanceData` of predictions holds: `InstanceData(**to_mmpose(poses))`.

    Returns:
        `keypoints` `(P, K, 2)`, `keypoint_scores` `(P, K)`, `bboxes` `(P, 4)` as `x1, y1, x2, y2`,
        `bbox_scores` `(P,)`.
    """
    return {
        "keypoints": poses.keypoints[..., :2],
        "keypoint_scores": poses.keypoints[..., 2],
        "bboxes": poses.boxes,
        "bbox_scores": poses.scores,
    }


def to_supervision(poses: Poses) -> supervision.KeyPoints:
    """As supervision's `KeyPoints`, 0.29 or newer; joints of scores below 0.3 are not visible."""
    import supervision

    people = len(poses)
    return supervision.KeyPoints(
        xy=poses.keypoints[..., :2],
        class_id=np.zeros(people, int),
        keypoint_confidence=poses.keypoints[..., 2],
        detection_confidence=poses.scores,
        visible=poses.keypoints[..., 2] >= MIN_JOINT_SCORE,
        data={"class_name": np.full(people, _PERSON), "xyxy": poses.boxes},
    )


def to_fiftyone(poses: Poses) -> dict[str, fiftyone.Label]:
    """As FiftyOne's labels: `sample.update_fields(to_fiftyone(poses))`.

    Returns:
        `people`: a `Detections`, and `joints`: a `Keypoints`, with as many entries in the same
        order, whose `index` says who belongs together.
    """
    import fiftyone

    size = np.array([poses.width, poses.height])
    corners = poses.boxes.astype(np.float64).reshape(-1, 2, 2) / size
    points = poses.keypoints[..., :2].astype(np.float64) / size
    people, joints = [], []
    for person, (first, last) in enumerate(corners):
        box = [*first.tolist(), *(last - first).tolist()]
        told = {"label": _PERSON, "index": person}
        score = float(poses.scores[person])
        people.append(fiftyone.Detection(bounding_box=box, confidence=score, **told))
        scores = poses.keypoints[person, :, 2].astype(np.float64).tolist()
        joints.append(fiftyone.Keypoint(points=points[person].tolist(), confidence=scores, **told))
    return {
        "people": fiftyone.Detections(detections=people),
        "joints": fiftyone.Keypoints(keypoints=joints),
    }


def to_coco(images: Mapping[str, Poses]) -> dict[str, Any]:
    """A COCO keypoint data set, which CVAT imports as "COCO Keypoints 1.0".

    Joints of scores below 0.3 are unlabelled, the others visible.

    Args:
        images: the poses in each image by its file name, all of one model.

    Raises:
        ValueError: there is no image, or they are of several models with different joints.
    """
    kinds = {(poses.model.joint_names, poses.model.skeleton) for poses in images.values()}
    if len(kinds) != 1:
        raise ValueError(f"a COCO data set has one kind of skeleton; got {len(kinds)}")
    [(names, limbs)] = kinds
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (name, poses) in enumerate(images.items(), 1):
        size = {"width": poses.width, "height": poses.height}
        listed.append({"id": image_id, "file_name": name, **size})
        for person, (box, score) in enumerate(zip(poses.boxes, poses.scores, strict=True)):
            joints = poses.keypoints[person].astype(np.float64)
            seen = joints[:, 2] >= MIN_JOINT_SCORE
            joints[:, 2] = 2
            joints[~seen] = 0
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "bbox": _rounded([*box[:2], *(box[2:] - box[:2])]),
                    "area": round(float(np.prod(box[2:] - box[:2])), 2),
                    "segmentation": [],
                    "iscrowd": 0,
                    "score": round(float(score), 4),
                    "keypoints": _rounded(joints.ravel()),
                    "num_keypoints": int(seen.sum()),
                }
            )
    category = {
        "id": 1,
        "name": _PERSON,
        "supercategory": _PERSON,
        "keypoints": list(names),
        # COCO counts joints from 1.
        "skeleton": [[first + 1, second + 1] for first, second in limbs],
    }
    return {"images": listed, "annotations": annotations, "categories": [category]}


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(float(value), 2) for value in values]


def to_label_studio(poses: Poses, image: str) -> dict[str, Any]:
    """A Label Studio task with the poses as predictions, for a project of `label_studio_config`.

    Each person is a box, and the joints of scores of at least 0.3 that lie in the image are points
    that belong to it.

    Args:
        poses: the people in the image.
        image: where Label Studio finds the image, such as its URL.

    Returns:
        A task: a file of a list of them is imported.
    """
    size = {
        "original_width": poses.width,
        "original_height": poses.height,
        "image_rotation": 0,
        "to_name": "image",
    }
    percent = 100 / np.array([poses.width, poses.height])
    regions: list[dict[str, Any]] = []
    for person, (box, score) in enumerate(zip(poses.boxes, poses.scores, strict=True)):
        identity = f"person-{person}"
        corners = np.clip(box.reshape(2, 2) * percent, 0, 100)
        x, y = corners[0].tolist()
        width, height = (corners[1] - corners[0]).tolist()
        around = {"x": x, "y": y, "width": width, "height": height, "rotation": 0}
        regions.append(
            {
                "id": identity,
                "type": "rectanglelabels",
                "from_name": "person",
                "value": {**around, "rectanglelabels": [_PERSON]},
                "score": float(score),
                **size,
            }
        )
        for name, joint in zip(poses.model.joint_names, poses.keypoints[person], strict=True):
            x, y = (joint[:2] * percent).tolist()
            if joint[2] < MIN_JOINT_SCORE or not (0 <= x <= 100 and 0 <= y <= 100):
                continue
            regions.append(
                {
                    "id": f"{identity}-{name}",
                    "parentID": identity,
                    "type": "keypointlabels",
                    "from_name": "joint",
                    "value": {"x": x, "y": y, "width": 0.5, "keypointlabels": [name]},
                    "score": float(joint[2]),
                    **size,
                }
            )
    prediction: dict[str, Any] = {"model_version": poses.model.name, "result": regions}
    if len(poses):
        prediction["score"] = float(poses.scores.mean())
    return {"data": {"image": image}, "predictions": [prediction]}


def label_studio_config(model: Model) -> str:
    """The labelling interface of a Label Studio project for a model's joints."""
    labels = "".join(f"\n    <Label value={quoteattr(name)}/>" for name in model.joint_names)
    return f"""<View>
  <Image name="image" value="$image"/>
  <RectangleLabels name="person" toName="image">
    <Label value="{_PERSON}"/>
  </RectangleLabels>
  <KeyPointLabels name="joint" toName="image">{labels}
  </KeyPointLabels>
</View>
"""
