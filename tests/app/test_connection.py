"""What a client may do to a real socket: too much, too slowly, by halves, or not at all."""

import json
import socket
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from app import connection
from tests.app.api_support import PATIENCE, encode, png

GOOD = png(7, 8, 9)
HEAD = "POST /pose HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"


@pytest.fixture
def connect(served):
    """Makes connections to a running service."""
    made = []

    def connect(receive_buffer=None):
        address = urlsplit(served)
        client = socket.socket()
        made.append(client)
        client.settimeout(PATIENCE)
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.connect((address.hostname, address.port))
        return client

    yield connect
    for client in made:
        client.close()


def send(client, head, body=b""):
    """Send what the service may no longer want to hear."""
    try:
        client.sendall(head.encode() + b"\r\n" + body)
    except (BrokenPipeError, ConnectionResetError):
        return


def answer(client):
    """Status and body of an answer; nothing where the service hangs up without one."""
    response = b""
    try:
        while chunk := client.recv(2**16):
            response += chunk
            head, end, body = response.partition(b"\r\n\r\n")
            if end and len(body) >= int(head.lower().partition(b"content-length: ")[2].split()[0]):
                return int(head.split()[1]), body
    except ConnectionResetError:
        pass
    return None, response


def soon(running, condition):
    """Ask for something else until something has become true."""
    for _ in range(10_000):
        if condition():
            return
        assert running.client.get("/livez").status_code == 200
    pytest.fail("it does not become true")


