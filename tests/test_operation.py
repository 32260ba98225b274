"""posemux as it is run: scraped by a real Prometheus, and restarted behind a real nginx."""

from __future__ import annotations

import asyncio
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from threading import Event, Thread
from typing import Any

import httpx
import numpy as np
import pytest
from websockets.sync.client import connect

from app.bench.load import Answer, Load, closed_loop, in_turn, open_loop
from app.bench.processes import free_port
from app.metrics import DURATION_BUCKETS
from tests.app.api_support import png
from tests.daemons import ROOT, Instance, Nginx, Nursery, Prometheus, is_ok, needs, until
from tests.photos import BUS

DASHBOARD = json.loads((ROOT / "docker/grafana/dashboards/posemux.json").read_text())
#: How often Prometheus scrapes here, and how much of the throughput the two ends of a window may
#: therefore hide.
SCRAPE = "100ms"
THROUGHPUT_ERROR = 0.15
SECONDS = 2.0
#: When clients ask during a restart, again and again, in seconds.
MOMENTS = np.arange(0, 0.4, 0.08)
REPRESENTATIONS = ("simcc", "dark")


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with Nursery(tmp_path_factory.mktemp("nursery")) as started:
        yield started


@pytest.fixture(scope="module")
def instance(nursery: Nursery) -> Iterator[Instance]:
    """A service that is alone."""
    started = nursery.is_ready(nursery.serve())
    yield started
    assert started.stop() == 0


