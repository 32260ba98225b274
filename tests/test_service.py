"""The whole road on real weights: a photo in, poses out."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from starlette.testclient import TestClient

from app.main import create_app
from app.schemas import PoseResponse
from app.settings import Settings
from tests.photos import BUS, ZIDANE

JPEG = {"Content-Type": "image/jpeg"}
REPRESENTATIONS = ["simcc", "dark", "pct"]
#: The man in the left half of bus.jpg.
MAN = [52.0, 396.0, 246.0, 902.0]


@pytest.fixture(scope="module")
def service() -> Iterator[TestClient]:
    with TestClient(create_app(Settings(device="cpu"))) as client:
        # Ready once it is warm: /readyz is asked, as an orchestrator would.
        for _ in range(100_000):
            if client.get("/readyz").status_code == 200:
                break
        else:
            pytest.fail("the service does not get ready")
        yield client


def post(service: TestClient, query: str = "", data: bytes | None = None) -> dict[str, Any]:
    answer = service.post(f"/pose{query}", content=data or BUS.read_bytes(), headers=JPEG)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_people_of_a_photo_in_each_representation(service: TestClient, representation: str) -> None:
    body = post(service, f"?representation={representation}")
    assert body["representation"] == representation
    assert body["model"] == f"{representation}-small"
    assert body["images"] == [{"id": 0, "width": 810, "height": 1080}]
    assert body["predictions"]
    for person in body["predictions"]:
        keypoints = np.array(person["keypoints"]).reshape(17, 3)
        assert np.isfinite(keypoints).all()
        assert ((keypoints[:, 2] >= 0) & (keypoints[:, 2] <= 1)).all()


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_joints_lie_where_the_man_is(service: TestClient, representation: str) -> None:
    body = post(service, f"?representation={representation}&boxes={json.dumps([MAN])}")
    [person] = body["predictions"]
    assert person["bbox"] == [MAN[0], MAN[1], MAN[2] - MAN[0], MAN[3] - MAN[1]]
    keypoints = np.array(person["keypoints"]).reshape(17, 3)[:, :2]
    # As one sees on the photo. A tenth of his height is generous, and no accident hits most joints.
    seen = {
        **{0: (140, 443), 5: (172, 500), 6: (75, 497), 11: (165, 655), 12: (92, 660)},
        **{13: (170, 765), 14: (85, 760), 15: (185, 855), 16: (68, 850)},
    }
    distances = [np.hypot(*(keypoints[joint] - place)) for joint, place in seen.items()]
    assert np.median(distances) < 0.1 * 505


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_raw_body_and_form_answer_the_same(service: TestClient, representation: str) -> None:
    query = f"?representation={representation}"
    raw = post(service, query)
    form = service.post(
        f"/pose{query}", files={"image": ("bus.jpg", BUS.read_bytes(), "image/jpeg")}
    ).json()
    for body in (raw, form):
        del body["request_id"], body["timings_ms"]
    assert raw == form


def test_predictions_are_a_coco_results_list(service: TestClient, tmp_path: Path) -> None:
    body = post(service)
    truth = tmp_path / "truth.json"
    images = [{**image, "file_name": "bus.jpg"} for image in body["images"]]
    person = [{"id": 1, "name": "person", "keypoints": [], "skeleton": []}]
    truth.write_text(json.dumps({"images": images, "annotations": [], "categories": person}))
    assert COCO(str(truth)).loadRes(body["predictions"]).getAnnIds()


def test_several_images_keep_their_order(service: TestClient) -> None:
    photos = [BUS, ZIDANE, BUS]
    answer = service.post("/pose", files=[("image", photo.read_bytes()) for photo in photos])
    body = answer.json()
    sizes = [(image["width"], image["height"]) for image in body["images"]]
    assert sizes == [(810, 1080), (1280, 720), (810, 1080)]
    by_image = [
        [person["keypoints"] for person in body["predictions"] if person["image_id"] == number]
        for number in range(3)
    ]
    assert by_image[0] == by_image[2]
    assert by_image[0] != by_image[1]
    for photo, found in zip(photos, by_image, strict=True):
        alone = post(service, data=photo.read_bytes())["predictions"]
        np.testing.assert_allclose(found, [person["keypoints"] for person in alone], atol=0.5)


def test_own_boxes_are_answered_in_their_order_and_none_is_suppressed(service: TestClient) -> None:
    boxes = [MAN, [222.0, 405.0, 345.0, 860.0], MAN]
    predictions = post(service, f"?boxes={json.dumps(boxes)}")["predictions"]
    found = [person["bbox"] for person in predictions]
    assert found == [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes]
    assert predictions[0]["keypoints"] == predictions[2]["keypoints"]
    assert predictions[0]["keypoints"] != predictions[1]["keypoints"]


def test_a_photo_without_people(service: TestClient) -> None:
    sky = np.linspace(250, 180, 480, dtype=np.uint8)[:, None, None] * np.ones((1, 640, 3), np.uint8)
    encoded = cv2.imencode(".jpg", sky)[1].tobytes()
    assert post(service, data=encoded)["predictions"] == []


@pytest.mark.parametrize("kind", ["image/jpeg", "image/png"])
def test_a_drawn_picture(service: TestClient, kind: str) -> None:
    answer = service.post("/pose", content=BUS.read_bytes(), headers=JPEG | {"Accept": kind})
    assert answer.headers["Content-Type"] == kind
    drawn = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_COLOR)
    photo = cv2.imread(str(BUS))
    assert drawn is not None
    assert photo is not None
    assert drawn.shape == photo.shape
    assert (np.abs(drawn.astype(int) - photo).max(-1) > 60).mean() > 0.001


def test_flip_test_answers_alike_but_not_the_same(service: TestClient) -> None:
    boxes = f"boxes={json.dumps([MAN])}"
    plain, flipped = (
        np.array(post(service, f"?{boxes}&flip_test={flag}")["predictions"][0]["keypoints"])
        for flag in ("false", "true")
    )
    assert not np.array_equal(plain, flipped)
    distances = np.hypot(*(plain - flipped).reshape(17, 3)[:, :2].T)
    assert np.median(distances) < 60


def test_sixty_four_clients_each_get_their_own_photo(service: TestClient) -> None:
    bus = cv2.imread(str(BUS))
    assert bus is not None
    photos, boxes = [], []
    for number in range(64):
        # Every photo is the man, moved and scaled differently: so are his joints.
        scale, left, top = 0.5 + number / 128, number * 3, (number * 7) % 90
        small = cv2.resize(bus, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        photo = cv2.copyMakeBorder(small, top, 0, left, 0, cv2.BORDER_CONSTANT)
        photos.append(cv2.imencode(".png", photo)[1].tobytes())
        boxes.append((np.array(MAN) * scale + [left, top] * 2).round(2).tolist())
    queries = [
        f"?representation={REPRESENTATIONS[n % 3]}&boxes={json.dumps([boxes[n]])}"
        for n in range(64)
    ]
    alone = [post(service, query, photo) for query, photo in zip(queries, photos, strict=True)]
    with ThreadPoolExecutor(64) as clients:
        together = list(clients.map(lambda n: post(service, queries[n], photos[n]), range(64)))
    for number, (expected, found) in enumerate(zip(alone, together, strict=True)):
        assert found["images"] == expected["images"], number
        joints = [
            np.array(body["predictions"][0]["keypoints"]).reshape(17, 3)[:, :2]
            for body in (expected, found)
        ]
        # A batch sums in another order than a single crop; another photo is tens of pixels off.
        assert np.median(np.hypot(*(joints[0] - joints[1]).T)) < 0.5, number


def test_rubbish_harms_nobody(service: TestClient) -> None:
    whole = BUS.read_bytes()
    png = cv2.imencode(".png", np.zeros((4, 4), np.uint8))[1].tobytes()
    header = b"IHDR" + 2 * (30_000).to_bytes(4, "big") + png[24:29]
    bomb = png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:]
    tries: list[tuple[dict[str, Any], int]] = [
        ({"content": b"\x00\x01rubbish" * 50, "headers": JPEG}, 415),
        ({"content": whole[: len(whole) // 2], "headers": JPEG}, 400),
        ({"content": bomb, "headers": {"Content-Type": "image/png"}}, 413),
        ({"content": bytes(200_000_000), "headers": JPEG}, 413),
        ({"content": "hello", "headers": {"Content-Type": "text/plain"}}, 415),
        ({"content": whole, "headers": JPEG, "params": {"representation": "openpose"}}, 422),
        ({"content": whole, "headers": JPEG, "params": {"boxes": "[[900, 0, 950, 50]]"}}, 422),
        ({"content": whole, "headers": JPEG, "params": {"boxes": "[[1, 2, 3]]"}}, 422),
        ({"content": whole, "headers": JPEG, "params": {"boxes": "people"}}, 422),
    ]
    for request, status in tries:
        answer = service.post("/pose", **request)
        assert answer.status_code == status, answer.text
        assert answer.headers["Content-Type"] == "application/problem+json"
        problem = answer.json()
        assert problem.keys() >= {"type", "title", "status", "detail", "request_id"}
        assert len(problem["detail"]) > 20
        assert post(service)["predictions"]


def test_it_starts_and_answers_without_a_network(tmp_path: Path) -> None:
    """In a process of its own in which every connection fails and the home cannot be written."""
    script = """
