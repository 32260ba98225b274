"""`GET /livez`, `/readyz` and `/metrics`: for those who keep the service running."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from prometheus_client.exposition import choose_encoder
from starlette.responses import Response

from app.api import Service, current_service
from app.api.problems import responses
from app.errors import DrainingError, NotReadyError
from app.schemas import Health

router = APIRouter(tags=["health"])


@router.get("/livez", responses=responses(NotReadyError))
async def livez(service: Annotated[Service, Depends(current_service)]) -> Health:
    """Whether the process is worth keeping; where it is not, restart it."""
    if not service.engine.alive:
        raise NotReadyError("The device thread has failed or hangs: restart the service.")
    return Health(status="alive")


@router.get("/readyz", responses=responses(NotReadyError, DrainingError))
async def readyz(service: Annotated[Service, Depends(current_service)]) -> Health:
    """Whether new images are taken: not before the models are warm, nor while shutting down."""
    service.engine.check_open()
    if not service.engine.alive:
        raise NotReadyError("The device thread hangs.")
    return Health(status="ready")


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"description": "All metrics.", "content": {"text/plain": {}}}},
)
async def metrics(
    request: Request, service: Annotated[Service, Depends(current_service)]
) -> Response:
    """The service's metrics, for Prometheus."""
    encode, media_type = choose_encoder(request.headers.get("Accept", ""))
    return Response(encode(service.registry), headers={"Content-Type": media_type})
