import json
import socket
import threading
from contextlib import contextmanager
from dataclasses import replace
from time import monotonic
from urllib.parse import urlsplit

import pytest
from starlette.testclient import WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from app import connection
from app.api import stream
from tests.app.api_support import PATIENCE, png

RED = (7, 8, 9)


def wait_for(condition):
    end = monotonic() + PATIENCE
    while not condition():
        assert monotonic() < end
        threading.Event().wait(0.005)


@contextmanager
def opened(running, query="", **options):
    with running.client.websocket_connect(f"/stream{query}", **options) as socket:
        open_now = running.value("pose_streams")
        yield socket
        socket.close()
        # Else the test's client would cancel what it does not see end by itself.
        wait_for(lambda: running.value("pose_streams") < open_now)


def refused(running, query="", **options):
    """The problem that a stream is answered which is not let in."""
    with pytest.raises(WebSocketDenialResponse) as error, opened(running, query, **options):
        pass
    answer = error.value
    body = json.loads(answer.content)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["X-Request-ID"] == body["request_id"]
    assert body["status"] == answer.status_code
    assert running.value("pose_streams") == 0
    return body


def ask(socket, data):
    socket.send_bytes(data)
    return socket.receive_json()


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text("ann:aaaaaaaaaaaaaaaa\nbob:bbbbbbbbbbbbbbbb\n")
    return path


def key(name):
    return {"X-API-Key": name[0] * 16}


# ------------------------------------------------------------------------------------ the answers


def test_each_frame_is_answered_with_its_number_and_people(running):
    with opened(running, "?representation=dark") as socket:
        for number in range(3):
            answer = ask(socket, png(40 + number, 50, 255))
            assert (answer["frame"], answer["dropped"]) == (number, 0)
            assert (answer["representation"], answer["model"]) == ("dark", "dark-small")
            assert (answer["width"], answer["height"]) == (300, 280)
            [person] = answer["predictions"]
            assert person["image_id"] == number
            assert person["bbox"] == [40 + number, 50, 10, 20]
            assert "track_id" not in person
            timings = answer["timings_ms"]
            assert list(timings) == [
                *("wait", "decode", "queue", "detect", "crop", "pose", "postprocess", "total")
            ]
            assert timings["total"] >= timings["wait"] + timings["decode"]
        assert ask(socket, png(0, 0, 0))["predictions"] == []
        assert running.value("pose_streams") == 1
    running.until(lambda: running.engine.in_flight == 0)
    assert running.value("pose_stream_frames_total", outcome="answered") == 4
    assert running.value("pose_stream_delay_seconds_count") == 4


def test_the_query_is_heeded(running):
    with opened(running, "?model=pct-small&min_score=0.25&max_people=3") as socket:
        assert ask(socket, png(*RED))["model"] == "pct-small"
    [(_, options)] = running.pipeline.seen
    assert (options.model, options.min_score, options.max_people) == ("pct-small", 0.25, 3)


def test_people_are_followed_and_smoothed(running):
    with opened(running, "?track=true&smooth=true&min_score=0.3") as socket:
        people = [ask(socket, png(100 + 4 * step, 50, 255))["predictions"] for step in range(6)]
    assert [[person["track_id"] for person in found] for found in people] == [[1]] * 6
    # The joints are behind the box, which walks on.
    [[last]] = people[-1:]
    assert last["bbox"][0] == 120
    assert 100 < last["keypoints"][0] < 120
    assert running.pipeline.seen[0][1].min_score == pytest.approx(0.1)


def test_streams_have_tracks_of_their_own(running):
    with opened(running, "?track=true") as one, opened(running, "?track=true") as other:
        for socket in (one, other):
            [person] = ask(socket, png(100, 50, 255))["predictions"]
            assert person["track_id"] == 1


# ---------------------------------------------------------------------------------- the newest one


def test_the_newest_frame_wins(running):
    pipeline = running.pipeline
    pipeline.hold()
    with opened(running) as socket:
        socket.send_bytes(png(10, 0, 255))
        pipeline.wait_until_entered()
        for red in range(11, 16):
            socket.send_bytes(png(red, 0, 255))
        wait_for(lambda: running.value("pose_stream_frames_total", outcome="dropped") == 4)
        pipeline.go.set()
        answers = [socket.receive_json() for _ in range(2)]
        assert [(one["frame"], one["dropped"]) for one in answers] == [(0, 0), (5, 4)]
        reds = [one["predictions"][0]["bbox"][0] for one in answers]
        assert reds == [10, 15]
        # What waited for the first answer has waited in the second one's timings.
        assert answers[1]["timings_ms"]["wait"] > 0
    assert running.app.state.service.uploads.used == 0


