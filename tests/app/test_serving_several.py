"""Models of different joints side by side: COCO's 17 and MPII's 16."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Semaphore
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from starlette.testclient import TestClient

from app import cli
from app.engine import Engine
from app.main import build_pipeline, create_app
from app.metrics import Metrics
from app.pipeline import Options, Pipeline, Poses
from app.schemas import ModelsResponse, PoseResponse
from app.settings import Settings
from models.downloads import sha256
from models.network import Architecture
from models.pose_model import PoseModel
from models.skeletons import COCO, MPII
from models.training.loop import card_of
from tests.app.api_support import PATIENCE
from tests.photos import BUS, ZIDANE

JPEG = {"Content-Type": "image/jpeg"}
MAN = [52.0, 396.0, 246.0, 902.0]


@pytest.fixture(scope="module")
def mpii(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a small model of MPII's joints, with random weights."""
    path = tmp_path_factory.mktemp("mpii") / "mpii-tiny.safetensors"
    torch.manual_seed(0)
    architecture = Architecture(
        "dark", "test_resnet.r160_in1k", (48, 64), options={"stride": 4}, joints=MPII.names
    )
    model = PoseModel.fresh(card_of("mpii-tiny", architecture))
    torch.nn.init.normal_(model.network.head.final_layer.weight)  # type: ignore[union-attr,arg-type]
    torch.nn.init.constant_(model.network.head.final_layer.bias, 3.0)  # type: ignore[union-attr,arg-type]
    model.save(path)
    return str(path)


