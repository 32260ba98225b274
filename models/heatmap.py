"""Heatmaps: one map for each joint, whose peak is where the joint is.

Head, targets, loss and decoding of the heatmap representation. Decoding is one of

* `argmax`: the peak's pixel;
* `shift`: the peak moved a quarter of a pixel towards its higher neighbour on each axis
  (Newell et al. 2016; SimpleBaselines and HRNet, `get_final_preds`);
* `dark`: the peak of the Gaussian that best explains the blurred log-heatmap around the maximum
  (Zhang et al., "Distribution-Aware Coordinate Representation for Human Pose Estimation",
  CVPR 2020; `lib/core/inference.py` of DarkPose).

Heatmap coordinates are input coordinates divided by the stride, without a half-pixel offset, or
what UDP and DarkPose have in place of that: see `models.geometry`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast

import cv2
import torch
from torch import Tensor, nn

from models.geometry import Mapping, map_grid
from models.peaks import first_peak

Method = Literal["argmax", "shift", "dark"]

#: The logarithm's floor in DarkPose. It is absolute, so it is the only thing that a common scale of
#: the heatmap could change: see `_blurred_patches`.
_LOG_FLOOR = 1e-10

# --------------------------------------------------------------------------------------- targets


def encode(
    keypoints: Tensor,
    labelled: Tensor,
    heatmap_size: tuple[int, int],
    stride: float = 4.0,
    sigma: float = 2.0,
    unbiased: bool = True,
    mapping: Mapping = "affine",
) -> tuple[Tensor, Tensor]:
    """Gaussian target maps of height 1.

    Biased targets put the centre on the nearest pixel and cut the Gaussian off at 3 sigma
    (HRNet, `generate_target`); unbiased ones keep the centre where it is (DARK, section 3.3), and
    UDP's are cut off at 3 sigma all the same (mmpose, `generate_udp_gaussian_heatmaps`). A joint
    whose Gaussian lies wholly outside of the map gets weight 0.

    Args:
        keypoints: `(..., K, 2)` in input pixels.
        labelled: `(..., K)`, above 0 where the joint is labelled.
        heatmap_size: width and height of the maps.
        stride: input pixels for each heatmap pixel.
        sigma: the Gaussian's spread in heatmap pixels.
        unbiased: whether the centre is kept sub-pixel.
        mapping: how the maps' pixels lie on the input; see `models.geometry`.

    Returns:
        Maps `(..., K, height, width)` and weights `(..., K)`, 0 or 1.
    """
    steps, origins = map_grid(heatmap_size, stride, mapping)
    centres = (keypoints - keypoints.new_tensor(origins)) / keypoints.new_tensor(steps)
    pixels = (centres + 0.5).trunc()
    reach = 3 * sigma
    inside = ((pixels - reach < pixels.new_tensor(heatmap_size)) & (pixels + reach + 1 >= 0)).all(
        -1
    )
    weights = ((labelled > 0) & inside).to(keypoints.dtype)
    if not unbiased:
        centres = pixels
    columns, rows = (torch.arange(size, device=keypoints.device) for size in heatmap_size)
    across = torch.exp(-((columns - centres[..., :1]) ** 2) / (2 * sigma**2))
    down = torch.exp(-((rows - centres[..., 1:]) ** 2) / (2 * sigma**2))
    if mapping == "udp" or not unbiased:
        across = across * ((columns - pixels[..., :1]).abs() <= reach)
        down = down * ((rows - pixels[..., 1:]).abs() <= reach)
    return down[..., :, None] * across[..., None, :] * weights[..., None, None], weights


# ------------------------------------------------------------------------------------------ loss


def loss(heatmaps: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Half the mean squared error over all pixels of all joints, as SimpleBaselines' JointsMSELoss.

    Args:
        heatmaps: predicted maps `(N, K, h, w)`.
        targets: target maps `(N, K, h, w)`.
        weights: `(N, K)`; 0 leaves a joint out of the numerator.
    """
    return 0.5 * ((heatmaps - targets) * weights[..., None, None]).square().mean()


