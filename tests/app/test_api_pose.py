import asyncio
import io
import json
import random
import struct
import zlib

import httpx
import numpy as np
import pytest
from PIL import Image

from app.api.pose import negotiate
from app.errors import NotAcceptableError
from app.schemas import PoseResponse
from tests.app.api_support import PATIENCE, encode, png

GOOD = png(1, 2, 51)


def without_what_differs(response):
    body = response.json()
    assert response.status_code == 200, body
    return {key: body[key] for key in body if key not in ("request_id", "timings_ms")}


# ------------------------------------------------------------------------------------ what is right


def test_an_image_gives_its_poses(running):
    response = running.post(GOOD)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/json"
    body = response.json()
    PoseResponse.model_validate(body, strict=True, extra="forbid")
    assert body["request_id"] == response.headers["X-Request-ID"]
    assert (body["representation"], body["model"]) == ("simcc", "simcc-small")
    assert body["images"] == [{"id": 0, "width": 300, "height": 280}]
    [person] = body["predictions"]
    assert person == {
        "image_id": 0,
        "category_id": 1,
        "bbox": [1, 2, 10, 20],
        "score": 0.2,
        "keypoints": [1, 2, 0.2] * 17,
    }
    stages = ["decode", "queue", "detect", "crop", "pose", "postprocess", "total"]
    assert list(body["timings_ms"]) == stages
    assert 0 < body["timings_ms"]["decode"] < body["timings_ms"]["total"]
    assert "pose;dur=" in response.headers["Server-Timing"]


def test_coco_takes_the_predictions_as_they_are(running):
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is in the extra `eval`")
    body = running.send(GOOD, png(0, 0, 0), GOOD).json()
    truth = coco.COCO()
    truth.dataset = {
        "images": body["images"],
        "annotations": [],
        "categories": [{"id": 1, "name": "person"}],
    }
    truth.createIndex()
    results = truth.loadRes(body["predictions"])
    assert results.getImgIds() == [0, 1, 2]
    assert [entry["image_id"] for entry in results.loadAnns(results.getAnnIds())] == [0, 2]


def test_body_and_form_give_the_same(running, photo):
    expected = without_what_differs(running.post(photo, "image/jpeg"))
    assert without_what_differs(running.send(photo)) == expected
    assert without_what_differs(running.post(photo, "application/octet-stream")) == expected
    assert without_what_differs(running.post(photo, 'IMAGE/PNG; name="x"')) == expected
    parts = (photo[:70_000], photo[70_000:])
    assert without_what_differs(running.post((part for part in parts), "image/jpeg")) == expected


def test_several_images_keep_their_order(running):
    contents = [png(i, 100 + i, 51, (10 + i, 20)) for i in range(1, 17)]
    body = running.send(*contents).json()
    assert [image["id"] for image in body["images"]] == list(range(16))
    assert [image["width"] for image in body["images"]] == list(range(11, 27))
    found = [(one["image_id"], *one["bbox"][:2]) for one in body["predictions"]]
    assert found == [(i, i + 1, 101 + i) for i in range(16)]


def test_nobody_in_the_picture(running):
    body = running.post(png(0, 0, 0)).json()
    assert body["predictions"] == []
    assert running.send(png(0, 0, 0), GOOD).json()["predictions"][0]["image_id"] == 1


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000)])
def test_thin_pictures(running, size):
    [image] = running.post(png(1, 2, 3, size)).json()["images"]
    assert (image["width"], image["height"]) == size


def test_upright_by_exif(running):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.new("RGB", (30, 20), (5, 6, 51))
    picture.paste((70, 80, 51), (0, 10, 15, 20))  # below left: above left once it is turned
    body = running.post(encode(picture, exif=exif)).json()
    assert body["images"] == [{"id": 0, "width": 20, "height": 30}]
    assert body["predictions"][0]["bbox"][:2] == [70, 80]


def test_the_representation_is_each_requests_own(running):
    for query, model in (
        ({}, "simcc-small"),
        ({"representation": "simcc"}, "simcc-small"),
        ({"representation": "dark"}, "dark-small"),
        ({"representation": "pct"}, "pct-small"),
        ({"model": "pct-small"}, "pct-small"),
        ({"model": "dark-small", "representation": "dark"}, "dark-small"),
    ):
        body = running.post(GOOD, params=query).json()
        assert (body["model"], body["representation"]) == (model, model.removesuffix("-small"))


