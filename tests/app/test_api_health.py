import re

from prometheus_client.parser import text_string_to_metric_families

from app import errors
from app.schemas import PoseResponse
from tests.app.api_support import PATIENCE, png


def test_alive_and_ready(running):
    assert running.client.get("/livez").json() == {"status": "alive"}
    assert running.client.get("/readyz").json() == {"status": "ready"}


def test_alive_but_not_ready_while_it_loads(make):
    running = make(wait=False)
    warm = running.pipeline.go
    warm.clear()
    running.pipeline.warm_up = lambda: warm.wait(PATIENCE)
    running.client.__enter__()
    assert running.client.get("/livez").status_code == 200
    response = running.client.get("/readyz")
    warm.set()
    running.until(lambda: running.engine.ready)
    running.refuses(response, 503, "being loaded")


def test_alive_but_not_ready_while_it_drains(running):
    running.engine.drain(0)
    response = running.client.get("/readyz")
    assert response.status_code == 503
    assert response.json()["type"] == errors.DrainingError.type
    assert running.post(png(1, 2, 3)).json()["type"] == errors.DrainingError.type


def test_neither_once_the_engine_has_failed(make):
    running = make(wait=False)

    def fail():
        raise RuntimeError("/a/secret/path")

    running.pipeline.warm_up = fail
    running.client.__enter__()
    running.until(lambda: running.engine.failure)
    for path in ("/livez", "/readyz"):
        response = running.client.get(path)
        assert response.status_code == 503
        assert response.headers["Content-Type"] == "application/problem+json"
        assert "secret" not in response.text


def test_a_device_that_hangs_is_not_alive(make):
    running = make(heartbeat_seconds=1e-9)
    running.pipeline.hold()
    assert running.client.get("/livez").status_code == 503
    assert running.client.get("/readyz").status_code == 503
    assert running.value("pose_ready") == 0


def test_metrics_are_what_prometheus_reads(running):
    running.post(png(1, 2, 3))
    response = running.client.get("/metrics")
    assert response.headers["Content-Type"].startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(response.text)}
    assert {"pose_requests", "pose_in_flight", "process_resident_memory_bytes"} <= families.keys()
    counted = [s for s in families["pose_requests"].samples if s.name == "pose_requests_total"]
    [sample] = [s for s in counted if s.value]
    assert sample.labels == {"representation": "simcc", "status": "200"}
    modern = running.client.get("/metrics", headers={"Accept": "application/openmetrics-text"})
    assert modern.headers["Content-Type"].startswith("application/openmetrics-text")


# --------------------------------------------------------------------------------- documentation


def test_the_documentation_needs_no_network(running):
    page = running.client.get("/docs").text
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(loaded) >= 2
    for address in loaded:
        assert address.startswith("/docs/assets/")
        assert running.client.get(address).status_code == 200


def test_the_documentation_is_complete(running):
    schema = running.client.get("/openapi.json").json()
    assert schema["paths"].keys() == {"/pose", "/models", "/livez", "/readyz", "/metrics"}
    pose = schema["paths"]["/pose"]["post"]
    assert pose["requestBody"]["content"].keys() >= {"image/jpeg", "multipart/form-data"}
    answers = pose["responses"]
    produced = {"application/json", "image/jpeg", "image/png"}
    assert answers["200"]["content"].keys() == produced
    shown = {"400", "404", "406", "408", "413", "415", "422", "500", "503", "504"}
    assert answers.keys() == {"200", *shown}
    for status in shown:
        [(media_type, content)] = answers[status]["content"].items()
        assert media_type == "application/problem+json"
        assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
        assert content["examples"]
    assert "Retry-After" in answers["503"]["headers"]
    assert "Problem" in schema["components"]["schemas"]
    assert "HTTPValidationError" not in schema["components"]["schemas"]
    for parameter in pose["parameters"]:
        assert parameter["description"]


def test_the_example_is_one(running):
    schema = running.client.get("/openapi.json").json()
    answer = schema["paths"]["/pose"]["post"]["responses"]["200"]["content"]["application/json"]
    PoseResponse.model_validate(answer["example"], extra="forbid")
