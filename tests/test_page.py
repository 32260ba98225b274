"""The page in a real Chromium, before the real service with the bundled models."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
import uvicorn
from pycocotools.coco import COCO

from app.main import create_app
from app.settings import Settings
from tests.photos import BUS, ZIDANE

api = pytest.importorskip("playwright.sync_api", reason="playwright is in the extra `dev`")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")

PATIENCE = 20_000  # milliseconds
api.expect.set_options(timeout=PATIENCE)
REPRESENTATIONS = ["SimCC", "Heatmap", "PCT"]
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A service behind a socket, its models warm."""
    app = create_app(Settings(device="cpu", runtime="torch"))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    listening = threading.Event()
    log_started = server._log_started_message
    server._log_started_message = lambda sockets: (log_started(sockets), listening.set())  # type: ignore[method-assign,assignment,func-returns-value]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert listening.wait(60)
    engine = app.state.service.engine
    with engine._changed:
        assert engine._changed.wait_for(lambda: engine._warm or engine.failure, 60)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join(20)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        fake = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", *fake], timeout=60_000
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any, address: str) -> Iterator[Open]:
    """Opens the page; in the end nothing has gone wrong in it, or has been asked for elsewhere."""
    amiss: list[str] = []
    contexts = []

    def visit(scale: float = 1, expected: str = "", **options: Any) -> Any:
        context = chromium.new_context(device_scale_factor=scale, **options)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: amiss.append(str(error)))

        def heard(message: Any) -> None:
            if message.type == "error" and not (expected and expected in message.text):
                amiss.append(message.text)

        def asked(request: Any) -> None:
            if not request.url.startswith((address, "blob:")):
                amiss.append(request.url)

        page.on("console", heard)
        page.on("request", asked)
        page.goto(address)
        api.expect(page.get_by_role("radio", name="Compare")).to_be_attached()
        return page

    yield visit
    for context in contexts:
        context.close()
    assert amiss == []


def choose(page: Any) -> None:
    page.set_input_files("#files", str(BUS))
    answered(page)


def answered(page: Any, count: int = 1) -> None:
    facts = page.locator("figcaption span").filter(has_text=" ms")
    api.expect(facts).to_have_count(count)


def drawn(page: Any, panel: int = 0) -> int:
    """How many pixels of a panel's skeletons are not see-through."""
    count: int = (
        page.locator(".over")
        .nth(panel)
        .evaluate(
            """canvas => new Promise(resolve => setTimeout(() => {
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          let count = 0;
          for (let at = 3; at < data.length; at += 4) count += data[at] > 0;
          resolve(count);
        }, 50))"""
        )
    )
    return count


def brightness(page: Any) -> float:
    colour = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    return sum(int(part) for part in colour[4:-1].split(",")) / 3


def drop(page: Any, path: Path, media_type: str) -> None:
    data = page.evaluate_handle(
        """([data, name, type]) => {
          const transfer = new DataTransfer();
          const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
          transfer.items.add(new File([bytes], name, { type }));
          return transfer;
        }""",
        [base64.b64encode(path.read_bytes()).decode(), path.name, media_type],
    )
    page.dispatch_event("body", "dragover", {"dataTransfer": data})
    api.expect(page.get_by_text("Drop to look")).to_be_visible()
    page.dispatch_event("body", "drop", {"dataTransfer": data})


def test_a_dropped_photo_shows_its_people(visit: Open) -> None:
    page = visit(scale=2)
    assert brightness(page) > 200
    drop(page, BUS, "image/jpeg")
    answered(page)
    api.expect(page.locator("#drop")).to_be_hidden()
    api.expect(page.locator("#status")).to_contain_text("SimCC: 4 people in")
    over = page.locator(".over")
    assert over.get_attribute("aria-label").startswith("bus.jpg by SimCC: person 1, score 0.")
    sharpness = over.evaluate("canvas => canvas.width / canvas.clientWidth")
    assert sharpness == pytest.approx(2, rel=0.01)
    assert drawn(page) > 2000

    # Where the first person's nose is, by the service's own words.
    page.get_by_label("JSON").check()
    body = json.loads(page.locator("#snippet").text_content())
    assert body["images"] == [{"id": 0, "width": 810, "height": 1080}]
    x, y, score = body["predictions"][0]["keypoints"][:3]
    zoom = over.bounding_box()["width"] / 810
    over.hover(position={"x": (x + 0.5) * zoom, "y": (y + 0.5) * zoom})
    tip = page.locator("#tip")
    api.expect(tip).to_contain_text("nose")
    api.expect(tip).to_contain_text(f"score {score:.2f}")
    api.expect(page.locator("#joints tr.lit")).to_contain_text("nose")


def test_all_representations_side_by_side(visit: Open, tmp_path: Path) -> None:
    page = visit(viewport={"width": 1360, "height": 900})
    choose(page)
    page.get_by_role("radio", name="SimCC").press("ArrowLeft")  # round to the last
    api.expect(page.get_by_role("radio", name="Compare")).to_be_checked()
    answered(page, 3)
    assert page.locator("figcaption b").all_text_contents() == REPRESENTATIONS
    tops = [frame.bounding_box()["y"] for frame in page.locator(".frame").all()]
    assert max(tops) - min(tops) < 2
    before = [drawn(page, panel) for panel in range(3)]
    assert min(before) > 500

    threshold = page.get_by_label("Least joint score")
    threshold.press("End")
    api.expect(page.locator("#threshold-value")).to_have_text("1.00")
    assert all(drawn(page, panel) < share / 4 for panel, share in enumerate(before))
    threshold.press("Home")
    assert all(drawn(page, panel) >= share for panel, share in enumerate(before))

    for label, suffix in (("Save picture", "png"), ("COCO, PCT", "json")):
        with page.expect_download() as download:
            page.get_by_role("button", name=label).click()
        download.value.save_as(tmp_path / f"saved.{suffix}")
    assert cv2.imread(str(tmp_path / "saved.png")).shape == (1080, 3 * 810 + 2 * 16, 3)
    coco = COCO(tmp_path / "saved.json")
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == ["bus.jpg"]
    people = coco.loadAnns(coco.getAnnIds())
    assert len(people) == 4
    assert all(person["num_keypoints"] == len(person["keypoint_scores"]) == 17 for person in people)


