"""posemux's own clients at a service that needs a key."""

import asyncio

import httpx
import pytest

from app import cli
from app.bench import sweep
from app.bench.load import closed_loop, in_turn
from app.bench.sweep import Sweep
from app.settings import Settings
from tests.app.api_support import PATIENCE, png
from tests.photos import BUS

PHOTO = png(7, 8, 9)
KEY = "alice-0123456789"


@pytest.fixture
def running(make, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(f"alice:{KEY}\n")
    return make(api_keys_file=keys)


def test_the_key_goes_into_a_header_and_nowhere_else(monkeypatch):
    assert Settings().credentials == {}
    monkeypatch.setenv("POSE_CLIENT_KEY", KEY)
    settings = Settings()
    assert settings.credentials == {"X-API-Key": KEY}
    assert KEY not in repr(settings)
    assert KEY not in settings.model_dump_json()


def test_a_strangers_upload_ends_well(served):
    with httpx.Client(timeout=PATIENCE, trust_env=False) as client:
        for key, status in (("nobody-0123456789", 401), (KEY, 200), (None, 401), (KEY, 200)):
            headers = {"Content-Type": "image/png"} | ({"X-API-Key": key} if key else {})
            # More than fits into the kernel's buffers, behind an image that is whole.
            content = PHOTO + bytes(8_000_000)
            answer = client.post(f"{served}/pose", content=content, headers=headers)
            assert answer.status_code == status


@pytest.mark.parametrize(("key", "status"), [(KEY, "200"), (None, "401")])
def test_a_load_is_sent_with_it(served, key, status):
    requests = in_turn([f"{served}/pose"], [PHOTO], Settings(client_key=key).credentials)
    load = asyncio.run(closed_loop(requests, 1, most=2))
    assert {answer.status for answer in load.answers} == {status}


def test_a_service_is_asked_for_its_models_with_it(served, running):
    running.app.state.service.metrics.model_info.labels("dark-small", "dark", "x", "cpu").set(1)

    class Photos:
        def read(self):
            return [PHOTO]

    asked = Sweep([Photos()])
    assert sweep._models(served, asked, {"X-API-Key": KEY}) == {"dark": "dark-small"}
    with pytest.raises(sweep.TargetError, match="answered 401"):
        sweep._models(served, asked, {})


@pytest.mark.parametrize(("key", "code"), [(KEY, 0), ("", 2)])
def test_a_service_is_measured_with_it(served, annotated, monkeypatch, capsys, key, code):
    monkeypatch.setenv("POSE_CLIENT_KEY", key)
    asked = ["evaluate", "--annotations", str(annotated), "--images", str(BUS.parent)]
    assert cli.main([*asked, "--url", served, "--model", "dark-small"]) == code
    assert ("answered 401" in capsys.readouterr().err) == (code == 2)