def test_streams_and_requests_share_batches_and_never_answers(running):
    pipeline = running.pipeline
    pipeline.hold()
    with opened(running) as first:
        first.send_bytes(png(1, 0, 255))
        pipeline.wait_until_entered()
        with opened(running) as second, opened(running) as third:
            second.send_bytes(png(2, 0, 255))
            third.send_bytes(png(3, 0, 255))
            answers = []
            posting = threading.Thread(
                target=lambda: answers.append(running.post(png(4, 0, 255)).json())
            )
            posting.start()
            running.until(lambda: running.engine.queue_depth == 3)
            pipeline.go.set()
            for red, socket in enumerate((first, second, third), 1):
                assert socket.receive_json()["predictions"][0]["bbox"][0] == red
            posting.join(PATIENCE)
            assert answers[0]["predictions"][0]["bbox"][0] == 4
    # Of the three that waited two went together: half of them and of the one before.
    assert pipeline.entered._value == 2


# ------------------------------------------------------------------------------------- bad frames


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"", 400, "0 bytes"),
        (b"rubbish", 415, "not an image"),
        (png(*RED, size=(20, 20))[:60], 400, "damaged"),
        (png(*RED, size=(2000, 10)), 413, "more pixels"),
    ],
    ids=["empty", "rubbish", "cut", "large"],
)
def test_a_bad_frame_is_a_problem_and_the_stream_lives_on(make, data, status, words):
    running = make(max_image_pixels=10_000)
    with opened(running) as socket:
        answer = ask(socket, data)
        assert (answer["frame"], answer["dropped"]) == (0, 0)
        problem = answer["problem"]
        assert problem.keys() == {"type", "title", "status", "detail", "request_id"}
        assert problem["status"] == status
        assert words in problem["detail"]
        assert ask(socket, png(*RED, size=(20, 20)))["predictions"][0]["bbox"][0] == RED[0]
    reason = problem["type"].rpartition("/")[2]
    assert running.value("pose_rejected_total", reason=reason) == 1
    assert running.value("pose_stream_frames_total", outcome="refused") == 1


def test_text_is_no_frame(running):
    with opened(running) as socket:
        socket.send_text("hello")
        assert "This one is text" in socket.receive_json()["problem"]["detail"]
        assert ask(socket, png(*RED))["frame"] == 1


def test_a_frame_that_the_device_fails_at_fails_alone(running):
    running.pipeline.poisoned = 66
    with opened(running) as socket:
        problem = ask(socket, png(66, 0, 255))["problem"]
        assert problem["status"] == 500
        assert "secret" not in problem["detail"]
        assert ask(socket, png(*RED))["predictions"]


def test_a_frame_that_takes_too_long(make):
    running = make(deadline_seconds=0.05)
    running.pipeline.hold()
    with opened(running) as socket:
        assert ask(socket, png(*RED))["problem"]["status"] == 504
        running.pipeline.go.set()
        running.until(lambda: running.engine.in_flight == 0 and not running.engine._running)
        assert ask(socket, png(*RED))["predictions"]


def test_no_room_for_a_frame(make):
    running = make(max_bytes_in_flight=2**21, max_request_bytes=2**20)
    uploads = running.app.state.service.uploads
    assert uploads.take("somebody else", 2**21 - 10)
    with opened(running) as socket:
        answer = ask(socket, png(*RED))
        assert answer["problem"]["status"] == 503
        assert answer["retry_after"] == 1
        uploads.give_back("somebody else", 2**21 - 10)
        assert ask(socket, png(*RED))["predictions"]


# ---------------------------------------------------------------------------------- who is let in


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        (
            "?colour=red",
            422,
            "known are max_people, min_score, model, representation, smooth, track",
        ),
        ("?representation=3d", 422, "representation"),
        ("?min_score=2", 422, "min_score"),
        ("?max_people=1000", 422, "from 1 to 100"),
        ("?model=nobody", 404, "nobody does not exist"),
        ("?smooth=true", 422, "add track=true"),
        ("?track=true&track=false", 422, "more than once: track"),
    ],
)
def test_a_bad_query_is_a_problem(running, query, status, words):
    body = refused(running, query)
    assert body["status"] == status
    assert words in body["detail"]


