"""FastAPI and ultralytics' own YOLO-pose: people and joints by one network."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import orjson
import uvicorn
from fastapi import Body, FastAPI, Response

from benchmarks.servers.parts import MODELS, YOLO, answer, decode

app = FastAPI()
model = YOLO(MODELS / "yolo-pose.onnx", task="pose")
facts = json.loads((MODELS / "detector.json").read_text())


@app.get("/ready")
def ready() -> str:
    return "ready"


@app.post("/pose")
def pose(photo: Annotated[bytes, Body(media_type="application/octet-stream")]) -> Response:
    [result] = model(decode(photo), verbose=False, **facts)
    body = answer(result.boxes.xyxy.numpy(), result.keypoints.data.numpy())
    return Response(orjson.dumps(body), media_type="application/json")


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), access_log=False)
