"""What can go wrong.

    PosemuxError
    ├── UnreachableError                no answer at all
    └── ProblemError                    the service's answer is an error
        ├── BadImageError               400
        ├── UnauthorizedError           401
        ├── UnknownModelError           404
        ├── NotAcceptableError          406
        ├── UploadTimeoutError          408
        ├── TooLargeError               413
        ├── UnsupportedImageTypeError   415
        ├── InvalidParameterError       422
        ├── TooManyRequestsError        429
        ├── InferenceError              500
        │   └── NotFiniteError          500
        ├── BusyError                   503
        ├── DrainingError               503
        ├── NotReadyError               503
        └── DeadlineExceededError       504

What stands between client and service, as a proxy, answers in its own way: that is a plain
`ProblemError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class PosemuxError(Exception):
    """The base of all errors."""


class UnreachableError(PosemuxError):
    """The service did not answer: it cannot be reached, hung up, or took too long."""


class ProblemError(PosemuxError):
    """The service answered with an error.

    Args:
        status: the HTTP status.
        body: the RFC 9457 problem, as far as there is one.
        retry_after: seconds after which the service wants to be asked again, if it does.

    Attributes:
        status: the HTTP status.
        type: a URI reference that names the kind of problem; `about:blank` if it is not posemux's.
        title: the kind of problem, for people.
        detail: what was wrong with this request, and what is accepted.
        request_id: by which the service's log calls it, if it is known.
        retry_after: seconds after which the service wants to be asked again, if it does.
    """

    #: The type of the class's own kind of problem.
    kind: ClassVar[str] = "about:blank"

    def __init__(
        self, status: int, body: Mapping[str, Any], retry_after: float | None = None
    ) -> None:
        self.status = status
        self.type = str(body.get("type", "about:blank"))
        self.title = str(body.get("title", ""))
        self.detail = str(body.get("detail", ""))
        identity = body.get("request_id")
        self.request_id = None if identity is None else str(identity)
        self.retry_after = retry_after
        super().__init__(": ".join(filter(None, (f"{status} {self.title}", self.detail))))


class BadImageError(ProblemError):
    """The image cannot be decoded."""

    kind = "/problems/bad-image"


class UnauthorizedError(ProblemError):
    """A valid key is needed."""

    kind = "/problems/unauthorized"


class UnknownModelError(ProblemError):
    """There is no such model, or it is not loaded."""

    kind = "/problems/unknown-model"


class NotAcceptableError(ProblemError):
    """The service has no answer of the media type that was asked for."""

    kind = "/problems/not-acceptable"


class UploadTimeoutError(ProblemError):
    """The upload took too long."""

    kind = "/problems/upload-timeout"


class TooLargeError(ProblemError):
    """There are too many bytes, pixels or images."""

    kind = "/problems/too-large"


class UnsupportedImageTypeError(ProblemError):
    """It is not an image of a type that is accepted."""

    kind = "/problems/unsupported-image-type"


class InvalidParameterError(ProblemError):
    """A parameter is unknown, malformed or out of its range."""

    kind = "/problems/invalid-parameter"


class TooManyRequestsError(ProblemError):
    """The key asks more often, or more at once, than it may."""

    kind = "/problems/too-many-requests"


class InferenceError(ProblemError):
    """The poses could not be estimated."""

    kind = "/problems/inference"


class NotFiniteError(InferenceError):
    """A network's output is not finite."""

    kind = "/problems/not-finite"


class BusyError(ProblemError):
    """More is in flight than may be."""

    kind = "/problems/busy"


class DrainingError(ProblemError):
    """The service is shutting down."""

    kind = "/problems/draining"


class NotReadyError(ProblemError):
    """The service is not ready."""

    kind = "/problems/not-ready"


class DeadlineExceededError(ProblemError):
    """The service had no answer within its deadline."""

    kind = "/problems/deadline-exceeded"


def _kinds(base: type[ProblemError]) -> dict[str, type[ProblemError]]:
    found = {base.kind: base}
    for kind in base.__subclasses__():
        found |= _kinds(kind)
    return found


#: The classes by the type of their problem.
KINDS: Mapping[str, type[ProblemError]] = _kinds(ProblemError)
