"""A pose model: a network, its representation, its weights and its card."""

from __future__ import annotations

import json
from collections import abc
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.calibration import Calibration
from models.checkpoints import WeightsError, differences, read_tensors, with_counters
from models.crops import CropForm
from models.geometry import Mapping, crop_affines
from models.network import Architecture, Network, Representation, build_representation
from models.profiles import Authors, Profile, profile_of
from models.skeletons import Skeleton

#: ImageNet's mean and spread of RGB in [0, 1], which the literature's networks expect.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Card:
    """What is known of a pose model.

    `measured` are figures of this project's own evaluation, `published` those of its authors.
    Without a `calibration` scores are the model's own, which compare only within it.

    `authors` is whose code trained it, from which its `profile` follows; None is posemux's own.

    Weights that do not come with posemux have a `source`, in words, and a `url` unless it takes a
    browser to get them. Their `sha256` may be its first digits alone, or empty where none is known.
    """

    name: str
    architecture: Architecture
    weights: str
    sha256: str
    licence: str
    training_data: str
    note: str
    authors: Authors | None = None
    epochs: int = 0
    measured: dict[str, float] = field(default_factory=dict)
    published: dict[str, float] = field(default_factory=dict)
    url: str | None = None
    source: str | None = None
    calibration: Calibration | None = None

    @property
    def scores(self) -> str:
        """What the scores are: `calibrated`, or `raw` where there is no calibration."""
        return "raw" if self.calibration is None else "calibrated"

    @property
    def profile(self) -> Profile:
        """What its input must be like, and how its authors read its output."""
        return profile_of(self.authors, self.architecture)

    @property
    def bundled(self) -> bool:
        """Whether the weights come with posemux."""
        return self.source is None

    def table(self) -> dict[str, Any]:
        """Everything but the file's name, place and sha256, as a table of the catalogue."""
        table = asdict(self)
        for name in ("name", "weights", "sha256", "url"):
            del table[name]
        return {name: value for name, value in table.items() if value is not None}

    @property
    def representation(self) -> str:
        """`simcc`, `dark` or `pct`."""
        return self.architecture.representation

    @property
    def backbone(self) -> str:
        """The backbone's name."""
        return self.architecture.backbone

    @property
    def input_size(self) -> tuple[int, int]:
        """Width and height of the network's input in pixels."""
        return self.architecture.input_size


