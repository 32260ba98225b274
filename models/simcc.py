"""SimCC: a joint's x and y as two classifications over sub-pixel bins.

Head, targets, loss and decoding of Li et al., "SimCC: a Simple Coordinate Classification
Perspective for Human Pose Estimation" (ECCV 2022), as released at github.com/leeyegy/SimCC. The
width W is cut into `W * k` bins and the height H into `H * k`; k is the splitting factor. A bin's
index is its coordinate times k, without a half-bin offset.

RTMPose (Jiang et al., "RTMPose: Real-Time Multi-Person Pose Estimation based on MMPose", 2023) is
SimCC too: its head lets the joints look at each other, and its targets treat bins as ordered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from models.peaks import softmax_peak

Smoothing = Literal["gaussian", "laplace", "equal", "none", "ordinal"]
Score = Literal["min", "max"]

#: What the sum of a heatmap of height 1 and sigma 2 over one axis is multiplied with so that its
#: softmax is about as sharp as a Gaussian target of sigma 6 bins.
_MARGINAL_GAIN = 1.4

#: What `ordinal` divides heights and logits by before their softmax (RTMPose's tau, section 3.4).
_TEMPERATURE = 0.1


# --------------------------------------------------------------------------------------- targets


def encode(
    keypoints: Tensor,
    labelled: Tensor,
    input_size: tuple[int, int],
    k: float = 2.0,
    smoothing: Smoothing = "gaussian",
    spread: float = 6.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Target distributions over the bins of each axis (SimCC, section 3.2, "label smoothing").

    `gaussian` and `laplace` keep the centre where it is and are densities, not renormalised where
    the border cuts them (the released SimDR* does so). `equal` gives the nearest bin `1 - spread`
    and shares the rest among the others; `none` is one-hot. With the last two a joint out of the
    input gets weight 0; with the first two only one further out than three spreads, in pixels.

    `ordinal` is RTMPose's (section 3.4, "loss function" and "separate sigma"): the softmax, at a
    temperature, of a Gaussian of height 1 whose variance in bins is a sixteenth of their number. A
    joint further out than three sigmas gets weight 0. mmpose rounds the centre to a whole bin; here
    it stays where it is.

    Args:
        keypoints: `(..., K, 2)` in input pixels.
        labelled: `(..., K)`, above 0 where the joint is labelled.
        input_size: width and height of the input in pixels.
        k: the splitting factor.
        smoothing: the distribution's form.
        spread: the Gaussian's sigma or the Laplacian's scale in bins, or the share of probability
            that `equal` gives away; `none` and `ordinal` ignore it.

    Returns:
        `(..., K, W * k)`, `(..., K, H * k)` and weights `(..., K)`, 0 or 1.

    Raises:
        ValueError: the smoothing is unknown.
    """
    bins = [int(size * k) for size in input_size]
    centres = keypoints * k
    limits = centres.new_tensor(bins)
    if smoothing in ("gaussian", "laplace"):
        pixels = (keypoints + 0.5).trunc()
        reach = 3 * spread
        sizes = keypoints.new_tensor(input_size)
        inside = ((pixels - reach < sizes) & (pixels + reach + 1 >= 0)).all(-1)
    elif smoothing == "ordinal":
        sigmas = limits.sqrt() / 4
        inside = ((centres - 3 * sigmas < limits) & (centres + 3 * sigmas + 1 >= 0)).all(-1)
    elif smoothing in ("equal", "none"):
        nearest = centres.round()
        inside = ((nearest >= 0) & (nearest < limits)).all(-1)
        centres = nearest.clamp_min(0).minimum(limits - 1)
    else:
        raise ValueError(f"smoothing must be one of {get_args(Smoothing)}, not {smoothing!r}")
    weights = ((labelled > 0) & inside).to(keypoints.dtype)
    x, y = (_distribution(centres[..., axis], bins[axis], smoothing, spread) for axis in (0, 1))
    return x, y, weights