def test_following_needs_its_libraries(running, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "app.tracking", None)
    assert "posemux[video]" in refused(running, "?track=true")["detail"]


def test_a_key_is_needed_and_each_frame_is_a_request_of_its_rate(make, keys):
    running = make(api_keys_file=keys, key_rate=0.001, key_burst=2)
    assert refused(running)["status"] == 401
    assert refused(running, headers={"Authorization": "Bearer wrong"})["status"] == 401
    with opened(running, headers=key("ann")) as socket:
        assert ask(socket, png(*RED))["predictions"]
        assert ask(socket, png(*RED))["predictions"]
        answer = ask(socket, png(*RED))
        assert answer["problem"]["status"] == 429
        assert answer["retry_after"] > 100
    with opened(running, headers={"Authorization": "Bearer " + "b" * 16}) as socket:
        assert ask(socket, png(*RED))["predictions"]
    assert running.value("pose_key_requests_total", key="ann", status="200") == 2
    assert running.value("pose_key_requests_total", key="ann", status="429") == 1


def test_an_idle_stream_takes_nothing_of_a_keys_concurrency(make, keys):
    running = make(api_keys_file=keys, key_concurrency=1)
    with opened(running, headers=key("ann")) as one, opened(running, headers=key("ann")) as other:
        assert ask(one, png(*RED))["predictions"]
        assert ask(other, png(*RED))["predictions"]


def test_streams_have_a_number_of_places_of_which_nobody_gets_all(make, keys):
    running = make(max_streams=4, api_keys_file=keys)
    ann, bob = key("ann"), key("bob")
    with opened(running, headers=ann), opened(running, headers=ann), opened(running, headers=ann):
        body = refused_meanwhile(running, headers=ann)
        assert body["status"] == 503
        assert "3 streams are open" in body["detail"]
        with opened(running, headers=bob) as socket:
            assert ask(socket, png(*RED))["predictions"]
    wait_for(lambda: running.value("pose_streams") == 0)


def refused_meanwhile(running, **options):
    with pytest.raises(WebSocketDenialResponse) as error, opened(running, **options):
        pass
    return json.loads(error.value.content)


@pytest.mark.parametrize(
    ("origin", "admitted"),
    [
        ("http://testserver", True),
        ("https://ours.example", True),
        ("https://theirs.example", False),
        ("null", False),
    ],
)
def test_other_web_sites_pages_need_to_be_named(make, origin, admitted):
    running = make(cors_origins="https://ours.example")
    if not admitted:
        assert refused(running, headers={"Origin": origin})["status"] == 403
        return
    with opened(running, headers={"Origin": origin}) as socket:
        assert ask(socket, png(*RED))["predictions"]


def test_before_it_is_ready(make):
    running = make()
    running.engine._warm = False
    assert refused(running)["status"] == 503
    running.engine._warm = True


def test_the_log_tells_of_a_stream_when_it_ends(running, logged):
    with opened(running, headers={"X-Request-ID": "mine"}) as socket:
        ask(socket, png(*RED))
        ask(socket, b"rubbish")
    wait_for(lambda: any(line.get("path") == "/stream" for line in logged()))
    [line] = [line for line in logged() if line.get("path") == "/stream"]
    told = {"method": "WS", "status": 101, "request_id": "mine", "model": "simcc-small"}
    assert line.items() >= {**told, "answered": 1, "dropped": 0, "refused": 1}.items()


def test_what_nobody_foresaw_ends_the_stream_with_a_code(running, monkeypatch, logged):
    monkeypatch.setattr(stream, "coco_results", lambda *_: 1 / 0)
    with opened(running) as socket, pytest.raises(WebSocketDisconnect) as error:
        ask(socket, png(*RED))
    assert error.value.code == 1011
    assert any("unhandled" in line["event"] for line in logged())


# -------------------------------------------------------------------------------- over the network


@pytest.fixture
def running(request, make):
    return make(**getattr(request, "param", {}))


def address(served):
    return served.replace("http", "ws") + "/stream"


