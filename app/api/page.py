"""`GET /`: the page for people, and the few files that it is made of."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

#: What the page is made of.
FILES = Path(__file__).parents[1] / "page"
#: It may load its own files, look at pictures that the reader picks, ask this service, and nothing
#: else; no text can become markup or script.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # Asked again each time, and seldom sent again: an update is seen at once.
    "Cache-Control": "no-cache",
}

router = APIRouter(include_in_schema=False)


class PageFiles(StaticFiles):
    """The page's files, under the same rules as the page."""

    def __init__(self) -> None:
        super().__init__(directory=FILES)

    async def get_response(self, path: str, scope: Scope) -> Response:
        """One of the files."""
        response = await super().get_response(path, scope)
        response.headers.update(_HEADERS)
        return response


@router.api_route("/", methods=["GET", "HEAD"])
async def page() -> FileResponse:
    """The page."""
    return FileResponse(FILES / "index.html", headers=_HEADERS)
