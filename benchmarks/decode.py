"""Milliseconds a person that each representation's decoding takes, beside the papers' own way.

    python benchmarks/decode.py

The papers' way is the arithmetic of the released code, one person or one joint at a time where that
does so, written down from its specification: DarkPose's blur of whole maps and its Taylor step, the
softmax and maximum of SimCC, PCT's soft mixture and decoder. What both give is compared first.

Medians over repeated runs, the methods taking turns; random inputs of the bundled models' shapes.
The models' rows are what the service does: outputs to joints in crop pixels, scores calibrated.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

import models
from models import heatmap, pct, simcc
from models.pct import Tokenizer

RUNS = 15
BATCHES = (1, 8, 32, 100)
KERNEL = 11


def official_dark(maps: npt.NDArray[np.float32]) -> Tensor:
    """DarkPose: maps `(N, K, h, w)` to `(N, K, 3)`."""
    height, width = maps.shape[2:]
    flat = maps.reshape(*maps.shape[:2], -1)
    places, peaks = flat.argmax(-1), flat.max(-1)
    joints = np.stack((places % width, places // width, peaks), -1).astype(np.float64)
    border = (KERNEL - 1) // 2
    for person, own in enumerate(maps):
        for joint, values in enumerate(own):
            padded = np.zeros((height + 2 * border, width + 2 * border))
            padded[border:-border, border:-border] = values
            blurred = cv2.GaussianBlur(padded, (KERNEL, KERNEL), 0)[border:-border, border:-border]
            log = np.log(np.maximum(blurred * values.max() / blurred.max(), 1e-10))
            x, y = (int(place) for place in joints[person, joint, :2])
            if 1 < x < width - 2 and 1 < y < height - 2:
                joints[person, joint, :2] += _newton(log, x, y)
    return torch.from_numpy(joints)


def _newton(log: npt.NDArray[np.float64], x: int, y: int) -> npt.NDArray[np.float64]:
    dx = 0.5 * (log[y, x + 1] - log[y, x - 1])
    dy = 0.5 * (log[y + 1, x] - log[y - 1, x])
    dxx = 0.25 * (log[y, x + 2] - 2 * log[y, x] + log[y, x - 2])
    dyy = 0.25 * (log[y + 2, x] - 2 * log[y, x] + log[y - 2, x])
    dxy = 0.25 * (log[y + 1, x + 1] - log[y - 1, x + 1] - log[y + 1, x - 1] + log[y - 1, x - 1])
    hessian = np.array([[dxx, dxy], [dxy, dyy]])
    if np.linalg.det(hessian) == 0:
        return np.zeros(2)
    return -np.linalg.inv(hessian) @ np.array([dx, dy])


def official_simcc(x: Tensor, y: Tensor, k: float) -> Tensor:
    """SimDR*: the softmax of each axis, its largest entry, the smaller of the two as score."""
    (x_peaks, x_places), (y_peaks, y_places) = (axis.softmax(2).max(2) for axis in (x, y))
    joints = torch.ones(*x.shape[:2], 3)
    for person in range(len(x)):
        joints[person, :, 0], joints[person, :, 1] = x_places[person] / k, y_places[person] / k
        joints[person, :, 2] = torch.minimum(x_peaks[person], y_peaks[person])
    return joints


def official_pct(logits: Tensor, tokenizer: Tokenizer) -> Tensor:
    """PCT: the mixture of entries, tokens before channels; the mean largest logit as score."""
    features = logits.softmax(-1) @ tokenizer.codebook
    mix, start = tokenizer.decoder_token_mlp, tokenizer.decoder_start
    poses = functional.linear(features.transpose(2, 1), mix.weight, mix.bias).transpose(2, 1)
    poses = functional.linear(poses, start.weight, start.bias)
    for layer in tokenizer.decoder:
        poses = layer(poses)
    joints = tokenizer.recover_embed(tokenizer.decoder_layer_norm(poses)) * tokenizer.unit
    scores = logits.max(-1).values.mean(-1)[:, None, None].expand(-1, joints.shape[1], 1)
    return torch.cat((joints, scores), -1)


def cases(people: int) -> dict[str, tuple[Callable[[], Tensor], ...]]:
    """What is timed: one function, or ours and the papers' that gives the same."""
    random = torch.Generator().manual_seed(0)
    maps = torch.rand(people, 17, 64, 48, generator=random)
    x = torch.randn(people, 17, 384, generator=random)
    y = torch.randn(people, 17, 512, generator=random)
    by_name = {name: models.load(models.default(name)) for name in ("simcc", "dark", "pct")}
    representation = by_name["pct"].representation
    assert isinstance(representation, pct.PCT)
    tokenizer = representation.tokenizer
    tokens = torch.randn(people, representation.tokens, representation.entries, generator=random)
    return {
        "DARK": (lambda: heatmap.decode(maps), lambda: official_dark(maps.numpy())),
        "SimCC": (lambda: simcc.decode(x, y, 2.0), lambda: official_simcc(x, y, 2.0)),
        "PCT": (lambda: pct.decode(tokens, tokenizer), lambda: official_pct(tokens, tokenizer)),
        "heatmap shift": (lambda: heatmap.decode(maps, "shift"),),
        "dark model": (lambda: by_name["dark"].decode(maps),),
        "simcc model": (lambda: by_name["simcc"].decode((x, y)),),
        "pct model": (lambda: by_name["pct"].decode(tokens),),
    }


def milliseconds(functions: dict[str, Callable[[], Tensor]]) -> dict[str, float]:
    """Medians, the functions taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(RUNS + 2):
        for name, function in functions.items():
            begin = time.perf_counter()
            function()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - begin)
    return {name: float(np.median(times)) * 1000 for name, times in seconds.items()}


@torch.inference_mode()
def main() -> None:
    for name, (ours, *theirs) in cases(8).items():
        for official in theirs:
            torch.testing.assert_close(ours().double(), official().double(), atol=1e-3, rtol=0)
            print(f"{name}: the same as the papers' to 0.001")
    print(
        f"\n{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch "
        f"{torch.__version__}, {torch.get_num_threads()} threads\n"
    )
    print("| ms/person | " + " | ".join(f"{people} people" for people in BATCHES) + " |")
    print("|---|" + "---|" * len(BATCHES))
    table: dict[str, list[float]] = {}
    for people in BATCHES:
        functions = {}
        for name, (ours, *theirs) in cases(people).items():
            functions[name] = ours
            functions |= {f"{name}, the paper's way": official for official in theirs}
        for name, taken in milliseconds(functions).items():
            table.setdefault(name, []).append(taken / people)
    for name, row in table.items():
        print(f"| {name} | " + " | ".join(f"{value:.4f}" for value in row) + " |")


if __name__ == "__main__":
    main()
