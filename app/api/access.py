"""Who may use a route: whoever has a key, as often as that key allows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from app.api import Service, current_service
from app.errors import UnauthorizedError

_BEARER = HTTPBearer(scheme_name="bearer", auto_error=False)
_HEADER = APIKeyHeader(name="X-API-Key", scheme_name="header", auto_error=False)


async def admitted(
    request: Request,
    service: Annotated[Service, Depends(current_service)],
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)],
    header: Annotated[str | None, Security(_HEADER)],
) -> AsyncIterator[None]:
    """Let a request in that brings a key, until it is answered; a route's dependency.

    Raises:
        TooManyRequestsError: there are too many with this key.
        UnauthorizedError: there is no key, or not one of the file's.
    """
    assert service.keys is not None
    key = header if bearer is None else bearer.credentials
    if not key:
        raise UnauthorizedError(
            "There is no API key. Accepted: Authorization: Bearer KEY, or X-API-Key: KEY."
        )
    name = service.keys.name_of(key)
    if name is None:
        raise UnauthorizedError("This API key is not known here.")
    request.state.details["key"] = name
    with service.limits.admit(name):
        yield
