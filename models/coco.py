"""The 17 COCO joints: their order, how they are linked, which ones mirror, how precise they are."""

from __future__ import annotations

JOINT_NAMES: tuple[str, ...] = (
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
)

JOINTS = len(JOINT_NAMES)

#: The limbs of COCO's own annotation file, as pairs of indices into JOINT_NAMES.
SKELETON: tuple[tuple[int, int], ...] = (
    (15, 13),
    (13, 11),
    (16, 14),
    (14, 12),
    (11, 12),
    (5, 11),
    (6, 12),
    (5, 6),
    (5, 7),
    (6, 8),
    (7, 9),
    (8, 10),
    (1, 2),
    (0, 1),
    (0, 2),
    (1, 3),
    (2, 4),
    (3, 5),
    (4, 6),
)

#: Joints that change places when the picture is mirrored.
FLIP_PAIRS: tuple[tuple[int, int], ...] = tuple((left, left + 1) for left in range(1, JOINTS, 2))

#: FLIP_PAIRS as a permutation: joint i of the mirrored person is joint MIRRORED[i] of the person.
MIRRORED: tuple[int, ...] = (0, *(joint for left, right in FLIP_PAIRS for joint in (right, left)))

#: Annotators' spread by joint, relative to the person's size (COCO's object keypoint similarity).
OKS_SIGMAS: tuple[float, ...] = (
    0.026,
    0.025,
    0.025,
    0.035,
    0.035,
    0.079,
    0.079,
    0.072,
    0.072,
    0.062,
    0.062,
    0.107,
    0.107,
    0.087,
    0.087,
    0.089,
    0.089,
)
