from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from PIL import Image

from app import cli, predict
from app.journal import FILE_NAME
from app.predict import Predict
from app.settings import Settings
from tests.app.api_support import PATIENCE, FakePipeline, png

#: The one person of the n-th picture is n pixels from its left edge; in the first there is nobody.
NAMES = [f"{number:02}.png" for number in range(12)]
ALL = [(name, float(number)) for number, name in enumerate(NAMES)][1:]
LIMITS = {"max_image_pixels": 250_000, "max_image_bytes": 100_000}


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    pipeline = FakePipeline()
    pipeline.built = 0

    def build(*_: object) -> FakePipeline:
        pipeline.built += 1
        return pipeline

    monkeypatch.setattr(predict, "build_pipeline", build)
    return pipeline


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, name in enumerate(NAMES):
        (photos / name).write_bytes(png(number, number, 20 * number, (40, 30)))
    return photos


def spoil(photos: Path) -> dict[str, str]:
    """Put what cannot be answered between the photos: by name what is said of it."""
    (photos / "03a.jpg").touch()
    (photos / "05a.jpg").write_bytes(b"\0\0\0\x18ftypheic")
    (photos / "05b.png").write_bytes((photos / "05.png").read_bytes()[:50])
    (photos / "07a.png").symlink_to("nowhere")
    os.mkfifo(photos / "09a.png")
    (photos / "10a.png").write_bytes(png(1, 1, 1, (800, 700)))
    (photos / "10b.bmp").write_bytes(b"BM" + bytes(200_000))
    return {
        "03a.jpg": "0 bytes",
        "05a.jpg": "JPEG, PNG, WebP",
        "05b.png": "ends early",
        "07a.png": "No such file",
        "09a.png": "not a file",
        "10a.png": "more pixels than the 250000",
        "10b.bmp": "more bytes than the 100000",
    }


def results(out: Path) -> list[tuple[str, float]]:
    """Whose left edge is where, by the COCO files."""
    images = json.loads((out / "annotations.json").read_text())["images"]
    names = {image["id"]: image["file_name"] for image in images}
    found = json.loads((out / "results.json").read_text())
    return [(names[person["image_id"]], person["bbox"][0]) for person in found]


def ask(**asked: object) -> int:
    options = {"inputs": ["photos"], "model": "simcc-small", "format": "coco", "out": Path("out")}
    return predict.predict(Predict(**(options | asked)), Settings(max_batch_images=2, **LIMITS))


