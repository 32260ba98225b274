"""What a request may say, and what bodies look like."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, Json, TypeAdapter

from app.explanations import (
    MAX_EXPLAINED,
    HeatmapExplained,
    PCTExplained,
    SimCCExplained,
    explained,
)
from app.pipeline import Poses

#: Further out than in any image, near enough for single precision.
_FARTHEST = 1_000_000

Representation = Literal["simcc", "dark", "pct"]
Coordinate = Annotated[float, Field(strict=True, ge=-_FARTHEST, le=_FARTHEST, allow_inf_nan=False)]
Corners = tuple[Coordinate, Coordinate, Coordinate, Coordinate]
#: Reads the parameter `boxes`.
BOXES: TypeAdapter[list[Corners]] = TypeAdapter(Json[list[Corners]])


class _Asked(BaseModel):
    """What requests and streams may both ask for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    representation: Representation | None = Field(
        default=None,
        description="simcc, dark or pct: how the network writes a pose down.",
        examples=["simcc"],
    )
    model: str | None = Field(
        default=None,
        description="The name of a loaded pose model, in place of a representation: see /models.",
    )
    min_score: float | None = Field(
        default=None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="a number from 0 to 1; detected people of lower scores are left out.",
    )
    max_people: int | None = Field(
        default=None,
        ge=1,
        description="a number from 1 up to the service's own limit; of more detected people the "
        "best so many are kept.",
    )


class PoseQuery(_Asked):
    """The query parameters of `POST /pose`: those left out are the service's settings."""

    # A text to FastAPI, which would take a list for a parameter that is repeated.
    boxes: str | None = Field(
        default=None,
        description="a JSON list of [x1, y1, x2, y2] in pixels of the upright image, x1 < x2 and "
        "y1 < y2, such as [[10, 20, 110, 320]]. Nobody is looked for: there is one prediction "
        "for each box, in their order. One image only.",
        examples=["[[48, 398, 245, 903], [222, 405, 345, 860]]"],
    )
    flip_test: bool = Field(
        default=False,
        description="true or false; true averages with the mirror image: a little better, twice "
        "the price.",
    )
    explain: bool = Field(
        default=False,
        description="true or false; true tells what the joints were decoded from, of one image "
        f"with up to {MAX_EXPLAINED} people, in JSON.",
    )


class StreamQuery(_Asked):
    """The query parameters of `WS /stream`: those left out are the service's settings."""

    track: bool = Field(
        default=False,
        description="true or false; true follows people from frame to frame: see docs/video.md.",
    )
    smooth: bool = Field(
        default=False,
        description="true or false; true smooths the joints of people who are followed.",
    )


class ImageInfo(BaseModel):
    """An image of the request, upright."""

    id: int = Field(description="Its place in the request, from 0.")
    width: int
    height: int


class Prediction(BaseModel):
    """One person, as in a COCO results file."""

    image_id: int = Field(description="The `id` of its image.")
    category_id: int = Field(description="Always 1: a person.")
    bbox: list[float] = Field(
        min_length=4, max_length=4, description="x, y, width and height of the person's box."
    )
    score: float = Field(
        description="The box's score (1 for one's own) times the mean score of the joints above "
        "0.05 (0.2 where the model's scores are raw, see /models)."
    )
    keypoints: list[float] = Field(
        min_length=3,
        description="x, y and score of each joint, three numbers each, in the order of the model's "
        "`joint_names` in /models: COCO's 17, or what else the model was trained on. "
        "The score is how likely the joint is right, where the model's scores are calibrated.",
    )
    explanation: SimCCExplained | HeatmapExplained | PCTExplained | None = Field(
        default=None,
        description="With `explain=true` only: what the joints were decoded from, by the model's "
        "representation.",
    )


class Timings(BaseModel):
    """Milliseconds in each stage; of several images the slowest's."""

    decode: float
    queue: float = Field(description="Waiting for the device.")
    detect: float = Field(description="This and the next three are the whole batch's.")
    crop: float
    pose: float
    postprocess: float
    total: float = Field(description="Since the request arrived, its upload included.")


class PoseResponse(BaseModel):
    """The poses in one or more images; `predictions` is a COCO results list as it stands.

    Coordinates are pixels of the upright image; a pixel's centre is at its integer coordinate.
    """

    request_id: str
    representation: Representation
    model: str
    images: list[ImageInfo]
    predictions: list[Prediction] = Field(description="Image by image, each one's best first.")
    timings_ms: Timings


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str = Field(description="Names the kind of problem, for programs.")
    title: str = Field(description="The kind of problem, for people.")
    status: int
    detail: str = Field(description="What was wrong with this request, and what is accepted.")
    request_id: str = Field(description="Also in the service's log.")


