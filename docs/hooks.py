"""Lets pages link to what lies outside docs/, as they do where the repository is read.

There is no repository beside the site. So what pages link to there becomes a part of it, as plain
text: a file as it is, a folder as the list of its files. README becomes a page, and the icon is the
one of the service's own page.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
#: Where a Markdown link leads, without its anchor; none with a scheme.
_LINK = re.compile(r"\]\(([^)#:\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is linked to and is not there."""
    added = {README: "readme.html"}
    for target in _linked():
        added[target] = f"repository/{target.relative_to(ROOT).as_posix()}.txt"
    for target, address in added.items():
        if target.is_dir():
            content = "".join(f"{path.name}\n" for path in sorted(target.iterdir()))
        else:
            content = target.read_text()
        # Said to be included, since paths that begin with a dot otherwise are not.
        file = File.generated(
            config, _from_docs(target), content=content, inclusion=InclusionLevel.INCLUDED
        )
        file.dest_uri = address
        files.append(file)
    files.append(File("icon.svg", str(ROOT / "app/page"), config.site_dir, False))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """README's links into docs/ are absolute ones of the site."""
    return (
        markdown.replace("](docs/", "](/") if page.file.src_uri == _from_docs(README) else markdown
    )


def _linked() -> Iterator[Path]:
    """What pages link to that MkDocs does not know: outside of docs/, or a folder."""
    for page in (README, *DOCS.glob("*.md")):
        for link in _LINK.findall(page.read_text()):
            target = Path(os.path.normpath(page.parent / link))
            outside = ROOT in target.parents and DOCS not in target.parents and target != README
            if target.is_dir() or (outside and target.is_file()):
                yield target


def _from_docs(path: Path) -> str:
    return Path(os.path.relpath(path, DOCS)).as_posix()
