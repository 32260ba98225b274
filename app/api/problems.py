"""Every error as RFC 9457 `application/problem+json`: this service's own, and the framework's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from pydantic.fields import FieldInfo
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.responses import Response

from app.api import service_of
from app.errors import CancelledJobError, InvalidParameterError, PosemuxError
from app.schemas import PoseQuery, Problem, StreamQuery

MEDIA_TYPE = "application/problem+json"
_SCHEMA = "#/components/schemas/Problem"


def install(app: FastAPI) -> None:
    """Make an application answer every error with a problem, and document what that is."""
    app.add_exception_handler(PosemuxError, _posemux_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(WebSocketRequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(ClientDisconnect, _client_disconnect)
    without = app.openapi

    def openapi() -> dict[str, Any]:
        schema = without()
        schema["components"]["schemas"]["Problem"] = Problem.model_json_schema()
        return schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way of adding to it


def problem(
    request: HTTPConnection,
    status: int,
    detail: str,
    *,
    type: str = "about:blank",
    title: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A problem as a response.

    `about:blank` is RFC 9457's word for a problem that the status says all about.
    """
    title = title or HTTPStatus(status).phrase
    body = _body(type, title, status, detail, request)
    return Response(orjson.dumps(body), status, headers, MEDIA_TYPE)


def described(connection: HTTPConnection, error: PosemuxError) -> dict[str, Any]:
    """An error as a problem's body."""
    return _body(error.type, error.title, error.status, error.detail, connection)


def _body(
    type: str, title: str, status: int, detail: str, connection: HTTPConnection
) -> dict[str, Any]:
    return {
        "type": type,
        "title": title,
        "status": status,
        "detail": detail,
        "request_id": connection.state.request_id,
    }


def count_refusal(connection: HTTPConnection, error: PosemuxError) -> str:
    """Count what is answered with an error; returns the kind of problem, for the log."""
    reason = error.type.rpartition("/")[2]
    if error.status != HTTPStatus.INTERNAL_SERVER_ERROR:
        service_of(connection).metrics.rejected.labels(reason).inc()
    return reason


def internal_error(request: HTTPConnection) -> Response:
    """What a client sees of an exception that nobody foresaw: nothing but the request's id."""
    detail = "Something went wrong here. The service's log tells more under this request_id."
    return problem(
        request, PosemuxError.status, detail, type=PosemuxError.type, title=PosemuxError.title
    )


def responses(*errors: type[PosemuxError]) -> dict[int | str, dict[str, Any]]:
    """The errors that a route may answer with, for its documentation."""
    documented: dict[int | str, dict[str, Any]] = {}
    for error in errors:
        entry = documented.setdefault(
            error.status,
            {
                "description": "",
                "content": {
                    MEDIA_TYPE: {"schema": {"$ref": _SCHEMA}, "examples": {}},
                },
            },
        )
        entry["description"] = "; ".join(filter(None, (entry["description"], error.title)))
        entry["content"][MEDIA_TYPE]["examples"][error.type.rpartition("/")[2]] = {
            "value": {
                "type": error.type,
                "title": error.title,
                "status": error.status,
                "detail": (error.__doc__ or "").partition("\n")[0],
                "request_id": "5f0c6f4a3b1e4d0f9a5c7d2e8b6a1c3d",
            }
        }
        if error.status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
            entry["headers"] = {
                "Retry-After": {
                    "description": "Seconds after which to try again.",
                    "schema": {"type": "integer"},
                }
            }
    return documented


async def _posemux_error(request: HTTPConnection, error: Exception) -> Response:
    assert isinstance(error, PosemuxError)
    request.state.details["problem"] = error.type.rpartition("/")[2]
    if request.url.path in ("/pose", "/stream"):
        count_refusal(request, error)
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="posemux"'
    return problem(
        request, error.status, error.detail, type=error.type, title=error.title, headers=headers
    )


async def _client_disconnect(request: Request, _: Exception) -> Response:
    return await _posemux_error(request, CancelledJobError("The client closed the request."))


async def _validation_error(request: HTTPConnection, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError | WebSocketRequestValidationError)
    streams = isinstance(error, WebSocketRequestValidationError)
    known = (StreamQuery if streams else PoseQuery).model_fields
    # The first few say enough of, say, a thousand malformed boxes.
    detail = " ".join(_explain(item, known) for item in error.errors()[:3])
    return await _posemux_error(request, InvalidParameterError(detail))


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    details = {
        HTTPStatus.NOT_FOUND: f"There is nothing at {path}. /docs shows what there is.",
        HTTPStatus.METHOD_NOT_ALLOWED: f"{path} does not take {request.method}, only "
        f"{(error.headers or {}).get('Allow', 'other methods')}.",
    }
    detail = details.get(HTTPStatus(error.status_code), error.detail)
    return problem(request, error.status_code, detail, headers=error.headers)


def _explain(item: Mapping[str, Any], known: Mapping[str, FieldInfo]) -> str:
    """One of pydantic's complaints as a sentence, followed by what would be accepted."""
    location: Sequence[int | str] = item["loc"][1:]
    name = str(location[0])
    if item["type"] == "extra_forbidden":
        return f"There is no query parameter {name}; known are {', '.join(sorted(known))}."
    where = "".join(f"[{part}]" for part in location[1:])
    accepted = known[name].description if name in known else None
    return f"{name}{where}: {item['msg'].removeprefix('Value error, ')}. Accepted: {accepted}"
