from dataclasses import replace

import pytest

from tests.app.api_support import png

GOOD = png(1, 2, 51)


def test_unknown_paths(running):
    response = running.client.get("/nothing")
    body = running.refuses(response, 404, "/nothing", "/docs")
    assert (body["type"], body["title"]) == ("about:blank", "Not Found")
    running.refuses(running.client.get("/docs/assets/nothing"), 404)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_other_methods(running, method):
    response = running.client.request(method, "/pose")
    running.refuses(response, 405, method, "POST")
    assert response.headers["Allow"] == "POST"
    assert running.value("pose_requests_total", representation="none", status="405") == 0


def test_what_nobody_foresaw_is_a_problem_too(running, logged):
    answer = running.pipeline.answer
    running.pipeline.answer = lambda *pair: replace(answer(*pair), timings={})
    response = running.post(GOOD)
    running.pipeline.answer = answer
    body = running.refuses(response, 500, "log")
    [line] = [line for line in logged() if line["event"] == "unhandled error"]
    assert line["request_id"] == body["request_id"]
    assert "KeyError" in line["exception"]


def test_a_sane_request_id_is_kept(running):
    response = running.post(GOOD, headers={"X-Request-ID": "a.B_9-"})
    assert response.headers["X-Request-ID"] == response.json()["request_id"] == "a.B_9-"
    assert (
        running.client.get("/livez", headers={"X-Request-ID": "x"}).headers["X-Request-ID"] == "x"
    )


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "{}", 'a"b', "é", "a\tb"])
def test_other_request_ids_are_replaced(running, given):
    response = running.post(GOOD, headers={"X-Request-ID": given.encode()})
    made = response.headers["X-Request-ID"]
    assert made == response.json()["request_id"]
    assert len(made) == 32
    assert made.isalnum()


def test_labels_are_never_a_clients_words(running):
    running.post(GOOD, params={"representation": "made-up"})
    running.post(GOOD, params={"model": "made-up"})
    metrics = running.client.get("/metrics").text
    assert "made-up" not in metrics
    assert running.value("pose_requests_total", representation="none", status="422") == 1
    assert running.value("pose_requests_total", representation="none", status="404") == 1
    assert running.value("pose_rejected_total", reason="unknown-model") == 1
    assert running.value("pose_request_duration_seconds_count", representation="none") == 2
