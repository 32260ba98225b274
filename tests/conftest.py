import io
import json
import logging
import threading

import pytest

from app import logs
from app.main import _Server, server_config
from tests.app.api_support import PATIENCE, Running
from tests.photos import BUS


@pytest.fixture
def make():
    """Makes running services from settings."""
    made = []

    def make(**settings):
        made.append(Running(**settings))
        return made[-1]

    yield make
    for running in made:
        running.stop()


@pytest.fixture
def running(make):
    return make()


@pytest.fixture
def served(running):
    """A running service behind a socket: its address."""
    config = server_config(running.app, running.settings)
    config.port, config.lifespan = 0, "off"
    server = _Server(config, running.engine, PATIENCE)
    thread = threading.Thread(target=server.run, daemon=True)
    listening = threading.Event()
    log_started = server._log_started_message
    server._log_started_message = lambda sockets: (log_started(sockets), listening.set())
    thread.start()
    assert listening.wait(PATIENCE)
    running.server, running.thread = server, thread
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(PATIENCE)
    assert not thread.is_alive()


@pytest.fixture
def logged():
    """Logs as the service does, everything, as JSON: returns the lines so far."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.formatter("json"))
    handler.addFilter(logs.is_shown)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel("DEBUG")
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture(scope="session")
def photo():
    return BUS.read_bytes()
