"""FastAPI, ultralytics' detector, and ONNX Runtime for one person after another: rtmlib's way."""

from __future__ import annotations

import sys
from typing import Annotated

import orjson
import uvicorn
from fastapi import Body, FastAPI, Response

from benchmarks.servers.parts import Detector, Estimator, answer, decode, given

app = FastAPI()
detector, estimator = Detector(), Estimator()


@app.get("/ready")
def ready() -> str:
    return "ready"


@app.post("/pose")
def pose(
    photo: Annotated[bytes, Body(media_type="application/octet-stream")], boxes: str | None = None
) -> Response:
    # In one of FastAPI's threads: ultralytics has a lock of its own, ONNX Runtime needs none.
    image = decode(photo)
    people = given(boxes)
    if people is None:
        [people] = detector([image])
    body = answer(people, estimator.one_by_one(image, people))
    return Response(orjson.dumps(body), media_type="application/json")


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), access_log=False)
