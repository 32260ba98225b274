"""Asks a posemux service for the poses of the people in images.

from posemux_client import Client

with Client("http://localhost:8000") as client:
    poses = client.pose("bus.jpg", representation="pct")
    print(poses.keypoints.shape, poses.model.joint_names)
"""

from posemux_client.clients import AsyncClient, Client
from posemux_client.errors import (
    BadImageError,
    BusyError,
    DeadlineExceededError,
    DrainingError,
    InferenceError,
    InvalidParameterError,
    NotAcceptableError,
    NotFiniteError,
    NotReadyError,
    PosemuxError,
    ProblemError,
    TooLargeError,
    TooManyRequestsError,
    UnauthorizedError,
    UnknownModelError,
    UnreachableError,
    UnsupportedImageTypeError,
    UploadTimeoutError,
)
from posemux_client.exchange import Image, Options
from posemux_client.results import Model, Models, Poses

__all__ = [
    "AsyncClient",
    "BadImageError",
    "BusyError",
    "Client",
    "DeadlineExceededError",
    "DrainingError",
    "Image",
    "InferenceError",
    "InvalidParameterError",
    "Model",
    "Models",
    "NotAcceptableError",
    "NotFiniteError",
    "NotReadyError",
    "Options",
    "PosemuxError",
    "Poses",
    "ProblemError",
    "TooLargeError",
    "TooManyRequestsError",
    "UnauthorizedError",
    "UnknownModelError",
    "UnreachableError",
    "UnsupportedImageTypeError",
    "UploadTimeoutError",
]