def _distribution(centres: Tensor, bins: int, smoothing: Smoothing, spread: float) -> Tensor:
    """One axis' target `(..., bins)` around centres in bins `(...)`."""
    index = torch.arange(bins, dtype=centres.dtype, device=centres.device)
    distance = index - centres[..., None]
    if smoothing == "gaussian":
        return torch.exp(-(distance**2) / (2 * spread**2)) / (spread * math.sqrt(2 * math.pi))
    if smoothing == "laplace":
        return torch.exp(-distance.abs() / spread) / (2 * spread)
    if smoothing == "ordinal":
        return (torch.exp(-(distance**2) * 8 / bins) / _TEMPERATURE).softmax(-1)
    rest = spread if smoothing == "equal" else 0.0
    return torch.where(distance == 0, 1 - rest, rest / (bins - 1))


@lru_cache
def _height(bins: int, smoothing: Smoothing, spread: float, dtype: torch.dtype) -> float:
    """The largest probability of a target in the middle of an axis."""
    middle = bins // 2
    centre = torch.full((), middle, dtype=dtype, device="cpu")
    return float(_distribution(centre, bins, smoothing, spread)[middle])


# ------------------------------------------------------------------------------------------ loss


def loss(
    x_logits: Tensor, y_logits: Tensor, x_targets: Tensor, y_targets: Tensor, weights: Tensor
) -> Tensor:
    """Kullback-Leibler divergence of the predicted from the target distributions.

    Averaged over bins, batch and joints and summed over the two axes: the released KLDiscretLoss
    for Gaussian targets, and its NMTNORMCritierion for `equal` ones.

    Args:
        x_logits: `(N, K, W * k)`.
        y_logits: `(N, K, H * k)`.
        x_targets: as x_logits.
        y_targets: as y_logits.
        weights: `(N, K)`; 0 leaves a joint out of the numerator.
    """
    total = x_logits.new_zeros(())
    for logits, targets in ((x_logits, x_targets), (y_logits, y_targets)):
        divergence = nn.functional.kl_div(logits.log_softmax(-1), targets, reduction="none")
        total = total + (divergence.mean(-1) * weights).mean()
    return total


# ---------------------------------------------------------------------------------------- decode


def decode(x_logits: Tensor, y_logits: Tensor, k: float, score: Score = "min") -> Tensor:
    """The most probable bin of each axis (SimCC, equation 2), all joints at once.

    Args:
        x_logits: `(..., K, W * k)`, any float type, any leading batch.
        y_logits: `(..., K, H * k)`.
        k: the splitting factor.
        score: which of the two axes' largest probabilities is the score: the smaller, as SimDR*
            does, or the larger, as SimDR does.

    Returns:
        `(..., K, 3)`: x and y in input pixels, and the score, a probability of a single bin: small
        by construction, since the targets spread over many bins.
    """
    # The bin is chosen after the softmax, as the released code does: of two logits that the softmax
    # rounds to the same probability, the first wins.
    (x_peak, x), (y_peak, y) = (softmax_peak(logits) for logits in (x_logits, y_logits))
    combine = torch.minimum if score == "min" else torch.maximum
    coordinates = torch.stack((x, y), -1).to(x_logits.dtype) / k
    return torch.cat((coordinates, combine(x_peak, y_peak)[..., None]), -1)


# ------------------------------------------------------------------------------ in a pose network


