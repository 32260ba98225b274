"""Downloads against a real server on this machine that misbehaves in every way it can."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from models.downloads import DownloadError, fetch, sha256

FILE = bytes(range(256)) * 4096  # 1 MiB: several pieces
DIGEST = hashlib.sha256(FILE).hexdigest()
HALF = len(FILE) // 2

#: Answers one request: gets the handler and the first byte that was asked for.
Behaviour = Callable[["Handler", int], None]


@dataclass
class Log:
    """What the server did."""

    requests: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    served: int = 0


class Handler(BaseHTTPRequestHandler):
    """Plays one behaviour after the other, the last one for ever."""

    def do_GET(self) -> None:
        log, script = self.server.log, self.server.script  # type: ignore[attr-defined]
        asked, condition = self.headers["Range"], self.headers["If-Range"]
        log.requests.append((self.path, asked, condition))
        behaviour = script.pop(0) if len(script) > 1 else script[0]
        behaviour(self, int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0)

    def head(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def send(self, body: bytes) -> None:
        # Counted before, since the client may be done before this line is.
        self.server.log.served += len(body)  # type: ignore[attr-defined]
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Server:
    """Where it is, what it is to do, and what it did."""

    url: str
    log: Log
    script: list[Behaviour]
    #: Is set when the test is over: what stalls waits for it.
    over: threading.Event


@pytest.fixture
def server() -> Iterator[Server]:
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    over = threading.Event()
    log, script = Log(), list[Behaviour]()
    http.log, http.script, http.over = log, script, over  # type: ignore[attr-defined]
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield Server(f"http://127.0.0.1:{http.server_port}/model.pth", log, script, over)
    over.set()
    http.shutdown()
    http.server_close()
    thread.join()


def get(url: str, path: Path, digest: str = DIGEST, **options: object) -> None:
    fetch(url, path, digest, timeout=5.0, pause=0, **{**options})  # type: ignore[arg-type]


# ------------------------------------------------------------------------------ what servers do


def whole(handler: Handler, start: int) -> None:
    """Ranges, as they should be."""
    if start >= len(FILE):
        handler.head(416, Content_Range=f"bytes */{len(FILE)}", Content_Length=0)
        return
    body = FILE[start:]
    given = {"Content_Range": f"bytes {start}-{len(FILE) - 1}/{len(FILE)}"} if start else {}
    handler.head(206 if start else 200, Content_Length=len(body), ETag='"v1"', **given)
    handler.send(body)


def cut(handler: Handler, start: int) -> None:
    """Promises all and breaks off a quarter of the file later."""
    given = {"Content_Range": f"bytes {start}-{len(FILE) - 1}/{len(FILE)}"} if start else {}
    handler.head(206 if start else 200, Content_Length=len(FILE) - start, ETag='"v1"', **given)
    handler.send(FILE[start : start + len(FILE) // 4])


def stall(handler: Handler, start: int) -> None:
    """The first half, and then nothing."""
    handler.head(200, Content_Length=len(FILE))
    handler.send(FILE[:HALF])
    handler.server.over.wait(60)  # type: ignore[attr-defined]


def silent(handler: Handler, start: int) -> None:
    """Not even an answer."""
    handler.server.over.wait(60)  # type: ignore[attr-defined]


def without_ranges(handler: Handler, start: int) -> None:
    handler.head(200, Content_Length=len(FILE))
    handler.send(FILE)


def without_ranges_cut(handler: Handler, start: int) -> None:
    handler.head(200, Content_Length=len(FILE))
    handler.send(FILE[:HALF])


def without_length(handler: Handler, start: int) -> None:
    handler.head(200)
    handler.send(FILE)


def too_short(handler: Handler, start: int) -> None:
    """Says that half of the file is all, and sends all."""
    handler.head(200, Content_Length=HALF)
    handler.send(FILE)


def too_long(handler: Handler, start: int) -> None:
    """Says that the file is longer than it is, until it is asked for the rest."""
    if start:
        whole(handler, start)
        return
    handler.head(200, Content_Length=len(FILE) + 1000)
    handler.send(FILE)


def wrong(handler: Handler, start: int) -> None:
    body = b"<html>Please log in.</html>"
    handler.head(200, Content_Length=len(body))
    handler.send(body)


def other_range(handler: Handler, start: int) -> None:
    """The first bytes, whatever was asked for."""
    handler.head(206, Content_Length=HALF, Content_Range=f"bytes 0-{HALF - 1}/{len(FILE)}")
    handler.send(FILE[:HALF])


def endless(handler: Handler, start: int) -> None:
    handler.head(200, Content_Length=10**18)


def status(code: int) -> Behaviour:
    return lambda handler, start: handler.head(code, Content_Length=0)


def redirect(handler: Handler, start: int) -> None:
    handler.head(302, Location="/elsewhere.pth", Content_Length=0)


def reset(handler: Handler, start: int) -> None:
    """Hangs up without a word."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


