"""The client knows all that the service's own OpenAPI document promises, and nothing else."""

from __future__ import annotations

import tomllib
import zipfile
from pathlib import Path
from typing import Any

import posemux_client
import pytest
from hatchling.build import build_wheel
from posemux_client import Models, Poses
from posemux_client.errors import KINDS
from posemux_client.exchange import Options

import app.errors
from app.main import create_app
from app.settings import Settings
from models import REPRESENTATIONS
from tests.app.api_support import Running

ROOT = Path(__file__).parents[2]
DOCUMENT = create_app(Settings()).openapi()
POSE = DOCUMENT["paths"]["/pose"]["post"]


class Watched(dict[str, Any]):
    """Remembers what was read of it."""

    def __init__(self, content: dict[str, Any]) -> None:
        super().__init__({name: watched(value) for name, value in content.items()})
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)


def watched(value: Any) -> Any:
    if isinstance(value, dict):
        return Watched(value)
    return [watched(item) for item in value] if isinstance(value, list) else value


def required(schema: str) -> set[str]:
    return set(DOCUMENT["components"]["schemas"][schema]["required"])


def test_every_parameter_can_be_given() -> None:
    parameters = {entry["name"] for entry in POSE["parameters"] if entry["in"] == "query"}
    assert Options.__annotations__.keys() - {"request_id"} == parameters

    hints = str(Options.__annotations__["representation"])
    assert all(name in hints for name in REPRESENTATIONS)


def test_every_answer_can_be_asked_for() -> None:
    assert POSE["responses"]["200"]["content"].keys() == {
        *("application/json", "image/jpeg", "image/png"),
    }


def test_every_problem_has_its_class(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alice:alice-0123456789\n")
    with_keys = create_app(Settings(api_keys_file=keys)).openapi()["paths"]["/pose"]["post"]
    promised = {
        example["value"]["type"]
        for response in with_keys["responses"].values()
        for body in response["content"].values()
        for example in body.get("examples", {}).values()
    }
    assert KINDS.keys() == promised | {"about:blank"}
    errors = {kind.type: kind for kind in vars(app.errors).values() if isinstance(kind, type)}
    for name in promised:
        assert KINDS[name].__name__ == errors[name].__name__
        assert KINDS[name].__name__ in posemux_client.__all__


def test_nothing_is_read_that_is_not_promised(make: Any) -> None:
    running: Running = make()
    listed = watched(running.client.get("/models").json())
    models = Models.read(listed)
    assert listed.read <= required("ModelsResponse")
    for card in listed["models"]:
        assert card.read <= required("ModelCard")

    example = watched(POSE["responses"]["200"]["content"]["application/json"]["example"])
    [poses] = Poses.read(example, models.by_name["simcc-small"])
    assert len(poses) == 1
    assert example.read <= required("PoseResponse")
    assert example["images"][0].read == required("ImageInfo")
    # `explanation` is read with `get`, and is the only field that may be missing.
    assert example["predictions"][0].read <= required("Prediction")


def test_it_is_a_distribution_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "client")
    with zipfile.ZipFile(tmp_path / build_wheel(str(tmp_path))) as wheel:
        packed = wheel.namelist()
        licence = next(name for name in packed if name.endswith("LICENSE"))
        assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()
    modules = {path.name for path in (ROOT / "client/posemux_client").iterdir() if path.is_file()}
    packages = {name.partition("/")[0] for name in packed}
    assert {name for name in packages if not name.endswith(".dist-info")} == {"posemux_client"}
    assert {name.partition("/")[2] for name in packed} >= modules
    assert "py.typed" in modules
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    assert [name.partition(">")[0] for name in project["dependencies"]] == ["httpx", "numpy"]