def test_the_default_representation_is_a_setting(make):
    assert make(representation="pct").post(GOOD).json()["model"] == "pct-small"


def test_parameters_reach_the_pipeline(running):
    running.post(GOOD)
    query = {"min_score": "0.75", "max_people": "3", "flip_test": "true"}
    running.post(GOOD, params=query)
    (_, default), (_, given) = running.pipeline.seen
    assert (default.min_score, default.max_people, default.flip_test) == (0.3, 100, False)
    assert (given.min_score, given.max_people, given.flip_test) == (0.75, 3, True)


def test_ones_own_boxes(running):
    boxes = [[50, 60, 70, 90], [-20, -10, 5, 5], [1.25, 2.5, 1000, 1000], [50, 60, 70, 90]]
    body = running.post(GOOD, params={"boxes": json.dumps(boxes)}).json()
    corners = [(x, y, x + w, y + h) for x, y, w, h in (p["bbox"] for p in body["predictions"])]
    assert corners == [tuple(box) for box in boxes]
    assert running.post(GOOD, params={"boxes": "[]"}).json()["predictions"] == []


@pytest.mark.parametrize("media_type", ["image/jpeg", "image/png"])
def test_the_drawn_picture(running, photo, media_type):
    response = running.post(photo, headers={"Accept": media_type})
    assert response.status_code == 200
    assert response.headers["Content-Type"] == media_type
    drawn = Image.open(io.BytesIO(response.content))
    assert drawn.get_format_mimetype() == media_type
    original = Image.open(io.BytesIO(photo))
    assert drawn.size == original.size
    difference = np.abs(np.asarray(drawn).astype(int) - np.asarray(original)).max(-1) > 60
    assert difference.any()
    assert running.value("pose_stage_duration_seconds_count", stage="encode") == 1


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("image/*", "image/jpeg"),
        ("image/png, image/jpeg", "image/jpeg"),
        ("image/png, image/jpeg;q=0.9", "image/png"),
        ("IMAGE/PNG ; Q=0.5 , text/html", "image/png"),
        ("application/json;q=0.1, */*;q=0.5", "image/jpeg"),
        ("application/json;q=0.5, image/*", "image/jpeg"),
        ("text/html,application/xhtml+xml,image/webp,*/*;q=0.8", "application/json"),
        ("*/*, application/json;q=0, image/jpeg;q=0", "image/png"),
    ],
)
def test_negotiation(accept, chosen):
    assert negotiate(accept) == chosen


@pytest.mark.parametrize("accept", ["text/html", "image/webp", "*/*;q=0", "image/png;q=x", ","])
def test_negotiation_without_a_common_type(accept):
    with pytest.raises(NotAcceptableError, match="application/json, image/jpeg, image/png"):
        negotiate(accept)


def test_not_acceptable(running):
    response = running.post(GOOD, headers={"Accept": "text/html"})
    running.refuses(response, 406, "application/json", "text/html")


# ------------------------------------------------------------------------------------ what is wrong


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"", 400, ["empty"]),
        (b"rubbish", 415, ["JPEG, PNG, WebP, BMP and GIF"]),
        (b"\xff\xd8\xff rubbish", 400, ["JPEG"]),
        (GOOD[:200], 400, ["ends early"]),
        (GOOD[:30], 400, ["header"]),
    ],
)
@pytest.mark.parametrize("form", [False, True])
def test_rubbish(running, content, status, words, form):
    response = running.send(content) if form else running.post(content)
    running.refuses(response, status, *words)
    assert running.pipeline.seen[:-1] == []


def test_a_truncated_photo(running, photo):
    running.refuses(running.post(photo[:-5000], "image/jpeg"), 400, "ends early")


def test_an_error_says_which_of_several_images_it_is_about(running, photo):
    running.refuses(running.send(GOOD, photo[:-5000], GOOD), 400, "Image 1: ", "ends early")
    running.refuses(running.send(GOOD, GOOD, b"x"), 415, "Image 2: ", "JPEG")


