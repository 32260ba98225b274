"""Every setting of the service, from environment variables with the prefix POSE_."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

import models
from app.logs import Format
from app.runtime import Choice, Precision
from models import sources
from models.catalogue import WEIGHTS_DIR

_PREFIX = "pose_"


def _is_ours(variable: str) -> bool:
    return variable.lower().startswith(_PREFIX)


def _split(value: object) -> object:
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(",") if part.strip()]


def _origin(value: str) -> str:
    if not re.fullmatch(r"\*|https?://[^/\s]+", value):
        raise ValueError(f"{value} is not a web site's address without a path, nor *")
    return value


Origin = Annotated[str, AfterValidator(_origin)]


class Settings(BaseSettings):
    """The service's settings: `POSE_PORT=9000 posemux serve`."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, frozen=True, use_attribute_docstrings=True, extra="forbid"
    )

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every one of the machine."""

    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""

    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """Where the networks run: auto (the first GPU, else the CPU), cpu, cuda or cuda:N."""

    runtime: Choice = "auto"
    """What runs the networks: auto (OpenVINO on a CPU, else torch), torch, openvino, or graphs
    (torch in CUDA graphs)."""

    precision: Precision = "auto"
    """What networks compute in: auto (the detector's convolutions in int8 where OpenVINO runs them
    on a CPU with AVX2 or VNNI instructions, all else in float32), float32, int8 for all
    convolutions on such a CPU, or float16 on a GPU."""

    compute_threads: int = Field(default=0, ge=0)
    """CPU threads that a network computes with; 0 takes as many as the process may use, by its
    affinity and its container's quota."""

    models: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = Field(
        default=("simcc-small", "dark-small", "pct-small"), min_length=1
    )
    """Pose models to load at the start, with commas between them: names, or weights files such as
    runs/my/my.safetensors, which go by the file's name; the first of each representation is its
    default."""

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

    max_streams: int = Field(default=16, ge=1)
    """Streams that are open at the same time, each of which may hold a frame that is still coming
    in; more are answered 503."""

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
    more of its answer is hung up on, as is a stream without a frame."""

    drain_seconds: float = Field(default=20.0, ge=0)
    """How long a service that is told to stop may still work on what it has let in."""

    decode_threads: int = Field(default=2, ge=1)
    """Threads that decode and encode images."""

    heartbeat_seconds: float = Field(default=30.0, gt=0)
    """A device thread silent for longer counts as dead: /livez answers 503."""

    api_keys_file: Path | None = None
    """File of API keys, a line `name:key` for each, which is read again when it changes; without it
    everybody may ask."""

    key_rate: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Requests a second with one name's API keys, on average; more are answered 429. 0 sets no
    limit."""

    key_burst: int = Field(default=10, ge=1)
    """Requests with one name's API keys that may come at once after a pause, where there is a
    rate."""

    key_concurrency: int = Field(default=0, ge=0)
    """Requests with one name's API keys that may be under way at the same time; more are answered
    429. 0 sets no limit."""

    cors_origins: Annotated[tuple[Origin, ...], NoDecode, BeforeValidator(_split)] = ()
    """Web sites whose pages may ask from a browser, such as https://example.org, with commas
    between them; * is every one."""

    client_key: SecretStr | None = None
    """API key that `posemux evaluate --url` and `posemux bench` send to a service that needs
    one."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is logged, access log included: debug, info, warning or error."""

    log_format: Format = "console"
    """How it is logged: console, lines for people, or json, an object in each line."""

    traces: bool = False
    """Whether traces are sent by OpenTelemetry, which `posemux[otel]` brings; its own variables,
    such as OTEL_EXPORTER_OTLP_ENDPOINT, tell where to."""

    @property
    def credentials(self) -> dict[str, str]:
        """The headers that this service's own clients send `client_key` in."""
        if self.client_key is None:
            return {}
        return {"X-API-Key": self.client_key.get_secret_value()}

    @model_validator(mode="before")
    @classmethod
    def _are_all_settings(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Refuse a misspelt variable, which could be the one that asks for keys."""
        names = {name.lower().removeprefix(_PREFIX) for name in os.environ if _is_ours(name)}
        # Not its value: nobody knows what that is.
        return {**dict.fromkeys(names - cls.model_fields.keys()), **given}

    @field_validator("models")
    @classmethod
    def _can_be_told_apart(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        found: dict[str, str] = {}
        for source in map(sources.absolute, given):
            try:
                name = sources.describe(source).name
            except models.UnknownModelError as error:
                raise ValueError(str(error)) from error
            if name in found:
                raise ValueError(
                    f"{found[name]} and {source} are both called {name}, by which requests choose: "
                    "leave one out, or rename a file"
                )
            found[name] = source
        return tuple(found.values())

    @field_validator("representation")
    @classmethod
    def _has_a_model(cls, representation: str, info: ValidationInfo) -> str:
        loaded = [sources.describe(source) for source in info.data.get("models", ())]
        if loaded and representation not in {card.representation for card in loaded}:
            told = ", ".join(f"{card.name} ({card.representation})" for card in loaded)
            raise ValueError(f"none of the models {told} is of this representation")
        return representation

    @field_validator("key_rate", "key_concurrency")
    @classmethod
    def _is_of_a_key(cls, limit: float, info: ValidationInfo) -> float:
        if limit and info.data.get("api_keys_file") is None:
            raise ValueError("there are no keys without POSE_API_KEYS_FILE")
        return limit

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


def complaints(error: ValidationError) -> Iterator[str]:
    """What is wrong with settings: a line for each, with the variable's name."""
    for problem in error.errors():
        name = str(problem["loc"][0])
        variable = _variable(name)
        if problem["type"] == "extra_forbidden":
            near = get_close_matches(name, Settings.model_fields, 1)
            hint = f": did you mean {_variable(near[0])}?" if near else ""
            yield f"{variable} is not a setting{hint}"
        else:
            message = problem["msg"].removeprefix("Value error, ")
            meaning = Settings.model_fields[name].description or ""
            yield " ".join(
                f"{variable}={problem['input']!r}: {message}. It means: {meaning}".split()
            )


def listed(settings: Settings) -> Iterator[str]:
    """Every setting as a line of a file of environment variables."""
    for name, value in settings:
        if value is None:
            yield f"# {_variable(name)} is not set"
        else:
            text = ",".join(value) if isinstance(value, tuple) else str(value)
            yield f"{_variable(name)}={text}"


def _variable(name: str) -> str:
    return (_PREFIX + name).upper()
