"""Milliseconds a person that each representation's decoding takes, by batch size.

    python benchmarks/decode.py

Medians over repeated runs, the methods taking turns; random inputs of the bundled models' shapes.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import models
from models import heatmap, simcc

RUNS = 30
BATCHES = (1, 8, 32)


def cases(people: int) -> dict[str, Callable[[], Tensor]]:
    maps = torch.rand(people, 17, 64, 48)
    x, y = torch.randn(people, 17, 384), torch.randn(people, 17, 512)
    pct = models.load(models.default("pct"))
    tokens = torch.randn(people, 34, 512)
    return {
        "heatmap argmax": lambda: heatmap.decode(maps, "argmax"),
        "heatmap shift": lambda: heatmap.decode(maps, "shift"),
        "heatmap DARK": lambda: heatmap.decode(maps, "dark"),
        "SimCC": lambda: simcc.decode(x, y, 2.0),
        "PCT": lambda: pct.decode(tokens),
    }


@torch.inference_mode()
def main() -> None:
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch "
        f"{torch.__version__}, {torch.get_num_threads()} threads\n"
    )
    print("| ms/person | " + " | ".join(f"{people} people" for people in BATCHES) + " |")
    print("|---|" + "---|" * len(BATCHES))
    table: dict[str, list[float]] = {}
    for people in BATCHES:
        chosen = cases(people)
        seconds: dict[str, list[float]] = {name: [] for name in chosen}
        for turn in range(RUNS + 3):
            for name, decode in chosen.items():
                begin = time.perf_counter()
                decode()
                if turn >= 3:
                    seconds[name].append(time.perf_counter() - begin)
        for name, times in seconds.items():
            table.setdefault(name, []).append(float(np.median(times)) * 1000 / people)
    for name, row in table.items():
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in row) + " |")


if __name__ == "__main__":
    main()
