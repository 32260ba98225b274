"""What `explain=true` adds to a person: what the joints were decoded from, packed to be sent."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from app.pipeline import Explanation

#: The most people of a request with `explain=true`: each weighs tens of thousands of bytes.
MAX_EXPLAINED = 8

Row = tuple[float, float, float]


class PackedArray(BaseModel):
    """Numbers as bytes: those of joint j are `byte / 255 * peaks[j]`."""

    shape: list[int] = Field(description="The joints come first; rows before columns.")
    peaks: list[float] = Field(description="The largest number of each joint.")
    data: str = Field(description="The bytes, in base64.")


class Grid(BaseModel):
    """Where places lie in the crop: place i of an axis is at `origin + step * i` crop pixels."""

    step: list[float] = Field(min_length=2, max_length=2, description="Of x and of y.")
    origin: list[float] = Field(min_length=2, max_length=2, description="Of x and of y.")


class Explained(BaseModel):
    """What the joints of one person were decoded from, in the crop that the network saw."""

    crop_size: list[int] = Field(
        min_length=2, max_length=2, description="Width and height of the crop in pixels."
    )
    crop_to_image: list[list[float]] = Field(
        description="The affine map from crop to image pixels, two rows of three: what the map "
        "makes of x, y, 1."
    )


class SimCCExplained(Explained):
    """SimCC: the two distributions of each joint."""

    x: PackedArray = Field(description="joints x bins: probabilities.")
    y: PackedArray = Field(description="joints x bins: probabilities.")
    grid: Grid = Field(description="Where the bins lie.")


class HeatmapExplained(Explained):
    """Heatmaps: one for each joint, without what is negative."""

    maps: PackedArray = Field(description="joints x rows x columns.")
    grid: Grid = Field(description="Where the maps' pixels lie.")


class PCTExplained(Explained):
    """PCT: the pose's tokens."""

    tokens: list[int] = Field(description="Of each token the likeliest entry of the codebook.")
    probabilities: list[float] = Field(description="That entry's.")
    moves: list[list[float]] = Field(
        description="tokens x joints: by how many crop pixels the joint moves when the token alone "
        "is replaced, the root mean square over several other entries."
    )


def explained(told: Explanation) -> dict[str, Any]:
    """One person's explanation as a part of a body: one of the schemas above."""
    seen = told.seen
    body: dict[str, Any] = {
        "crop_size": list(told.crop_size),
        "crop_to_image": told.crop_to_image.round(5).tolist(),
    }
    for name in ("x", "y", "maps"):
        if name in seen:
            body[name] = _packed(seen[name])
    if "steps" in seen:
        body["grid"] = {"step": _listed(seen["steps"], 5), "origin": _listed(seen["origins"], 5)}
    if "tokens" in seen:
        body["tokens"] = seen["tokens"].tolist()
        body["probabilities"] = _listed(seen["probabilities"], 4)
        body["moves"] = _listed(seen["moves"], 2)
    return body


def _listed(values: npt.NDArray[np.float32], digits: int) -> list[Any]:
    listed: list[Any] = values.astype(np.float64).round(digits).tolist()
    return listed


def _packed(values: npt.NDArray[np.float32]) -> dict[str, Any]:
    flat = values.reshape(len(values), -1)
    peaks = flat.max(1)
    shares = flat / np.where(peaks > 0, peaks, 1)[:, None]
    data = b64encode(np.rint(255 * shares).astype(np.uint8).tobytes()).decode("ascii")
    return {"shape": list(values.shape), "peaks": _listed(peaks, 6), "data": data}
