from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import models
from app import cli, images
from app.main import build_pipeline
from app.metrics import Metrics
from app.pipeline import Options
from app.settings import Settings
from models import catalogue, published
from models.calibration import Calibration
from models.quantisation import read_ranges
from tests.photos import BUS, ZIDANE


@pytest.mark.parametrize("representation", ["simcc", "dark", "pct"])
def test_predict_draws_and_tells(
    representation: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["predict", str(BUS), "--representation", representation, "--out", str(tmp_path)]
    assert cli.main(asked) == 0
    told = capsys.readouterr().out
    assert f"people by {representation}-small" in told
    assert "person 0: score" in told
    drawn = cv2.imread(str(tmp_path / f"bus.{representation}.jpg"))
    photo = cv2.imread(str(BUS))
    assert drawn is not None
    assert photo is not None
    assert drawn.shape == photo.shape
    # The skeletons are there, and the rest of the picture is as it was.
    changed = np.abs(drawn.astype(int) - photo).max(-1) > 60
    assert 0.001 < changed.mean() < 0.2


def test_predict_as_json_is_a_coco_results_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", str(BUS), "--json", "--model", "dark-small"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["model"] == "dark-small"
    for result in body["predictions"]:
        assert set(result) == {"image_id", "category_id", "bbox", "score", "keypoints"}
        assert len(result["keypoints"]) == 51


@pytest.fixture
def misjudged(annotated: Path) -> Path:
    """The sample photo twice, with ankles annotated where nobody has them."""
    coco = json.loads(annotated.read_text())
    for person in coco["annotations"]:
        person["keypoints"][45:] = [400, 100, 2, 400, 100, 2]
        person["num_keypoints"] += 2
    coco["images"].append(coco["images"][0] | {"id": 8})
    coco["annotations"] += [person | {"image_id": 8} for person in coco["annotations"]]
    annotated.write_text(json.dumps(coco))
    return annotated


def test_calibrate_prints_what_belongs_into_the_card_and_draws(
    misjudged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["calibrate", "--annotations", str(misjudged), "--images", str(BUS.parent)]
    figure = tmp_path / "reliability.svg"
    assert cli.main([*asked, "--representation", "pct", "--figure", str(figure)]) == 0
    told = capsys.readouterr().out
    header, row = told.splitlines()[:2]
    assert header.split()[:2] == ["joints", "right"]
    name, joints, right, *figures = row.split()
    # Half of the four people, six joints each, of which the ankles are wrong.
    assert (name, joints) == ("pct-small", "12")
    assert 0.3 < float(right) <= 0.667
    assert len(figures) == 6
    card = tomllib.loads(told[told.index("[model.calibration]") :])["model"]
    found = Calibration.parse(card["calibration"])
    assert found.offsets[15] < found.offsets[5]
    assert figure.read_text().startswith("<?xml")


def test_quantise_notes_what_the_networks_see(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    detector, mine = tmp_path / "person-detector.safetensors", tmp_path / "mine.safetensors"
    shutil.copy(catalogue.WEIGHTS / detector.name, detector)
    shutil.copy(catalogue.WEIGHTS / "simcc-small.safetensors", mine)
    monkeypatch.setenv("POSE_DETECTOR_WEIGHTS", str(detector))
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (64, 48)).save(photos / "nobody.png")
    asked = ["quantise", "--images", str(photos), "--model", str(mine)]
    assert cli.main(asked) == 2
    assert "nobody was found in 1 pictures" in capsys.readouterr().err

    shutil.copy(BUS, photos)
    # Of the weights that were there before.
    (tmp_path / "person-detector.int8.json").write_text('{"sha256": "another", "ranges": {}}')
    assert cli.main(asked) == 0
    names = [f"{name}.int8.json" for name in ("person-detector", "mine")]
    written = [f"ranges: {tmp_path / name}" for name in names]
    assert capsys.readouterr().out.splitlines() == written
    ranges = read_ranges(detector)
    assert ranges is not None
    # Pictures are numbers from 0 to 1.
    assert ranges["model.model.0.conv"] == (0.0, 1.0)
    monkeypatch.setattr("app.runtime.cpus.weight_bits", lambda: 7)
    settings = Settings(models=(str(mine),), precision="int8", detector_weights=detector)
    pipeline = build_pipeline(settings, Metrics())
    [poses] = pipeline([cv2.imread(str(BUS), cv2.IMREAD_COLOR_RGB)], [Options("mine")])
    assert len(poses.scores) >= 3


def test_scores_are_calibrated_on_cocos_joints_alone(
    annotated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crowd = json.loads(annotated.read_text())
    for picture in crowd["images"]:
        picture["crowdIndex"] = 0.5
    for person in crowd["annotations"]:
        person["keypoints"] = person["keypoints"][: 14 * 3]
    annotated.write_text(json.dumps(crowd))
    asked = ["calibrate", "--annotations", str(annotated), "--images", str(BUS.parent)]
    assert cli.main(asked) == 2
    assert "is not COCO's" in capsys.readouterr().err


#: A published model whose file is a few bytes, since nothing here looks into it.
CONTENT = b"weights"
PUBLISHED = """
[costs]
"hrnet-w32-heatmap" = [28_536_113, 7_645_003_776]

[mmpose]
authors = "official"
page = "a model zoo"
url = "{url}"
licence = "Apache-2.0"
training_data = "COCO"
note = ""

[[mmpose.models]]
name = "far-away"
recipe = "hrnet-w32-heatmap"
file = "hrnet-{digest}_20260101.pth"
published = {{ AP = 0.749 }}

[drive]
authors = "official"
page = "a folder behind a browser"
licence = "MIT"
training_data = "COCO"
note = ""

[[drive.models]]
name = "by-hand"
recipe = "hrnet-w32-heatmap"
file = "hrnet.pth"
published = {{ AP = 0.744 }}
"""


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that weights are fetched from, and in its `cache` to."""
    digest = hashlib.sha256(CONTENT).hexdigest()[:8]
    cards = tmp_path / "published.toml"
    cards.write_text(PUBLISHED.format(url=f"{tmp_path.as_uri()}/", digest=digest))
    (tmp_path / f"hrnet-{digest}_20260101.pth").write_bytes(CONTENT)
    monkeypatch.setattr(published, "PUBLISHED", cards)
    monkeypatch.setenv("POSE_WEIGHTS_DIR", str(tmp_path / "cache"))
    for cached in (catalogue._cards, catalogue._published):
        cached.cache_clear()
    yield tmp_path
    for cached in (catalogue._cards, catalogue._published):
        cached.cache_clear()


def listed(told: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split() for line in told.splitlines()}


def test_models_list_says_whether_the_weights_are_here(
    zoo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["models"]) == 0
    told = capsys.readouterr().out
    rows = listed(told)
    assert {name for name, row in rows.items() if "present" in row} == set(catalogue.bundled())
    assert rows["far-away"][4:] == ["28.54M", "7.64", "0.749*", "~114", "absent", "Apache-2.0"]
    assert rows["by-hand"][-2:] == ["absent", "MIT"]
    assert told.splitlines()[-1].startswith("*: its authors' figure")


def test_models_fetch_verify_and_load(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = zoo / "cache" / "far-away.pth"
    assert cli.main(["models", "verify", "far-away", "dark-small"]) == 0
    assert listed(capsys.readouterr().out)["far-away"][1] == "absent"
    assert cli.main(["models", "fetch", "far-away"]) == 0
    assert path.read_bytes() == CONTENT
    told = capsys.readouterr()
    assert told.out == f"far-away: {path}, licence: Apache-2.0\n"
    assert cli.main(["models", "list"]) == 0
    assert listed(capsys.readouterr().out)["far-away"][8] == "present"
    assert cli.main(["models", "verify"]) == 0
    states = listed(capsys.readouterr().out)
    assert states["far-away"][1] == states["dark-small"][1] == "present"

    path.write_bytes(CONTENT[:-1])
    assert cli.main(["models", "verify"]) == 1
    assert listed(capsys.readouterr().out)["far-away"][1] == "damaged"
    with pytest.raises(models.WeightsError, match=r"far-away\.pth is damaged"):
        models.load("far-away", weights_dir=zoo / "cache")
    assert cli.main(["models", "fetch", "far-away"]) == 0
    assert cli.main(["models", "verify", "far-away"]) == 0


def test_a_file_from_a_browser_is_checked_where_it_can_be(
    zoo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = zoo / "Downloads (1).pth"
    other.write_bytes(b"something else")
    assert cli.main(["models", "fetch", "far-away", "--from", str(other)]) == 2
    assert "is not the file that was expected" in capsys.readouterr().err
    assert list((zoo / "cache").iterdir()) == []

    assert cli.main(["models", "fetch", "by-hand", "--from", str(other)]) == 0
    assert (zoo / "cache" / "by-hand.pth").read_bytes() == b"something else"
    told = capsys.readouterr().out
    assert hashlib.sha256(b"something else").hexdigest() in told
    assert cli.main(["models", "verify", "by-hand"]) == 0
    assert "no published sha256" in capsys.readouterr().out


def test_serving_what_was_not_fetched_says_how_to_get_it(
    zoo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["predict", str(BUS), "--model", "far-away"]) == 2
    [complaint] = capsys.readouterr().err.strip().splitlines()
    assert complaint.startswith(f"posemux: {zoo / 'cache' / 'far-away.pth'} is missing")
    assert "`posemux models fetch far-away`" in complaint


def test_the_service_does_not_start_without_its_models(
    zoo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POSE_MODELS", "simcc-small,far-away")
    assert cli.main(["serve", "--port", "0"]) == 2
    [complaint] = capsys.readouterr().err.strip().splitlines()
    assert complaint.startswith(f"posemux: {zoo / 'cache' / 'far-away.pth'} is missing")
    assert "`posemux models fetch far-away`" in complaint


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("nowhere.safetensors", "nowhere.safetensors cannot be read: No such file"),
        ("cut.safetensors", "cut.safetensors cannot be read as safetensors"),
        ("simcc-small,./simcc-small.safetensors", "are both called simcc-small"),
    ],
)
def test_a_file_that_cannot_be_served_is_one_line_before_anything_starts(
    given: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = (catalogue.WEIGHTS / "simcc-small.safetensors").read_bytes()
    (tmp_path / "simcc-small.safetensors").write_bytes(whole)
    (tmp_path / "cut.safetensors").write_bytes(whole[:5000])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POSE_MODELS", given)
    assert cli.main(["serve", "--port", "0"]) == 2
    [complaint] = capsys.readouterr().err.strip().splitlines()
    assert complaint.startswith(f"posemux: POSE_MODELS='{given}': ")
    assert told in complaint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["by-hand"], "takes a browser: get hrnet.pth of a folder behind a browser, and then"),
        (["simcc-small"], "comes with posemux"),
        (["far-away", "--from", "nowhere.pth"], "no such file: nowhere.pth"),
        (["nobody-knows"], "unknown pose model 'nobody-knows'"),
    ],
)
def test_what_cannot_be_fetched_is_one_clear_line(
    zoo: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["models", "fetch", *arguments]) == 2
    [complaint] = capsys.readouterr().err.strip().splitlines()
    assert complaint.startswith("posemux: ")
    assert message in complaint


class Poison:
    """Makes a folder when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.victim),)


@pytest.fixture
def rotten(tmp_path: Path) -> Path:
    """A folder of files that are no pose model's weights, each in its own way."""
    folder = tmp_path / "rotten"
    folder.mkdir()
    weights = {"conv1.weight": torch.zeros(64, 3, 3, 3)}
    torch.save({"meta": Poison(folder / "victim"), "state_dict": weights}, folder / "poison.pth")
    (folder / "text.pth").write_text("<!DOCTYPE html><title>Quota exceeded</title>\n")
    torch.save(torchvision.models.resnet18().state_dict(), folder / "another.pth")
    whole = (folder / "another.pth").read_bytes()
    (folder / "half.pth").write_bytes(whole[: len(whole) // 2])
    return folder


ROTTEN = [
    ("poison.pth", r"it calls \w+\.mkdir, and only weights and plain data are accepted"),
    ("text.pth", "neither safetensors nor PyTorch's"),
    ("half.pth", "cannot be read as a PyTorch checkpoint: damaged"),
    ("another.pth", r"\d+ keys, network\."),
]


@pytest.mark.parametrize(("file", "message"), ROTTEN)
def test_bad_weights_are_one_clear_line_and_nothing_is_executed(
    file: str,
    message: str,
    rotten: Path,
    annotated: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights, out = str(rotten / file), rotten / "out"
    out.mkdir()
    asked = [
        ["models", "convert", weights, "--out", str(out / "x.safetensors")],
        ["models", "export", weights, "--out", str(out / "x.onnx")],
        [
            *("evaluate", "--annotations", str(annotated), "--images", str(BUS.parent)),
            *("--weights", weights),
        ],
    ]
    for arguments in asked:
        assert cli.main(arguments) == 2
        [complaint] = capsys.readouterr().err.strip().splitlines()
        assert complaint.startswith(f"posemux: {weights} ")
        assert re.search(message, complaint)
    monkeypatch.setenv("POSE_DETECTOR_WEIGHTS", weights)
    assert cli.main(["predict", str(BUS)]) == 2
    [complaint] = capsys.readouterr().err.strip().splitlines()
    assert complaint.startswith(f"posemux: {weights} ")
    assert list(out.iterdir()) == []
    assert not (rotten / "victim").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "nowhere.pth"], "nowhere.pth is neither a file nor a pose model"),
        (["convert", "dark-small", "--layout", "dark-small"], "only a file takes a layout"),
        (["export", "nowhere.pth"], "nowhere.pth is neither a file nor a pose model"),
    ],
)
def test_what_cannot_be_written_is_one_clear_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suffix = {"convert": "safetensors", "export": "onnx"}[arguments[0]]
    for out, complaint in (
        (tmp_path / f"x.{suffix}", message),
        (tmp_path / "x.pth", f"--out must end in .{suffix}"),
    ):
        assert cli.main(["models", *arguments, "--out", str(out)]) == 2
        [told] = capsys.readouterr().err.strip().splitlines()
        assert told.startswith("posemux: ")
        assert complaint in told
    assert list(tmp_path.iterdir()) == []