@pytest.mark.parametrize("media_type", ["text/plain", "application/json", "", "video/mp4", "image"])
def test_other_content_types(running, media_type):
    response = running.post(GOOD, media_type)
    words = (media_type or "missing", "image/*", "application/octet-stream", "multipart/form-data")
    running.refuses(response, 415, *words)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("representation=heatmap", ["'simcc', 'dark' or 'pct'"]),
        ("representaton=dark", ["no query parameter representaton", "representation"]),
        ("representation=dark&representation=pct", ["more than once: representation"]),
        ("model=dark-small&representation=pct", ["is of dark, not of pct"]),
        ("min_score=2", ["min_score", "from 0 to 1"]),
        ("min_score=nan", ["min_score", "from 0 to 1"]),
        ("max_people=0", ["max_people", "from 1"]),
        ("max_people=101", ["max_people", "from 1 to 100"]),
        ("max_people=1.5", ["max_people"]),
        ("flip_test=maybe", ["flip_test", "true or false"]),
        ("boxes=nonsense", ["boxes", "JSON", "[x1, y1, x2, y2]"]),
        ("boxes={}", ["boxes", "list"]),
        ("boxes=[1,2,3,4]", ["boxes[0]"]),
        ("boxes=[[1,2,3]]", ["boxes[0]", "[x1, y1, x2, y2]"]),
        ("boxes=[[1,2,3,4,5]]", ["boxes[0]"]),
        ('boxes=[["1",2,3,4]]', ["boxes[0][0]", "number"]),
        ("boxes=[[NaN,2,3,4]]", ["boxes[0][0]", "finite"]),
        ("boxes=[[1,2,1e9,4]]", ["boxes[0][2]", "1000000"]),
        ("boxes=[[1,2,3,4],[5,5,5,9]]", ["boxes[1]", "x1 < x2"]),
        ("boxes=[[1,9,3,4]]", ["boxes[0]", "y1 < y2"]),
        ("boxes=[[0,0,9,9],[300,0,310,9]]", ["boxes[1]", "300 x 280"]),
        ("boxes=[[0,-9,9,0]]", ["boxes[0]", "300 x 280"]),
        ("boxes=[[0,0,9,9],[0,0,9,9]]&max_people=1", ["2 boxes", "up to 1"]),
    ],
)
def test_parameters_that_are_refused(running, query, words):
    response = running.client.post(
        f"/pose?{query}", content=GOOD, headers={"Content-Type": "image/png"}
    )
    body = running.refuses(response, 422, *words)
    assert body["type"] == "/problems/invalid-parameter"


def test_a_long_list_of_mistakes_is_answered_shortly(running):
    response = running.post(GOOD, params={"boxes": json.dumps([[1]] * 500)})
    assert len(running.refuses(response, 422)["detail"]) < 2000


@pytest.mark.parametrize(
    ("settings", "query", "words"),
    [
        ({}, {"model": "big"}, ["big does not exist", "simcc-small (simcc)", "pct-small"]),
        ({"models": ("simcc-small",)}, {"model": "pct-small"}, ["not loaded", "simcc-small"]),
        ({"models": ("simcc-small",)}, {"representation": "pct"}, ["No model of pct", "simcc-"]),
    ],
)
def test_unknown_models(make, settings, query, words):
    running = make(**settings)
    running.refuses(running.post(GOOD, params=query), 404, *words)


def test_what_is_for_a_single_image(running):
    response = running.send(GOOD, GOOD, params={"boxes": "[[1,2,3,4]]"})
    running.refuses(response, 422, "boxes", "one image", "2")
    response = running.send(GOOD, GOOD, headers={"Accept": "image/png"})
    running.refuses(response, 422, "image/png", "one image")


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"files": {"photo": ("a.png", GOOD)}}, ["field photo", "field image"]),
        ({"data": {"image": "text"}, "files": {"x": b""}}, ["field image is not an image file"]),
        ({"files": [("image", ("a", GOOD))], "data": {"model": "x"}}, ["model", "the query"]),
    ],
)
def test_other_form_fields(running, form, words):
    running.refuses(running.client.post("/pose", **form), 422, *words)


@pytest.mark.parametrize(
    ("media_type", "content"),
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=b", b"rubbish"),
        ("multipart/form-data; boundary=b", b"--b--\r\n"),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n"),
    ],
)
def test_malformed_forms(running, media_type, content):
    running.refuses(running.post(content, media_type), 422, "the field image as a file")


