"""What the documents show can be done."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.photos import BUS, ZIDANE

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["README.md", "client/README.md", "docs/client.md"])
def test_examples_run(
    name: str,
    served: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for photo in (BUS, ZIDANE):
        shutil.copy(photo, tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
    # The whole ones: parts of programs name no service.
    whole = [block for block in blocks if "http://localhost:8000" in block]
    assert whole
    for block in whole:
        exec(block.replace("http://localhost:8000", served), {})
    assert "(1, 17, 3)" in capsys.readouterr().out
