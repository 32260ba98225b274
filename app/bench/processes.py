"""What is measured runs in processes of its own: a real service, and a bare pipeline."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO, Any, Self

import psutil
import torch

#: How long models may take to load, and how often it is asked whether they have, in seconds.
_START = 600.0
_POLL = 0.05
#: On top of the time that a service takes to drain.
_STOP = 30.0

#: Counted before ultralytics, when it exports a network, leaves this process one fewer than it has.
_THREADS = torch.get_num_threads()


class ProcessError(RuntimeError):
    """A process that is to be measured failed: the message says why."""


def environment() -> dict[str, str]:
    """What a process that is started here sees: what this one was started with.

    Ultralytics, once imported, tells all children to use one thread.
    """
    root = str(Path(__file__).parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "OMP_NUM_THREADS": str(_THREADS),
        "PYTHONPATH": os.pathsep.join(paths),
    }


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


class Child:
    """A process that is stopped in the end: a context manager.

    Args:
        name: of what runs in it.
        arguments: of a Python interpreter like this one.
        variables: of the environment, in addition.
        piped: whether one talks to it through its standard input and output.
        grace: seconds that it may take to stop.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        variables: Mapping[str, str] | None = None,
        piped: bool = False,
        grace: float = _STOP,
    ) -> None:
        self.name = name
        self._grace = grace
        self._log: IO[bytes] = TemporaryFile()  # noqa: SIM115
        pipe = subprocess.PIPE if piped else None
        self._process = subprocess.Popen(
            # Without the working folder, which may hold an `app` of its own, on the path.
            [sys.executable, "-P", *arguments],
            env=environment() | dict(variables or {}),
            stdin=pipe or subprocess.DEVNULL,
            stdout=pipe or self._log,
            stderr=self._log,
            text=piped,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        own = self.processes if self._process.poll() is None else []
        self._process.terminate()
        psutil.wait_procs(own, self._grace)
        for process in own:
            # What has gone meanwhile is not there to be killed.
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                stream.close()

    def check(self) -> None:
        """Raise `ProcessError` if it has ended."""
        if self._process.poll() is not None:
            raise self.failed()

    def failed(self) -> ProcessError:
        """Why it failed: its last words."""
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return ProcessError(f"{self.name} failed: {lines[-1] if lines else 'it said nothing'}")

    @property
    def processes(self) -> list[psutil.Process]:
        """It and all that it started."""
        own = psutil.Process(self._process.pid)
        return [own, *own.children(recursive=True)]

    @property
    def cpu_seconds(self) -> float:
        """What it, and all that it started, have taken of the processor."""
        times = [process.cpu_times() for process in self.processes]
        return float(sum(spent.user + spent.system for spent in times))


class Served(Child):
    """A child that serves HTTP, ready to be asked.

    Args:
        name: of what runs in it.
        arguments: of a Python interpreter like this one.
        url: where it will answer.
        ready: the path that answers 200 once it is ready.
        variables: of the environment, in addition.
        grace: seconds that it may take to stop.

    Raises:
        ProcessError: it does not start, or not within ten minutes.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        url: str,
        ready: str,
        variables: Mapping[str, str] | None = None,
        grace: float = _STOP,
    ) -> None:
        super().__init__(name, arguments, variables, grace=grace)
        self.url = url
        try:
            self._wait(url + ready)
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def _wait(self, url: str) -> None:
        end = time.monotonic() + _START
        # A proxy of the environment's is not for this machine's own services.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while time.monotonic() < end:
            self.check()
            try:
                with opener.open(url, timeout=_START):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(_POLL)
        raise ProcessError(f"{self.name} is not ready after {_START:.0f} seconds")


def posemux(drain_seconds: float) -> Served:
    """A `posemux serve` with the settings of the environment, on a free port of this machine."""
    port = free_port()
    return Served(
        "posemux serve",
        ["-m", "app.cli", "serve", "--host", "127.0.0.1", "--port", str(port)],
        f"http://127.0.0.1:{port}",
        "/readyz",
        grace=drain_seconds + _STOP,
    )


class Bare(Child):
    """A bare pipeline with the settings of the environment, ready: see `app.bench.bare`."""

    def __init__(self) -> None:
        super().__init__("the bare pipeline", ["-m", "app.bench.bare"], piped=True)
        self._answer()

    def measure(
        self, model: str, files: Sequence[Path], batch: int, seconds: float, warm_up: float
    ) -> dict[str, Any]:
        """See `app.bench.bare.measure`."""
        question = {
            **{"model": model, "files": [str(file) for file in files], "batch": batch},
            **{"seconds": seconds, "warm_up": warm_up},
        }
        assert self._process.stdin is not None
        self.check()
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        found: dict[str, Any] = self._answer()
        return found

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise self.failed()
        return json.loads(line)
