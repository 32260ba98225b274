"""How many training samples a second one core prepares: people/s, decoded pictures and encoded.

python benchmarks/samples.py --data DATA --set coco-train
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from models.training.people import MEMORY, Augmentation, People, Samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of the data sets")
    parser.add_argument("--set", default="coco-train", help="a set of them (coco-train)")
    parser.add_argument("--people", type=int, default=1500, help="how many samples (1500)")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    for kept, memory in (("decoded in memory", MEMORY), ("decoded when needed", 0)):
        people = People({arguments.set: 1.0}, arguments.data, memory)
        rows = people.epoch(np.random.default_rng(0))[: arguments.people].tolist()
        samples = Samples(people, (192, 256), Augmentation())
        for row in rows[:50]:
            samples[0, row]
        start = time.process_time()
        for row in rows:
            samples[0, row]
        seconds = (time.process_time() - start) / len(rows)
        print(f"{kept}: {1000 * seconds:.2f} ms of processor time, {1 / seconds:.0f} people/s")


if __name__ == "__main__":
    main()
