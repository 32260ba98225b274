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

import models
from app.settings import Settings

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_readme_lists_every_setting() -> None:
    readme = (ROOT / "README.md").read_text()
    names = {f"POSE_{field.upper()}" for field in Settings.model_fields}
    assert {name for name in names if not re.search(rf"\b{name}\b", readme)} == set()


@pytest.mark.parametrize(
    "name",
    [
        *("README.md", "docs/operations.md", "Dockerfile"),
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