def test_what_the_representations_see(visit: Open) -> None:
    page = visit()
    choose(page)
    page.get_by_label("What the representation sees").check()
    says = page.locator(".says")
    api.expect(says).to_contain_text("two distributions")
    first = page.get_by_role("button", name="Person 1, score")
    api.expect(first).to_have_attribute("aria-pressed", "true")
    everything = drawn(page)
    page.locator("#joints").focus()
    page.keyboard.press("ArrowDown")
    api.expect(says).to_contain_text("nose: likeliest bins")
    api.expect(page.locator("#status")).to_contain_text("nose")
    assert drawn(page) == everything  # all of it is shaded

    page.get_by_role("radio", name="Heatmap").check()
    api.expect(says).to_contain_text("map of where it may be")
    page.locator("#joints tbody tr").nth(9).hover()
    api.expect(says).to_contain_text("left wrist: peak")

    page.get_by_role("radio", name="PCT").check()
    tokens = page.get_by_role("option")
    api.expect(tokens).to_have_count(34)
    tokens.nth(0).focus()
    page.keyboard.press("ArrowRight")
    api.expect(tokens.nth(1)).to_have_attribute("aria-selected", "true")
    api.expect(says).to_contain_text("Token 2, entry")
    api.expect(says).to_contain_text("Moves, in pixels of the crop:")


def test_what_is_copied_works(visit: Open) -> None:
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    choose(page)
    page.get_by_label("Python").check()
    page.get_by_role("button", name="Copy").click()
    api.expect(page.get_by_role("button", name="Copied")).to_be_visible()
    script = page.evaluate("() => navigator.clipboard.readText()")
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=BUS.parent, capture_output=True, text=True, check=True
    )
    assert len(ran.stdout.splitlines()) == page.locator("#people button").count() - 1
    page.get_by_label("curl").check()
    api.expect(page.locator("#snippet")).to_contain_text("--data-binary '@bus.jpg'")


def test_several_photos(visit: Open) -> None:
    page = visit()
    page.set_input_files("#files", [str(BUS), str(ZIDANE)])
    answered(page)
    page.get_by_role("button", name="zidane.jpg").click()
    image = page.get_by_role("img", name="zidane.jpg by SimCC: person 1")
    api.expect(image).to_be_visible()
    assert drawn(page) > 500
    page.get_by_role("button", name="bus.jpg").click()
    api.expect(page.get_by_role("img", name="bus.jpg by SimCC: person 1")).to_be_visible()
    shown = page.locator("canvas").first.evaluate(
        "canvas => new Set(canvas.getContext('2d').getImageData(0, 0, 400, 400).data).size"
    )
    assert shown > 100  # a photo again, and no black


def test_problems_are_told(visit: Open) -> None:
    page = visit(expected="415")
    text = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"not a picture"}
    page.set_input_files("#files", text)
    alert = page.get_by_role("alert").filter(has_text="Not an image type that is accepted")
    api.expect(alert).to_contain_text("JPEG, PNG, WebP, BMP and GIF")
    api.expect(page.get_by_role("complementary")).to_be_hidden()
    choose(page)
    api.expect(alert).to_be_hidden()


def test_a_key_is_asked_for_where_one_is_needed(visit: Open) -> None:
    page = visit(expected="401")

    def guard(route: Any) -> None:
        if route.request.headers.get("authorization") == "Bearer opensesame":
            return route.continue_()
        problem = {"type": "/problems/unauthorized", "title": "A valid key is needed"}
        body = {**problem, "status": 401, "detail": "There is no API key.", "request_id": "x"}
        return route.fulfill(status=401, json=body, content_type="application/problem+json")

    page.route("**/pose?*", guard)
    page.set_input_files("#files", str(BUS))
    page.get_by_label("API key").fill("opensesame")
    page.get_by_role("button", name="Use").click()
    answered(page)


def test_the_camera(visit: Open) -> None:
    page = visit(permissions=["camera"])
    page.get_by_role("button", name="Camera").click()
    api.expect(page.get_by_text("Nobody was found.")).to_be_visible()
    first = page.locator("#snippet").text_content()
    assert "camera.jpg" in first
    page.get_by_role("button", name="Stop").click()
    api.expect(page.get_by_role("button", name="Camera")).to_be_visible()
    choose(page)


def test_on_a_phone_by_night(visit: Open) -> None:
    page = visit(
        scale=2, viewport={"width": 360, "height": 740}, has_touch=True, color_scheme="dark"
    )
    choose(page)
    page.get_by_role("radio", name="Compare").check()
    answered(page, 3)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 360
    assert brightness(page) < 60
    for control in page.locator("button:visible, .segments label:visible, #pick").all():
        assert control.bounding_box()["height"] >= 24  # WCAG 2.2, 2.5.8