class ModelProfile(BaseModel):
    """How a pose model is fed, and read by its authors."""

    padding: float = Field(description="How much larger than the box the crop is.")
    bgr: bool = Field(description="Whether the network wants blue first.")
    reference: str = Field(
        description="Its authors' flip rule and score rule, by their name in docs/checkpoints.md."
    )
    joint_threshold: float = Field(
        description="The least score of a joint that counts in its authors' score of a person."
    )


class ModelCard(BaseModel):
    """What is known of a pose model."""

    name: str
    loaded: bool = Field(description="Whether this service answers with it.")
    representation: Representation
    backbone: str
    input_size: tuple[int, int] = Field(description="Width and height of a crop in pixels.")
    parameters: int = Field(description="Trained weights, those of decoding included.")
    gmacs: float = Field(description="Thousand million multiply-adds for one crop.")
    authors: str | None = Field(
        description="Whose code trained it: `official` (HRNet's and what is built on it), "
        "`mmpose-0.x`, `mmpose`, or null: posemux."
    )
    profile: ModelProfile = Field(description="What its input is like, and its authors' decoding.")
    joint_names: list[str] = Field(description="In the order of its `keypoints`.")
    skeleton: list[tuple[int, int]] = Field(description="Limbs, as indices of joints from 0.")
    skeleton_colours: list[str] = Field(
        description="Each limb's, as #rrggbb: the left side's, the right side's, the middle's."
    )
    joint_colours: list[str] = Field(description="Each joint's, likewise.")
    flip_pairs: list[tuple[int, int]] = Field(description="Joints that a mirror exchanges.")
    milliseconds: float | None = Field(
        description="From one person's box to the joints, measured when this service was warm; "
        "null where it is not loaded."
    )
    architecture: dict[str, Any]
    weights: str
    sha256: str
    url: str | None
    source: str | None = Field(
        description="Where weights are from that do not come with posemux, for people."
    )
    licence: str
    training_data: str
    epochs: int
    measured: dict[str, float] = Field(description="Figures of this project's own evaluation.")
    published: dict[str, float] = Field(description="Figures of the model's authors.")
    note: str
    scores: Literal["calibrated", "raw"] = Field(
        description="`calibrated`: a joint's score is how likely it is right, alike in all models. "
        "`raw`: the model's own, which compare only within it."
    )
    calibration: dict[str, list[float]] | None = Field(
        description="How the model's own scores become calibrated ones: see docs/scores.md."
    )


class ModelsResponse(BaseModel):
    """The pose models, and how to read the keypoints of the default one; others have their own."""

    default: str = Field(description="The model of a request that names none.")
    models: list[ModelCard]
    joint_names: list[str] = Field(description="In the order of the default model's `keypoints`.")
    skeleton: list[tuple[int, int]] = Field(description="Its limbs, as indices of joints from 0.")
    skeleton_colours: list[str] = Field(description="Each limb's, as #rrggbb.")
    joint_colours: list[str] = Field(description="Each joint's, as #rrggbb.")
    flip_pairs: list[tuple[int, int]] = Field(description="Its joints that a mirror exchanges.")


class Health(BaseModel):
    """All is well."""

    status: str


def coco_results(image_id: int, poses: Poses, digits: int = 4) -> list[dict[str, Any]]:
    """One image's poses as entries of a COCO results list.

    Hundredths of a pixel and ten thousandths of a score: far finer than any network is exact, and
    half as long to send.

    Args:
        image_id: the image's.
        poses: the people in it, with their explanations and track ids if there are any; whoever is
            not followed yet has none.
        digits: decimals of scores.
    """
    corners = poses.boxes.astype(np.float64)
    boxes = np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), 1).round(2)
    keypoints = poses.keypoints.astype(np.float64)
    keypoints[..., :2] = keypoints[..., :2].round(2)
    keypoints[..., 2] = keypoints[..., 2].round(digits)
    scores = poses.scores.astype(np.float64).round(digits)
    flat = keypoints.reshape(len(keypoints), 3 * keypoints.shape[1])
    rows = zip(boxes.tolist(), scores.tolist(), flat.tolist(), strict=True)
    results: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": 1, "bbox": box, "score": score, "keypoints": row}
        for box, score, row in rows
    ]
    if poses.track_ids is not None:
        for result, track_id in zip(results, poses.track_ids.tolist(), strict=True):
            result["track_id"] = track_id or None
    if poses.explanations is not None:
        for result, told in zip(results, poses.explanations, strict=True):
            result["explanation"] = explained(told)
    return results
