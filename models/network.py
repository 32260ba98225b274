"""A pose network: a backbone, where asked for a neck, and a representation's head."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

from torch import Tensor, nn

from models.backbones import (
    Deconvolution,
    DeconvolutionSize,
    JointTokens,
    Pyramid,
    TokenSize,
    build_backbone,
)
from models.geometry import Mapping
from models.heatmap import Heatmap
from models.pct import PCT, MixerSize
from models.simcc import SimCC
from models.skeletons import COCO, Skeleton, SkeletonError, skeleton_of

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

    def explain(self, raw: Any) -> dict[str, Tensor]:
        """What it decodes the joints from, to be looked at: by name, `(N, ...)` each."""


@runtime_checkable
class TokenRepresentation(Protocol):
    """A representation that can also be read off a vector for each joint, as TokenPose makes."""

    def token_head(self, width: int) -> nn.Module:
        """A fresh head for `(N, K, width)`."""


class ArchitectureError(ValueError):
    """An architecture that cannot be built: the message says which field and why."""


@dataclass(frozen=True)
class Architecture:
    """Everything needed to build a pose network; weights fit exactly one architecture.

    Args:
        representation: one of REPRESENTATIONS.
        backbone: a timm model's name, or one of `models.backbones`.
        input_size: width and height in pixels.
        pyramid: the channels of a pyramid between backbone and head; 0 for none.
        options: the representation's own arguments.
        joints: the joints' names, in the order of the network's outputs.
        deconvolution: SimpleBaselines' transposed convolutions between backbone and head.
        tokens: TokenPose's transformer between backbone and head.
    """

    representation: str
    backbone: str
    input_size: tuple[int, int]
    pyramid: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    joints: tuple[str, ...] = COCO.names
    deconvolution: DeconvolutionSize | None = None
    tokens: TokenSize | None = None

    @classmethod
    def parse(cls, table: dict[str, Any]) -> Architecture:
        """An architecture from a TOML or JSON table.

        Raises:
            ArchitectureError: a field is missing or unknown, or there are several necks.
        """
        table = dict(table)
        try:
            table["input_size"] = tuple(table["input_size"])
            table["joints"] = tuple(table.get("joints", COCO.names))
            for name, size in (("deconvolution", DeconvolutionSize), ("tokens", TokenSize)):
                # TOML has no null: false takes away what an extended recipe had.
                table[name] = size(**table[name]) if table.get(name) else None
            parsed = cls(**table)
        except (KeyError, TypeError, ValueError) as error:
            raise ArchitectureError(f"not an architecture: {error}; got {table}") from error
        if sum(map(bool, (parsed.pyramid, parsed.deconvolution, parsed.tokens))) > 1:
            raise ArchitectureError(
                "not an architecture: pyramid, deconvolution and tokens exclude each other"
            )
        return parsed

    def table(self) -> dict[str, Any]:
        """The table that `parse` reads."""
        return asdict(self)

    @property
    def mapping(self) -> Mapping:
        """How a crop's pixels lie on its region, an option of heatmaps: see `models.geometry`."""
        return cast(Mapping, self.options.get("mapping", "affine"))

    @property
    def skeleton(self) -> Skeleton:
        """The joints.

        Raises:
            ArchitectureError: there is no joint, or a name occurs twice.
        """
        try:
            return skeleton_of(self.joints)
        except SkeletonError as error:
            raise ArchitectureError(str(error)) from error


def build_representation(architecture: Architecture) -> Representation:
    """The representation of an architecture, a PCT one with a fresh tokenizer.

    Raises:
        ArchitectureError: the representation or one of its options is unknown.
    """
    options = {
        name: MixerSize(**value) if isinstance(value, dict) else value
        for name, value in architecture.options.items()
    }
    if architecture.representation == "pct":
        options["joints"] = architecture.skeleton.joints
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
        ArchitectureError: the backbone is unknown, or it lacks features of the stride that is
            wanted, or the representation cannot read joint tokens.
    """

    def __init__(self, architecture: Architecture, representation: Representation) -> None:
        super().__init__()
        size, stride = architecture.input_size, representation.feature_stride
        try:
            self.backbone, channels = build_backbone(architecture.backbone, size)
        except RuntimeError as error:
            raise ArchitectureError(f"backbone: {error}") from error
        self.strides = tuple(channels)
        self.stride = stride
        if architecture.deconvolution is not None:
            self.stride *= architecture.deconvolution.scale
        if self.stride not in channels:
            raise ArchitectureError(
                f"{architecture.backbone} has features of stride {sorted(channels)}, "
                f"not {self.stride}"
            )
        width, joints = channels[self.stride], architecture.skeleton.joints
        self.pyramid = self.deconvolution = self.tokens = None
        if architecture.pyramid:
            width = architecture.pyramid
            self.pyramid = Pyramid(channels, width, stride)
        elif architecture.deconvolution is not None:
            self.deconvolution = Deconvolution(width, architecture.deconvolution)
            width = architecture.deconvolution.width
        elif architecture.tokens is not None:
            if not isinstance(representation, TokenRepresentation):
                raise ArchitectureError(f"{architecture.representation} cannot read joint tokens")
            features = (size[0] // stride, size[1] // stride)
            try:
                self.tokens = JointTokens(width, joints, features, architecture.tokens)
            except ValueError as error:
                raise ArchitectureError(f"tokens: {error}") from error
            self.head = representation.token_head(architecture.tokens.width)
            return
        self.head = representation.head(width, joints)

    def forward(self, crops: Tensor) -> Raw:
        """`(N, 3, H, W)` to the representation's raw output."""
        features = dict(zip(self.strides, self.backbone(crops), strict=True))
        chosen = features[self.stride] if self.pyramid is None else self.pyramid(features)
        for neck in (self.deconvolution, self.tokens):
            if neck is not None:
                chosen = neck(chosen)
        return cast(Raw, self.head(chosen))
