from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def annotated(tmp_path: Path) -> Path:
    """The sample photo, its two standing people annotated by hand (hips and shoulders only)."""
    people = [
        ([52, 396, 194, 506], {5: (172, 500), 6: (75, 497), 11: (165, 655), 12: (92, 660)}),
        ([222, 405, 123, 455], {5: (325, 500), 6: (250, 500), 11: (315, 660), 12: (258, 670)}),
    ]
    annotations = []
    for number, (box, joints) in enumerate(people, 1):
        keypoints = np.zeros((17, 3))
        for joint, place in joints.items():
            keypoints[joint] = (*place, 2)
        annotations.append(
            {
                **{"id": number, "image_id": 7, "category_id": 1, "iscrowd": 0, "bbox": box},
                **{"area": box[2] * box[3], "num_keypoints": len(joints)},
                "keypoints": keypoints.flatten().tolist(),
            }
        )
    coco = {
        "images": [{"id": 7, "file_name": "bus.jpg", "width": 810, "height": 1080}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person"}],
    }
    path = tmp_path / "bus.json"
    path.write_text(json.dumps(coco))
    return path