class Held:
    """The real pipeline, which waits for a sign, and tells what its batches were."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.batches: list[list[str]] = []
        self.entered = Semaphore(0)
        self.go = Event()
        self.go.set()

    def warm_up(self) -> dict[str, float]:
        return self.pipeline.warm_up()

    def __call__(self, images: list[npt.NDArray[np.uint8]], options: list[Options]) -> list[Poses]:
        self.batches.append([option.model for option in options])
        self.entered.release()
        assert self.go.wait(PATIENCE)
        return self.pipeline(images, options)


class Service:
    def __init__(self, mpii: str) -> None:
        self.settings = Settings(models=("simcc-small", mpii, "dark-small"), device="cpu")
        self.app = create_app(self.settings, build=self.build)  # type: ignore[arg-type]
        self.engine: Engine = self.app.state.service.engine
        self.client = TestClient(self.app)

    def build(self, settings: Settings, metrics: Metrics) -> Held:
        self.held = Held(build_pipeline(settings, metrics))
        return self.held

    def until(self, condition: Any) -> None:
        with self.engine._changed:
            assert self.engine._changed.wait_for(condition, PATIENCE)

    def post(self, query: str, photo: Path = BUS) -> dict[str, Any]:
        answer = self.client.post(f"/pose?{query}", content=photo.read_bytes(), headers=JPEG)
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body


@pytest.fixture(scope="module")
def service(mpii: str) -> Iterator[Service]:
    made = Service(mpii)
    with made.client:
        made.until(lambda: made.engine.ready)
        yield made


def test_mpii_answers_with_its_own_joints(service: Service) -> None:
    body = service.post(f"model=mpii-tiny&boxes={json.dumps([MAN, MAN])}")
    PoseResponse.model_validate(body, strict=True, extra="forbid")
    assert (body["model"], body["representation"]) == ("mpii-tiny", "dark")
    assert [len(person["keypoints"]) for person in body["predictions"]] == [48, 48]


def test_nobody_has_no_joints_of_either_kind(service: Service) -> None:
    for model in ("mpii-tiny", "simcc-small"):
        body = service.post(f"model={model}&boxes=[]")
        assert body["predictions"] == []


def test_detected_people_of_mpii_are_scored_and_freed_of_duplicates(service: Service) -> None:
    body = service.post("model=mpii-tiny&flip_test=true")
    assert body["predictions"]
    scores = [person["score"] for person in body["predictions"]]
    assert scores == sorted(scores, reverse=True)


def test_one_batch_holds_people_of_17_and_of_16_joints(service: Service) -> None:
    queries = [
        (f"model={model}&boxes={json.dumps(boxes)}", photo)
        for photo, boxes in ((BUS, [MAN]), (ZIDANE, [[100.0, 50, 600, 700], [700, 30, 1100, 700]]))
        for model in ("mpii-tiny", "simcc-small", "dark-small")
    ]
    alone = [service.post(*query)["predictions"] for query in queries]
    held = service.held
    held.batches.clear()
    held.entered = Semaphore(0)
    held.go.clear()
    with ThreadPoolExecutor(len(queries) + 1) as clients:
        first = clients.submit(service.post, "boxes=[]")
        try:
            assert held.entered.acquire(timeout=PATIENCE)
            others = []
            for query in queries:
                others.append(clients.submit(service.post, *query))
                service.until(lambda: service.engine.queue_depth == len(others))
        finally:
            held.go.set()
        assert first.result(PATIENCE)["predictions"] == []
        together = [other.result(PATIENCE)["predictions"] for other in others]
    # Half of what goes round: of the six that waited and the one before.
    assert held.batches[1] == ["mpii-tiny", "simcc-small", "dark-small", "mpii-tiny"]
    for (query, _), expected, found in zip(queries, alone, together, strict=True):
        joints = 16 if "mpii" in query else 17
        assert [len(person["keypoints"]) for person in found] == [3 * joints] * len(expected)
        ours, theirs = (
            np.array([person["keypoints"] for person in people]).reshape(-1, 3)
            for people in (expected, found)
        )
        assert np.median(np.hypot(*(ours - theirs)[:, :2].T)) < 0.1


def test_every_model_says_how_to_read_its_keypoints(service: Service) -> None:
    body = service.client.get("/models").json()
    ModelsResponse.model_validate(body, extra="forbid")
    assert body["joint_names"] == list(COCO.names)
    shown = {card["name"]: card for card in body["models"]}
    for name, skeleton in (("mpii-tiny", MPII), ("simcc-small", COCO), ("pct-small", COCO)):
        assert shown[name]["joint_names"] == list(skeleton.names)
        assert shown[name]["skeleton"] == [list(limb) for limb in skeleton.limbs]
        assert shown[name]["flip_pairs"] == [list(pair) for pair in skeleton.flip_pairs]
    loaded = {name for name, card in shown.items() if card["loaded"]}
    assert loaded == {"simcc-small", "mpii-tiny", "dark-small"}


def test_a_weights_file_is_shown_for_what_it_is(service: Service, mpii: str) -> None:
    body = service.client.get("/models").json()
    [shown] = [card for card in body["models"] if card["name"] == "mpii-tiny"]
    assert shown["sha256"] == sha256(Path(mpii))
    assert (shown["weights"], shown["scores"]) == ("mpii-tiny.safetensors", "raw")
    assert shown["milliseconds"] > 0
    assert shown["parameters"] > 0


def test_the_first_of_a_kind_is_its_default(service: Service) -> None:
    assert service.post("representation=dark&boxes=[]")["model"] == "mpii-tiny"
    assert service.post("boxes=[]")["model"] == "simcc-small"


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("model=pct-small", "pct-small is not loaded"),
        ("model=resnet-9000", "resnet-9000 does not exist"),
        ("representation=pct", "No model of pct is loaded"),
    ],
)
def test_what_is_not_loaded_is_answered_with_what_is(
    service: Service, query: str, told: str
) -> None:
    answer = service.client.post(f"/pose?{query}", content=BUS.read_bytes(), headers=JPEG)
    assert answer.status_code == 404
    detail = answer.json()["detail"]
    assert told in detail
    for loaded in ("simcc-small (simcc)", "mpii-tiny (dark)", "dark-small (dark)"):
        assert loaded in detail


def test_mpii_is_drawn_with_its_own_limbs(service: Service) -> None:
    query = f"model=mpii-tiny&boxes={json.dumps([MAN])}"
    answer = service.client.post(
        f"/pose?{query}", content=BUS.read_bytes(), headers=JPEG | {"Accept": "image/png"}
    )
    drawn = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_COLOR)
    photo = cv2.imread(str(BUS))
    assert drawn is not None
    assert photo is not None
    joints = np.array(service.post(query)["predictions"][0]["keypoints"]).reshape(16, 3)
    seen = joints[joints[:, 2] >= 0.3, :2].round().astype(int)
    assert len(seen)
    height, width = photo.shape[:2]
    inside = [(x, y) for x, y in seen if 0 <= x < width and 0 <= y < height]
    changed = np.abs(drawn.astype(int) - photo).max(-1) > 20
    assert np.mean([changed[y, x] for x, y in inside]) > 0.5


def test_predict_names_mpiis_joints(
    mpii: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["predict", str(BUS), "--model", mpii, "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    named = {word for word in told.replace(",", "").split() if word in MPII.names + COCO.names}
    assert named
    assert named <= set(MPII.names)
    assert (tmp_path / "bus.dark.jpg").is_file()