# -------------------------------------------------------------------------------------- what works


@pytest.mark.parametrize("digits", [8, 64])
def test_a_file_arrives_whole(server: Server, tmp_path: Path, digits: int) -> None:
    server.script[:] = [whole]
    told: list[tuple[int, int | None]] = []
    path = tmp_path / "new" / "folder" / "model.pth"
    get(server.url, path, DIGEST[:digits], progress=lambda *seen: told.append(seen))
    assert path.read_bytes() == FILE
    assert [item.name for item in path.parent.iterdir()] == ["model.pth"]
    assert told[-1] == (len(FILE), len(FILE))
    assert told == sorted(told)
    assert len(told) > 2


def test_what_is_there_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(FILE)
    get(server.url, tmp_path / "model.pth")
    assert server.log.requests == []


def test_a_damaged_file_is_replaced(server: Server, tmp_path: Path) -> None:
    server.script[:] = [whole]
    (tmp_path / "model.pth").write_bytes(FILE[:-1])
    get(server.url, tmp_path / "model.pth")
    assert (tmp_path / "model.pth").read_bytes() == FILE


def test_cuts_cost_no_byte_twice(server: Server, tmp_path: Path) -> None:
    server.script[:] = [cut, cut, status(503), reset, whole]
    get(server.url, tmp_path / "model.pth")
    assert (tmp_path / "model.pth").read_bytes() == FILE
    assert server.log.served == len(FILE)
    quarter, half = f"bytes={len(FILE) // 4}-", f"bytes={HALF}-"
    asked = [(None, None), (quarter, '"v1"'), (half, '"v1"'), (half, '"v1"'), (half, '"v1"')]
    assert [request[1:] for request in server.log.requests] == asked


def test_an_interrupted_call_is_gone_on_with_by_the_next(server: Server, tmp_path: Path) -> None:
    class Enough(Exception):  # noqa: N818 - stands for Ctrl-C
        pass

    def stop(done: int, total: int | None) -> None:
        if done >= HALF:
            raise Enough

    server.script[:] = [cut, cut, whole]
    with pytest.raises(Enough):
        get(server.url, tmp_path / "model.pth", progress=stop)
    assert not (tmp_path / "model.pth").exists()
    kept = (tmp_path / "model.pth.part").stat().st_size
    assert kept == HALF
    get(server.url, tmp_path / "model.pth")
    assert (tmp_path / "model.pth").read_bytes() == FILE
    assert server.log.requests[-1][1] == f"bytes={HALF}-"
    assert server.log.served == len(FILE)


@pytest.mark.parametrize("start", [stall, silent])
def test_a_stall_is_tried_again(server: Server, tmp_path: Path, start: Behaviour) -> None:
    server.script[:] = [start, whole]
    fetch(server.url, tmp_path / "model.pth", DIGEST, timeout=0.2, pause=0)
    assert (tmp_path / "model.pth").read_bytes() == FILE
    assert server.log.served == len(FILE)
    assert len(server.log.requests) == 2


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_passing_failures_are_tried_again(server: Server, tmp_path: Path, code: int) -> None:
    server.script[:] = [status(code), whole]
    get(server.url, tmp_path / "model.pth")
    assert (tmp_path / "model.pth").read_bytes() == FILE


def test_redirects_are_followed_and_ranges_go_along(server: Server, tmp_path: Path) -> None:
    server.script[:] = [redirect, cut, redirect, whole]
    get(server.url, tmp_path / "model.pth")
    assert (tmp_path / "model.pth").read_bytes() == FILE
    assert server.log.requests[-1][:2] == ("/elsewhere.pth", f"bytes={len(FILE) // 4}-")
    assert server.log.served == len(FILE)


@pytest.mark.parametrize("answer", [without_ranges, without_length])
def test_a_server_without_ranges_starts_afresh(
    server: Server, tmp_path: Path, answer: Behaviour
) -> None:
    server.script[:] = [without_ranges_cut, answer]
    get(server.url, tmp_path / "model.pth")
    assert (tmp_path / "model.pth").read_bytes() == FILE
    assert server.log.served == HALF + len(FILE)


def test_bytes_from_elsewhere_in_the_file_are_not_taken(server: Server, tmp_path: Path) -> None:
    server.script[:] = [cut, other_range, whole]
    get(server.url, tmp_path / "model.pth")
    assert (tmp_path / "model.pth").read_bytes() == FILE


def test_a_length_that_is_too_large_is_settled_by_asking(server: Server, tmp_path: Path) -> None:
    server.script[:] = [too_long]
    get(server.url, tmp_path / "model.pth")
    assert (tmp_path / "model.pth").read_bytes() == FILE
    assert server.log.served == len(FILE)


