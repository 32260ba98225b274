import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from app import cli
from tests.app.api_support import PATIENCE, png
from tests.app.test_api_pose import MEGABYTE, Asgi

GOOD = png(1, 2, 51)
ALICE, BOB = "alice-0123456789", "bob-0123456789ab"


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "keys"
    made.write_text(f"alice:{ALICE}\nbob:{BOB}\n")
    return made


@pytest.fixture
def guarded(make, path):
    """A service that asks for keys, and whose own client has Alice's."""

    def made(**settings):
        running = make(api_keys_file=path, **settings)
        running.client.headers["X-API-Key"] = ALICE
        return running

    return made


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    "headers",
    [
        {"X-API-Key": ""},
        {"X-API-Key": "nobody-0123456789"},
        {"X-API-Key": ALICE, **bearer("nobody-0123456789")},
        {"X-API-Key": "", "Authorization": f"Basic {ALICE}"},
        {"X-API-Key": "", "Authorization": "Bearer"},
        {"X-API-Key": "", "Authorization": b"Bearer \xff"},
    ],
)
def test_without_a_key_there_is_no_answer(guarded, headers):
    running = guarded()
    for response in (
        running.post(GOOD, headers=headers),
        running.post(GOOD, headers=headers, params={"representation": "none"}),
        running.client.get("/models", headers=headers),
    ):
        body = running.refuses(response, 401, "key")
        assert body["type"] == "/problems/unauthorized"
        assert response.headers["WWW-Authenticate"] == 'Bearer realm="posemux"'
    assert running.value("pose_rejected_total", reason="unauthorized") == 2
    assert "0123456789" not in response.text


@pytest.mark.parametrize(
    "headers", [{"X-API-Key": ALICE}, {"X-API-Key": "", **bearer(ALICE)}, bearer(ALICE)]
)
def test_with_a_key_there_is(guarded, headers):
    running = guarded()
    assert running.post(GOOD, headers=headers).status_code == 200
    assert running.client.get("/models", headers=headers).status_code == 200


def test_the_body_of_a_stranger_is_not_looked_at(guarded):
    running = guarded(max_image_bytes=10)
    assert running.post(GOOD).status_code == 413
    headers = {"X-API-Key": "nobody-0123456789"}
    assert running.post(GOOD, headers=headers).status_code == 401


def test_health_metrics_and_documentation_are_open(guarded):
    running = guarded()
    del running.client.headers["X-API-Key"]
    for path in ("/livez", "/readyz", "/metrics", "/docs", "/openapi.json"):
        assert running.client.get(path).status_code == 200


def test_without_a_file_everybody_may_ask(running):
    assert running.post(GOOD, headers=bearer("whatever")).status_code == 200
    schema = running.client.get("/openapi.json").json()
    assert "401" not in schema["paths"]["/pose"]["post"]["responses"]


def test_keys_are_documented(guarded):
    schema = guarded().client.get("/openapi.json").json()
    for operation in (schema["paths"]["/pose"]["post"], schema["paths"]["/models"]["get"]):
        assert operation["security"] == [{"bearer": []}, {"header": []}]
        assert {"401", "429"} <= operation["responses"].keys()
        assert "Retry-After" in operation["responses"]["429"]["headers"]
    assert "security" not in schema["paths"]["/metrics"]["get"]


def test_the_log_and_the_metrics_know_the_name_and_not_the_key(guarded, logged):
    running = guarded()
    running.post(GOOD)
    running.post(GOOD, headers=bearer(BOB))
    running.post(b"rubbish", headers=bearer(BOB))
    running.post(GOOD, headers=bearer("nobody-0123456789"))
    lines = [line for line in logged() if line["event"] == "request"]
    assert [line.get("key") for line in lines] == ["alice", "bob", "bob", None]
    assert "0123456789" not in repr(logged())
    assert running.value("pose_key_requests_total", key="alice", status="200") == 1
    assert running.value("pose_key_requests_total", key="bob", status="200") == 1
    assert running.value("pose_key_requests_total", key="bob", status="415") == 1
    assert "0123456789" not in running.client.get("/metrics").text


def test_a_key_may_ask_so_often(guarded):
    running = guarded(key_rate=0.001, key_burst=2)
    answers = [running.post(GOOD) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2].json()["type"] == "/problems/too-many-requests"
    assert 900 < int(answers[2].headers["Retry-After"]) <= 1000
    assert running.post(GOOD, headers=bearer(BOB)).status_code == 200
    assert running.value("pose_rejected_total", reason="too-many-requests") == 1


def test_a_key_may_ask_so_much_at_the_same_time(guarded):
    running = guarded(key_concurrency=1)
    running.pipeline.hold()
    with ThreadPoolExecutor(1) as clients:
        first = clients.submit(running.post, GOOD)
        running.pipeline.wait_until_entered()
        refused = running.post(GOOD)
        running.pipeline.go.set()
        assert first.result(PATIENCE).status_code == 200
    assert refused.status_code == 429
    assert refused.headers["Retry-After"] == "1"
    # Whatever becomes of a request, its place is free again.
    running.pipeline.poisoned = 77
    for content in (b"rubbish", png(77, 0, 0), GOOD, GOOD):
        assert running.post(content).status_code != 429


def test_the_place_of_a_client_that_goes_is_free_again(guarded):
    running = guarded(key_concurrency=1)
    messages = [{**MEGABYTE, "body": GOOD[:50]}, {"type": "http.disconnect"}]
    request = Asgi({"content-type": "image/png", "x-api-key": ALICE}, iter(messages))
    assert running.client.portal.call(request, running.app) == 499
    running.works()


def test_a_file_that_cannot_be_used_is_one_line_at_the_start(path, monkeypatch, capsys):
    path.write_text("secret\n")
    monkeypatch.setenv("POSE_API_KEYS_FILE", str(path))
    assert cli.main(["serve", "--port", "0"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"posemux: .*keys, line 1 is not a key\. Accepted: .*", line)
    assert "secret" not in line


# ----------------------------------------------------------------------------------------- browsers

ELSEWHERE = {"Origin": "https://example.org"}
ASKED = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}


def test_pages_from_elsewhere_get_no_leave_by_default(running):
    response = running.post(GOOD, headers=ELSEWHERE)
    assert not [name for name in response.headers if name.startswith("access-control")]
    running.refuses(running.client.options("/pose", headers=ELSEWHERE | ASKED), 405)


def test_pages_of_some_web_sites_do(guarded):
    running = guarded(cors_origins="https://example.org, http://localhost:3000")
    early = running.client.options("/pose", headers={**ELSEWHERE, **ASKED, "X-API-Key": ""})
    assert early.status_code == 200
    assert early.headers["Access-Control-Allow-Origin"] == "https://example.org"
    assert "X-Request-ID" in early.headers
    for response in (running.post(GOOD, headers=ELSEWHERE), running.post(b"", headers=ELSEWHERE)):
        assert response.headers["Access-Control-Allow-Origin"] == "https://example.org"
        assert "X-Request-ID" in response.headers["Access-Control-Expose-Headers"]
    other = running.post(GOOD, headers={"Origin": "https://example.com"})
    assert "Access-Control-Allow-Origin" not in other.headers
