"""Every metric of the service, in one table.

Durations are in seconds, memory in bytes. No label ever carries a text that a client made up.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

import models
from app.errors import PosemuxError

#: 1-2-5 steps from 1 ms to 10 s.
DURATION_BUCKETS = (
    *(0.001, 0.002, 0.005),
    *(0.01, 0.02, 0.05),
    *(0.1, 0.2, 0.5),
    *(1.0, 2.0, 5.0, 10.0),
)
BATCH_BUCKETS = tuple(float(2**power) for power in range(9))

#: What one image goes through. The HTTP side decodes and encodes, the engine queues, the pipeline
#: does the rest.
STAGES = ("decode", "queue", "detect", "crop", "pose", "postprocess", "encode")


class Metrics:
    """The service's metrics as Prometheus objects, ready to be counted on.

    Args:
        registry: where they are registered and later read from; a private one if left out, for
            those who use the pipeline without a service around it.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        at = registry or CollectorRegistry()
        self.requests = Counter(
            "pose_requests_total",
            "Answered POST /pose requests.",
            ["representation", "status"],
            registry=at,
        )
        self.request_duration = Histogram(
            "pose_request_duration_seconds",
            "From the request's first byte to the answer's last.",
            ["representation"],
            buckets=DURATION_BUCKETS,
            registry=at,
        )
        self.stage_duration = Histogram(
            "pose_stage_duration_seconds",
            "Time in one stage: decode, queue, encode for each image, the others for each batch.",
            ["stage"],
            buckets=DURATION_BUCKETS,
            registry=at,
        )
        self.batch_size = Histogram(
            "pose_batch_size",
            "Images in a detector's batch, crops in a pose network's.",
            ["stage"],
            buckets=BATCH_BUCKETS,
            registry=at,
        )
        self.images = Counter("pose_images_total", "Images estimated.", registry=at)
        self.persons = Counter(
            "pose_persons_total", "Persons returned.", ["representation"], registry=at
        )
        self.queue_depth = Gauge(
            "pose_queue_depth", "Images that wait for the device.", registry=at
        )
        self.in_flight = Gauge(
            "pose_in_flight",
            "Images admitted and not yet answered, those being decoded included.",
            registry=at,
        )
        self.rejected = Counter(
            "pose_rejected_total",
            "Requests and frames of streams refused, by reason.",
            ["reason"],
            registry=at,
        )
        self.key_requests = Counter(
            "pose_key_requests_total",
            "Answered requests, and frames of streams, that brought an API key, by its name in the "
            "file of keys.",
            ["key", "status"],
            registry=at,
        )
        self.streams = Gauge("pose_streams", "Streams that are open.", registry=at)
        self.stream_frames = Counter(
            "pose_stream_frames_total",
            "Frames of streams: answered, refused, or dropped since a newer one came.",
            ["outcome"],
            registry=at,
        )
        self.stream_delay = Histogram(
            "pose_stream_delay_seconds",
            "From a stream's frame being here to its poses being sent.",
            buckets=DURATION_BUCKETS,
            registry=at,
        )
        self.batch_failures = Counter(
            "pose_batch_failures_total",
            "Batches that raised; each was retried in smaller parts, down to single images.",
            registry=at,
        )
        self.failed_images = Counter(
            "pose_failed_images_total",
            "Images that the device could not work out, by reason; the others were answered.",
            ["reason"],
            registry=at,
        )
        self.device_memory = Gauge(
            "pose_device_memory_bytes",
            "The accelerator's memory as PyTorch's allocator sees it; absent on the CPU.",
            ["kind"],
            registry=at,
        )
        self.ready = Gauge("pose_ready", "1 while new images are taken, else 0.", registry=at)
        self.model_info = Gauge(
            "pose_model_info",
            "1 for every loaded pose model.",
            ["model", "representation", "backbone", "device"],
            registry=at,
        )
        # Series that exist from the start: a rate over a counter that appears with its first event
        # misses that event.
        for representation in models.REPRESENTATIONS:
            self.persons.labels(representation)
            self.request_duration.labels(representation)
            for status in ("200", "500", "503", "504"):
                self.requests.labels(representation, status)
        for error in PosemuxError.__subclasses__():
            if error.status != PosemuxError.status:
                self.rejected.labels(error.type.rpartition("/")[2])
        for outcome in ("answered", "dropped", "refused"):
            self.stream_frames.labels(outcome)
        for stage in STAGES:
            self.stage_duration.labels(stage)
        for stage in ("detect", "pose"):
            self.batch_size.labels(stage)
        for reason in ("inference", "not-finite"):
            self.failed_images.labels(reason)
