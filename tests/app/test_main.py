import math
import os
import signal
import socket
import threading

import httpx
import pytest
import torch

import models
from app.main import BUNDLED_DETECTOR, _device, build_detector, serve
from app.settings import Settings
from models import catalogue
from tests.app.api_support import PATIENCE, FakePipeline, png

HEADERS = {"Content-Type": "image/png"}


def test_draining_finishes_what_is_in_flight_and_turns_away_the_rest(served, running):
    running.pipeline.hold()
    answers = []
    client = httpx.Client(base_url=served, headers=HEADERS, timeout=PATIENCE, trust_env=False)
    with client:
        early = threading.Thread(
            target=lambda: answers.append(client.post("/pose", content=png(3, 4, 5)))
        )
        early.start()
        running.pipeline.wait_until_entered()
        running.server.handle_exit(signal.SIGTERM, None)
        running.until(lambda: not running.engine.ready)

        assert client.get("/livez").status_code == 200
        assert client.get("/readyz").status_code == 503
        late = client.post("/pose", content=png(3, 4, 5))
        assert late.status_code == 503
        assert late.json()["type"] == "/problems/draining"
        assert not running.server.should_exit

        running.pipeline.go.set()
        early.join(PATIENCE)
    assert answers[0].status_code == 200
    assert answers[0].json()["predictions"][0]["bbox"][:2] == [3, 4]
    running.thread.join(PATIENCE)
    assert not running.thread.is_alive()


def test_a_second_signal_does_not_wait(served, running):
    running.pipeline.hold()
    with running.engine.reserve([1], "", math.inf):
        for _ in range(2):
            running.server.handle_exit(signal.SIGTERM, None)
        running.thread.join(PATIENCE)
        assert not running.thread.is_alive()


def test_a_client_that_hangs_up_is_noticed(served, running):
    running.pipeline.hold()
    busy = running.engine.submit(*running.job())
    running.pipeline.wait_until_entered()
    address = (httpx.URL(served).host, httpx.URL(served).port)
    body = png(3, 4, 5)
    with socket.create_connection(address, PATIENCE) as client:
        head = [
            "POST /pose HTTP/1.1",
            "Host: x",
            "Content-Type: image/png",
            f"Content-Length: {len(body)}",
        ]
        client.sendall("\r\n".join([*head, "", ""]).encode() + body)
        running.until(lambda: running.engine.queue_depth == 1)
    running.until(lambda: running.engine.in_flight == 0)
    running.pipeline.go.set()
    busy.result(PATIENCE)
    running.works()
    assert len(running.pipeline.seen) == 2


def test_it_stops_well_when_told_to():
    class Told(FakePipeline):
        def warm_up(self):
            os.kill(os.getpid(), signal.SIGTERM)

    assert serve(Settings(port=0), build=lambda *_: Told()) == 0


@pytest.mark.parametrize("missing", [False, True])
def test_weights_that_cannot_be_read_are_one_clear_line(caplog, tmp_path, missing):
    weights = tmp_path / "detector.safetensors"
    if not missing:
        weights.write_bytes(BUNDLED_DETECTOR.read_bytes()[:1000])
    settings = Settings(port=0, device="cpu", detector_weights=weights)
    assert serve(settings, build=lambda settings, _: build_detector(settings)) == 1
    [record] = [record for record in caplog.records if record.levelname == "CRITICAL"]
    assert str(weights) in record.message
    assert "\n" not in record.message
    assert record.exc_info is None


def test_damaged_pose_weights_are_one_clear_line(caplog, tmp_path, monkeypatch):
    damaged = tmp_path / "simcc-small.safetensors"
    whole = bytearray((catalogue.WEIGHTS / damaged.name).read_bytes())
    whole[len(whole) // 2] ^= 1
    damaged.write_bytes(whole)
    monkeypatch.setattr(catalogue, "WEIGHTS", tmp_path)

    def build(settings, _):
        return models.load("simcc-small", weights_dir=tmp_path)

    assert serve(Settings(port=0, device="cpu", models=["simcc-small"]), build=build) == 1
    [record] = [record for record in caplog.records if record.levelname == "CRITICAL"]
    assert str(damaged) in record.message
    assert record.exc_info is None


def test_a_device_that_is_lost_while_it_serves(served, running, caplog):
    def lose(*_):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    running.pipeline.answer = lose
    running.pipeline.hold()
    answers = []
    client = httpx.Client(base_url=served, headers=HEADERS, timeout=PATIENCE, trust_env=False)
    with client:
        asking = threading.Thread(
            target=lambda: answers.append(client.post("/pose", content=png(3, 4, 5)))
        )
        asking.start()
        running.pipeline.wait_until_entered()
        # Whatever the server does then, what it says of its health must be right.
        running.server.on_tick = stay(running.server.on_tick)
        running.pipeline.go.set()
        running.until(lambda: running.engine.failure)
        asking.join(PATIENCE)
        assert client.get("/livez").status_code == 503
        assert client.get("/readyz").status_code == 503
        assert client.post("/pose", content=png(3, 4, 5)).status_code == 503
    assert answers[0].status_code == 500
    assert running.value("pose_ready") == 0
    del running.server.on_tick
    running.thread.join(PATIENCE)
    assert not running.thread.is_alive()


def stay(on_tick):
    """A server's tick that never ends it."""

    async def tick(counter):
        await on_tick(counter)
        return False

    return tick


def test_devices():
    assert _device("cpu").type == "cpu"
    assert _device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="POSE_DEVICE=cuda:99"):
        _device("cuda:99")