def test_over_a_socket(served, running, logged):
    with connect(address(served), compression=None) as socket:
        socket.send(png(*RED))
        answer = json.loads(socket.recv(PATIENCE))
        assert answer["predictions"][0]["bbox"] == [7, 8, 10, 20]
        with pytest.raises(InvalidStatus) as error, connect(address(served) + "?x=1"):
            pass
        assert error.value.response.status_code == 422
        assert json.loads(error.value.response.body)["title"] == "A parameter is invalid"
        assert running.value("pose_streams") == 1
    wait_for(lambda: running.value("pose_streams") == 0)
    told = [line for line in logged() if line["level"] != "debug"]
    assert {line["event"] for line in told if "path" in line} == {"request"}
    assert not [line for line in told if line["level"] == "error" or "x=1" in line["event"]]


def test_elsewhere_there_are_no_streams(served):
    with pytest.raises(InvalidStatus) as error, connect(served.replace("http", "ws") + "/livez"):
        pass
    assert error.value.response.status_code == 404
    assert "only at /stream" in json.loads(error.value.response.body)["detail"]


@pytest.mark.parametrize("running", [{"max_image_bytes": 1000}], indirect=True)
def test_a_frame_of_too_many_bytes_ends_the_stream(served):
    with connect(address(served)) as socket:
        socket.send(bytes(1001))
        with pytest.raises(ConnectionClosed) as error:
            socket.recv(PATIENCE)
    assert error.value.rcvd.code == 1009


@pytest.mark.parametrize("running", [{"transfer_seconds": 0.2}], indirect=True)
def test_a_stream_without_frames_is_ended(served, running):
    with connect(address(served)) as socket, pytest.raises(ConnectionClosed) as error:
        socket.recv(PATIENCE)
    assert (error.value.rcvd.code, error.value.rcvd.reason) == (
        1008,
        "There was no frame within 0.2 seconds.",
    )
    wait_for(lambda: running.value("pose_streams") == 0)


def test_a_client_that_goes_leaves_nothing_behind(served, running):
    running.pipeline.hold()
    with connect(address(served)) as socket:
        socket.send(png(*RED))
        running.pipeline.wait_until_entered()
        socket.send(png(*RED))
        wait_for(lambda: running.app.state.service.uploads.used > len(png(*RED)))
        # As when a phone is out of reach: no farewell.
        socket.socket.close()
        wait_for(lambda: running.value("pose_streams") == 0)
    running.pipeline.go.set()
    running.until(lambda: running.engine.in_flight == 0)
    assert running.app.state.service.uploads.used == 0
    running.works()


def test_draining_answers_what_was_let_in_and_ends_streams_with_a_code(served, running):
    running.pipeline.hold()
    with connect(address(served)) as busy, connect(address(served)) as idle:
        busy.send(png(*RED))
        running.pipeline.wait_until_entered()
        running.server.handle_exit(15, None)
        wait_for(lambda: not running.engine.ready)
        busy.send(png(*RED))
        running.pipeline.go.set()
        assert json.loads(busy.recv(PATIENCE))["predictions"]
        for socket in (busy, idle):
            with pytest.raises(ConnectionClosed) as error:
                socket.recv(PATIENCE)
            assert error.value.rcvd.code == 1012


@pytest.mark.parametrize("running", [{"transfer_seconds": 0.3}], indirect=True)
def test_whoever_takes_no_answers_is_hung_up_on(served, running):
    """More than what the network keeps on its way for him."""
    answer = running.pipeline.answer

    def crowd(*asked):
        poses = answer(*asked)
        parts = {name: getattr(poses, name) for name in ("boxes", "scores", "keypoints")}
        return replace(poses, **{name: part.repeat(20_000, 0) for name, part in parts.items()})

    running.pipeline.answer = crowd
    url = urlsplit(served)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((url.hostname, url.port))
    with connect(address(served), sock=client, max_queue=1) as stream:
        stream.send(png(*RED))
        wait_for(lambda: running.value("pose_streams") == 1)
        wait_for(lambda: running.value("pose_streams") == 0)
    running.pipeline.answer = answer
    running.works()


def test_a_stream_outlives_the_time_that_a_request_has(served, running, monkeypatch):
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.05)
    monkeypatch.setattr(connection, "_GRACE_SECONDS", 0.05 - running.settings.transfer_seconds)
    with connect(address(served)) as socket:
        end = monotonic() + 0.3
        while monotonic() < end:
            socket.send(png(*RED))
            assert json.loads(socket.recv(PATIENCE))["predictions"]
