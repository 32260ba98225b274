"""The sample photos that come with ultralytics."""

from importlib.util import find_spec
from pathlib import Path

_PACKAGE = find_spec("ultralytics")
assert _PACKAGE is not None
assert _PACKAGE.origin is not None
BUS, ZIDANE = (Path(_PACKAGE.origin).parent / "assets" / name for name in ("bus.jpg", "zidane.jpg"))
