"""Images, compose files, Prometheus and Grafana fit each other, the service and their schemas."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema
from jsonschema import Draft7Validator, Draft202012Validator
from prometheus_client import CollectorRegistry

import models
from app.main import _LAST_BYTES_SECONDS
from app.metrics import Metrics
from app.settings import Settings
from tests.daemons import needs

ROOT = Path(__file__).parent.parent
PROMETHEUS = ROOT / "docker/prometheus"
ALERTS = PROMETHEUS / "alerts.yml"
DASHBOARD = ROOT / "docker/grafana/dashboards/posemux.json"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
OPERATIONS = (ROOT / "docs/operations.md").read_text()


# -------------------------------------------------------------------------- Prometheus and Grafana


def series() -> dict[str, str]:
    """Every time series that /metrics may show, with the metric that it belongs to."""
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"], "gauge": [""]}
    registry = CollectorRegistry()
    Metrics(registry)
    return {
        metric.name + suffix: metric.name
        for metric in registry.collect()
        for suffix in suffixes[metric.type]
    }


def used_series(text: str) -> set[str]:
    return set(re.findall(r"\bpose_\w+", text))


def alerts() -> list[dict[str, Any]]:
    [group] = yaml.safe_load(ALERTS.read_text())["groups"]
    return group["rules"]


@pytest.mark.parametrize("path", [DASHBOARD, ALERTS], ids=lambda path: path.name)
def test_dashboard_and_alerts_ask_for_series_that_exist(path: Path) -> None:
    used = used_series(path.read_text())
    assert used
    assert used <= series().keys()


def test_dashboard_shows_every_metric() -> None:
    known = series()
    shown = {known[name] for name in used_series(DASHBOARD.read_text()) & known.keys()}
    assert set(known.values()) - shown == set()


def test_dashboard_reads_the_provisioned_source() -> None:
    provisioned = ROOT / "docker/grafana/provisioning/datasources/prometheus.yml"
    (source,) = yaml.safe_load(provisioned.read_text())["datasources"]
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [query for panel in panels for query in panel["targets"]]
    assert {query["datasource"]["uid"] for query in queries} == {source["uid"]}


def test_the_panels_of_the_dashboard_do_not_lie_on_each_other() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", str(PROMETHEUS / "prometheus.yml")),
        ("check", "rules", str(ALERTS)),
        ("test", "rules", str(ROOT / "tests/alerts.yml")),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_promtool_finds_no_fault(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [needs("promtool"), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tried_and_has_a_runbook() -> None:
    names = [alert["alert"] for alert in alerts()]
    assert len(set(names)) == len(names) >= 8
    tried = {
        case["alertname"]
        for test in yaml.safe_load((ROOT / "tests/alerts.yml").read_text())["tests"]
        for case in test["alert_rule_test"]
        if case.get("exp_alerts")
    }
    assert tried == set(names)
    described = re.findall(r"^### (Posemux\w+)$", OPERATIONS, re.MULTILINE)
    assert described == names


# ---------------------------------------------------------------------------------------- compose


class ComposeLoader(yaml.SafeLoader):
    """YAML as `docker compose` reads it: `!reset` takes a value of the base file away."""


ComposeLoader.add_constructor("!reset", lambda loader, node: None)


def compose(name: str) -> dict[str, Any]:
    return yaml.load((ROOT / name).read_text(), ComposeLoader)["services"]


def read(name: str) -> dict[str, Any]:
    return yaml.load((ROOT / name).read_text(), ComposeLoader)


def merged(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    """Mappings as `docker compose` merges them; there are no lists in the override."""
    both = dict(base)
    for key, value in override.items():
        if value is None:
            del both[key]
        elif isinstance(value, dict):
            both[key] = merged(base[key], value)
        else:
            both[key] = value
    return both


GPU = read("docker-compose.yml")
CPU = merged(GPU, read("docker-compose.cpu.yml"))


@pytest.mark.parametrize("compose", [GPU, CPU], ids=["gpu", "cpu"])
def test_compose_files_follow_the_schema(compose: dict[str, Any]) -> None:
    schema = get_builtin_schema("vendor.compose-spec")
    assert [error.message for error in Draft202012Validator(schema).iter_errors(compose)] == []


def test_workflows_follow_the_schema() -> None:
    schema = get_builtin_schema("vendor.github-workflows")
    for path in (ROOT / ".github/workflows").iterdir():
        workflow = yaml.safe_load(path.read_text())
        workflow["on"] = workflow.pop(True)  # what YAML 1.1 makes of `on`
        assert [error.message for error in Draft7Validator(schema).iter_errors(workflow)] == []


@pytest.mark.parametrize("compose", [GPU, CPU], ids=["gpu", "cpu"])
def test_compose_runs_the_service_and_its_watchers(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert services.keys() == {"posemux", "prometheus", "grafana"}
    mounts = [mount for service in services.values() for mount in service.get("volumes", [])]
    sources = [mount.split(":")[0] for mount in mounts]
    own = [source for source in sources if source.startswith("./")]
    assert own
    assert [source for source in own if not (ROOT / source).is_dir()] == []
    assert {source for source in sources if source not in own} == compose["volumes"].keys()

    scraped = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    (target,) = scraped["scrape_configs"][0]["static_configs"][0]["targets"]
    name, port = target.split(":")
    assert services[name]["ports"] == [f"{port}:{port}"]
    assert scraped["rule_files"] == [ALERTS.name]


@pytest.mark.parametrize("compose", [GPU, CPU], ids=["gpu", "cpu"])
def test_nothing_may_write_but_where_it_is_told_to(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        # Logs neither grow without end.
        assert service["logging"] == {"driver": "local"}


def test_compose_waits_for_the_drain() -> None:
    grace = GPU["services"]["posemux"]["stop_grace_period"]
    drain: float = Settings.model_fields["drain_seconds"].default
    # And for the last bytes, and for Python to leave.
    assert int(grace.removesuffix("s")) >= drain + _LAST_BYTES_SECONDS + 5


def test_compose_takes_a_gpu_or_does_without() -> None:
    gpu, cpu = GPU["services"]["posemux"], CPU["services"]["posemux"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert "deploy" not in cpu
    assert (gpu["build"]["target"], cpu["build"]["target"]) == ("cuda", "cpu")
    assert gpu["image"] != cpu["image"]
    assert gpu["build"]["context"] == cpu["build"]["context"]


# ------------------------------------------------------------------------------------------ image


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} (.+)$", DOCKERFILE, re.MULTILINE)


def test_the_image_has_a_target_for_each_device() -> None:
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)
    assert stages[-2:] == [("service", "cpu"), ("service", "cuda")]
    assert {base for base, _ in stages[:-2]} == {"python:3.12-slim"}
    assert re.findall(r"POSE_DEVICE=(\w+)", DOCKERFILE) == ["cpu", "cuda"]


def test_the_image_runs_as_a_plain_user_and_is_told_apart_when_ill() -> None:
    assert instructions("USER") == ["1000:1000"]
    assert instructions("STOPSIGNAL") == ["SIGTERM"]
    assert instructions("VOLUME") == ["/weights"]
    assert "POSE_WEIGHTS_DIR=/weights" in DOCKERFILE
    [check] = re.findall(r"^HEALTHCHECK [^\n]+\\\n +CMD (\[.+\])$", DOCKERFILE, re.MULTILINE)
    assert "/readyz" in " ".join(json.loads(check))
    [command] = instructions("CMD")
    assert json.loads(command)[:2] == ["posemux", "serve"]


def test_the_models_that_operations_fetches_exist() -> None:
    named = re.findall(r"models fetch ([a-z][\w-]+)$|POSE_MODELS=(\S+)", OPERATIONS, re.MULTILINE)
    names = {name for pair in named for part in pair for name in part.split(",") if name}
    assert len(names) >= 3
    for name in names:
        assert models.card(name).name == name
