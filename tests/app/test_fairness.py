"""One client with many or huge images, and what another one notices of it."""

import socket
import threading

import httpx
import numpy as np
import pytest

from app import images
from tests.app.api_support import PATIENCE, png

#: Every address of 127/8 is this machine's, so two clients need no two machines.
GREEDY, POLITE = "127.0.0.1", "127.0.0.2"


@pytest.fixture
def client(served):
    """Makes clients of an address."""
    made = []

    def client(address):
        transport = httpx.HTTPTransport(
            local_address=address, limits=httpx.Limits(max_connections=None)
        )
        made.append(httpx.Client(base_url=served, transport=transport, timeout=PATIENCE))
        return made[-1]

    yield client
    for one in made:
        one.close()


@pytest.fixture
def running(request, make):
    return make(**request.param)


def send(client, *contents):
    return client.post("/pose", files=[("image", content) for content in contents])


def in_background(client, *contents):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(send(client, *contents)))
    thread.start()
    return thread, answers


@pytest.mark.parametrize(
    "running", [{"max_queue": 12, "max_images": 4, "max_batch_images": 4}], indirect=True
)
def test_many_images_wait_behind_anothers_only_one(client, running):
    greedy, polite = client(GREEDY), client(POLITE)
    running.pipeline.hold()
    waiting = []
    for count in (4, 8, 12):
        waiting.append(in_background(greedy, *[png(1, 1, 1, (9, 9))] * 4))
        running.until(lambda count=count: running.engine.in_flight == count)
    running.pipeline.wait_until_entered()
    refused = send(greedy, *[png(1, 1, 1, (9, 9))] * 4)
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) >= 1

    running.until(lambda: running.engine.queue_depth >= 8)
    begun = len(running.pipeline.seen)
    waiting.append(in_background(polite, png(2, 2, 2, (9, 9))))
    running.until(lambda: running.engine.in_flight == 13)
    running.until(lambda: running.engine.queue_depth == 13 - begun)
    running.pipeline.go.set()
    for thread, answers in waiting:
        thread.join(PATIENCE)
        assert answers[0].status_code == 200
    reds = [int(image[0, 0, 0]) for image, _ in running.pipeline.seen]
    # Second at the latest of the batch that comes next.
    assert reds.index(2) <= begun + 1


@pytest.mark.parametrize("running", [{"max_pixels_in_flight": 900_000}], indirect=True)
def test_huge_images_leave_room_for_anothers_small_one(client, running):
    greedy, polite = client(GREEDY), client(POLITE)
    running.pipeline.hold()
    waiting = []
    for count in range(1, 9):
        waiting.append(in_background(greedy, png(1, 1, 1, (500, 200))))
        running.until(lambda count=count: running.engine.in_flight == count)
    assert send(greedy, png(1, 1, 1, (500, 200))).status_code == 503
    waiting.append(in_background(polite, png(2, 2, 2, (300, 200))))
    running.until(lambda: running.engine.in_flight == 9)
    running.pipeline.go.set()
    for thread, answers in waiting:
        thread.join(PATIENCE)
        assert answers[0].status_code == 200
    # Room is there again at once.
    assert send(greedy, png(1, 1, 1, (500, 200))).status_code == 200


@pytest.mark.parametrize("running", [{"decode_threads": 1}], indirect=True)
def test_decoding_takes_turns_too(client, running, monkeypatch):
    go, begun, order = threading.Event(), threading.Event(), []
    decode = images.decode

    def slowly(data, most):
        image = decode(data, most)
        order.append(int(image[0, 0, 0]))
        begun.set()
        assert go.wait(PATIENCE)
        return image

    monkeypatch.setattr(images, "decode", slowly)
    waiting = [in_background(client(GREEDY), *[png(1, 1, 1, (9, 9))] * 8)]
    assert begun.wait(PATIENCE)
    waiting.append(in_background(client(POLITE), png(2, 2, 2, (9, 9))))
    # All that waits for the one thread is the reading of its header.
    queue = running.app.state.service.threads._work_queue
    polls = client(POLITE)
    while not queue.qsize():
        assert polls.get("/livez").status_code == 200
    go.set()
    for thread, answers in waiting:
        thread.join(PATIENCE)
        assert answers[0].status_code == 200
    assert order.index(2) <= 3


@pytest.mark.parametrize("running", [{"decode_threads": 1}], indirect=True)
def test_going_away_gives_no_second_thread(served, client, running, monkeypatch):
    """A thread that decodes cannot be stopped, so it counts until it is done."""
    go, begun = threading.Event(), threading.Event()

    def slowly(data, most):
        begun.set()
        assert go.wait(PATIENCE)
        return np.ones((9, 9, 3), np.uint8)

    monkeypatch.setattr(images, "decode", slowly)
    permits = running.app.state.service.permits(GREEDY)
    address, body = httpx.URL(served), png(1, 1, 1)
    head = (
        f"POST /pose HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(body)}"
    )
    with socket.create_connection((address.host, address.port), PATIENCE, (GREEDY, 0)) as gone:
        gone.sendall(f"{head}\r\n\r\n".encode() + body)
        assert begun.wait(PATIENCE)
    running.until(lambda: running.engine.in_flight == 0)
    assert permits.locked()
    go.set()
    assert send(client(GREEDY), body).status_code == 200
    assert not permits.locked()
