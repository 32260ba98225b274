"""The cards of weights that others publish, from models/published.toml."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from models.complexity import Complexity
from models.layouts import architecture_of
from models.pose_model import Card
from models.profiles import Authors

#: The published models.
PUBLISHED = Path(__file__).with_name("published.toml")
#: OpenMMLab's file names: the first eight digits of the sha256, and a date.
_DIGEST = re.compile(r"-([0-9a-f]{8})_\d{8}\.pth$")

#: Variants of a recipe that change how its output is read, and not what it costs.
_UNCOUNTED = re.compile(r"@(dark|darkpose|udp)\b")


def read() -> dict[str, tuple[Card, Complexity]]:
    """The published models by name, and what they cost.

    Raises:
        RecipeError: a model's recipe cannot be read.
        ValueError: an entry is not complete; the message names it.
    """
    publishers = tomllib.loads(PUBLISHED.read_text())
    costs = publishers.pop("costs")
    found = {}
    for publisher in publishers.values():
        for table in publisher["models"]:
            try:
                # Another way to decode the same network costs the same.
                parameters, macs = costs[_UNCOUNTED.sub("", table["recipe"])]
                card = _card(publisher, **table)
            except (KeyError, TypeError) as error:
                raise ValueError(f"{PUBLISHED}: {table}: {error}") from error
            found[card.name] = card, Complexity(parameters, macs)
    return found


def _card(
    publisher: dict[str, Any],
    name: str,
    recipe: str,
    file: str,
    published: dict[str, float],
    options: dict[str, Any] | None = None,
) -> Card:
    authors = publisher["authors"]
    if authors not in get_args(Authors):
        raise TypeError(f"authors must be one of {get_args(Authors)}, not {authors!r}")
    digest = _DIGEST.search(file)
    architecture = architecture_of(recipe)
    architecture = replace(architecture, options=architecture.options | (options or {}))
    return Card(
        name=name,
        architecture=architecture,
        # By the model's name: several publishers name their files alike.
        weights=f"{name}{Path(file).suffix}",
        sha256=digest[1] if digest else "",
        licence=publisher["licence"],
        training_data=publisher["training_data"],
        note=publisher["note"],
        published=published,
        url=publisher["url"] + file if "url" in publisher else None,
        source=f"{file} of {publisher['page']}",
        authors=authors,
    )
