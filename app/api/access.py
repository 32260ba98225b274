"""Who may use a route: whoever has a key, as often as that key allows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import HTTPConnection

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
    name = _identify(request, service, header if bearer is None else bearer.credentials)
    with service.limits.admit(name):
        yield


def stream_key(connection: HTTPConnection, service: Service) -> str | None:
    """The name of the key that a stream brings; none where none is needed.

    It is not admitted by that: each of its frames is, like a request.

    Raises:
        UnauthorizedError: there is no key, or not one of the file's.
    """
    if service.keys is None:
        return None
    scheme, _, bearer = connection.headers.get("Authorization", "").partition(" ")
    key = bearer if scheme.lower() == "bearer" else connection.headers.get("X-API-Key")
    return _identify(connection, service, key)


def _identify(connection: HTTPConnection, service: Service, key: str | None) -> str:
    assert service.keys is not None
    if not key:
        raise UnauthorizedError(
            "There is no API key. Accepted: Authorization: Bearer KEY, or X-API-Key: KEY."
        )
    name = service.keys.name_of(key)
    if name is None:
        raise UnauthorizedError("This API key is not known here.")
    connection.state.details["key"] = name
    return name
