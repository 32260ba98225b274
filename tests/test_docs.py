"""The documentation: it builds, loads nothing from elsewhere, and what it shows can be done."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

import models
from app import cli
from app.main import create_app
from app.schemas import PoseResponse, Prediction
from app.settings import Settings
from models.catalogue import CATALOGUE, _card
from models.training import recipes

pytest.importorskip("mkdocs", reason="mkdocs is in the extra `docs`")

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
#: What a browser fetches by itself, unlike the links of a text.
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


def blocks(page: Path, language: str = "") -> list[str]:
    """A page's fenced blocks of a language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [text for name, text in fenced if name == language]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with every link and anchor being checked."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


class Addresses(HTMLParser):
    """Gathers what a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        address = dict(attrs).get(LOADED.get(tag, ""))
        if address is not None:
            self.found.append(address)


def test_the_site_has_every_page_and_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.glob("*.html"))
    assert {page.stem for page in PAGES if page.name != "README.md"} < {one.stem for one in pages}
    for page in pages:
        addresses = Addresses()
        addresses.feed(page.read_text())
        assert len(addresses.found) > 3
        assert [one for one in addresses.found if re.match(r"[a-z]+:|//", one)] == []
    for sheet in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", sheet.read_text()) == []


def test_a_link_into_the_repository_leads_to_the_file(site: Path) -> None:
    [address] = re.findall(
        r'href="(repository/models/simcc[^"]+)"', (site / "representations.html").read_text()
    )
    assert (site / address).read_text() == (ROOT / "models/simcc.py").read_text()


def commands() -> Iterator[tuple[str, str]]:
    """Every call of posemux that a page shows, but for the overviews with their brackets."""
    for page in PAGES:
        for block in blocks(page):
            for line in block.replace("\\\n", " ").splitlines():
                call = re.match(r"(?:.*\s)?(?:\S*/)?(posemux [a-z].*)", line.split(" >> ")[0])
                if call and not set("[]|…") & set(line) and "docker build" not in line:
                    yield page.name, call[1].partition(" > ")[0]


@pytest.mark.parametrize(("page", "command"), sorted(set(commands())))
def test_commands_are_ones_that_posemux_takes(page: str, command: str) -> None:
    options = cli._parser().parse_args(shlex.split(command, comments=True)[1:])
    assert options.run
    if options.run is cli._fetch_model:
        assert not models.card(options.name).bundled


def test_pages_ask_for_addresses_that_exist() -> None:
    text = "".join(page.read_text() for page in PAGES)
    asked = set(re.findall(r"localhost:8000(/[a-z]+)", text))
    assert {"/pose", "/readyz"} <= asked
    assert asked <= create_app(Settings()).openapi()["paths"].keys() | {"/docs", "/stream"}


def test_response_describes_every_field() -> None:
    page = (ROOT / "docs/response.md").read_text()
    rows = "".join(re.findall(r"^\| (`.+?) \|", page, re.MULTILINE))
    described = set(re.findall(r"`([a-z_]+)(?:\[\])?`", rows))
    assert described == PoseResponse.model_fields.keys()
    described = set(re.findall(r"`predictions\[\]\.([a-z]+(?:_id)?)`", rows))
    assert described == Prediction.model_fields.keys()


def test_the_recipe_and_the_card_of_ones_own_weights_are_read(tmp_path: Path) -> None:
    recipe, card = blocks(ROOT / "docs/own-weights.md", "toml")
    (tmp_path / "mine.toml").write_text(recipe)
    read = recipes.read(str(tmp_path / "mine.toml"))
    assert isinstance(read, recipes.PoseRecipe)
    assert (ROOT / str(read.start)).is_file()
    assert set(read.train) == {"my-train"}

    [table] = tomllib.loads(card)["model"]
    own = _card(table)
    assert own.name == read.name
    assert own.architecture == read.architecture
    assert own.bundled
    assert CATALOGUE == ROOT / "models/catalogue.toml"