# ---------------------------------------------------------------------------------------- decode


def decode(heatmaps: Tensor, method: Method = "dark", blur_kernel: int = 11) -> Tensor:
    """The joints' positions and peak values, all at once.

    Args:
        heatmaps: `(..., K, h, w)`, any float type, any leading batch.
        method: `argmax`, `shift` or `dark`.
        blur_kernel: width of DARK's Gaussian in heatmap pixels, odd (11 for sigma 2, 17 for 3).

    Returns:
        `(..., K, 3)`: x and y in heatmap pixels, and the raw peak, which is not bounded to 1. A map
        without a positive value yields x = y = 0.

    Raises:
        ValueError: the method is unknown or the kernel is even.
    """
    *batch, height, width = heatmaps.shape
    maps = heatmaps.reshape(-1, height, width)
    peaks, indices = first_peak(maps.flatten(1))
    indices = torch.where(peaks > 0, indices, 0)
    x, y = indices % width, indices // width
    if method == "argmax":
        offsets = maps.new_zeros(len(maps), 2)
    elif method == "shift":
        offsets = quarter_shift(maps, x, y)
    elif method == "dark":
        if blur_kernel % 2 == 0:
            raise ValueError(f"blur_kernel must be odd, not {blur_kernel}")
        patches = _blurred_patches(maps, x, y, peaks, blur_kernel)
        offsets = taylor_step(patches, x, y, (width, height))
    else:
        raise ValueError(f"method must be 'argmax', 'shift' or 'dark', not {method!r}")
    positions = torch.stack((x, y), -1) + offsets
    return torch.cat((positions.to(peaks), peaks[:, None]), -1).reshape(*batch, 3)


def patches_at(maps: Tensor, x: Tensor, y: Tensor, radius: int) -> Tensor:
    """Squares of `2 * radius + 1` around each `(x, y)`, zero beyond the map: `(M, s, s)`."""
    height, width = maps.shape[1:]
    reach = torch.arange(-radius, radius + 1, device=maps.device)
    columns, rows = x[:, None] + reach, y[:, None] + reach
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[
        :, None, :
    ]
    # Clamped while they are vectors: the squares are large, and every pass over them counts.
    rows, columns = rows.clamp(0, height - 1) * width, columns.clamp(0, width - 1)
    flat = rows[:, :, None] + columns[:, None, :]
    values = maps.flatten(1).gather(1, flat.flatten(1)).view_as(flat)
    return torch.where(inside, values, 0)


