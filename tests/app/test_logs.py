import json
import logging
import os
import re
import signal
import sys
import warnings

import pytest
from PIL import Image

from app import logs
from app.main import serve
from app.settings import Settings
from tests.app.api_support import FakePipeline, encode, png

GOOD = png(1, 2, 51)
EVIL = "a\nb\r\x1b[31m\u2028\u202e\x00\ud800"


def requests(lines):
    return [line for line in lines if line["event"] == "request"]


def record(message, *args, **extra):
    return logging.getLogger("app.test").makeRecord(
        "app.test",
        logging.INFO,
        __file__,
        1,
        message,
        args,
        extra.pop("exc_info", None),
        None,
        extra,
    )


def test_every_request_is_one_line(running, logged):
    running.post(GOOD, headers={"X-Request-ID": "one"}, params={"representation": "pct"})
    [line] = requests(logged())
    assert line["duration_ms"] > 0
    assert set(line.pop("timings_ms")) == {
        *("decode", "queue", "detect", "crop", "pose", "postprocess")
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", line.pop("timestamp"))
    del line["duration_ms"]
    assert line == {
        "event": "request",
        "level": "info",
        "logger": "app.api.requests",
        "request_id": "one",
        "method": "POST",
        "path": "/pose",
        "status": 200,
        "representation": "pct",
        "model": "pct-small",
        "images": 1,
        "people": 1,
    }


def test_a_refused_request_is_a_line_with_its_problem(running, logged):
    running.post(b"rubbish")
    running.client.get("/a%0Ab%22")
    refused, lost = requests(logged())
    assert (refused["status"], refused["problem"]) == (415, "unsupported-image-type")
    assert (lost["status"], lost["path"]) == (404, "/a%0Ab%22")


def test_polling_is_a_line_only_where_something_is_amiss(running, logged):
    for path in ("/livez", "/readyz", "/metrics"):
        running.client.get(path)
    assert {line["level"] for line in requests(logged())} == {"debug"}
    running.engine.drain(0)
    running.client.get("/readyz")
    assert requests(logged())[-1]["level"] == "info"


def test_what_the_device_thread_says_of_an_image_names_its_request(running, logged):
    running.pipeline.poisoned = 77
    running.post(png(77, 0, 0), headers={"X-Request-ID": "poisoned"})
    [line] = [line for line in logged() if line["logger"] == "app.engine"]
    assert line["request_id"] == "poisoned"
    assert line["level"] == "warning"
    assert "RuntimeError" in line["exception"]


def test_what_the_image_threads_say_names_the_request(running, logged, monkeypatch):
    monkeypatch.setattr(
        "app.images.size", lambda *_: logging.getLogger("app.images").info("here") or (1, 1)
    )
    running.post(GOOD, headers={"X-Request-ID": "thread"})
    [line] = [line for line in logged() if line["event"] == "here"]
    assert line["request_id"] == "thread"


def test_nothing_of_an_image_is_logged(running, logged):
    exif = Image.Exif()
    exif[0x010E] = "a secret description"
    running.post(encode(Image.new("RGB", (30, 20), (5, 6, 51)), "JPEG", exif=exif), "image/jpeg")
    assert "secret" not in json.dumps(logged())
    assert {line["logger"].partition(".")[0] for line in logged()} <= {"app"}


def test_libraries_are_heard_from_warnings_on():
    quiet, loud, own = record("x"), record("x"), record("x")
    quiet.name, loud.name, own.name = "PIL.TiffImagePlugin", "urllib3", "uvicorn.error"
    loud.levelno = logging.WARNING
    assert [logs.is_shown(one) for one in (quiet, loud, own)] == [False, True, True]


@pytest.mark.parametrize("form", ["console", "json"])
def test_no_text_can_look_like_another_line(form):
    try:
        raise ValueError(EVIL)
    except ValueError:
        broken = record(f"{EVIL} %s", EVIL, key=EVIL, exc_info=sys.exc_info())
    first, *rest = logs.formatter(form).format(broken).split("\n")
    assert "app.test" in first
    assert not re.search(r"[^\x20-\x7e]", first + "".join(rest))
    if form == "json":
        assert rest == []
        assert json.loads(first)["key"] == EVIL
    else:
        assert rest
        assert all(line.startswith("    ") for line in rest)


def test_the_console_is_for_people():
    line = logs.formatter("console").format(record("request", status=200, path="/pose"))
    assert re.fullmatch(r"\S+Z \[info +\] request +\[app\.test\] +status=200 path=/pose", line)


@pytest.fixture
def restored():
    level = logging.getLogger().level
    # A service that an earlier test served may have left them captured, which pytest has undone.
    logging.captureWarnings(False)
    yield
    logging.captureWarnings(False)
    logging.getLogger().setLevel(level)


def test_everything_that_a_service_says_is_json(restored, monkeypatch, capsys):
    # As in a process in which nobody has set up a log, pytest neither.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])

    class Told(FakePipeline):
        def warm_up(self):
            with warnings.catch_warnings():
                warnings.simplefilter("default")
                warnings.warn("beware", stacklevel=1)
            logging.getLogger("PIL").info("a library's")
            os.kill(os.getpid(), signal.SIGTERM)

    assert serve(Settings(port=0, log_format="json"), build=lambda *_: Told()) == 0
    told = capsys.readouterr()
    lines = [json.loads(line) for line in told.err.splitlines()]
    loggers = {line["logger"] for line in lines}
    assert loggers == {"app.engine", "app.main", "py.warnings", "uvicorn.error"}
    assert all(line.keys() >= {"timestamp", "level", "event"} for line in lines)
    assert "color_message" not in told.err
    assert told.out == ""
