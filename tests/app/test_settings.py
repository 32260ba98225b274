import os

import pytest
from pydantic import ValidationError

from app.settings import Settings


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch):
    for name in list(os.environ):
        if name.upper().startswith("POSE_"):
            monkeypatch.delenv(name)


def test_defaults_are_a_service_for_this_machine_alone():
    settings = Settings()
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.models == ("simcc-small", "dark-small", "pct-small")
    assert settings.representation == "simcc"


def test_the_environment_sets_them(monkeypatch, tmp_path):
    for name, value in {
        "POSE_PORT": "9000",
        "POSE_MODELS": "pct-small, dark-small",
        "POSE_REPRESENTATION": "pct",
        "POSE_DETECTOR_WEIGHTS": str(tmp_path),
        "POSE_DEADLINE_SECONDS": "2.5",
    }.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.port == 9000
    assert settings.models == ("pct-small", "dark-small")
    assert settings.representation == "pct"
    assert settings.detector_weights == tmp_path
    assert settings.deadline_seconds == 2.5
    assert Settings(port=1).port == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 65_536),
        ("device", "gpu"),
        ("runtime", "onnx"),
        ("compute_threads", -1),
        ("models", "simcc-small,big"),
        ("models", ""),
        ("representation", "heatmap"),
        ("detector_size", 500),
        ("min_score", 1.5),
        ("max_images", 0),
        ("deadline_seconds", 0),
        ("log_level", "loud"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(monkeypatch, name, value):
    monkeypatch.setenv(f"POSE_{name.upper()}", str(value))
    with pytest.raises(ValidationError) as refused:
        Settings()
    [error] = [error for error in refused.value.errors() if error["loc"][0] == name]
    assert error


def test_an_unknown_model_is_answered_with_the_known_ones():
    with pytest.raises(ValidationError, match="simcc-small"):
        Settings(models=("big",))


def test_the_default_representation_must_have_a_model():
    with pytest.raises(ValidationError, match=r"pct-small.*representation") as refused:
        Settings(models=("pct-small",))
    assert refused.value.errors()[0]["loc"] == ("representation",)


def test_a_request_may_not_have_more_images_than_can_wait():
    with pytest.raises(ValidationError, match="max_images"):
        Settings(max_images=9, max_queue=8)


def test_no_request_may_take_all_of_the_room_for_bytes():
    with pytest.raises(ValidationError, match="max_request_bytes"):
        Settings(max_request_bytes=1000, max_bytes_in_flight=1999)
    assert Settings(max_request_bytes=1000, max_bytes_in_flight=2000)


def test_settings_stay_as_they_are():
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1


def test_every_setting_is_explained():
    for name, field in Settings.model_fields.items():
        assert field.description, name
