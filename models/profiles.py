"""Profiles: how the authors of weights feed their network, and how they read what it says.

None of this is in a weights file, and all of it moves joints or figures. A published model's card
has the profile of its file; a file without a name gets that of the repository whose names its keys
have. The rest of what its authors do is part of the architecture: input size, k, sigma, the width
of DARK's blur, and how pixels lie on a crop (`models.geometry`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from models.network import Architecture

#: Whose code weights were trained and published with. `official` are HRNet, SimpleBaselines,
#: DarkPose, SimDR/SimCC and TokenPose, all of which go back to one code; PCT and ViTPose are built
#: on mmpose 0.x.
Authors = Literal["official", "mmpose-0.x", "mmpose"]


@dataclass(frozen=True)
class Profile:
    """What a pose model's input must be like, and how its authors read its output.

    Args:
        padding: how much larger than the box its crop is.
        bgr: whether the network wants blue first; mean and spread are in the order of red, green
            and blue all the same.
        reference: its authors' arithmetic, one of `models.reference.RULES`, which has their flip
            rule and score rule.
        joint_threshold: in its authors' evaluation joints of lower reference scores do not count in
            a person's score.
    """

    reference: str
    padding: float = 1.25
    bgr: bool = False
    joint_threshold: float = 0.2


def profile_of(authors: Authors | None, architecture: Architecture) -> Profile:
    """The profile of weights from one of the authors' code.

    Args:
        authors: whose code; None for posemux's own, whose reference is that of the representation's
            paper, of heatmaps with ordinary crops mmpose's.
        architecture: what the weights are of.
    """
    # PCT is trained on crops as everybody's and evaluated on tighter ones
    # (configs/pct_*_classifier.py).
    tighter = authors is not None and architecture.representation == "pct"
    return Profile(
        padding=1.12 if tighter else 1.25,
        # OpenCV's order, to which only HRNet's configurations made an end (`COLOR_RGB`).
        bgr=authors == "official" and architecture.backbone.startswith("resnet"),
        reference=_reference(authors, architecture),
        joint_threshold=_joint_threshold(authors, architecture),
    )


def authors_of(keys: Iterable[str]) -> Authors | None:
    """Whose code wrote a weights file, by the names of its keys; None for posemux's own."""
    parts = {key.removeprefix("module.").partition(".")[0] for key in keys}
    if parts <= {"network", "representation"}:
        return None
    if "keypoint_head" in parts:
        return "mmpose-0.x"
    return "mmpose" if "backbone" in parts else "official"


def _reference(authors: Authors | None, architecture: Architecture) -> str:
    """The name of the rule in `models.reference`."""
    options = architecture.options
    if architecture.representation == "pct":
        return "pct"
    if architecture.representation == "simcc":
        equal = options.get("smoothing", "gaussian") == "equal"
        if authors in ("mmpose", "mmpose-0.x"):
            return "mmpose-simcc"
        return "simdr" if equal else "sa-simdr"
    if architecture.mapping == "darkpose":
        return "darkpose"
    if authors == "official":
        # Where the keys do not tell HRNet's from DarkPose's, the crops are taken for HRNet's.
        return "hrnet"
    if architecture.mapping == "udp":
        return f"{authors or 'mmpose'}-udp"
    if options.get("method", "dark") == "dark":
        return f"{authors or 'mmpose'}-dark"
    return authors or "hrnet"


def _joint_threshold(authors: Authors | None, architecture: Architecture) -> float:
    """`IN_VIS_THRE` of the configurations; everybody's but SimDR's is 0.2."""
    if authors in ("mmpose", "mmpose-0.x") or architecture.representation != "simcc":
        return 0.2
    # A probability of one bin among many is small.
    height = architecture.input_size[1]
    if architecture.options.get("smoothing", "gaussian") != "equal" or height > 256:
        return 0.005
    return 0.01 if height == 256 else 0.02
