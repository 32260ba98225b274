"""Every setting of the service, from environment variables with the prefix POSE_."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

import models
from app.runtime import Choice
from models.catalogue import WEIGHTS_DIR


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


class Settings(BaseSettings):
    """The service's settings: `POSE_PORT=9000 posemux serve`."""

    model_config = SettingsConfigDict(
        env_prefix="POSE_", frozen=True, use_attribute_docstrings=True, extra="forbid"
    )

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every one of the machine."""

    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""

    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """Where the networks run: auto (the first GPU, else the CPU), cpu, cuda or cuda:N."""

    runtime: Choice = "auto"
    """What runs the networks: auto (OpenVINO on a CPU, else torch), torch or openvino."""

    compute_threads: int = Field(default=0, ge=0)
    """CPU threads that a network computes with; 0 takes as many as the process may use, by its
    affinity and its container's quota."""

    models: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = Field(
        default=("simcc-small", "dark-small", "pct-small"), min_length=1
    )
    """Pose models to load at the start, by name, with commas between them; the first of each
    representation is its default."""

    weights_dir: Path = WEIGHTS_DIR
    """Folder of published weights, which `posemux models fetch` fills; the service only reads."""

    representation: Literal["simcc", "dark", "pct"] = "simcc"
    """What a request gets that names neither a representation nor a model."""

    detector_weights: Path | None = None
    """Weights file of the person detector in place of the bundled one."""

    detector_size: int = Field(default=480, ge=32, le=4096, multiple_of=32)
    """Longer side of the image that the detector sees, in pixels."""

    min_score: float = Field(default=0.3, ge=0, le=1)
    """Detected people of lower scores are left out, where a request does not say otherwise."""

    max_people: int = Field(default=100, ge=1)
    """People in one image, detected or brought along."""

    max_image_bytes: int = Field(default=20 * 2**20, ge=1)
    """Bytes of one encoded image."""

    max_image_pixels: int = Field(default=50_000_000, ge=1)
    """Pixels of one image."""

    max_images: int = Field(default=16, ge=1)
    """Images in one request."""

    max_request_bytes: int = Field(default=64 * 2**20, ge=1)
    """Bytes of a request's body, all of its images together."""

    max_bytes_in_flight: int = Field(default=512 * 2**20, ge=1)
    """Bytes of all requests between coming in and being answered; more are answered 503."""

    max_queue: int = Field(default=64, ge=1)
    """Images that wait for the device; more are answered 503."""

    max_pixels_in_flight: int = Field(default=200_000_000, ge=1)
    """Pixels of all images between being decoded and being answered; more are answered 503."""

    max_batch_images: int = Field(default=8, ge=1)
    """Images in one batch."""

    max_batch_people: int = Field(default=64, ge=1)
    """Crops in one forward pass of a pose network."""

    deadline_seconds: float = Field(default=10.0, gt=0)
    """A request that is not answered by then, its upload not counted, is answered 504."""

    transfer_seconds: float = Field(default=60.0, gt=0)
    """A client that has not sent its body by then is answered 408, and one that then still takes no
    more of its answer is hung up on."""

    drain_seconds: float = Field(default=20.0, ge=0)
    """How long a service that is told to stop may still work on what it has let in."""

    decode_threads: int = Field(default=2, ge=1)
    """Threads that decode and encode images."""

    heartbeat_seconds: float = Field(default=30.0, gt=0)
    """A device thread silent for longer counts as dead: /livez answers 503."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is logged, access log included: debug, info, warning or error."""

    @field_validator("models")
    @classmethod
    def _are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            try:
                models.card(name)
            except models.UnknownModelError as error:
                raise ValueError(str(error)) from error
        return names

    @field_validator("representation")
    @classmethod
    def _has_a_model(cls, representation: str, info: ValidationInfo) -> str:
        loaded = info.data.get("models", ())
        if loaded and representation not in {models.card(name).representation for name in loaded}:
            raise ValueError(f"none of the models {', '.join(loaded)} is of this representation")
        return representation

    @field_validator("max_bytes_in_flight")
    @classmethod
    def _holds_two_requests(cls, most: int, info: ValidationInfo) -> int:
        if most < 2 * info.data.get("max_request_bytes", 0):
            raise ValueError("must be at least twice max_request_bytes: nobody may take all of it")
        return most

    @field_validator("max_queue")
    @classmethod
    def _holds_a_request(cls, max_queue: int, info: ValidationInfo) -> int:
        if max_queue < info.data.get("max_images", 0):
            raise ValueError("must be at least max_images: a request waits as a whole")
        return max_queue
