"""Latency and throughput of `POST /pose` under a closed loop of clients, against a running service.

    posemux serve &
    python benchmarks/http_latency.py photo.jpg --concurrency 1 16 --seconds 20

Every client sends the next request as soon as the last one is answered. Prints a Markdown table of
percentiles over all requests of a run; anything but 200 counts as an error and is not timed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import time
from pathlib import Path

import httpx
import numpy as np


async def client(
    http: httpx.AsyncClient, url: str, photos: list[bytes], until: float, seconds: list[float]
) -> int:
    errors = 0
    turn = 0
    while time.perf_counter() < until:
        begin = time.perf_counter()
        answer = await http.post(
            url, content=photos[turn % len(photos)], headers={"Content-Type": "image/jpeg"}
        )
        if answer.status_code == 200:
            seconds.append(time.perf_counter() - begin)
        else:
            errors += 1
        turn += 1
    return errors


async def measure(
    url: str, photos: list[bytes], concurrency: int, duration: float
) -> tuple[list[float], int, float]:
    limits = httpx.Limits(max_connections=concurrency)
    async with httpx.AsyncClient(limits=limits, timeout=60) as http:
        for photo in photos:
            (
                await http.post(url, content=photo, headers={"Content-Type": "image/jpeg"})
            ).raise_for_status()
        begin = time.perf_counter()
        seconds: list[float] = []
        clients = (client(http, url, photos, begin + duration, seconds) for _ in range(concurrency))
        errors = sum(await asyncio.gather(*clients))
        return seconds, errors, time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", nargs="+", type=Path)
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--representation", nargs="+", default=["simcc", "dark", "pct"])
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    photos = [path.read_bytes() for path in options.photos]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores\n")
    print("| representation | concurrency | p50 ms | p99 ms | images/s | errors |")
    print("|---|---|---|---|---|---|")
    for representation in options.representation:
        url = f"{options.url}/pose?representation={representation}"
        for concurrency in options.concurrency:
            seconds, errors, elapsed = asyncio.run(
                measure(url, photos, concurrency, options.seconds)
            )
            median, late = np.percentile(seconds, [50, 99]) * 1000
            rate = len(seconds) / elapsed
            row = (
                representation,
                concurrency,
                f"{median:.0f}",
                f"{late:.0f}",
                f"{rate:.1f}",
                errors,
            )
            print("| " + " | ".join(str(cell) for cell in row) + " |", flush=True)


if __name__ == "__main__":
    main()
