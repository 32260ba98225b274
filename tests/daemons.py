"""posemux, Prometheus and nginx as processes of their own, to see how they work together."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import IO, Any, Self

import httpx
import pytest
import yaml

from app.bench.processes import environment, free_port

ROOT = Path(__file__).parent.parent
PROMETHEUS = ROOT / "docker/prometheus"
NGINX = ROOT / "docker/nginx/posemux.conf"
PATIENCE = 60.0
"""Seconds after which a test gives up; nothing is meant to take a tenth of it."""

#: Quick to load and to answer: what is tested here is not the poses.
SETTINGS = {
    "POSE_MODELS": "simcc-small,dark-small",
    "POSE_DEVICE": "cpu",
    "POSE_RUNTIME": "torch",
    "POSE_DETECTOR_SIZE": "160",
    "POSE_COMPUTE_THREADS": "1",
    # Nobody is refused for being late on a machine that does much else.
    "POSE_DEADLINE_SECONDS": "60",
}


def needs(program: str) -> str:
    """The program's path; without it the test is skipped."""
    # Debian keeps daemons where only root looks for them.
    path = shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin")
    return path or pytest.skip(f"{program} is not installed")


def until(condition: Callable[[], Any], what: str) -> Any:
    """Ask until the answer is true; returns it."""
    end = monotonic() + PATIENCE
    never = threading.Event()
    while monotonic() < end:
        if answer := condition():
            return answer
        never.wait(0.02)
    pytest.fail(f"waited in vain for {what}")


def get(url: str, **query: str) -> httpx.Response | None:
    """What is answered; None where nobody does."""
    try:
        return httpx.get(url, params=query, trust_env=False, timeout=PATIENCE)
    except httpx.TransportError:
        return None


def is_ok(url: str) -> bool:
    response = get(url)
    return response is not None and response.status_code == 200


class Daemon:
    """A program that runs until the end of the block, its words in a file."""

    def __init__(
        self,
        folder: Path,
        *command: str,
        variables: Mapping[str, str] | None = None,
        pipe: int | None = None,
    ) -> None:
        self.log = folder / f"{Path(command[0]).name}.log"
        self._words: IO[bytes] = self.log.open("wb")
        self.process = subprocess.Popen(
            command,
            env=environment() | dict(variables or {}),
            stdin=pipe or subprocess.DEVNULL,
            stdout=pipe or self._words,
            stderr=self._words,
            cwd=folder,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        finally:
            self._words.close()

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """`until`, unless it ends first."""

        def running() -> Any:
            if self.process.poll() is not None:
                pytest.fail(f"it ended: {self.log.read_text()}")
            return condition()

        return until(running, what)


class Instance:
    """A `posemux serve` on a port of its own."""

    def __init__(self, nursery: Nursery, port: int) -> None:
        self._nursery = nursery
        self.address = f"127.0.0.1:{port}"
        self.url = f"http://{self.address}"
        self.port = port
        self.start()

    def start(self) -> None:
        self._process = self._nursery.ask("serve", self.port)

    def is_ready(self) -> bool:
        return is_ok(f"{self.url}/readyz")

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        os.kill(self._process, signal.SIGTERM)
        return self._nursery.ask("wait", self._process)


class Nursery(Daemon):
    """See `tests.nursery`."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-P", "-m", "tests.nursery"]
        super().__init__(folder, *command, variables=SETTINGS, pipe=subprocess.PIPE)
        self._read()

    def __exit__(self, *_: object) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self.process.wait(PATIENCE)
        self._words.close()

    def ask(self, verb: str, number: int) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{verb} {number}\n".encode())
        self.process.stdin.flush()
        return int(self._read())

    def _read(self) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.readline() or pytest.fail(self.log.read_text())

    def serve(self, port: int | None = None) -> Instance:
        return Instance(self, port or free_port())

    def is_ready(self, instance: Instance) -> Instance:
        self.until(instance.is_ready, f"{instance.url} to be ready")
        return instance


class Prometheus(Daemon):
    """A Prometheus with the settings of docker/prometheus, but quicker, for one service."""

    def __init__(self, folder: Path, target: str, interval: str) -> None:
        program = needs("prometheus")
        settings = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
        settings["global"] |= {"scrape_interval": interval, "evaluation_interval": "500ms"}
        settings["rule_files"] = [str(PROMETHEUS / name) for name in settings["rule_files"]]
        settings["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        super().__init__(
            folder,
            program,
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=data",
            f"--web.listen-address=127.0.0.1:{port}",
        )

    def api(self, path: str, **query: str) -> Any:
        response = get(f"{self.url}/api/v1/{path}", **query)
        body = {} if response is None else response.json()
        assert body.get("status") == "success", body
        return body["data"]

    def query(self, expression: str, at: float | None = None) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series that the expression has, at a time in Unix seconds."""
        moment = {} if at is None else {"time": f"{at:.3f}"}
        data = self.api("query", query=expression, **moment)
        assert data["resultType"] == "vector"
        return [(one["metric"], float(one["value"][1])) for one in data["result"]]

    def value(self, expression: str, at: float | None = None) -> float:
        """The value of an expression that has a single one; NaN where there is none yet."""
        found = self.query(expression, at)
        assert len(found) <= 1, found
        return found[0][1] if found else float("nan")


class Nginx(Daemon):
    """An nginx with docker/nginx/posemux.conf before two services; its log tells each try."""

    def __init__(self, folder: Path, ports: tuple[int, int]) -> None:
        program = needs("nginx")
        self.access = folder / "access.log"
        site = NGINX.read_text()
        port = free_port()
        for written, here in zip(("8001", "8002"), ports, strict=True):
            site, count = re.subn(rf"127\.0\.0\.1:{written}\b", f"127.0.0.1:{here}", site)
            assert count == 1
        site, count = re.subn(r"listen 8000;", f"listen 127.0.0.1:{port};", site)
        assert count == 1
        paths = "\n".join(
            f"{kind}_temp_path {folder}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (folder / "nginx.conf").write_text(
            # Who is root starts workers as somebody who may not read a test's folder.
            f"{'user root;' if os.geteuid() == 0 else ''}\n"
            f"daemon off; pid {folder}/nginx.pid; error_log stderr;\n"
            "events {}\nhttp {\n"
            "log_format tries '$request_method $uri $status after $upstream_status';\n"
            f"access_log {self.access} tries;\n{paths}\n{site}\n}}\n"
        )
        self.url = f"http://127.0.0.1:{port}"
        super().__init__(folder, program, "-e", "stderr", "-p", str(folder), "-c", "nginx.conf")
