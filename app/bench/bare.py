"""The bare pipeline: the service's detector and networks in a loop, without HTTP and queue.

A process of its own, so that it has a service's memory, threads and processor: it reads lines of
JSON, measures, and writes a line of JSON for each. Photos are decoded in the same loop, one after
another, before each batch.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from contextlib import redirect_stdout
from itertools import cycle, islice
from pathlib import Path
from typing import Any, TextIO

from app import images
from app.main import build_pipeline
from app.metrics import Metrics
from app.pipeline import Options, Pipeline
from app.settings import Settings


def measure(pipeline: Pipeline, settings: Settings, asked: dict[str, Any]) -> dict[str, Any]:
    """Decode and estimate batch after batch.

    Args:
        pipeline: warmed up.
        settings: its settings.
        asked: the pose `model`, the `files` to take in turn, how many are a `batch`, and how many
            `seconds` to go on, after `warm_up` seconds that do not count.

    Returns:
        `images` and `people` in how many `seconds`, and `stages_ms`: the mean milliseconds of
        decoding one image and of a batch's other stages.
    """
    photos = cycle([Path(file).read_bytes() for file in asked["files"]])
    options = Options(asked["model"], min_score=settings.min_score, max_people=settings.max_people)
    batch = asked["batch"]

    def loop(seconds: float) -> dict[str, Any]:
        batches = people = 0
        stages: Counter[str] = Counter()
        begin = time.perf_counter()
        while not batches or time.perf_counter() - begin < seconds:
            start = time.perf_counter()
            pixels = [
                images.decode(photo, settings.max_image_pixels) for photo in islice(photos, batch)
            ]
            decoded = time.perf_counter() - start
            answers = pipeline(pixels, [options] * batch)
            batches += 1
            people += sum(len(poses.scores) for poses in answers)
            stages.update({"decode": decoded / batch, **answers[0].timings})
        return {
            "images": batches * batch,
            "people": people,
            "seconds": time.perf_counter() - begin,
            "stages_ms": {stage: 1000 * total / batches for stage, total in stages.items()},
        }

    loop(asked["warm_up"])
    return loop(asked["seconds"])


def main(questions: TextIO, answers: TextIO) -> None:
    """Answer line by line, until there are no more; the first line says that all is ready."""
    settings = Settings()
    pipeline = build_pipeline(settings, Metrics())
    pipeline.warm_up()
    print(json.dumps("ready"), file=answers, flush=True)
    for line in questions:
        print(json.dumps(measure(pipeline, settings, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    written = sys.stdout
    # Whatever else is printed is no answer.
    with redirect_stdout(sys.stderr):
        main(sys.stdin, written)