def test_the_health_check_of_the_image_tells_ready_from_gone(instance: Instance) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    [check] = re.findall(r"^HEALTHCHECK [^\n]+\\\n +CMD \[\"python\", (.+)\]$", dockerfile, re.M)
    command = [sys.executable, *json.loads(f"[{check}]")]
    for port, ready in ((instance.port, True), (free_port(), False)):
        environment = {"POSE_PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
        done = subprocess.run(command, env=environment, capture_output=True, check=False)
        assert (done.returncode == 0) is ready


# ------------------------------------------------------------------------------------- Prometheus


@dataclass
class Watched:
    """A load, and the Prometheus that watched the service meanwhile."""

    prometheus: Prometheus
    loads: dict[str, Load]
    before: float
    """When a scrape had seen all that was before the load, in Unix seconds."""
    begin: float
    end: float
    after: float
    """When a scrape had seen the whole load."""


@pytest.fixture(scope="module")
def watched(instance: Instance, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    needs("prometheus")
    with Prometheus(tmp_path_factory.mktemp("prometheus"), instance.address, SCRAPE) as prometheus:
        prometheus.until(lambda: is_ok(f"{prometheus.url}/-/ready"), "Prometheus")
        until(lambda: prometheus.value("pose_ready") == 1, "a scrape")
        not_an_image = httpx.post(f"{instance.url}/pose", content=b"hello", trust_env=False)
        assert not_an_image.status_code == 415
        drawn = httpx.post(
            f"{instance.url}/pose",
            content=BUS.read_bytes(),
            headers={"Content-Type": "image/jpeg", "Accept": "image/jpeg"},
            trust_env=False,
        )
        assert drawn.status_code == 200
        until(lambda: prometheus.value("sum(pose_requests_total)") == 2, "both to be counted")
        before = prometheus.value("timestamp(pose_ready)")
        # The first one of the window, which the load's increase counts from.
        until(lambda: prometheus.value("timestamp(pose_ready)") > before, "another scrape")

        begin = time.time()
        loads = asyncio.run(load(instance))
        end = time.time()
        count = 2 + sum(len(one.answers) for one in loads.values())
        until(lambda: prometheus.value("sum(pose_requests_total)") == count, "the last scrape")
        after = prometheus.value("timestamp(pose_ready)")
        yield Watched(prometheus, loads, before, begin, end, after)


async def load(instance: Instance) -> dict[str, Load]:
    """Two clients for each representation, and a stream on which nobody is, at the same time."""
    photo = BUS.read_bytes()
    asked = [f"{instance.url}/pose?representation={name}" for name in REPRESENTATIONS]
    *done, answer = await asyncio.gather(
        *(closed_loop(in_turn([url], [photo]), 2, seconds=SECONDS) for url in asked),
        asyncio.to_thread(stream_one, instance, png(127, 127, 127)),
    )
    assert answer["predictions"] == []
    return dict(zip(REPRESENTATIONS, done, strict=True))


def stream_one(instance: Instance, frame: bytes) -> dict[str, Any]:
    """What a frame is answered."""
    with connect(f"ws://{instance.address}/stream", proxy=None, compression=None) as stream:
        stream.send(frame)
        answer: dict[str, Any] = json.loads(stream.recv())
    return answer


def window(seconds: float) -> str:
    return f"[{1000 * seconds:.0f}ms]"


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_prometheus_counts_every_request(watched: Watched, representation: str) -> None:
    answers = watched.loads[representation].answers
    assert {answer.status for answer in answers} == {"200"}
    counter = f'pose_requests_total{{representation="{representation}", status="200"}}'
    grown = f"{counter} - {counter} @ {watched.before:.3f}"
    assert watched.prometheus.value(grown, watched.after) == len(answers)
    people = f'pose_persons_total{{representation="{representation}"}}'
    grown = f"{people} - {people} @ {watched.before:.3f}"
    assert watched.prometheus.value(grown, watched.after) == sum(one.people for one in answers)


def test_prometheus_sees_the_throughput(watched: Watched) -> None:
    count = sum(len(one.answers) for one in watched.loads.values())
    rate = f"rate(pose_images_total{window(watched.end - watched.begin)})"
    seen = watched.prometheus.value(rate, watched.end)
    expected = count / (watched.end - watched.begin)
    assert seen == pytest.approx(expected, rel=THROUGHPUT_ERROR)


@pytest.mark.parametrize("quantile", [0.5, 0.95, 0.99])
@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_prometheus_sees_the_latency(
    watched: Watched, representation: str, quantile: float
) -> None:
    """A quantile of a histogram is known to the bucket: a factor of 2 or 2.5.

    A client's clock starts before the service's and stops after it, and the `timings_ms.total` of
    an answer starts with the service's and stops before it: theirs are the buckets between.
    """
    answers = watched.loads[representation].answers
    inside = nearest([answer.timings["total"] / 1000 for answer in answers], quantile)
    outside = nearest([answer.seconds for answer in answers], quantile)
    edges = pairwise((0.0, *DURATION_BUCKETS, math.inf))
    at_least = max(low for low, _ in edges if low < inside)
    at_most = min(edge for edge in (*DURATION_BUCKETS, math.inf) if outside <= edge)

    buckets = f'pose_request_duration_seconds_bucket{{representation="{representation}"}}'
    rate = f"rate({buckets}{window(watched.after - watched.before)})"
    seen = watched.prometheus.value(f"histogram_quantile({quantile}, {rate})", watched.after)
    assert at_least <= seen <= at_most


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_prometheus_sees_the_mean_latency(watched: Watched, representation: str) -> None:
    """Sums know no buckets: between the same two clocks, whatever they are apart."""
    answers = watched.loads[representation].answers
    inside = np.mean([answer.timings["total"] / 1000 for answer in answers])
    outside = np.mean([answer.seconds for answer in answers])
    series = f'{{representation="{representation}"}}{window(watched.after - watched.before)}'
    name = "pose_request_duration_seconds"
    mean = f"rate({name}_sum{series}) / rate({name}_count{series})"
    seen = watched.prometheus.value(mean, watched.after)
    # `timings_ms` are rounded to the hundredth.
    assert inside - 1e-5 <= seen <= outside


def nearest(values: Sequence[float], quantile: float) -> float:
    """The value that so many are not above."""
    return float(np.quantile(values, quantile, method="inverted_cdf"))


def test_prometheus_can_evaluate_every_alert(watched: Watched) -> None:
    def rules() -> list[dict[str, str]]:
        [group] = watched.prometheus.api("rules")["groups"]
        return group["rules"]

    until(lambda: all(rule["health"] != "unknown" for rule in rules()), "the alerts")
    assert {rule["health"] for rule in rules()} == {"ok"}
    assert {rule["state"] for rule in rules()} == {"inactive"}


# ---------------------------------------------------------------------------------------- Grafana

QUERIES = [
    # A panel says so where there is nothing to show without a GPU, say.
    pytest.param(
        target["expr"],
        panel.get("description", "").startswith("Absent"),
        id=f"{panel['title']}-{target['refId']}",
    )
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
]


@pytest.mark.parametrize(("query", "absent"), QUERIES)
def test_every_query_of_the_dashboard_has_something_to_show(
    watched: Watched, query: str, absent: bool
) -> None:
    """With what Grafana puts in for its variables."""
    lasting = window(watched.after - watched.before)[1:-1]
    query = query.replace("$__rate_interval", lasting).replace("$instance", ".*")
    assert "$" not in query
    values = [value for _, value in watched.prometheus.query(query, watched.after)]
    assert any(math.isfinite(value) for value in values) is not absent, values


def test_the_dashboard_finds_the_instances(watched: Watched) -> None:
    [variable] = DASHBOARD["templating"]["list"]
    assert variable["definition"] == "label_values(pose_ready, instance)"
    found = watched.prometheus.api("label/instance/values", **{"match[]": "pose_ready"})
    assert len(found) == 1


# ------------------------------------------------------------------------------------------ nginx


def test_a_rolling_restart_behind_nginx_loses_no_request(
    nursery: Nursery, instance: Instance, tmp_path_factory: pytest.TempPathFactory
) -> None:
    needs("nginx")
    other = nursery.is_ready(nursery.serve())
    ports = instance.port, other.port
    answers: list[Answer] = []
    restarted = Event()
    with Nginx(tmp_path_factory.mktemp("nginx"), ports) as nginx:
        nginx.until(lambda: is_ok(f"{nginx.url}/readyz"), "nginx")
        requests = in_turn([f"{nginx.url}/pose"], [BUS.read_bytes()])

        def ask() -> None:
            while not restarted.is_set():
                answers.extend(asyncio.run(open_loop(requests, MOMENTS)).answers)

        clients = Thread(target=ask)
        clients.start()
        try:
            for one in (instance, other):
                asked = len(answers)
                until(lambda: len(answers) > asked, "answers before it")  # noqa: B023
                assert one.stop() == 0
                one.start()
                nursery.is_ready(one)
        finally:
            restarted.set()
            clients.join()
        tries = nginx.access.read_text()

    assert {answer.status for answer in answers} == {"200"}, tries
    # It was not by luck: some had to be asked for a second time.
    assert " 200 after 502, 200" in tries
    assert other.stop() == 0
