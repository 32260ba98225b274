"""The files around the code say what the code says: settings, packages, licence."""

import re
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from hatchling.build import build_wheel
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import app.errors
import models
from app import cli
from app.errors import CancelledJobError, PosemuxError
from app.main import create_app
from app.metrics import Metrics
from app.settings import Settings

ROOT = Path(__file__).parent.parent
DOCS = tuple((ROOT / "docs").glob("*.md"))
SETTINGS = (ROOT / "docs/settings.md").read_text()
HTTP = (ROOT / "docs/http.md").read_text()
COMMANDS = (ROOT / "docs/command-line.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def rows(page: str) -> set[str]:
    """The rows of a page's tables."""
    return {line for line in page.splitlines() if line.startswith("|")}


@pytest.mark.parametrize("name", Settings.model_fields)
def test_settings_page_lists_every_setting_with_its_default_and_meaning(name: str) -> None:
    field = Settings.model_fields[name]
    meaning = " ".join((field.description or "").split())
    [row] = [row for row in rows(SETTINGS) if row.startswith(f"| `POSE_{name.upper()}` |")]
    assert row.endswith(f" | {meaning} |")
    if field.default not in (None, ()):
        default = field.default
        text = ",".join(default) if isinstance(default, tuple) else str(default)
        assert f" | `{text}` | " in row


def test_settings_page_lists_every_metric_with_its_labels_and_meaning() -> None:
    metrics = vars(Metrics()).values()
    described = {
        f"{metric._name}{'_total' * (metric._type == 'counter')}"
        f"{'{' * bool(metric._labelnames)}{','.join(metric._labelnames)}"
        f"{'}' * bool(metric._labelnames)}": metric._documentation
        for metric in metrics
    }
    assert {f"| `{name}` | {meaning} |" for name, meaning in described.items()} == {
        row for row in rows(SETTINGS) if row.startswith("| `pose_")
    }


def test_http_page_lists_every_problem_with_its_status() -> None:
    errors = [value for value in vars(app.errors).values() if isinstance(value, type)]
    problems = {
        (str(error.status), error.type)
        for error in errors
        if issubclass(error, PosemuxError) and error is not CancelledJobError
    }
    listed = {
        (status, kind)
        for status, kinds in re.findall(
            r"^\| (\d{3})[^|]*\| ([^|]*/problems/[^|]*)", HTTP, re.MULTILINE
        )
        for kind in re.findall(r"`(.+?)`", kinds)
    }
    assert listed == problems


def test_http_page_names_every_endpoint() -> None:
    paths = create_app(Settings()).openapi()["paths"]
    assert paths
    named = set(re.findall(r"`(?:[A-Z]+ )?(/[a-z]*)`", HTTP))
    assert paths.keys() - named == set()


def test_command_line_page_names_every_option_of_serve(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["serve", "--help"])
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    [line] = re.findall(r"^posemux serve \[.*", COMMANDS, re.MULTILINE)
    assert set(re.findall(r"--[a-z-]+", line)) == options


@pytest.mark.parametrize(
    "name",
    [
        *("README.md", "Dockerfile", *(f"docs/{page.name}" for page in sorted(DOCS))),
        *("docker-compose.yml", "docker-compose.cpu.yml"),
        *("docker/prometheus/alerts.yml", "docker/nginx/posemux.conf"),
    ],
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


def test_constraints_pin_what_the_dependencies_bring_and_all_of_it_fits() -> None:
    """Of what is installed here: the extras of the comparisons need not be."""
    pins = {
        canonicalize_name(line.partition("==")[0])
        for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    extras = [text for extra in PROJECT["optional-dependencies"].values() for text in extra]
    wanted = [Requirement(text) for text in PROJECT["dependencies"] + extras]
    seen: set[tuple[str, frozenset[str]]] = set()
    unpinned, unfit = set(), set()
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        marker = requirement.marker
        if (name, frozenset(requirement.extras)) in seen or (marker and not marker.evaluate()):
            continue
        seen.add((name, frozenset(requirement.extras)))
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            continue
        if installed.version not in requirement.specifier:
            unfit.add(f"{requirement}, not {installed.version}")
        # torch chooses its own.
        if name not in pins and not re.match(r"cuda-|nvidia-|triton$|posemux$", name):
            unpinned.add(name)
        for brought in map(Requirement, installed.requires or []):
            marked = brought.marker
            if not marked or any(marked.evaluate({"extra": e}) for e in ("", *requirement.extras)):
                brought.marker = None
                wanted.append(brought)
    assert len(seen) > 100
    assert unpinned == set()
    assert unfit == set()


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


def test_licence_is_the_one_declared() -> None:
    assert PROJECT["license"] == "AGPL-3.0-or-later"
    assert (ROOT / "LICENSE").read_text().split()[:4] == ["GNU", "AFFERO", "GENERAL", "PUBLIC"]