class SimCCHead(nn.Module):
    """Features to two vectors of logits for each joint (SimCC, figure 2).

    A 1x1 convolution makes `maps` feature maps a joint, which are flattened and classified by one
    linear layer an axis that all joints share. With upsampled features one map a joint is enough;
    the upsampling-free variant takes the backbone's last features and several maps a joint.
    """

    def __init__(
        self,
        channels: int,
        joints: int,
        feature_size: tuple[int, int],
        bins: tuple[int, int],
        maps: int,
    ) -> None:
        super().__init__()
        self.joints = joints
        self.final_layer = nn.Conv2d(channels, joints * maps, 1)
        positions = maps * feature_size[0] * feature_size[1]
        self.mlp_head_x = nn.Linear(positions, bins[0])
        self.mlp_head_y = nn.Linear(positions, bins[1])
        self._start_as_marginals(feature_size, maps)

    @torch.no_grad()
    def _start_as_marginals(self, feature_size: tuple[int, int], maps: int) -> None:
        """Let each axis begin as the sum of the maps over the other axis, interpolated to bins.

        So a head whose maps are a trained heatmap network's finds joints before it has learned
        anything: the released code starts from random weights and a pre-trained backbone.
        """
        width, height = feature_size
        for linear, size, along in ((self.mlp_head_x, width, -1), (self.mlp_head_y, height, -2)):
            places = torch.arange(linear.out_features) * (size / linear.out_features)
            weights = (1 - (places[:, None] - torch.arange(size)).abs()).clamp_min(0)
            shape = (-1, 1, 1, size) if along == -1 else (-1, 1, size, 1)
            spread = weights.view(shape).expand(-1, maps, height, width)
            linear.weight += _MARGINAL_GAIN / maps * spread.reshape(len(places), -1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """`(N, C, h, w)` to logits `(N, K, W * k)` and `(N, K, H * k)`."""
        flat = self.final_layer(features).unflatten(1, (self.joints, -1)).flatten(2)
        return self.mlp_head_x(flat), self.mlp_head_y(flat)


class TokenSimCCHead(nn.Module):
    """A vector for each joint to its two vectors of logits, as SimCC reads TokenPose."""

    def __init__(self, width: int, bins: tuple[int, int]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp_head_x = nn.Linear(width, bins[0])
        self.mlp_head_y = nn.Linear(width, bins[1])

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """`(N, K, D)` to logits `(N, K, W * k)` and `(N, K, H * k)`."""
        tokens = self.norm(tokens)
        return self.mlp_head_x(tokens), self.mlp_head_y(tokens)


class _ScaleNorm(nn.Module):
    """Vectors at a root mean square that is learnt (Nguyen and Salazar, IWSLT 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * x.shape[-1] ** -0.5
        return cast(Tensor, x / scale.clamp_min(1e-5) * self.g)


class GatedAttention(nn.Module):
    """The gated attention unit, by which joints look at each other.

    Hua et al., "Transformer Quality in Linear Time" (ICML 2022), section 2, as RTMPose has it
    (section 3.3): one attention whose queries and keys are scalings of one short shared vector,
    with squared ReLU for softmax, gates a linear unit twice as wide as its input.

    Args:
        width: channels of a joint's vector.
    """

    #: Channels that queries and keys share (the papers' s).
    _SHARED = 128

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expanded = 2 * width
        self.ln = _ScaleNorm()
        self.uv = nn.Linear(width, 2 * self.expanded + self._SHARED, bias=False)
        self.gamma = nn.Parameter(nn.init.xavier_uniform_(torch.empty(2, self._SHARED)))
        self.beta = nn.Parameter(torch.zeros(2, self._SHARED))
        self.o = nn.Linear(self.expanded, width, bias=False)
        self.res_scale = nn.ParameterDict({"scale": torch.ones(width)})

    def forward(self, x: Tensor) -> Tensor:
        """`(N, K, width)` to the same shape."""
        expanded = nn.functional.silu(self.uv(self.ln(x)))
        gate, value, shared = expanded.tensor_split((self.expanded, 2 * self.expanded), -1)
        query, key = (shared[..., None, :] * self.gamma + self.beta).unbind(-2)
        attention = (query @ key.transpose(-2, -1) * self._SHARED**-0.5).relu().square()
        return cast(Tensor, self.res_scale["scale"] * x + self.o(gate * (attention @ value)))


class AttentionSimCCHead(nn.Module):
    """Features to two vectors of logits for each joint, as RTMPose reads them (section 3.3).

    A large convolution makes one map a joint, whose places become a vector; after an exchange among
    the joints, two linear layers that all joints share classify it. Names are mmpose's.
    """

    def __init__(
        self,
        channels: int,
        joints: int,
        feature_size: tuple[int, int],
        bins: tuple[int, int],
        width: int,
    ) -> None:
        super().__init__()
        self.final_layer = nn.Conv2d(channels, joints, 7, padding=3)
        places = nn.Linear(feature_size[0] * feature_size[1], width, bias=False)
        self.mlp = nn.Sequential(_ScaleNorm(), places)
        self.gau = GatedAttention(width)
        self.cls_x = nn.Linear(width, bins[0], bias=False)
        self.cls_y = nn.Linear(width, bins[1], bias=False)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.normal_(layer.weight, std=0.001 if layer is self.final_layer else 0.01)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """`(N, C, h, w)` to logits `(N, K, W * k)` and `(N, K, H * k)`."""
        joints = self.gau(self.mlp(self.final_layer(features).flatten(2)))
        return self.cls_x(joints), self.cls_y(joints)


@dataclass(frozen=True)
class SimCC:
    """The SimCC representation of one pose network.

    Args:
        input_size: width and height of the network's input.
        k: the splitting factor.
        smoothing: the form of the target distributions.
        spread: their sigma or scale in bins, or the share that `equal` gives away.
        feature_stride: input pixels for each feature that the head reads; 32 is upsampling-free.
        maps: feature maps for each joint; RTMPose's head has always one.
        attention: channels of a joint's vector in RTMPose's head; 0 for the paper's own head.
    """

    input_size: tuple[int, int]
    k: float = 2.0
    smoothing: Smoothing = "gaussian"
    spread: float = 6.0
    feature_stride: int = 4
    maps: int = 1
    attention: int = 0

    @property
    def bins(self) -> tuple[int, int]:
        """How many classes x and y have."""
        return int(self.input_size[0] * self.k), int(self.input_size[1] * self.k)

    @property
    def temperature(self) -> float:
        """What logits are divided by before the softmax."""
        return _TEMPERATURE if self.smoothing == "ordinal" else 1.0

    def head(self, channels: int, joints: int) -> SimCCHead | AttentionSimCCHead:
        """A fresh head for features of that many channels."""
        width, height = (size // self.feature_stride for size in self.input_size)
        if self.attention:
            return AttentionSimCCHead(channels, joints, (width, height), self.bins, self.attention)
        return SimCCHead(channels, joints, (width, height), self.bins, self.maps)

    def token_head(self, width: int) -> TokenSimCCHead:
        """A fresh head for a vector of that width for each joint."""
        return TokenSimCCHead(width, self.bins)

    def loss(self, raw: tuple[Tensor, Tensor], keypoints: Tensor, labelled: Tensor) -> Tensor:
        """The training loss of the two axes' logits for keypoints in input pixels."""
        x, y, weights = encode(
            keypoints, labelled, self.input_size, self.k, self.smoothing, self.spread
        )
        x_logits, y_logits = raw
        return loss(x_logits / self.temperature, y_logits / self.temperature, x, y, weights)

    def decode(self, raw: tuple[Tensor, Tensor]) -> Tensor:
        """`(N, K, 3)` in input pixels.

        The score is the peak probability relative to the target's own peak, so that a prediction as
        sharp as the training target scores 1 whatever k and the smoothing are.
        """
        decoded = decode(*self._sharpened(raw), self.k)
        # Of the longer axis, whose peak is the lower one where they differ.
        ideal = _height(max(self.bins), self.smoothing, self.spread, decoded.dtype)
        return torch.cat((decoded[..., :2], decoded[..., 2:] / ideal), -1)

    def explain(self, raw: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """The two distributions of each joint.

        Returns:
            `x` `(N, K, W * k)` and `y` `(N, K, H * k)`, probabilities of the bins; on each axis bin
            i is at `i * step` input pixels: `steps` `(N, 2)` and `origins` `(N, 2)`, which are 0.
        """
        x, y = (logits.softmax(-1) for logits in self._sharpened(raw))
        steps = x.new_full((len(x), 2), 1 / self.k)
        return {"x": x, "y": y, "steps": steps, "origins": torch.zeros_like(steps)}

    def _sharpened(self, raw: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits over their temperature."""
        if self.temperature == 1:
            return raw
        x_logits, y_logits = raw
        return x_logits / self.temperature, y_logits / self.temperature