def slopes_at(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Right neighbour minus left one and lower minus upper one, zero beyond the map: `(M, 2)`."""
    patches = patches_at(maps, x, y, 1)
    return torch.stack(
        (patches[:, 1, 2] - patches[:, 1, 0], patches[:, 2, 1] - patches[:, 0, 1]), -1
    )


def quarter_shift(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """A quarter pixel towards the higher neighbour; nothing within one pixel of the border."""
    height, width = maps.shape[1:]
    interior = (x > 1) & (x < width - 1) & (y > 1) & (y < height - 1)
    return 0.25 * slopes_at(maps, x, y).sign() * interior[:, None]


@lru_cache
@torch.inference_mode(False)  # or nothing that is kept could be used in training
def _blur_matrix(kernel: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix that blurs a square of `kernel + 4` and keeps its middle 5x5, both flattened."""
    weights = torch.from_numpy(cv2.getGaussianKernel(kernel, 0)).flatten()
    rows = [nn.functional.pad(weights, (shift, 4 - shift)) for shift in range(5)]
    line = torch.stack(rows, -1)
    return torch.kron(line, line).to(device, dtype)


def _blurred_patches(maps: Tensor, x: Tensor, y: Tensor, peaks: Tensor, kernel: int) -> Tensor:
    """The 5x5 of the blurred, modulated heatmap around each peak (DARK, equation 11).

    DarkPose blurs the whole map and scales it back to its old maximum; the Taylor step reads 13
    pixels of it. Blurring is local, so blurring the `kernel + 4` square around the peak gives the
    same 5x5. The scale back is a constant that the derivatives of the logarithm cancel; taking it
    from the peak's own patch rather than from the whole map matters only below the log's floor.
    """
    # In float64: second differences of a logarithm lose digits, and the squares are small.
    matrix = _blur_matrix(kernel, torch.float64, maps.device)
    # One product for all joints: axis by axis is less arithmetic, and takes four times as long.
    blurred = patches_at(maps, x, y, kernel // 2 + 2).double().flatten(1) @ matrix
    scale = peaks / blurred.amax(1).clamp_min(torch.finfo(maps.dtype).tiny)
    return (blurred * scale[:, None]).view(-1, 5, 5)


@lru_cache
@torch.inference_mode(False)  # or nothing that is kept could be used in training
def _stencils(dtype: torch.dtype, device: torch.device) -> Tensor:
    """What a 5x5 is multiplied with for its gx, gy, hxx, hyy and hxy in the middle: `(25, 5)`."""
    first, second = torch.tensor([0, -0.5, 0, 0.5, 0]), torch.tensor([0.25, 0, -0.5, 0, 0.25])
    here = torch.tensor([0.0, 0, 1, 0, 0])
    # Down, across.
    axes = ((here, first), (first, here), (here, second), (second, here), (first, first))
    stencils = [torch.outer(down, across).flatten() for down, across in axes]
    return torch.stack(stencils, -1).to(device, dtype)


def taylor_step(patches: Tensor, x: Tensor, y: Tensor, size: tuple[int, int]) -> Tensor:
    """The Newton step to the maximum of the log-heatmap: -H^-1 g (DARK, equations 7 to 9)."""
    logarithm = patches.clamp_min(_LOG_FLOOR).log()
    stencils = _stencils(logarithm.dtype, logarithm.device)
    gx, gy, hxx, hyy, hxy = (logarithm.flatten(1) @ stencils).unbind(-1)
    determinant = hxx * hyy - hxy**2
    width, height = size
    usable = (x > 1) & (x < width - 2) & (y > 1) & (y < height - 2) & (determinant != 0)
    safe = torch.where(usable, determinant, 1)
    step = torch.stack(((hxy * gy - hyy * gx) / safe, (hxy * gx - hxx * gy) / safe), -1)
    return torch.where(usable[:, None], step, 0)


# ------------------------------------------------------------------------------ in a pose network


class HeatmapHead(nn.Module):
    """A 1x1 convolution from features to one map for each joint: `(N, C, h, w) -> (N, K, h, w)`."""

    def __init__(self, channels: int, joints: int) -> None:
        super().__init__()
        self.final_layer = nn.Conv2d(channels, joints, 1)
        # Maps are nearly everywhere zero: start there instead of learning it.
        nn.init.normal_(self.final_layer.weight, std=0.001)
        nn.init.zeros_(self.final_layer.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        return cast(Tensor, self.final_layer(features))


class UpsamplingHeatmapHead(nn.Module):
    """Coarse features to maps by interpolation and one 3x3 convolution.

    The "simple decoder" of Xu et al., "ViTPose" (NeurIPS 2022), section 3.1: `(N, C, h, w)` to
    `(N, K, h * upsampling, w * upsampling)`.
    """

    def __init__(self, channels: int, joints: int, upsampling: int) -> None:
        super().__init__()
        self.upsampling = upsampling
        self.final_layer = nn.Conv2d(channels, joints, 3, padding=1)
        nn.init.normal_(self.final_layer.weight, std=0.001)
        nn.init.zeros_(self.final_layer.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        fine = nn.functional.interpolate(
            features.relu(), scale_factor=self.upsampling, mode="bilinear"
        )
        return cast(Tensor, self.final_layer(fine))


class TokenHeatmapHead(nn.Module):
    """A vector for each joint to its map (TokenPose, section 3.3): `(N, K, D) -> (N, K, h, w)`.

    Large maps are drawn by way of a hidden layer an eighth of their size, as released.
    """

    def __init__(self, width: int, heatmap_size: tuple[int, int]) -> None:
        super().__init__()
        pixels = heatmap_size[0] * heatmap_size[1]
        layers: list[nn.Module] = [nn.LayerNorm(width)]
        if 2 * width <= pixels // 8:
            layers += [nn.Linear(width, pixels // 8), nn.LayerNorm(pixels // 8)]
            width = pixels // 8
        self.mlp_head = nn.Sequential(*layers, nn.Linear(width, pixels))
        self.heatmap_size = heatmap_size

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        return cast(Tensor, self.mlp_head(tokens).unflatten(-1, self.heatmap_size[::-1]))


@dataclass(frozen=True)
class Heatmap:
    """The heatmap representation of one pose network.

    Args:
        input_size: width and height of the network's input.
        stride: input pixels for each heatmap pixel.
        sigma: the targets' spread in heatmap pixels.
        unbiased: whether the targets keep sub-pixel centres.
        method: how a heatmap is decoded.
        blur_kernel: DARK's blur in heatmap pixels.
        upsampling: how many times finer the maps are than the features that the head reads.
        mapping: how the maps' pixels lie on the input, and the input's on the crop's region.
    """

    input_size: tuple[int, int]
    stride: int = 4
    sigma: float = 2.0
    unbiased: bool = True
    method: Method = "dark"
    blur_kernel: int = 11
    upsampling: int = 1
    mapping: Mapping = "affine"

    @property
    def feature_stride(self) -> int:
        """The stride of the features that the head wants."""
        return self.stride * self.upsampling

    def head(self, channels: int, joints: int) -> HeatmapHead | UpsamplingHeatmapHead:
        """A fresh head for features of that many channels."""
        if self.upsampling > 1:
            return UpsamplingHeatmapHead(channels, joints, self.upsampling)
        return HeatmapHead(channels, joints)

    def token_head(self, width: int) -> TokenHeatmapHead:
        """A fresh head for a vector of that width for each joint."""
        columns, rows = (size // self.stride for size in self.input_size)
        return TokenHeatmapHead(width, (columns, rows))

    def loss(self, raw: Tensor, keypoints: Tensor, labelled: Tensor) -> Tensor:
        """The training loss of heatmaps `(N, K, h, w)` for keypoints in input pixels."""
        size = (raw.shape[-1], raw.shape[-2])
        targets, weights = encode(
            keypoints, labelled, size, self.stride, self.sigma, self.unbiased, self.mapping
        )
        return loss(raw, targets, weights)

    def decode(self, raw: Tensor) -> Tensor:
        """`(N, K, 3)` in input pixels; the score is the peak, which is not bounded."""
        return self.in_input_pixels(decode(raw, self.method, self.blur_kernel), raw)

    def in_input_pixels(self, decoded: Tensor, raw: Tensor) -> Tensor:
        """Joints `(N, K, 3)` in the pixels of maps `(N, K, h, w)`, brought to the input's."""
        steps, origins = map_grid((raw.shape[-1], raw.shape[-2]), self.stride, self.mapping)
        x, y, peaks = decoded.unbind(-1)
        # Plain numbers: a tensor of them would be brought to the device in every call.
        return torch.stack((x * steps[0] + origins[0], y * steps[1] + origins[1], peaks), -1)

    def explain(self, raw: Tensor) -> dict[str, Tensor]:
        """The heatmap of each joint.

        Returns:
            `maps` `(N, K, h, w)`, without what is negative; pixel (column, row) is at
            `origin + step * (column, row)` in input pixels: `steps` `(N, 2)`, `origins` `(N, 2)`.
        """
        grid = map_grid((raw.shape[-1], raw.shape[-2]), self.stride, self.mapping)
        steps, origins = (raw.new_tensor(pair).expand(len(raw), 2) for pair in grid)
        return {"maps": raw.clamp_min(0), "steps": steps, "origins": origins}
