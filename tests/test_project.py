"""The files around the code say what the code says: settings, metrics, packages, containers."""

import json
import re
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hatchling.build import build_wheel
from packaging.requirements import Requirement
from packaging.version import Version
from prometheus_client import CollectorRegistry

import app.errors
import models
from app import cli
from app.errors import CancelledJobError, PosemuxError
from app.main import create_app
from app.metrics import Metrics
from app.settings import Settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ALERTS = ROOT / "docker/prometheus/alerts.yml"
DASHBOARD = ROOT / "docker/grafana/dashboards/posemux.json"


class ComposeLoader(yaml.SafeLoader):
    """YAML as `docker compose` reads it: `!reset` takes a value of the base file away."""


ComposeLoader.add_constructor("!reset", lambda loader, node: None)


def compose(name: str) -> dict[str, Any]:
    return yaml.load((ROOT / name).read_text(), ComposeLoader)["services"]


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


def rows() -> set[str]:
    """The rows of README's tables."""
    return {line for line in README.splitlines() if line.startswith("|")}


@pytest.mark.parametrize("name", Settings.model_fields)
def test_readme_lists_every_setting_with_its_default_and_meaning(name: str) -> None:
    field = Settings.model_fields[name]
    meaning = " ".join((field.description or "").split())
    [row] = [row for row in rows() if row.startswith(f"| `POSE_{name.upper()}` |")]
    assert row.endswith(f" | {meaning} |")
    if field.default not in (None, ()):
        default = field.default
        text = ",".join(default) if isinstance(default, tuple) else str(default)
        assert f" | `{text}` | " in row


def test_readme_lists_every_metric_with_its_labels_and_meaning() -> None:
    metrics = vars(Metrics()).values()
    described = {
        f"{metric._name}{'_total' * (metric._type == 'counter')}"
        f"{'{' * bool(metric._labelnames)}{','.join(metric._labelnames)}"
        f"{'}' * bool(metric._labelnames)}": metric._documentation
        for metric in metrics
    }
    assert {f"| `{name}` | {meaning} |" for name, meaning in described.items()} == {
        row for row in rows() if row.startswith("| `pose_")
    }


def test_readme_lists_every_problem_with_its_status() -> None:
    errors = [value for value in vars(app.errors).values() if isinstance(value, type)]
    problems = {
        (str(error.status), error.type)
        for error in errors
        if issubclass(error, PosemuxError) and error is not CancelledJobError
    }
    listed = {
        (status, kind)
        for status, kinds in re.findall(
            r"^\| (\d{3})[^|]*\| ([^|]*/problems/[^|]*)", README, re.MULTILINE
        )
        for kind in re.findall(r"`(.+?)`", kinds)
    }
    assert listed == problems


def test_readme_names_every_endpoint() -> None:
    paths = create_app(Settings()).openapi()["paths"]
    assert paths
    named = set(re.findall(r"`(?:[A-Z]+ )?(/[a-z]*)`", README))
    assert paths.keys() - named == set()


def test_readme_names_every_option_of_serve(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["serve", "--help"])
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    [line] = re.findall(r"^posemux serve .*", README, re.MULTILINE)
    assert set(re.findall(r"--[a-z-]+", line)) == options


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "docs/security.md",
        "Dockerfile",
        "docker-compose.yml",
        "docker-compose.cpu.yml",
        str(ALERTS),
    ],
    ids=lambda name: Path(name).name,
)
def test_settings_named_elsewhere_exist(name: str) -> None:
    named = re.findall(r"\bPOSE_([A-Z_]+[A-Z])\b", (ROOT / name).read_text())
    assert {setting.lower() for setting in named} <= Settings.model_fields.keys()


def test_readme_names_targets_that_exist() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"\bmake ([a-z]+)\b", (ROOT / "README.md").read_text())
    assert {"demo", "test"} <= set(named) <= set(targets)


def test_constraints_pin_every_dependency_to_a_version_it_allows() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    # A bare version: no URL, no hash, no local build such as 2.15.0+cpu.
    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", pin)] == []

    versions = {
        re.sub(r"[-_.]+", "-", name).lower(): Version(version)
        for name, version in (pin.split("==") for pin in pins)
    }
    extras = [text for extra in PROJECT["optional-dependencies"].values() for text in extra]
    for requirement in map(Requirement, PROJECT["dependencies"] + extras):
        if requirement.name != PROJECT["name"]:
            assert versions[requirement.name] in requirement.specifier, requirement


def test_wheel_holds_code_weights_catalogue_and_recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # where a build backend works, by PEP 517
    with zipfile.ZipFile(tmp_path / build_wheel(str(tmp_path))) as wheel:
        packed = set(wheel.namelist())

    expected = {
        path.relative_to(ROOT).as_posix()
        for package in ("app", "models")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {name for name in packed if ".dist-info/" not in name} == expected
    bundled = [models.card(models.default(name)).weights for name in models.REPRESENTATIONS]
    assert {f"models/weights/{weights}" for weights in bundled} <= packed
    assert "models/catalogue.toml" in packed
    assert any(re.fullmatch(r"models/training/recipes/.+\.toml", name) for name in packed)


def test_compose_runs_the_service_and_its_watchers() -> None:
    services = compose("docker-compose.yml")
    assert services.keys() == {"posemux", "prometheus", "grafana"}
    (gpu,) = services["posemux"]["deploy"]["resources"]["reservations"]["devices"]
    assert gpu["capabilities"] == ["gpu"]

    mounts = [mount for service in services.values() for mount in service.get("volumes", [])]
    sources = [mount.split(":")[0] for mount in mounts if mount.startswith("./")]
    assert sources
    assert [source for source in sources if not (ROOT / source).is_dir()] == []

    scraped = yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text())
    (target,) = scraped["scrape_configs"][0]["static_configs"][0]["targets"]
    assert target.split(":")[0] in services


def test_compose_waits_for_the_drain() -> None:
    grace = compose("docker-compose.yml")["posemux"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > Settings.model_fields["drain_seconds"].default


def test_compose_override_takes_the_gpu_away() -> None:
    override = compose("docker-compose.cpu.yml")["posemux"]
    assert override == {"environment": {"POSE_DEVICE": "cpu"}, "deploy": None}


def test_licence_is_the_one_declared() -> None:
    assert PROJECT["license"] == "AGPL-3.0-or-later"
    assert (ROOT / "LICENSE").read_text().split()[:4] == ["GNU", "AFFERO", "GENERAL", "PUBLIC"]
