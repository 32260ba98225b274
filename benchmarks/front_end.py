"""Where a request's milliseconds go at concurrency 1: the stages, and what is around them.

    python benchmarks/front_end.py
    python benchmarks/front_end.py --photo street.jpg --representation dark --people 5

The service itself, models and all, behind a socket in this process; one client asks, and waits, by
turns with the image as the body and as a form. Medians. `around` is what the round trip takes
beyond decoding the image, finding the people and running the pose network: crops, the way back from
crops to the image, HTTP, threads, JSON, metrics, the client. The JSON of many people is timed by
itself, on made-up poses.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import socket
import statistics
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import orjson
import uvicorn

from app.main import create_app
from app.pipeline import Poses
from app.schemas import coco_results
from app.settings import Settings

PHOTO = Path(__file__).parents[1] / "docs" / "bus.jpg"
STAGES = ("decode", "detect", "crop", "pose", "postprocess", "queue")
#: What the mark on the rest is measured against.
_WORK = ("decode", "detect", "pose")
_BOUNDARY = "boundary"


def bodies(photo: Path) -> dict[str, tuple[bytes, str]]:
    """The photo at 640x480, as each kind of body with its media type."""
    pixels = cv2.imread(str(photo))
    if pixels is None:
        raise SystemExit(f"{photo} is not an image that OpenCV reads")
    image = cv2.imencode(".jpg", cv2.resize(pixels, (640, 480)))[1].tobytes()
    head = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="photo.jpg"\r\n'
        f"Content-Type: image/jpeg\r\n\r\n"
    )
    form = head.encode() + image + f"\r\n--{_BOUNDARY}--\r\n".encode()
    return {
        "raw body": (image, "image/jpeg"),
        "multipart": (form, f"multipart/form-data; boundary={_BOUNDARY}"),
    }


def measure(
    port: int, query: str, kinds: dict[str, tuple[bytes, str]], requests: int
) -> dict[str, dict[str, float]]:
    """Medians in milliseconds for each kind of body, which take turns."""
    taken: dict[str, dict[str, list[float]]] = {kind: {} for kind in kinds}
    client = http.client.HTTPConnection("127.0.0.1", port)
    client.connect()
    client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for turn in range(requests + 5):
        for kind, (body, media_type) in kinds.items():
            begin, worked = time.perf_counter(), time.process_time()
            client.request("POST", f"/pose?{query}", body, {"Content-Type": media_type})
            response = client.getresponse()
            answer = response.read()
            total, busy = time.perf_counter() - begin, time.process_time() - worked
            if response.status != 200:
                raise SystemExit(answer.decode())
            timings = json.loads(answer)["timings_ms"]
            row = {stage: timings[stage] for stage in STAGES}
            row["round trip"], row["CPU time"] = 1000 * total, 1000 * busy
            row["around"] = row["round trip"] - sum(timings[stage] for stage in _WORK)
            if turn >= 5:
                for name, value in row.items():
                    taken[kind].setdefault(name, []).append(value)
    return {
        kind: {name: statistics.median(values) for name, values in rows.items()}
        for kind, rows in taken.items()
    }


def json_milliseconds(people: int) -> float:
    """What it takes to write that many poses as JSON."""
    random = np.random.default_rng(0)
    boxes, keypoints = random.random((people, 4)), random.random((people, 17, 3))
    scores = np.ones(people, np.float32)
    poses = Poses("", boxes.astype(np.float32), scores, keypoints.astype(np.float32), {}, scores)
    seconds = []
    for _ in range(50):
        begin = time.perf_counter()
        orjson.dumps(coco_results(0, poses))
        seconds.append(time.perf_counter() - begin)
    return 1000 * statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photo", type=Path, default=PHOTO)
    parser.add_argument("--representation", choices=("simcc", "dark", "pct"), default="simcc")
    parser.add_argument("--people", type=int, default=1)
    parser.add_argument("--requests", type=int, default=40)
    options = parser.parse_args()
    kinds = bodies(options.photo)
    app = create_app(Settings(log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as door:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
        thread.start()
        try:
            engine = app.state.service.engine
            while not engine.ready:
                if engine.failure is not None:
                    raise SystemExit(engine.failure)
                time.sleep(0.05)
            query = f"representation={options.representation}&max_people={options.people}"
            found = measure(door.getsockname()[1], query, kinds, options.requests)
        finally:
            server.should_exit = True
            thread.join()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores\n")
    print("| ms | " + " | ".join(found) + " |")
    print("|---|" + "---|" * len(found))
    for name in ("round trip", *STAGES, "around", "CPU time"):
        print(f"| {name} | " + " | ".join(f"{row[name]:.2f}" for row in found.values()) + " |")
    for people in (1, 10, 100):
        print(f"| JSON of {people} people | {json_milliseconds(people):.3f} | |")


if __name__ == "__main__":
    main()