# ------------------------------------------------------------------------------------ what is large


def test_too_many_pixels_by_the_header_alone(running):
    header = b"IHDR" + struct.pack(">II", 30_000, 30_000) + GOOD[24:29]
    bomb = GOOD[:12] + header + struct.pack(">I", zlib.crc32(header)) + GOOD[33:]
    running.refuses(running.post(bomb), 413, "50000000")


def test_too_many_pixels_in_all(make):
    running = make(max_pixels_in_flight=200_000)
    running.refuses(running.send(GOOD, GOOD, GOOD), 413, "252000", "200000")


def test_too_many_bytes(make):
    running = make(max_image_bytes=2000, max_request_bytes=5000)
    large = GOOD + bytes(2000)
    running.refuses(running.post(large), 413, "2000")
    running.refuses(running.post(iter([large[:1500], large[1500:]])), 413, "2000")
    running.refuses(running.send(large), 413, "2000")
    running.refuses(running.send(GOOD, large), 413, "Image 1: ", "2000")
    running.refuses(running.send(large, large), 413, "5000")


def test_too_many_images(make):
    running = make(max_images=3)
    assert len(running.send(*[GOOD] * 3).json()["images"]) == 3
    running.refuses(running.send(*[GOOD] * 4), 413, "3 images")


class Asgi:
    """A request without a client: what the application reads, and what it answers."""

    def __init__(self, headers, messages, query=""):
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": "/pose",
            "query_string": query.encode(),
            "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
            "state": {},
        }
        self.messages = messages
        self.read = 0
        self.sent = []

    async def __call__(self, app):
        await asyncio.wait_for(app(self.scope, self.receive, self.send), PATIENCE)
        return self.sent[0]["status"]

    async def receive(self):
        message = next(self.messages, None)
        if message is None:
            await asyncio.Event().wait()
        if callable(message):
            return await message()
        self.read += 1
        return message

    async def send(self, message):
        self.sent.append(message)


MEGABYTE = {"type": "http.request", "body": bytes(2**20), "more_body": True}


@pytest.mark.parametrize("media_type", ["image/png", "multipart/form-data; boundary=b"])
def test_a_huge_body_is_refused_before_it_is_read(running, media_type):
    length = {"content-type": media_type, "content-length": str(200 * 2**20)}
    request = Asgi(length, iter([MEGABYTE] * 200))
    assert running.client.portal.call(request, running.app) == 413
    assert request.read == 0
    running.works()


@pytest.mark.parametrize("media_type", ["image/png", "multipart/form-data; boundary=b"])
def test_a_huge_body_without_a_length_is_refused_at_the_limit(running, media_type):
    start = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    messages = [{**MEGABYTE, "body": start}, *[MEGABYTE] * 200]
    request = Asgi({"content-type": media_type}, iter(messages))
    assert running.client.portal.call(request, running.app) == 413
    assert request.read <= (20 if media_type == "image/png" else 64) + 1
    running.works()


# ---------------------------------------------------------------------- what is late, busy or gone


def hang_up_after(running, until):
    """A client that closes the connection once something has happened."""

    async def gone():
        await asyncio.get_running_loop().run_in_executor(None, until)
        return {"type": "http.disconnect"}

    whole = {"type": "http.request", "body": GOOD, "more_body": False}
    return Asgi({"content-type": "image/png"}, iter([whole, gone]))


def in_background(running, content=GOOD):
    return running.client.portal.start_task_soon(asyncio.to_thread, running.post, content)


def test_a_client_that_goes_is_not_worked_for(running):
    running.pipeline.hold()
    other = in_background(running, png(30, 40, 51))
    running.pipeline.wait_until_entered()
    request = hang_up_after(running, lambda: running.until(lambda: running.engine.queue_depth))
    assert running.client.portal.call(request, running.app) == 499
    assert running.engine.in_flight == 1
    running.pipeline.go.set()
    # The other client does not notice.
    assert other.result(PATIENCE).json()["predictions"][0]["bbox"][:2] == [30, 40]
    running.works()
    assert len(running.pipeline.seen) == 2
    assert running.value("pose_requests_total", representation="simcc", status="499") == 1


