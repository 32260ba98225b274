"""docs/security.md's example, run by a real nginx in front of a served application."""

import os
import re
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.app.api_support import PATIENCE, png

DOCUMENT = Path(__file__).parents[1] / "docs/security.md"
KEY = "alice-0123456789"

pytestmark = pytest.mark.skipif(
    not (shutil.which("nginx") and shutil.which("openssl")),
    reason="nginx or openssl is not installed",
)

FRAME = """
{user}
daemon off;
pid {folder}/nginx.pid;
error_log stderr notice;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/posemux.conf;
}}
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def running(make, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(f"alice:{KEY}\n")
    return make(api_keys_file=keys, key_rate=0.001, key_burst=2)


@pytest.fixture
def nginx(served, tmp_path):
    """The address of the example's server and a client's trust in it."""
    certificate, key = tmp_path / "fullchain.pem", tmp_path / "privkey.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "1", "-subj", "/CN=pose.example.org"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    [example] = re.findall(r"```nginx\n(.+?)```", DOCUMENT.read_text(), re.DOTALL)
    secure, plain = free_port(), free_port()
    for told, here in (
        ("127.0.0.1:8000", served.removeprefix("http://")),
        ("listen 443", f"listen 127.0.0.1:{secure}"),
        ("listen 80", f"listen 127.0.0.1:{plain}"),
        ("/etc/nginx/tls", str(tmp_path)),
    ):
        assert told in example
        example = example.replace(told, here)
    (tmp_path / "posemux.conf").write_text(example)
    user = "user root;" if os.getuid() == 0 else ""
    (tmp_path / "nginx.conf").write_text(FRAME.format(folder=tmp_path, user=user))
    process = subprocess.Popen(
        ["nginx", "-e", "stderr", "-p", tmp_path, "-c", tmp_path / "nginx.conf"],
        stderr=subprocess.PIPE,
        text=True,
    )
    said = []
    for line in process.stderr:
        said.append(line)
        if "start worker process " in line:
            break
    assert process.poll() is None, said
    yield f"https://127.0.0.1:{secure}", ssl.create_default_context(cafile=certificate), plain
    process.terminate()
    process.communicate(timeout=PATIENCE)


def test_the_proxy_of_the_example_does_what_it_is_said_to(nginx, running):
    url, trust, plain = nginx
    options = {"verify": trust, "timeout": PATIENCE, "trust_env": False}
    image = {"content": png(3, 4, 5), "headers": {"Content-Type": "image/png", "X-API-Key": KEY}}
    with httpx.Client(base_url=url, **options) as client:
        answer = client.post("/pose", **image)
        assert answer.status_code == 200
        assert answer.json()["predictions"][0]["bbox"][:2] == [3, 4]
        assert re.fullmatch(r"[0-9a-f]{32}", answer.json()["request_id"])
        image["headers"]["X-Request-ID"] = "my-own"
        assert client.post("/pose", **image).json()["request_id"] == "my-own"

        refused = client.post("/pose", **image)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) > 900
        assert refused.json()["type"] == "/problems/too-many-requests"
        image["headers"]["X-API-Key"] = "nobody-0123456789"
        stranger = client.post("/pose", **image)
        assert stranger.status_code == 401
        assert stranger.headers["WWW-Authenticate"].startswith("Bearer")

        assert client.get("/readyz").json() == {"status": "ready"}
        assert client.get("/metrics").status_code == 404
        assert running.client.get("/metrics").status_code == 200
    moved = httpx.get(f"http://127.0.0.1:{plain}/pose?model=x", timeout=PATIENCE, trust_env=False)
    assert (moved.status_code, moved.headers["Location"][:8]) == (301, "https://")


def test_the_proxys_limits_are_over_the_services(running):
    example = DOCUMENT.read_text()
    [megabytes] = re.findall(r"client_max_body_size +(\d+)m", example)
    [seconds] = re.findall(r"proxy_read_timeout (\d+)s", example)
    settings = running.settings
    assert int(megabytes) * 2**20 > settings.max_request_bytes
    assert int(seconds) > settings.deadline_seconds
