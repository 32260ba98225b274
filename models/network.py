"""A pose network: a timm backbone, where asked for a pyramid, and a representation's head."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, cast

import timm
from torch import Tensor, nn

from models.backbones import Pyramid
from models.coco import JOINTS
from models.heatmap import Heatmap
from models.pct import PCT, MixerSize
from models.simcc import SimCC

#: The representations, by the names that requests use.
REPRESENTATIONS = ("simcc", "dark", "pct")

Raw = Tensor | tuple[Tensor, Tensor]


class Representation(Protocol):
    """What a pose network needs to know of how it writes a pose down."""

    input_size: tuple[int, int]

    @property
    def feature_stride(self) -> int:
        """The stride of the features that the head reads."""

    def head(self, channels: int, joints: int) -> nn.Module:
        """A fresh head for features of that many channels."""

    def loss(self, raw: Any, keypoints: Tensor, labelled: Tensor) -> Tensor:
        """The training loss for keypoints `(N, K, 2)` in input pixels."""

    def decode(self, raw: Any) -> Tensor:
        """`(N, K, 3)`: x, y in input pixels and the representation's own score, about in [0, 1]."""

    def reference_scores(self, raw: Any) -> Tensor:
        """`(N, K)`: the score that its authors give a joint."""


class ArchitectureError(ValueError):
    """An architecture that cannot be built: the message says which field and why."""


@dataclass(frozen=True)
class Architecture:
    """Everything needed to build a pose network; weights fit exactly one architecture.

    Args:
        representation: one of REPRESENTATIONS.
        backbone: a timm model's name.
        input_size: width and height in pixels.
        pyramid: the pyramid's channels; 0 for heads that read the backbone's last features.
        options: the representation's own arguments.
    """

    representation: str
    backbone: str
    input_size: tuple[int, int]
    pyramid: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, table: dict[str, Any]) -> Architecture:
        """An architecture from a TOML or JSON table.

        Raises:
            ArchitectureError: a field is missing or unknown.
        """
        try:
            return cls(**{**table, "input_size": tuple(table["input_size"])})
        except (KeyError, TypeError) as error:
            raise ArchitectureError(f"not an architecture: {error}; got {table}") from error

    def table(self) -> dict[str, Any]:
        """The table that `parse` reads."""
        return asdict(self)


def build_representation(architecture: Architecture) -> Representation:
    """The representation of an architecture, a PCT one with a fresh tokenizer.

    Raises:
        ArchitectureError: the representation or one of its options is unknown.
    """
    options = {
        name: MixerSize(**value) if isinstance(value, dict) else value
        for name, value in architecture.options.items()
    }
    kinds: dict[str, Any] = {"simcc": SimCC, "dark": Heatmap, "pct": PCT}
    if architecture.representation not in kinds:
        raise ArchitectureError(
            f"representation must be one of {REPRESENTATIONS}, not {architecture.representation!r}"
        )
    try:
        built = kinds[architecture.representation](input_size=architecture.input_size, **options)
    except TypeError as error:
        raise ArchitectureError(f"options of {architecture.representation}: {error}") from error
    return cast(Representation, built)


class Network(nn.Module):
    """Normalised crops to whatever the representation decodes.

    Args:
        architecture: what to build; weights are random.
        representation: whose head it gets.

    Raises:
        ArchitectureError: timm does not know the backbone, or it lacks features of that stride.
    """

    def __init__(self, architecture: Architecture, representation: Representation) -> None:
        super().__init__()
        try:
            self.backbone = timm.create_model(architecture.backbone, features_only=True)
        except RuntimeError as error:
            raise ArchitectureError(f"backbone: {error}") from error
        info: Any = self.backbone.feature_info
        channels = dict(zip(info.reduction(), info.channels(), strict=True))
        stride = representation.feature_stride
        if stride not in channels:
            raise ArchitectureError(
                f"{architecture.backbone} has features of stride {sorted(channels)}, not {stride}"
            )
        self.strides = tuple(channels)
        self.pyramid = (
            Pyramid(channels, architecture.pyramid, stride) if architecture.pyramid else None
        )
        self.stride = stride
        self.head = representation.head(architecture.pyramid or channels[stride], JOINTS)

    def forward(self, crops: Tensor) -> Raw:
        """`(N, 3, H, W)` to the representation's raw output."""
        features = dict(zip(self.strides, self.backbone(crops), strict=True))
        chosen = features[self.stride] if self.pyramid is None else self.pyramid(features)
        return cast(Raw, self.head(chosen))