@pytest.mark.parametrize("left", [b"x" * HALF, b"x" * len(FILE), b"x" * (len(FILE) + 9)])
def test_a_part_of_another_file_is_thrown_away(server: Server, tmp_path: Path, left: bytes) -> None:
    server.script[:] = [whole]
    (tmp_path / "model.pth.part").write_bytes(left)
    get(server.url, tmp_path / "model.pth")
    assert (tmp_path / "model.pth").read_bytes() == FILE
    assert [item.name for item in tmp_path.iterdir()] == ["model.pth"]


def test_a_file_url_copies(tmp_path: Path) -> None:
    (tmp_path / "got by a browser.pth").write_bytes(FILE)
    get((tmp_path / "got by a browser.pth").as_uri(), tmp_path / "model.pth", DIGEST[:8])
    assert (tmp_path / "model.pth").read_bytes() == FILE
    assert (tmp_path / "got by a browser.pth").read_bytes() == FILE


def test_without_a_digest_anything_is_taken(server: Server, tmp_path: Path) -> None:
    server.script[:] = [whole]
    get(server.url, tmp_path / "model.pth", "")
    assert sha256(tmp_path / "model.pth") == DIGEST


# ----------------------------------------------------------------------------------- what does not


@pytest.mark.parametrize(
    ("script", "message", "requests"),
    [
        ([wrong], r"not the file that was expected: its sha256 is \w{64}, and should be", 1),
        ([too_short], "not the file that was expected", 1),
        ([cut, wrong], "not the file that was expected", 2),
        ([status(404)], "answered 404 Not Found", 1),
        ([status(403)], "answered 403 Forbidden", 1),
        ([status(500)], "answered 500 .*given up after 5 attempts, 0 bytes", 5),
        ([without_ranges_cut], f"cut after {HALF} of {len(FILE)} bytes; given up", 5),
        ([other_range], "given up after 5 attempts", 5),
        ([reset], "the connection broke.*given up after 5", 5),
        ([endless], "MB are to come, and .* has room for", 1),
    ],
)
def test_what_cannot_be_had_is_one_line_and_no_file(
    server: Server, tmp_path: Path, script: list[Behaviour], message: str, requests: int
) -> None:
    server.script[:] = script
    with pytest.raises(DownloadError, match=message) as error:
        get(server.url, tmp_path / "model.pth")
    assert "\n" not in str(error.value)
    assert server.url in str(error.value)
    assert not (tmp_path / "model.pth").exists()
    assert len(server.log.requests) == requests


def test_a_server_that_only_stalls_is_given_up(server: Server, tmp_path: Path) -> None:
    server.script[:] = [silent]
    with pytest.raises(DownloadError, match=r"nothing came for 0\.05 s; given up"):
        fetch(server.url, tmp_path / "model.pth", DIGEST, timeout=0.05, pause=0)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_file_leaves_the_old_one_and_no_part(server: Server, tmp_path: Path) -> None:
    server.script[:] = [wrong]
    (tmp_path / "model.pth").write_bytes(b"the old one")
    with pytest.raises(DownloadError):
        get(server.url, tmp_path / "model.pth")
    assert (tmp_path / "model.pth").read_bytes() == b"the old one"
    assert [item.name for item in tmp_path.iterdir()] == ["model.pth"]


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(DownloadError, match=r"no connection.*refused.*given up after 5"):
        get(f"http://127.0.0.1:{port}/model.pth", tmp_path / "model.pth")


@pytest.mark.parametrize("url", ["ftp://example.org/a", "models/weights", "data:,a"])
def test_other_schemes_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="an http, https or file URL is wanted"):
        get(url, tmp_path / "model.pth")


def test_a_file_url_to_nowhere(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="No such file"):
        get((tmp_path / "nowhere.pth").as_uri(), tmp_path / "model.pth")


def test_a_full_disk_is_one_line(server: Server, tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full here")
    server.script[:] = [whole]
    (tmp_path / "model.pth.part").symlink_to(full)
    with pytest.raises(DownloadError, match=r"model\.pth\.part cannot be written: No space left"):
        get(server.url, tmp_path / "model.pth")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"")
    with pytest.raises(DownloadError, match=r"taken.* cannot be written: "):
        get("http://127.0.0.1:9/", tmp_path / "taken" / "model.pth")


def test_a_folder_without_permission_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path))

    # Whoever runs the tests as root may write everywhere.
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DownloadError, match="cannot be written: Permission denied"):
        get("http://127.0.0.1:9/", tmp_path / "model.pth")


def test_two_processes_do_not_write_one_file(server: Server, tmp_path: Path) -> None:
    with (tmp_path / "model.pth.part").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match="is being written by another process"):
            get(server.url, tmp_path / "model.pth")
    assert server.log.requests == []