def chunked(data, size=1000):
    parts = [data[start : start + size] for start in range(0, len(data), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in [*parts, b""])


# ---------------------------------------------------------------------------------------- lengths


def test_a_chunked_body(connect, running):
    client = connect()
    send(client, HEAD + "Transfer-Encoding: chunked\r\n", chunked(GOOD))
    status, body = answer(client)
    assert status == 200
    assert json.loads(body)["predictions"][0]["bbox"][:2] == [7, 8]
    # What comes behind it belongs to the next request.
    send(client, HEAD + f"Content-Length: {len(GOOD)}\r\n", GOOD)
    assert answer(client)[0] == 200


def test_lengths_and_headers_that_make_no_sense(connect, running):
    for headers in (
        "Content-Length: -1\r\n",
        "Content-Length: 1e3\r\n",
        "Content-Length: 10\r\nContent-Length: 11\r\n",
        "Content-Length: 99999999999999999999999\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Transfer-Encoding: gzip, chunked, gzip\r\n",
        "No colon\r\n",
        "Nu\0ll: x\r\n",
    ):
        client = connect()
        send(client, HEAD + headers, GOOD)
        assert answer(client)[0] == 400, headers
        running.works()


def test_chunks_that_make_no_sense(connect, running):
    for chunk in (b"zz\r\n", b"-5\r\nhello\r\n", b"ffffffffffffffffff\r\nx"):
        client = connect()
        send(client, HEAD + "Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n" + chunk)
        assert answer(client)[0] == 400, chunk
        running.works()


def test_a_length_that_is_too_small_cuts_the_image(connect, running):
    client = connect()
    send(client, HEAD + "Content-Length: 60\r\n", GOOD)
    assert answer(client)[0] == 400
    running.works()


def test_a_client_that_sends_less_than_it_said(connect, running):
    client = connect()
    send(client, HEAD + f"Content-Length: {len(GOOD) + 1}\r\n", GOOD)
    client.shutdown(socket.SHUT_WR)
    assert answer(client) == (None, b"")
    running.works()
    assert running.app.state.service.uploads.used == 0


# ------------------------------------------------------------------------------------------ floods


def test_a_head_without_an_end(connect, running):
    for head in (
        HEAD + "X: y\r\n" * 100_000,
        HEAD + f"X: {'y' * 2_000_000}\r\n",
        f"POST /pose?boxes={'1' * 2_000_000} HTTP/1.1\r\nHost: x\r\n",
        "P" * 2_000_000,
    ):
        client = connect()
        send(client, head)
        status, _ = answer(client)
        # Still sending, a client may find the connection reset before it reads why.
        assert status in (400, None), head[:80]
        running.works()


def test_a_head_at_the_limit(connect, running):
    client = connect()
    send(client, HEAD + f"X: {'y' * 60_000}\r\nContent-Length: {len(GOOD)}\r\n", GOOD)
    assert answer(client)[0] == 200


def test_trailers_are_not_kept(connect, running):
    client = connect()
    trailers = b"X: y\r\n" * 100_000 + b"\r\n"
    body = chunked(GOOD).removesuffix(b"\r\n") + trailers
    send(client, HEAD + "Transfer-Encoding: chunked\r\n", body)
    assert answer(client)[0] == 200


def test_thousands_of_parts(connect, running):
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nx\r\n'
    field = b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nx\r\n'
    head = "POST /pose HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    for kind, status in ((part, 413), (field, 422), (b"--b\r\n" + b"X: y\r\n" * 5, 422)):
        body = kind * 5000 + b"--b--\r\n"
        client = connect()
        send(client, head + f"Content-Length: {len(body)}\r\n", body)
        assert answer(client)[0] == status
    running.works()


def test_a_form_whose_part_has_endless_headers(connect, running):
    head = "POST /pose HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    body = b"--b\r\n" + b"X: y\r\n" * 100_000 + b"\r\nx\r\n--b--\r\n"
    client = connect()
    send(client, head + f"Content-Length: {len(body)}\r\n", body)
    assert answer(client)[0] == 422
    running.works()


def test_many_requests_at_once_on_one_connection(connect, running):
    client = connect()
    one = f"{HEAD}Content-Length: {len(GOOD)}\r\n\r\n".encode() + GOOD
    client.sendall(one * 20 + b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    received = b""
    while chunk := client.recv(2**16):
        received += chunk
    assert received.count(b"HTTP/1.1 200 OK") == 21
    running.works()


def test_half_a_handshake_is_refused(connect, running):
    client = connect()
    head = "GET /stream HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    send(client, head + "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n")
    assert answer(client)[0] == 400
    running.works()


# --------------------------------------------------------------------------------------- slowness


@pytest.fixture
def hasty(monkeypatch):
    """Limits that a test has not to wait for."""
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.05)
    monkeypatch.setattr(connection, "_GRACE_SECONDS", 0.0)


def test_who_sends_no_head_is_hung_up_on(hasty, connect, running):
    for sent in (b"", b"\r\n", b"POST /pose HTTP/1.1\r\nHost: x\r\n"):
        client = connect()
        client.sendall(sent)
        assert answer(client) == (None, b""), sent
        running.works()


def test_who_sends_line_ends_for_ever_is_hung_up_on(hasty, connect, running):
    client = connect()
    send(client, "GET /livez HTTP/1.1\r\nHost: x\r\n")
    assert answer(client)[0] == 200
    client.sendall(b"\r\n")
    assert answer(client) == (None, b"")


@pytest.fixture
def running(request, make):
    return make(**getattr(request, "param", {}))


@pytest.mark.parametrize("running", [{"transfer_seconds": 0.1}], indirect=True)
@pytest.mark.parametrize("kind", ["image/png", "multipart/form-data; boundary=b"])
def test_a_slow_body_is_answered(connect, running, kind):
    client = connect()
    head = f"POST /pose HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
    send(client, head + "Content-Length: 1000\r\n", b"--b\r\n")
    status, body = answer(client)
    assert status == 408
    assert json.loads(body)["type"] == "/problems/upload-timeout"
    assert running.app.state.service.uploads.used == 0
    running.works()
    assert running.value("pose_rejected_total", reason="upload-timeout") == 1


@pytest.mark.parametrize("running", [{"transfer_seconds": 0.1}], indirect=True)
def test_a_body_that_nobody_reads_does_not_keep_the_connection(hasty, connect, running):
    client = connect()
    send(client, "POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n", b"x")
    assert answer(client)[0] == 404
    assert answer(client) == (None, b"")


@pytest.mark.parametrize("running", [{"transfer_seconds": 0.1}], indirect=True)
def test_who_takes_no_answer_is_hung_up_on(connect, running):
    # Noise, drawn on and sent back as PNG: more than what kernels keep for a socket.
    noise = np.random.default_rng(0).integers(1, 256, (1500, 1500, 3), np.uint8)
    body = encode(Image.fromarray(noise), compress_level=0)
    client = connect(receive_buffer=4096)
    send(client, HEAD + f"Accept: image/png\r\nContent-Length: {len(body)}\r\n", body)
    running.until(lambda: not running.engine.in_flight and running.pipeline.seen)
    soon(running, lambda: not running.server.server_state.connections)
    status, received = answer(client)
    assert status is None
    assert len(received) < len(body) / 2


# ------------------------------------------------------------------------------------------- gone


def test_clients_that_go_at_any_moment_leave_nothing_behind(connect, running):
    whole = f"{HEAD}Content-Length: {len(GOOD)}\r\n\r\n".encode() + GOOD
    for kept in range(1, len(whole), 17):
        client = connect()
        client.sendall(whole[:kept])
        client.close()
    soon(running, lambda: not running.app.state.service.uploads.used)
    running.works()


# ------------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize(
    "running", [{"max_request_bytes": 1000, "max_bytes_in_flight": 3000}], indirect=True
)
def test_the_bytes_of_all_uploads_have_a_limit(connect, running):
    uploads = running.app.state.service.uploads
    slow = []
    for count in (1, 2):
        slow.append(connect())
        send(slow[-1], HEAD + "Content-Length: 1200\r\n", bytes(1100))
        soon(running, lambda count=count: uploads.used == 1100 * count)
    client = connect()
    send(client, HEAD + f"Content-Length: {len(GOOD)}\r\n", GOOD)
    status, body = answer(client)
    assert status == 503
    assert "2200 bytes are in flight" in json.loads(body)["detail"]
    for one in slow:
        one.close()
    soon(running, lambda: not uploads.used)
    running.works()
