from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models.training_support import write_dots

SHARED = Path(__file__).parents[3] / "shared"

Golden = Callable[[str], Mapping[str, Any]]


@pytest.fixture(scope="session")
def golden() -> Golden:
    """The reference implementations' own numbers, by the fixture file's name."""

    def read(name: str) -> Mapping[str, Any]:
        path = SHARED / "reference" / "fixtures" / f"{name}.npz"
        if not path.is_file():
            pytest.skip("the golden numbers of ../shared/reference/fixtures are not here")
        with np.load(path) as arrays:
            return dict(arrays)

    return read


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of data sets; see `write_dots`."""
    folder = tmp_path_factory.mktemp("data")
    write_dots(folder)
    return folder
