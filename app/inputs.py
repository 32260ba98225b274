"""Which pictures a command means: files, folders with all that is in them, and quoted patterns."""

from __future__ import annotations

import glob
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from models.network import REPRESENTATIONS

#: How the names of pictures end, those of formats that are not read included: a folder's HEIC is to
#: be told of, its notes are not.
_ENDINGS = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif"),
        *(".heic", ".heif", ".avif", ".tif", ".tiff", ".jxl", ".jp2"),
    )
)


class InputsError(ValueError):
    """There are no such pictures: the message says which, and what is accepted."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """The pictures of a command, each once, in the order of their paths."""

    root: Path
    """The folder, absolute, that all of them are in."""
    paths: list[str]
    """Where they are, as it was said."""
    passed_over: int
    """Files of the folders that are no pictures by their names."""

    def name(self, path: str) -> str:
        """What one of them is called: its path below the root, with `/` between folders."""
        return Path(_absolute(path)).relative_to(self.root).as_posix()


def find(inputs: Sequence[str], out: Path | None = None) -> Pictures:
    """The pictures that arguments of a command line stand for.

    A file is taken whatever it is called. Of a folder, and of all folders in it, those files are
    taken that are pictures by their names; hidden ones are not. Links are followed, a folder that
    several lead to once. In a pattern `*`, `?` and `[...]` stand for what they do in a shell, and
    `**` for any folders; what it finds is taken as if it had been named.

    Args:
        inputs: files, folders and patterns.
        out: where the command writes: what lies in that folder, and pictures that were drawn from
            others of these, are no input.

    Raises:
        InputsError: a file is not there, a pattern finds nothing, or there is no picture at all.
    """
    written = None if out is None else _absolute(out)
    roots, found, passed_over = [], {}, 0
    for given in inputs:
        named = [given]
        if os.path.lexists(given):
            roots.append(Path(given) if Path(given).is_dir() else Path(given).parent)
        elif glob.has_magic(given):
            # Path's own finds hidden files as well, which a shell does not.
            named = sorted(glob.glob(given, recursive=True))  # noqa: PTH207
            roots.append(_before_pattern(given))
        else:
            raise InputsError(f"no such file: {given}")
        if not named:
            raise InputsError(f"no file matches {given}")
        for path in named:
            if not Path(path).is_dir():
                found[_absolute(path)] = path
                continue
            for inside in _walk(path, written):
                if Path(inside).suffix.lower() in _ENDINGS:
                    found[_absolute(inside)] = inside
                else:
                    passed_over += 1
    root = Path(os.path.commonpath([_absolute(folder) for folder in roots]))
    if out is not None:
        drawn = _drawn(found.keys(), root, Path(_absolute(out)))
        passed_over += len(drawn)
        found = {absolute: path for absolute, path in found.items() if absolute not in drawn}
    if not found:
        raise InputsError(f"no picture in {', '.join(inputs)}")
    return Pictures(root, [found[absolute] for absolute in sorted(found)], passed_over)


def drawings(pictures: Pictures, representation: str, out: Path) -> dict[str, Path]:
    """Where each picture, by its path, is drawn: below `out` as it lies below the root.

    Args:
        pictures: all that are drawn.
        representation: what their poses are estimated in.
        out: the folder of the drawn ones.
    """
    taken: dict[Path, str] = {}
    for path in pictures.paths:
        name = out / pictures.name(path)
        short = name.with_name(f"{name.stem}.{representation}.jpg")
        # Of x.jpg and x.png the second keeps all of its name.
        taken[name.with_name(f"{name.name}.{representation}.jpg") if short in taken else short] = (
            path
        )
    return {path: drawn for drawn, path in taken.items()}


def _drawn(found: Collection[str], root: Path, out: Path) -> set[str]:
    """Those that were drawn into `out` from others of them: see `drawings`."""
    endings = tuple(f".{name}.jpg" for name in REPRESENTATIONS)
    suspects = [path for path in found if path.endswith(endings) and Path(path).is_relative_to(out)]
    if not suspects:
        return set()
    sources = {*found, *(str(Path(path).with_suffix("")) for path in found)}
    return {
        path
        for path in suspects
        if str(root / Path(path).with_suffix("").with_suffix("").relative_to(out)) in sources
    }


def _walk(folder: str, written: str | None) -> Iterator[str]:
    """All files in a folder and in those in it, but for hidden ones and what was written."""
    seen: set[tuple[int, int]] = set()
    for inside, folders, files in os.walk(folder, followlinks=True):
        status = Path(inside).stat()
        identity = (status.st_dev, status.st_ino)
        if identity in seen or (inside != folder and _absolute(inside) == written):
            folders.clear()
            continue
        seen.add(identity)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield str(Path(inside) / name)


def _before_pattern(pattern: str) -> Path:
    """The folder that a pattern looks into."""
    parts = Path(pattern).parts
    return Path(*takewhile(lambda part: not glob.has_magic(part), parts))


def _absolute(path: str | Path) -> str:
    """An absolute path without `..`; links stay as they are."""
    return os.path.normpath(Path(path).absolute())
