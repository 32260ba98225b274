"""What a service answers, as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Model:
    """A pose model that the service knows, and how to read its keypoints."""

    name: str
    representation: str
    """`simcc`, `dark` or `pct`."""
    loaded: bool
    """Whether the service answers with it."""
    joint_names: tuple[str, ...]
    """Of its K joints, in the order of its keypoints."""
    skeleton: tuple[tuple[int, int], ...]
    """Limbs, as indices of joints from 0."""
    flip_pairs: tuple[tuple[int, int], ...]
    """Joints that a mirror exchanges."""
    input_size: tuple[int, int]
    """Width and height of a crop in pixels."""
    scores: str
    """`calibrated`: a joint's score is how likely it is right. `raw`: the model's own."""
    licence: str
    milliseconds: float | None
    """From one person's box to the joints; None where it is not loaded."""
    card: Mapping[str, Any] = field(repr=False, compare=False)
    """All that the service tells of it."""

    @classmethod
    def read(cls, card: Mapping[str, Any]) -> Model:
        """Read one of the `models` of `GET /models`."""
        return cls(
            joint_names=tuple(card["joint_names"]),
            skeleton=_pairs(card["skeleton"]),
            flip_pairs=_pairs(card["flip_pairs"]),
            input_size=(card["input_size"][0], card["input_size"][1]),
            card=card,
            **{
                name: card[name]
                for name in ("name", "representation", "loaded", "scores", "licence")
            },
            milliseconds=card["milliseconds"],
        )


@dataclass(frozen=True, slots=True)
class Models:
    """The pose models that a service knows."""

    default: str
    """The one of a request that names none."""
    by_name: Mapping[str, Model]

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Models:
        """Read the answer of `GET /models`."""
        models = [Model.read(card) for card in body["models"]]
        return cls(body["default"], {model.name: model for model in models})


@dataclass(frozen=True, slots=True, eq=False)
class Poses:
    """The P people in one image, best first, or in the order of one's own boxes.

    Coordinates are pixels of the upright image; a pixel's centre is at its integer coordinate.
    """

    width: int
    """Of the upright image."""
    height: int
    boxes: npt.NDArray[np.float32]
    """`(P, 4)` as `x1, y1, x2, y2`."""
    scores: npt.NDArray[np.float32]
    """`(P,)` in [0, 1]."""
    keypoints: npt.NDArray[np.float32]
    """`(P, K, 3)`: x, y, and a score in [0, 1], of the model's K joints."""
    model: Model
    request_id: str
    """By which the service's log calls the request."""
    timings_ms: Mapping[str, float]
    """Milliseconds in each stage, of all images of the request."""
    explanations: tuple[Mapping[str, Any], ...] | None = None
    """One a person, where they were asked for: what the joints were decoded from."""

    def __len__(self) -> int:
        """P, how many people there are."""
        return len(self.scores)

    def joint(self, name: str) -> npt.NDArray[np.float32]:
        """`(P, 3)`: everybody's joint of that name.

        Raises:
            ValueError: the model has no such joint.
        """
        if name not in self.model.joint_names:
            known = ", ".join(self.model.joint_names)
            raise ValueError(f"{self.model.name} has no joint {name!r}; it has {known}")
        return self.keypoints[:, self.model.joint_names.index(name)]

    @classmethod
    def read(cls, body: Mapping[str, Any], model: Model) -> list[Poses]:
        """Read the answer of `POST /pose`: one for each image, in their order.

        Args:
            body: the answer.
            model: the one it names.
        """
        return [cls._of_image(image, body, model) for image in body["images"]]

    @classmethod
    def _of_image(cls, image: Mapping[str, Any], body: Mapping[str, Any], model: Model) -> Poses:
        people = [found for found in body["predictions"] if found["image_id"] == image["id"]]
        boxes = _array(people, "bbox", 4)
        boxes[:, 2:] += boxes[:, :2]
        joints = len(model.joint_names)
        told = [person.get("explanation") for person in people]
        return cls(
            image["width"],
            image["height"],
            boxes.astype(np.float32),
            np.array([person["score"] for person in people], np.float32),
            _array(people, "keypoints", 3 * joints).astype(np.float32).reshape(-1, joints, 3),
            model,
            body["request_id"],
            body["timings_ms"],
            tuple(filter(None, told)) if any(told) else None,
        )


def _array(people: Sequence[Mapping[str, Any]], name: str, numbers: int) -> npt.NDArray[np.float64]:
    return np.array([person[name] for person in people], np.float64).reshape(-1, numbers)


def _pairs(pairs: Sequence[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    return tuple((first, second) for first, second in pairs)
