import pytest
from prometheus_client import CollectorRegistry, generate_latest

from app.metrics import Metrics


def test_the_names_are_those_of_the_contract():
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.requests.labels("simcc", "200").inc()
    metrics.request_duration.labels("simcc").observe(0.1)
    metrics.persons.labels("pct").inc(3)
    metrics.rejected.labels("overload").inc()
    metrics.device_memory.labels("allocated").set(1)
    metrics.model_info.labels("simcc-small", "simcc", "lcnet", "cpu").set(1)

    text = generate_latest(registry).decode()

    for line in (
        'pose_requests_total{representation="simcc",status="200"} 1.0',
        'pose_request_duration_seconds_bucket{le="0.1",representation="simcc"} 1.0',
        'pose_stage_duration_seconds_count{stage="queue"} 0.0',
        'pose_batch_size_bucket{le="64.0",stage="pose"} 0.0',
        "pose_images_total 0.0",
        'pose_persons_total{representation="pct"} 3.0',
        "pose_queue_depth 0.0",
        "pose_in_flight 0.0",
        'pose_rejected_total{reason="overload"} 1.0',
        "pose_batch_failures_total 0.0",
        'pose_device_memory_bytes{kind="allocated"} 1.0',
        "pose_ready 0.0",
        "pose_model_info{",
    ):
        assert line in text


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        *(
            ("pose_stage_duration_seconds_count", {"stage": stage})
            for stage in ("decode", "queue", "detect", "crop", "pose", "postprocess", "encode")
        ),
        ("pose_request_duration_seconds_count", {"representation": "simcc"}),
        ("pose_persons_total", {"representation": "dark"}),
        ("pose_requests_total", {"representation": "pct", "status": "500"}),
        *(
            ("pose_rejected_total", {"reason": reason})
            for reason in ("busy", "bad-image", "unsupported-image-type", "deadline-exceeded")
        ),
    ],
)
def test_what_is_counted_is_there_before_its_first_event(name, labels):
    """A rate over a counter that appears with its first event would miss that event."""
    registry = CollectorRegistry()
    Metrics(registry)
    assert registry.get_sample_value(name, labels) == 0


def test_two_services_in_one_process_do_not_share_counts():
    first, second = CollectorRegistry(), CollectorRegistry()
    Metrics(first).images.inc()
    Metrics(second)
    assert first.get_sample_value("pose_images_total") == 1
    assert second.get_sample_value("pose_images_total") == 0
