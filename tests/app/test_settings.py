import os

import pytest
from pydantic import ValidationError

from app.settings import Settings, complaints, listed
from models.pose_model import PoseModel
from models.training.loop import card_of
from tests.models.training_support import RECIPE


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
        ("log_format", "xml"),
        ("key_rate", "inf"),
        ("key_burst", 0),
        ("cors_origins", "example.org"),
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


def test_weights_files_are_found_from_any_folder(monkeypatch, tmp_path):
    PoseModel.fresh(card_of("tiny", RECIPE.architecture)).save(tmp_path / "mine.safetensors")
    monkeypatch.chdir(tmp_path)
    settings = Settings(models="mine.safetensors, dark-small")
    assert settings.models == (str(tmp_path / "mine.safetensors"), "dark-small")
    assert f"POSE_MODELS={tmp_path}/mine.safetensors,dark-small" in listed(settings)
    with pytest.raises(ValidationError, match=r"mine \(simcc\).*representation"):
        Settings(models="./mine.safetensors", representation="pct")


def test_a_request_may_not_have_more_images_than_can_wait():
    with pytest.raises(ValidationError, match="max_images"):
        Settings(max_images=9, max_queue=8)


@pytest.mark.parametrize("name", ["key_rate", "key_concurrency"])
def test_limits_of_keys_need_keys(name, tmp_path):
    with pytest.raises(ValidationError, match="POSE_API_KEYS_FILE") as refused:
        Settings(**{name: 3})
    assert refused.value.errors()[0]["loc"] == (name,)
    assert getattr(Settings(**{name: 3}, api_keys_file=tmp_path / "keys"), name) == 3


def test_web_sites():
    assert Settings(cors_origins="").cors_origins == ()
    assert Settings(cors_origins="https://a.org, http://b:1").cors_origins == (
        "https://a.org",
        "http://b:1",
    )
    for wrong in ("example.org", "https://example.org/", "https://example.org/page", "ftp://x"):
        with pytest.raises(ValidationError, match="not a web site"):
            Settings(cors_origins=wrong)


@pytest.mark.parametrize("variable", ["POSE_API_KEY_FILE", "pose_api_key_file", "POSE_API_KEYS"])
def test_a_misspelt_variable_is_refused_without_its_value(monkeypatch, variable):
    monkeypatch.setenv(variable, "a secret")
    with pytest.raises(ValidationError) as refused:
        Settings()
    told = f"{variable.upper()} is not a setting: did you mean POSE_API_KEYS_FILE?"
    assert list(complaints(refused.value)) == [told]


def test_everything_that_is_wrong_is_a_line_each(monkeypatch):
    monkeypatch.setenv("POSE_PORT", "a\nlot")
    monkeypatch.setenv("POSE_DEVICE", "gpu")
    monkeypatch.setenv("POSE_MAX_QUEUE", "1")
    monkeypatch.setenv("POSE_WHATEVER_THIS_IS", "1")
    with pytest.raises(ValidationError) as refused:
        Settings()
    port, device, queue, unknown = complaints(refused.value)
    assert port.startswith(r"POSE_PORT='a\nlot': Input should be a valid integer")
    assert port.endswith(". It means: Port to listen on; 0 takes a free one.")
    assert device.startswith("POSE_DEVICE='gpu': ")
    assert "cpu, cuda or cuda:N" in device
    assert queue.startswith("POSE_MAX_QUEUE='1': must be at least max_images")
    assert unknown == "POSE_WHATEVER_THIS_IS is not a setting"
    assert "\n" not in port + device + queue + unknown


def test_what_is_listed_can_be_given_back(monkeypatch, tmp_path):
    settings = Settings(
        port=9000,
        models="pct-small,dark-small",
        representation="pct",
        cors_origins="https://example.org",
        api_keys_file=tmp_path / "keys",
        key_rate=0.5,
    )
    lines = list(listed(settings))
    assert len(lines) == len(Settings.model_fields)
    assert "# POSE_DETECTOR_WEIGHTS is not set" in lines
    assert "POSE_PORT=9000" in lines
    for line in lines:
        if not line.startswith("#"):
            monkeypatch.setenv(*line.split("=", 1))
    assert Settings() == settings


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