def test_a_client_that_goes_in_the_middle_of_its_upload(running):
    messages = [{**MEGABYTE, "body": GOOD[:50]}, {"type": "http.disconnect"}]
    request = Asgi({"content-type": "image/png"}, iter(messages))
    assert running.client.portal.call(request, running.app) == 499
    running.works()


def test_a_deadline_that_passes(make):
    running = make(deadline_seconds=0.5)
    running.pipeline.hold()
    response = running.post(GOOD)
    running.pipeline.go.set()
    running.until(lambda: not running.engine._running)
    running.refuses(response, 504, "0.5 seconds")


def test_too_much_at_once(make):
    # For three, of whom one client may be two.
    running = make(max_queue=2, max_batch_images=1, max_images=1)
    running.pipeline.hold()
    others = [in_background(running), in_background(running)]
    running.until(lambda: running.engine.in_flight == 2)
    response = running.post(GOOD)
    running.pipeline.go.set()
    assert [other.result(PATIENCE).status_code for other in others] == [200, 200]
    running.refuses(response, 503, "2 images are in flight")
    assert int(response.headers["Retry-After"]) >= 1
    assert running.value("pose_rejected_total", reason="busy") == 1


def test_before_it_is_ready(make):
    running = make(wait=False)
    warm = running.pipeline.go
    warm.clear()
    running.pipeline.warm_up = lambda: warm.wait(PATIENCE)
    running.client.__enter__()
    response = running.post(GOOD)
    warm.set()
    running.until(lambda: running.engine.ready)
    running.refuses(response, 503, "being loaded")
    assert "Retry-After" in response.headers


def test_an_image_that_fails_on_the_device_fails_alone(running):
    running.pipeline.poisoned = 66
    running.pipeline.hold()
    first = in_background(running)
    running.pipeline.wait_until_entered()
    others = [in_background(running, png(red, 5, 51)) for red in (65, 66, 67)]
    running.until(lambda: running.engine.queue_depth == 3)
    running.pipeline.go.set()
    assert first.result(PATIENCE).status_code == 200
    before, poisoned, after = (other.result(PATIENCE) for other in others)
    assert before.json()["predictions"][0]["bbox"][0] == 65
    assert after.json()["predictions"][0]["bbox"][0] == 67
    assert "secret" not in poisoned.text
    running.refuses(poisoned, 500, "could not be processed")


def test_64_clients_at_once_each_get_their_own_answer(served):
    chance = random.Random(0)
    colours = [(i, chance.randrange(256), 1 + chance.randrange(255)) for i in range(64)]

    async def ask(client, colour):
        red, green, blue = colour
        size = (10 + red, 10 + green)
        for representation in ("simcc", "dark", "pct"):
            response = await client.post(
                f"{served}/pose?representation={representation}",
                content=png(red, green, blue, size),
                headers={"Content-Type": "image/png", "X-Request-ID": f"{red}.{representation}"},
            )
            body = response.json()
            assert response.status_code == 200, body
            assert body["request_id"] == f"{red}.{representation}"
            assert body["model"] == f"{representation}-small"
            [image], [person] = body["images"], body["predictions"]
            assert (image["width"], image["height"]) == size
            assert person["keypoints"] == [red, green, round(blue / 255, 4)] * 17

    async def ask_all():
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(limits=limits, timeout=60, trust_env=False) as client:
            await asyncio.gather(*(ask(client, colour) for colour in colours))

    asyncio.run(ask_all())


def test_a_hundred_mistakes_in_a_row_leave_nothing_behind(running):
    for _ in range(25):
        running.post(b"rubbish")
        running.post(GOOD[:200])
        running.send(GOOD, b"rubbish")
        running.post(GOOD, params={"boxes": "[[9999,0,99999,1]]"})
    running.works()
    assert running.value("pose_requests_total", representation="simcc", status="400") == 25
    assert running.value("pose_requests_total", representation="simcc", status="415") == 50
    assert running.value("pose_requests_total", representation="simcc", status="422") == 25
    assert running.value("pose_rejected_total", reason="bad-image") == 25
    assert running.value("pose_stage_duration_seconds_count", stage="decode") >= 25


def test_no_dependency_of_a_request_goes_through_a_thread(running, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a dependency is not a coroutine function")

    monkeypatch.setattr("fastapi.dependencies.utils.run_in_threadpool", refuse)
    running.works()