def test_models_convert_writes_a_file_that_predicts_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.safetensors"
    assert cli.main(["models", "convert", "dark-small", "--out", str(out)]) == 0
    told, backbone = capsys.readouterr().out, models.card("dark-small").backbone
    assert told.startswith(f"{out}: dark, {backbone}, 192x256, 17 joints, ")
    assert models.load(weights=out).card.measured == models.card("dark-small").measured
    # The service may run as another user.
    assert out.stat().st_mode & 0o777 == 0o644
    assert (
        cli.main(
            ["models", "convert", "dark-small", "--out", str(tmp_path / "no" / "x.safetensors")]
        )
        == 2
    )
    assert "there is no folder" in capsys.readouterr().err


@pytest.mark.parametrize("representation", models.REPRESENTATIONS)
def test_an_exported_model_answers_as_the_service_does(
    representation: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is missing")
    pytest.importorskip("onnxscript", reason="the extra `export` is missing")
    out, name = tmp_path / "model.onnx", models.default(representation)
    assert cli.main(["models", "export", name, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "ONNX Runtime and torch differ by at most" in told
    assert list(tmp_path.iterdir()) == [out]

    pipeline = cli._pipeline(Settings(device="cpu"), name)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    man, across = [52.0, 396, 246, 902], [-40.0, 700, 300, 1200]
    edges = [[700.0, 300, 900, 900], [-30, -50, 60, 90], [0, 0, 810, 1080], [790, 1060, 809, 1079]]
    for photo, boxes in (
        (images.decode(BUS.read_bytes(), 10**7), [man]),
        (images.decode(BUS.read_bytes(), 10**7), [man, across, *edges, man]),
        (images.decode(ZIDANE.read_bytes(), 10**7)[:500, :777], [[100.0, 50, 500, 499], *edges]),
    ):
        given = np.array(boxes, np.float32)
        [poses] = pipeline([photo], [Options(name, boxes=given)])
        [found] = session.run(None, {"image": photo, "boxes": given})
        np.testing.assert_allclose(found[..., 2], poses.keypoints[..., 2], atol=1e-4)
        distances = np.hypot(*np.moveaxis(found - poses.keypoints, -1, 0)[:2])
        # Of two peaks as high as each other either may win.
        assert (distances < 0.05).mean() > 0.97


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "nowhere.jpg"], "no such file: nowhere.jpg"),
        (["predict", "*.nothing"], "no file matches *.nothing"),
        (["predict", str(BUS), "--model", "resnet-9000"], "unknown pose model 'resnet-9000'"),
        (["evaluate", "--annotations", "no.json", "--images", "."], "no.json"),
        (["evaluate", "--annotations", str(BUS), "--images", "."], "COCO"),
        (["calibrate", "--annotations", str(BUS), "--images", "."], "COCO"),
        (["train", "no-such-recipe", "--data", "."], "no recipe"),
        (["train", "dark-small", "--data", "/nowhere", "--runs", "{tmp}"], "is missing"),
        (
            ["train", "dark-small", "--data", ".", "--devices", "3", "--device", "cpu"],
            "shared by 3",
        ),
        (["train", "person-detector", "--data", ".", "--devices", "2"], "trains on one device"),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main([argument.format(tmp=tmp_path) for argument in arguments]) == 2
    complaint = capsys.readouterr().err.strip().splitlines()[-1]
    assert complaint.startswith("posemux: ")
    assert message in complaint


def test_a_wrong_setting_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POSE_PORT", "a lot")
    assert cli.main(["predict", str(BUS)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("posemux: POSE_PORT='a lot': ")


def test_settings_are_shown_without_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("bob:bob-0123456789ab\nalice:alice-0123456789\n")
    monkeypatch.setenv("POSE_API_KEYS_FILE", str(keys))
    monkeypatch.setenv("POSE_CLIENT_KEY", "mine-0123456789")
    assert cli.main(["serve", "--port", "9000", "--show-settings"]) == 0
    told = capsys.readouterr().out
    lines = told.splitlines()
    assert {"POSE_PORT=9000", f"POSE_API_KEYS_FILE={keys}"} <= set(lines)
    assert "POSE_CLIENT_KEY=**********" in lines
    assert lines[-1] == "# names with API keys: alice, bob"
    assert "0123456789" not in told


def test_a_full_disk_is_one_clear_line() -> None:
    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    done = subprocess.run(
        [sys.executable, "-m", "app.cli", "serve"],
        cwd=Path(__file__).parents[2],
        preexec_fn=fill,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    [complaint] = done.stderr.strip().splitlines()
    assert complaint.startswith("posemux: No usable temporary directory")