class PoseModel:
    """Turns crops into keypoints.

    Args:
        card: what is known of it.
        network: normalised crops `(N, 3, H, W)` to raw outputs.
        representation: what makes keypoints of the raw outputs.
    """

    mean = MEAN
    std = STD

    def __init__(self, card: Card, network: Network, representation: Representation) -> None:
        self.card = card
        self.network = network
        self.representation = representation

    @classmethod
    def fresh(cls, card: Card) -> PoseModel:
        """A pose model with random weights, in training mode."""
        representation = build_representation(card.architecture)
        return cls(card, Network(card.architecture, representation), representation)

    @property
    def input_size(self) -> tuple[int, int]:
        """Width and height of the network's input in pixels."""
        return self.card.input_size

    @property
    def skeleton(self) -> Skeleton:
        """The joints, in the order in which `decode` gives them."""
        return self.card.architecture.skeleton

    @property
    def padding(self) -> float:
        """How much larger than the box its crop is."""
        return self.card.profile.padding

    @property
    def bgr(self) -> bool:
        """Whether the network wants blue first; `mean` and `std` stay in their order."""
        return self.card.profile.bgr

    @property
    def crop_form(self) -> CropForm:
        """What its crops are like."""
        return CropForm(self.input_size, self.mean, self.std, self.bgr)

    @property
    def mapping(self) -> Mapping:
        """How a crop's pixels lie on its region: see `models.geometry`."""
        return self.card.architecture.mapping

    def affines(self, boxes: Tensor) -> Tensor:
        """The maps from image to crop pixels, `(P, 2, 3)`: see `models.geometry.crop_affines`."""
        return crop_affines(boxes, self.input_size, self.padding, self.mapping)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type that the network computes in."""
        return next(self.network.parameters()).dtype

    def module(self) -> nn.Module:
        """All weights as one module, under the key names of the weights file."""
        parts: dict[str, nn.Module] = {"network": self.network}
        if isinstance(self.representation, nn.Module):
            parts["representation"] = self.representation
        return nn.ModuleDict(parts)

    def decode(self, raw: Any) -> Tensor:
        """Raw outputs to `(N, K, 3)`: x, y in crop pixels, score in [0, 1]; always in float32.

        The score is how likely the joint is right, where the card has a calibration; else it is the
        representation's own, cut to [0, 1]. Half precision resolves only a quarter of a pixel at
        256.
        """
        decoded = self.representation.decode(full_precision(raw))
        scores = decoded[..., 2].clamp(0, 1)
        if self.card.calibration is not None:
            scores = self.card.calibration(scores)
        return torch.cat((decoded[..., :2], scores[..., None]), -1)

    def explain(self, raw: Any) -> dict[str, Tensor]:
        """What the joints are decoded from, to be looked at: see the representation's `explain`."""
        return self.representation.explain(full_precision(raw))

    def uncalibrated(self) -> PoseModel:
        """The same model, sharing its weights, with its own scores: what calibration maps."""
        return PoseModel(replace(self.card, calibration=None), self.network, self.representation)

    def flip_merge(self, keypoints: Tensor, flipped: Tensor) -> Tensor:
        """Average the keypoints of a crop and of its mirror image, joint by joint.

        Merging coordinates instead of raw outputs has no bias whatever the stride or the splitting
        factor.

        Args:
            keypoints: `(N, K, 3)` decoded from the crops.
            flipped: `(N, K, 3)` decoded from the mirrored crops.

        Returns:
            `(N, K, 3)`.
        """
        back = flipped[:, list(self.skeleton.mirrored)]
        back = torch.cat((self.input_size[0] - 1 - back[..., :1], back[..., 1:]), -1)
        return (keypoints + back) / 2

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> PoseModel:
        """Move to a device and, if given, compute the network in another type; returns itself.

        The representation stays in float32: it decodes.
        """
        self.network.to(device=device, dtype=dtype)
        if isinstance(self.representation, nn.Module):
            self.representation.to(device)
        return self

    def eval(self) -> PoseModel:
        """Switch to inference; returns itself."""
        # Colours innermost, as crops come: convolutions are quicker by a tenth to a quarter.
        self.network.to(memory_format=torch.channels_last)
        self.module().eval().requires_grad_(False)
        return self

    def save(self, path: Path, prefix: str = "") -> None:
        """Write all weights and the architecture as safetensors.

        Matrices are halved to float16; what is one-dimensional, such as running variances, stays in
        float32, since it is small and half precision may round it to zero.

        Args:
            path: the file.
            prefix: how the keys of the weights begin that are written, where not all are.
        """
        tensors = {
            key: value.half().contiguous()
            if value.is_floating_point() and value.ndim > 1
            else value.contiguous()
            for key, value in self.module().state_dict().items()
            if key.startswith(prefix)
        }
        metadata = {"architecture": json.dumps(self.card.architecture.table())}
        save_file(tensors, path, metadata)

    def load_weights(self, path: Path) -> PoseModel:
        """Fill in all weights from a file; returns itself.

        Raises:
            WeightsError: see `read_tensors`; or the weights do not fit this architecture exactly.
        """
        return self.fill(read_tensors(path), path)

    def fill(self, tensors: abc.Mapping[str, Tensor], path: Path) -> PoseModel:
        """Fill in all weights; returns itself.

        Args:
            tensors: under the keys of `module()`; only batch counters may be missing or too many.
            path: the file that they come from.

        Raises:
            WeightsError: they do not fit this architecture exactly; none has been filled in.
        """
        wanted = self.module().state_dict()
        tensors = with_counters(tensors, wanted)
        if wrong := differences(tensors, wanted):
            raise WeightsError(f"{path} does not fit {self.card.name}: {wrong}")
        self.module().load_state_dict(tensors)
        return self


def full_precision(raw: Any) -> Any:
    """A network's outputs in float32."""
    return tuple(part.float() for part in raw) if isinstance(raw, tuple) else raw.float()