import socket, sys
def cut(*_, **__): raise OSError("the network is cut")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = cut
from app.cli import main
sys.exit(main(["predict", sys.argv[1], "--json"]))
"""
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "TMPDIR": str(tmp_path)}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", script, str(BUS)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.load(io.StringIO(done.stdout))["predictions"]


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_what_the_joints_are_decoded_from(service: TestClient, representation: str) -> None:
    query = f"?representation={representation}&boxes={json.dumps([MAN])}"
    [plain] = post(service, query)["predictions"]
    answer = post(service, query + "&explain=true")
    PoseResponse.model_validate(answer, strict=True, extra="forbid")
    [person] = answer["predictions"]
    told = person.pop("explanation")
    assert person == plain
    joints = np.array(person["keypoints"]).reshape(17, 3)[:, :2]
    if representation == "pct":
        assert np.shape(told["moves"]) == (len(told["tokens"]), 17) == (34, 17)
        return
    found = np.ones((17, 3))
    if representation == "simcc":
        for axis, name in enumerate("xy"):
            found[:, axis] = unpacked(told[name]).argmax(1)
    else:
        maps = unpacked(told["maps"])
        place = np.unravel_index(maps.reshape(17, -1).argmax(1), maps.shape[1:])
        found[:, :2] = np.stack(place[::-1], 1)
    found[:, :2] = found[:, :2] * told["grid"]["step"] + told["grid"]["origin"]
    distances = np.hypot(*(found @ np.transpose(told["crop_to_image"]) - joints).T)
    # DARK looks for the peak between the pixels, and where a map is flat goes far.
    assert np.median(distances) < 6


def unpacked(part: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(base64.b64decode(part["data"]), np.uint8).reshape(part["shape"])
