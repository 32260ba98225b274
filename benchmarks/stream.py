"""How long WS /stream takes: a camera's frames for a while, and when their answers came.

python -m benchmarks.stream PHOTO [--url ws://localhost:8000/stream] [--query track=true] [--fps 30]
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from time import perf_counter

import cv2
import numpy as np
from websockets.asyncio.client import connect

#: Answers of the beginning that do not count.
_WARM_UP = 5


def frames_of(photo: Path, count: int = 90, size: tuple[int, int] = (640, 480)) -> list[bytes]:
    """JPEGs of a camera that sways over a photo."""
    image = cv2.imread(str(photo))
    assert image is not None
    height, width = image.shape[:2]
    scale = size[0] / (0.8 * width)
    frames = []
    for turn in np.linspace(0, 2 * np.pi, count):
        centre = np.array([(0.5 + 0.1 * np.sin(turn)) * width, 0.6 * height])
        affine = np.column_stack((scale * np.eye(2), np.array(size) / 2 - scale * centre))
        frames.append(cv2.imencode(".jpg", cv2.warpAffine(image, affine, size))[1].tobytes())
    return frames


async def measure(url: str, frames: list[bytes], fps: float, seconds: float) -> str:
    """A row: what was sent, answered, dropped, and the delay at the client in milliseconds."""
    sent: list[float] = []
    delays: list[float] = []
    dropped = 0

    async with connect(url, compression=None) as stream:

        async def receive() -> None:
            nonlocal dropped
            async for message in stream:
                answer = json.loads(message)
                delays.append(1000 * (perf_counter() - sent[answer["frame"]]))
                dropped += answer["dropped"]

        receiving = asyncio.create_task(receive())
        begin = perf_counter()
        while perf_counter() < begin + seconds:
            sent.append(perf_counter())
            await stream.send(frames[len(sent) % len(frames)])
            await asyncio.sleep(max(begin + len(sent) / fps - perf_counter(), 0))
        await asyncio.sleep(1)
        receiving.cancel()
    p50, p95 = np.percentile(delays[_WARM_UP:], (50, 95))
    answered = f"{len(delays)} ({len(delays) / seconds:.1f}/s)"
    return f"| {fps:g} | {len(sent)} | {answered} | {dropped} | {p50:.0f} | {p95:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--url", default="ws://localhost:8000/stream")
    parser.add_argument("--query", default="")
    parser.add_argument("--fps", type=float, nargs="+", default=[5, 10, 30])
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    frames = frames_of(options.photo)
    url = f"{options.url}?{options.query}"
    print("| frames a second | sent | answered | dropped | delay p50 | p95 |")
    print("|---|---|---|---|---|---|")
    for fps in options.fps:
        print(asyncio.run(measure(url, frames, fps, options.seconds)), flush=True)


if __name__ == "__main__":
    main()
