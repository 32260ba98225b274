"""What can go wrong, and the HTTP status of each.

    PosemuxError
    ├── BadImageError               400  not decodable
    ├── UnauthorizedError           401
    ├── ForbiddenOriginError        403  a stream from another web site's page
    ├── UnknownModelError           404
    ├── NotAcceptableError          406  no media type that the client takes
    ├── UploadTimeoutError          408  the body came too slowly
    ├── TooLargeError               413  bytes, pixels or images
    ├── UnsupportedImageTypeError   415  not an image
    ├── InvalidParameterError       422
    ├── TooManyRequestsError        429  of one key, with Retry-After
    ├── CancelledJobError           499  the client went away: nobody reads this one
    ├── InferenceError              500
    │   └── NotFiniteError          500  NaN or infinity
    ├── BusyError                   503  with Retry-After
    ├── DrainingError               503  with Retry-After
    ├── NotReadyError               503  with Retry-After
    └── DeadlineExceededError       504

The classes know their status, not HTTP: the engine and the pipeline raise them, `app.api.problems`
turns them into bodies. `detail` is written for the client, who may be anybody: it says what was
wrong and what is accepted, and names no path, address or library.
"""

from __future__ import annotations

from typing import ClassVar


class PosemuxError(Exception):
    """The base of all errors that a client gets to see.

    Args:
        detail: what was wrong with this request, and what is accepted.

    Attributes:
        status: the HTTP status.
        type: a URI reference that names the kind of problem, for programs.
        title: the kind of problem, for people; the same for every occurrence.
        retry_after: seconds after which trying again makes sense, if it does.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "/problems/internal"
    title: ClassVar[str] = "Internal error"
    retry_after: int | None = None

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class BadImageError(PosemuxError):
    """An image that cannot be decoded."""

    status = 400
    type = "/problems/bad-image"
    title = "The image cannot be decoded"


class UnauthorizedError(PosemuxError):
    """No key, or not one of the known ones."""

    status = 401
    type = "/problems/unauthorized"
    title = "A valid key is needed"


class ForbiddenOriginError(PosemuxError):
    """A stream that a page of another web site asks for."""

    status = 403
    type = "/problems/forbidden-origin"
    title = "This web site's pages may not ask"


class UnknownModelError(PosemuxError):
    """A model that is not in the catalogue, or not loaded here."""

    status = 404
    type = "/problems/unknown-model"
    title = "No such model"


class NotAcceptableError(PosemuxError):
    """The client takes no media type that there is an answer in."""

    status = 406
    type = "/problems/not-acceptable"
    title = "No acceptable media type"


class UploadTimeoutError(PosemuxError):
    """A body that was not in when the time for it was over."""

    status = 408
    type = "/problems/upload-timeout"
    title = "The upload took too long"


class TooLargeError(PosemuxError):
    """Too many bytes, pixels or images."""

    status = 413
    type = "/problems/too-large"
    title = "The request is too large"


class UnsupportedImageTypeError(PosemuxError):
    """Content that is not an image, or of a format that is not read here."""

    status = 415
    type = "/problems/unsupported-image-type"
    title = "Not an image type that is accepted"


class InvalidParameterError(PosemuxError):
    """A parameter that is unknown, malformed or out of its range."""

    status = 422
    type = "/problems/invalid-parameter"
    title = "A parameter is invalid"


class TooManyRequestsError(PosemuxError):
    """A key has asked more often, or more at once, than it may.

    Args:
        detail: what there is too much of.
        retry_after: seconds in which the key may ask again.
    """

    status = 429
    type = "/problems/too-many-requests"
    title = "Too many requests with this key"

    def __init__(self, detail: str, retry_after: int = 1) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class CancelledJobError(PosemuxError):
    """The client has gone: its job is dropped. Ends in the log, never at a client."""

    status = 499
    type = "/problems/cancelled"
    title = "The client closed the request"


class InferenceError(PosemuxError):
    """The device could not work out this image."""

    status = 500
    type = "/problems/inference"
    title = "The poses could not be estimated"


class NotFiniteError(InferenceError):
    """A network's output for this image is not finite: damaged weights, or half precision."""

    type = "/problems/not-finite"
    title = "A network's output is not finite"

    def __init__(self, detail: str = "A network's output for this image is not finite.") -> None:
        super().__init__(detail)


class BusyError(PosemuxError):
    """More is in flight than may be.

    Args:
        detail: what there is too much of.
        retry_after: seconds in which the present load should be worked off.
    """

    status = 503
    type = "/problems/busy"
    title = "The service is busy"

    def __init__(self, detail: str, retry_after: int = 1) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class DrainingError(PosemuxError):
    """The service is shutting down and takes nothing new."""

    status = 503
    type = "/problems/draining"
    title = "The service is shutting down"
    retry_after = 5


class NotReadyError(PosemuxError):
    """The models are not loaded yet, or the engine has failed."""

    status = 503
    type = "/problems/not-ready"
    title = "The service is not ready"
    retry_after = 5


class DeadlineExceededError(PosemuxError):
    """No answer within the deadline."""

    status = 504
    type = "/problems/deadline-exceeded"
    title = "The deadline has passed"
