import math
import os
import signal
import socket
import threading

import httpx
import pytest
import torch

from app.main import _device, serve
from app.settings import Settings
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


def test_it_stops_badly_when_the_engine_fails(caplog):
    def build(*_):
        raise ValueError("no such weights")

    assert serve(Settings(port=0), build=build) == 1
    assert "no such weights" in caplog.text


def test_devices():
    assert _device("cpu").type == "cpu"
    assert _device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="POSE_DEVICE=cuda:99"):
        _device("cuda:99")
