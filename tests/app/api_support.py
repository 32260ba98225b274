"""A service whose answers are read off the image's own pixels, so that mix-ups show."""

import io
import threading
from time import monotonic

import numpy as np
from PIL import Image
from starlette.testclient import TestClient

from app.main import create_app
from app.pipeline import Options, Poses
from app.settings import Settings
from app.tracing import tracing

PATIENCE = 10.0
"""Seconds after which a test gives up; nothing is ever meant to take that long."""


class FakePipeline:
    """Finds one person in an image that is not black: its first pixel says where and how surely.

    The person's box starts at (red, green), every joint is at (red, green) and its score is
    blue / 255. A test says when it answers, and which red it fails at.
    """

    def __init__(self):
        self.seen = []
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Semaphore(0)
        self.poisoned = None

    def warm_up(self):
        return {"simcc-small": 0.0125}

    def __call__(self, images, options):
        self.seen += zip(images, options, strict=True)
        self.entered.release()
        assert self.go.wait(PATIENCE)
        if any(image[0, 0, 0] == self.poisoned for image in images):
            raise RuntimeError("/a/secret/path")
        return [self.answer(*pair) for pair in zip(images, options, strict=True)]

    def answer(self, image, options):
        red, green, blue = image[0, 0].astype(np.float32)
        boxes = options.boxes
        if boxes is None:
            found = [[red, green, red + 10, green + 20]] if image.any() else []
            boxes = np.array(found, np.float32).reshape(-1, 4)
        count = len(boxes)
        keypoints = np.tile(np.array([red, green, blue / 255], np.float32), (count, 17, 1))
        scores = np.full(count, blue / 255, np.float32)
        timings = dict.fromkeys(("detect", "crop", "pose", "postprocess", "queue"), 0.001)
        return Poses(options.model, boxes, scores, keypoints, timings, scores)

    def hold(self):
        self.go.clear()

    def wait_until_entered(self):
        assert self.entered.acquire(timeout=PATIENCE)


class Running:
    """An application with the pipeline and the engine in it, its lifespan begun."""

    def __init__(self, wait=True, traced=tracing, **settings):
        self.pipeline = FakePipeline()
        self.settings = Settings(**settings)
        self.app = create_app(self.settings, build=lambda *_: self.pipeline, traced=traced)
        self.engine = self.app.state.service.engine
        self.client = TestClient(self.app, headers={"Accept": "*/*"})
        if wait:
            self.start()

    def start(self):
        self.client.__enter__()
        self.until(lambda: self.engine.ready)

    def stop(self):
        self.pipeline.go.set()
        if self.engine._thread.ident is not None:
            self.client.__exit__(None, None, None)

    def until(self, condition):
        with self.engine._changed:
            assert self.engine._changed.wait_for(condition, PATIENCE)

    def post(self, content, media_type="image/png", **options):
        headers = {"Content-Type": media_type, **options.pop("headers", {})}
        return self.client.post("/pose", content=content, headers=headers, **options)

    def send(self, *contents, **options):
        """POST a form."""
        files = [("image", (f"{i}.png", content)) for i, content in enumerate(contents)]
        return self.client.post("/pose", files=files, **options)

    def value(self, name, **labels):
        return self.app.state.service.registry.get_sample_value(name, labels) or 0

    def job(self):
        """Something for the engine."""
        return np.ones((1, 1, 3), np.uint8), Options("simcc-small"), "", monotonic() + PATIENCE

    def refuses(self, response, status, *words):
        """A problem that says what the words are about, and a service that goes on."""
        body = response.json()
        assert response.status_code == status, body
        assert response.headers["Content-Type"] == "application/problem+json"
        assert body.keys() == {"type", "title", "status", "detail", "request_id"}
        assert body["status"] == status
        assert body["request_id"] == response.headers["X-Request-ID"]
        for word in words:
            assert word in body["detail"]
        self.works()
        return body

    def works(self):
        assert self.engine.in_flight == 0
        response = self.post(png(7, 8, 9))
        assert response.status_code == 200, response.text
        assert response.json()["predictions"][0]["bbox"] == [7, 8, 10, 20]


def encode(picture, name="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, name, **options)
    return buffer.getvalue()


def png(red, green, blue, size=(300, 280)):
    return encode(Image.new("RGB", size, (red, green, blue)))
