"""Files that are there as a whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place to write a file that takes the place of `path` once it is complete.

    Files that are written beside it come along; where anything is raised, nothing changes.

    Raises:
        NotADirectoryError: there is no folder for the file.
    """
    if not path.parent.is_dir():
        raise NotADirectoryError(f"there is no folder {path.parent} to write {path.name} into")
    with TemporaryDirectory(dir=path.parent, prefix=".posemux-") as folder:
        yield Path(folder) / path.name
        for written in Path(folder).iterdir():
            # safetensors lets nobody else read what it writes, not even the service's own user.
            written.chmod(0o644)
            written.replace(path.with_name(written.name))
