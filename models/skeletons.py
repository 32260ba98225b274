"""Skeletons: which joints a person has, how they are linked, and which ones mirror."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache

from models import coco

#: A joint whose name holds one of these belongs to the lower body.
_LOWER_BODY = re.compile(r"hip|pelvis|knee|ankle|heel|foot|toe")

#: Annotators' spread by joint, relative to the person's size: COCO's, and CrowdPose's for head and
#: neck. MPII publishes none: its pelvis counts as a hip, its thorax as a shoulder.
_SIGMAS = dict(zip(coco.JOINT_NAMES, coco.OKS_SIGMAS, strict=True)) | {
    **{"head_top": 0.079, "neck": 0.079, "upper_neck": 0.079},
    **{"thorax": 0.079, "pelvis": 0.107},
}
#: Any other joint's: in the middle of COCO's.
_OTHER_SIGMA = 0.072


class SkeletonError(ValueError):
    """Joint names that make no skeleton: the message says why."""


@dataclass(frozen=True)
class Skeleton:
    """The joints of a person, in the order in which a pose model gives them.

    Which joints mirror and which belong to the lower body follows from their names, so that every
    set in COCO layout brings its own skeleton.

    Args:
        names: one a joint, such as `left_knee`.
        limbs: pairs of indices into the names, to draw them.

    Raises:
        SkeletonError: there is no joint, or a name occurs twice.
    """

    names: tuple[str, ...]
    limbs: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) < len(self.names):
            raise SkeletonError(f"joint names must be given and differ; got {list(self.names)}")

    @property
    def joints(self) -> int:
        """K, how many there are."""
        return len(self.names)

    @cached_property
    def mirrored(self) -> tuple[int, ...]:
        """Joint i of the mirrored person is joint `mirrored[i]` of the person."""
        index = {name: joint for joint, name in enumerate(self.names)}
        return tuple(index.get(_other_side(name), index[name]) for name in self.names)

    @property
    def flip_pairs(self) -> tuple[tuple[int, int], ...]:
        """Joints that change places when the picture is mirrored."""
        return tuple((joint, other) for joint, other in enumerate(self.mirrored) if joint < other)

    @cached_property
    def sigmas(self) -> tuple[float, ...]:
        """Each joint's spread in the object keypoint similarity, by its name: see `_SIGMAS`."""
        return tuple(_SIGMAS.get(name, _OTHER_SIGMA) for name in self.names)

    @cached_property
    def upper_body(self) -> tuple[bool, ...]:
        """For each joint whether it belongs to the upper body (HRNet, `half_body_transform`)."""
        return tuple(_LOWER_BODY.search(name) is None for name in self.names)


def _other_side(name: str) -> str:
    if "left" in name:
        return name.replace("left", "right")
    return name.replace("right", "left")


#: COCO's 17 joints.
COCO = Skeleton(coco.JOINT_NAMES, coco.SKELETON)

#: MPII's 16 joints in the order of its annotations (Andriluka et al., CVPR 2014).
MPII = Skeleton(
    (
        "right_ankle",
        "right_knee",
        "right_hip",
        "left_hip",
        "left_knee",
        "left_ankle",
        "pelvis",
        "thorax",
        "upper_neck",
        "head_top",
        "right_wrist",
        "right_elbow",
        "right_shoulder",
        "left_shoulder",
        "left_elbow",
        "left_wrist",
    ),
    (
        *((0, 1), (1, 2), (2, 6), (6, 3), (3, 4), (4, 5), (6, 7), (7, 8), (8, 9)),
        *((10, 11), (11, 12), (12, 7), (7, 13), (13, 14), (14, 15)),
    ),
)


@lru_cache
def skeleton_of(names: tuple[str, ...]) -> Skeleton:
    """The skeleton of joints with these names: COCO's, MPII's, or one without known limbs.

    Raises:
        SkeletonError: there is no joint, or a name occurs twice.
    """
    known = {entry.names: entry for entry in (COCO, MPII)}
    return known[names] if names in known else Skeleton(names)