def test_no_bad_file_stops_the_others(
    pipeline: FakePipeline, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = spoil(photos)
    assert ask() == 1
    assert results(Path("out")) == ALL
    told = capsys.readouterr()
    assert told.out.splitlines() == ["out/results.json", "out/annotations.json"]
    head, failed, *lines = told.err.splitlines()
    assert head.startswith("12 images answered, with 11 people; ")
    assert failed == "7 failed:"
    for line, (name, reason) in zip(lines, bad.items(), strict=True):
        assert line.startswith(f"  photos/{name}: ")
        assert reason in line
    for name in bad:
        (photos / name).unlink()
    assert ask() == 0


def test_the_poisoned_one_of_a_batch_fails_alone(
    pipeline: FakePipeline, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.poisoned = 4
    assert ask() == 1
    assert results(Path("out")) == [found for found in ALL if found[0] != "04.png"]
    assert "  photos/04.png: The image could not be processed." in capsys.readouterr().err
    # It may have been the device's fault, so it is tried again, alone.
    pipeline.poisoned = None
    pipeline.seen.clear()
    assert ask() == 0
    assert len(pipeline.seen) == 1
    assert results(Path("out")) == ALL


def test_killed_at_any_moment_it_goes_on_where_it_was(
    pipeline: FakePipeline, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(photos)
    ask(out=Path("whole"))
    whole = {path.name: path.read_bytes() for path in Path("whole").iterdir()}
    lines = whole[FILE_NAME].splitlines(keepends=True)
    for count in range(0, len(lines), 3):
        # Killed after so many pictures, and in the middle of writing down another.
        out = Path(f"killed-{count}")
        out.mkdir()
        (out / FILE_NAME).write_bytes(b"".join(lines[:count]) + lines[count][: 7 * count])
        pipeline.seen.clear()
        assert ask(out=out) == 1
        before = sum(b'"error":null' in line for line in lines[:count])
        assert len(pipeline.seen) == len(NAMES) - before
        for name in ("results.json", "annotations.json"):
            assert (out / name).read_bytes() == whole[name]
        assert {path.name for path in out.iterdir()} == whole.keys()


def test_what_is_known_is_written_without_a_model(pipeline: FakePipeline, photos: Path) -> None:
    assert ask() == 0
    assert ask(format="csv") == 0
    assert ask(format="yolo") == 0
    assert pipeline.built == 1
    assert len(Path("out/poses.csv").read_text().splitlines()) == 12
    assert len(list(Path("out/labels").iterdir())) == 12


def test_new_and_changed_pictures_are_added(pipeline: FakePipeline, photos: Path) -> None:
    assert ask(inputs=["photos/0*.png"]) == 0
    (photos / "03.png").write_bytes(png(77, 1, 255, (41, 30)))
    pipeline.seen.clear()
    assert ask() == 0
    assert len(pipeline.seen) == 3
    assert results(Path("out")) == [(name, 77.0 if name == "03.png" else x) for name, x in ALL]


@pytest.mark.parametrize(
    ("asked", "variables", "told"),
    [
        (["photos", "--model", "dark-small"], {}, "model simcc-small, not of dark-small"),
        (["photos"], {"POSE_MIN_SCORE": "0.5"}, "min_score 0.3, not of 0.5"),
        (["photos"], {"POSE_DETECTOR_SIZE": "640"}, "detector_size 480, not of 640"),
        (["photos/sub"], {}, "photos, not of "),
    ],
)
def test_another_question_takes_another_folder(
    pipeline: FakePipeline,
    photos: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    asked: list[str],
    variables: dict[str, str],
    told: str,
) -> None:
    (photos / "sub").mkdir()
    (photos / "sub" / "01.png").write_bytes((photos / "01.png").read_bytes())
    written = ["--format", "csv", "--out", "out"]
    assert cli.main(["predict", "photos", *written]) == 0
    before = Path("out/poses.csv").read_bytes()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["predict", *asked, *written]) == 2
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert complaint.startswith("posemux: out has the results of ")
    assert told in complaint
    assert Path("out/poses.csv").read_bytes() == before


def test_no_more_is_held_than_two_batches(
    pipeline: FakePipeline, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two batches of two, and as many as are being decoded.
    most = 2 * 2 + Settings().decode_threads
    held: list[int] = []
    full = threading.Event()
    decode = predict.images.decode

    def counted(data: bytes, max_pixels: int) -> object:
        held.append(len(held) + 1 - len(pipeline.seen))
        if len(held) == most:
            full.set()
        return decode(data, max_pixels)

    monkeypatch.setattr(predict.images, "decode", counted)
    pipeline.hold()
    running = threading.Thread(target=ask)
    running.start()
    assert full.wait(PATIENCE)
    pipeline.go.set()
    running.join(PATIENCE)
    assert len(held) == len(NAMES)
    assert max(held) <= most


def test_large_pictures_wait_for_each_other() -> None:
    pixels = predict._Pixels(100)
    order: list[str] = []

    def large() -> None:
        with pixels.held(500):
            order.append("large")

    waiting = threading.Thread(target=large)
    with pixels.held(60), pixels.held(40):
        waiting.start()
        order.append("small")
    waiting.join(PATIENCE)
    assert order == ["small", "large"]
    with pixels.held(500):
        pass


def test_a_lost_device_ends_it_and_blames_no_picture(
    pipeline: FakePipeline,
    photos: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: FakePipeline, images: object, options: object) -> None:
        if len(self.seen) >= 4:
            raise RuntimeError("CUDA error: unspecified launch failure")
        return whole(self, images, options)

    whole = FakePipeline.__call__
    monkeypatch.setattr(FakePipeline, "__call__", fail)
    asked = ["predict", "photos", "--format", "coco", "--out", "out"]
    assert cli.main(asked) == 2
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert complaint.startswith("posemux: the device has failed: RuntimeError: CUDA error")
    assert b"error" not in (Path("out") / FILE_NAME).read_bytes().replace(b'"error":null', b"")
    monkeypatch.setattr(FakePipeline, "__call__", whole)
    assert cli.main(asked) == 0
    assert results(Path("out")) == ALL


def test_as_json_every_picture_has_its_line(
    pipeline: FakePipeline, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = spoil(photos)
    assert ask(format=None, out=None, json=True) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["image"] for line in lines] == sorted(f"photos/{n}" for n in [*NAMES, *bad])
    for index, line in enumerate(lines):
        if Path(line["image"]).name in bad:
            assert line.keys() == {"image", "model", "error"}
        else:
            ids = [(one["image_id"], one["category_id"]) for one in line["predictions"]]
            assert ids == [(index, 1)] * (line["image"] != "photos/00.png")


def test_drawn_pictures_lie_as_their_originals_do(pipeline: FakePipeline, photos: Path) -> None:
    (photos / "sub").mkdir()
    (photos / "sub" / "01.png").write_bytes((photos / "01.png").read_bytes())
    for _ in range(2):
        assert ask(format=None) == 0
        drawn = sorted(path.relative_to("out").as_posix() for path in Path("out").rglob("*.*"))
        assert drawn == [
            *(name.replace(".png", ".simcc.jpg") for name in NAMES),
            "sub/01.simcc.jpg",
        ]
    with Image.open("out/sub/01.simcc.jpg") as picture:
        assert picture.size == (40, 30)


def test_names_that_cannot_be_printed_are(
    pipeline: FakePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(os.fsdecode(b"\xff.png")).write_bytes(png(1, 2, 3))
    assert ask(inputs=["*.png"]) == 0
    assert ask(inputs=["*.png"], format=None, out=None) == 0
