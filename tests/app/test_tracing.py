import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from app.main import create_app, posemux_version
from app.settings import Settings
from app.tracing import Tracing
from tests.app.api_support import PATIENCE, FakePipeline, png

GOOD = png(1, 2, 51)
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
STAGES = ["decode", "queue", "detect", "crop", "pose", "postprocess"]


@pytest.fixture
def spans(make):
    """A running service, and a function that returns the spans that it has made."""
    pytest.importorskip("opentelemetry.sdk", reason="OpenTelemetry is in the extra `otel`")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from app.opentelemetry import OpenTelemetry

    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    running = make(traced=lambda *_: OpenTelemetry(provider))
    return running, exporter.get_finished_spans


def test_a_request_is_a_span_and_its_stages_are_in_it(spans):
    running, made = spans
    response = running.send(GOOD, png(0, 0, 0), params={"representation": "dark"})
    *stages, request = made()
    assert request.name == "POST /pose"
    assert request.kind.name == "SERVER"
    assert request.parent is None
    assert dict(request.attributes) == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/pose",
        "url.path": "/pose",
        "pose.request_id": response.headers["X-Request-ID"],
        "pose.representation": "dark",
        "pose.model": "dark-small",
        "pose.images": 2,
        "pose.people": 1,
    }
    for image in range(2):
        own = [span for span in stages if span.attributes["pose.image"] == image]
        assert [span.name for span in own] == STAGES
        for span in own:
            assert span.parent.span_id == request.context.span_id
            assert span.context.trace_id == request.context.trace_id
            assert request.start_time <= span.end_time <= request.end_time
        # One after the other, each as long as it took.
        assert [a.end_time for a in own[1:-1]] == [b.start_time for b in own[2:]]
        assert own[4].end_time - own[4].start_time == 1_000_000


def test_drawing_is_a_stage(spans):
    running, made = spans
    running.post(GOOD, headers={"Accept": "image/png"})
    assert [span.name for span in made()] == [*STAGES, "encode", "POST /pose"]


@pytest.mark.parametrize(("flags", "traced"), [("01", True), ("00", False)])
def test_a_clients_trace_goes_on(spans, logged, flags, traced):
    running, made = spans
    running.post(GOOD, headers={"traceparent": f"00-{TRACE}-{PARENT}-{flags}"})
    assert bool(made()) == traced
    for span in made():
        assert f"{span.context.trace_id:032x}" == TRACE
    if traced:
        assert f"{made()[-1].parent.span_id:016x}" == PARENT
    [line] = [line for line in logged() if line["event"] == "request"]
    assert line["trace_id"] == TRACE


@pytest.mark.parametrize("given", ["", "rubbish", f"00-{'0' * 32}-{PARENT}-01"])
def test_another_header_begins_a_trace(spans, given):
    running, made = spans
    assert running.post(GOOD, headers={"traceparent": given}).status_code == 200
    assert made()[-1].parent is None
    assert f"{made()[-1].context.trace_id:032x}" != TRACE


def test_what_went_wrong_is_in_the_span(spans):
    running, made = spans
    running.pipeline.poisoned = 77
    running.post(png(77, 0, 0))
    running.post(b"rubbish")
    running.client.get("/made-up")
    failed, refused, lost = (span for span in made() if span.kind.name == "SERVER")
    assert not failed.status.is_ok
    assert failed.attributes["pose.problem"] == "inference"
    assert refused.status.is_ok or refused.status.status_code.name == "UNSET"
    assert refused.attributes["http.response.status_code"] == 415
    assert lost.name == "GET"
    assert "http.route" not in lost.attributes


def test_polling_is_not_traced(spans):
    running, made = spans
    for path in ("/livez", "/readyz", "/metrics"):
        running.client.get(path)
    assert made() == ()


@pytest.fixture
def collector(monkeypatch):
    """What a collector of OTLP over HTTP gets: a list of resources and their spans' names."""
    protocol = pytest.importorskip(
        "opentelemetry.proto.collector.trace.v1.trace_service_pb2",
        reason="OpenTelemetry is in the extra `otel`",
    )
    got = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for sent in protocol.ExportTraceServiceRequest.FromString(body).resource_spans:
                resource = {item.key: item.value.string_value for item in sent.resource.attributes}
                names = [span.name for scope in sent.scope_spans for span in scope.spans]
                got.append((self.path, resource, names))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield got
        server.shutdown()
        thread.join(PATIENCE)


@pytest.mark.parametrize("name", [None, "joints"])
def test_a_collector_gets_them_before_the_service_has_stopped(make, collector, monkeypatch, name):
    if name is not None:
        monkeypatch.setenv("OTEL_SERVICE_NAME", name)
    running = make(traces=True)
    running.post(GOOD)
    running.stop()
    [(path, resource, names)] = collector
    assert path == "/v1/traces"
    assert names == [*STAGES, "POST /pose"]
    assert resource["service.name"] == (name or "posemux")
    assert resource["service.version"] == posemux_version()


def test_a_collector_that_hangs_does_not_keep_the_service(spans, monkeypatch):
    running, _ = spans
    monkeypatch.setattr("app.opentelemetry._LAST_SPANS_SECONDS", 0.01)
    go, sent = threading.Event(), threading.Event()
    tracing = running.app.state.service.tracing
    monkeypatch.setattr(tracing._provider, "shutdown", lambda: go.wait(PATIENCE) and sent.set())
    tracing.shut_down()
    assert not sent.is_set()
    go.set()
    assert sent.wait(PATIENCE)


def test_nothing_is_imported_unless_it_is_switched_on(monkeypatch):
    for name in [*sys.modules]:
        if name.partition(".")[0] == "opentelemetry" or name == "app.opentelemetry":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)  # as where it is not installed
    app = create_app(Settings(), build=lambda *_: FakePipeline())
    assert type(app.state.service.tracing) is Tracing
    with pytest.raises(ValueError, match=r"pip install 'posemux\[otel\]'"):
        create_app(Settings(traces=True))
