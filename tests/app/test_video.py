import json
import threading
from collections import Counter

import av
import numpy as np
import pytest

from app import cli, render, video
from app.clips import Clip, ClipError
from app.pipeline import Poses
from app.settings import Settings
from tests.clips import FPS, pan, write
from tests.photos import BUS

FRAMES = 36
SIZE = (320, 240)


class Walker:
    """Stands for a pipeline that finds one person, who walks two pixels a frame."""

    def __init__(self, stop_after=None):
        self.batches = []
        self.stop_after = stop_after

    def __call__(self, images, options):
        if len(self.batches) == self.stop_after:
            raise KeyboardInterrupt
        self.batches.append([image.shape for image in images])
        return [self.answer(sum(map(len, self.batches[:-1])) + n) for n in range(len(images))]

    def answer(self, number):
        box = np.array([[10 + 2 * number, 10, 40 + 2 * number, 90]], np.float32)
        keypoints = np.ones((1, 17, 3), np.float32)
        keypoints[..., 0] = 25 + 2 * number
        score = np.array([0.8], np.float32)
        return Poses("simcc-small", box, score, keypoints, {}, score)


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.mp4"
    write(path, (np.full((96, 128, 3), number, np.uint8) for number in range(20)))
    return path


def predict(path, walker, **options):
    settings = options.pop("settings", Settings())
    return video.predict(path, lambda: walker, "simcc-small", settings, **options)


def overlap(box, other):
    """Intersection over union of two `x1, y1, x2, y2`."""
    sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    common = np.maximum(sides, 0).prod()
    return common / ((box[2:] - box[:2]).prod() + (other[2:] - other[:2]).prod() - common)


def test_people_keep_their_ids_on_a_clip(tmp_path, capsys):
    """One man leaves the picture and comes back; the other one stays, in the end at its edge."""
    path, out, results = (tmp_path / name for name in ("pan.mp4", "out.mp4", "out.json"))
    shown, truth = zip(*pan(FRAMES, SIZE), strict=True)
    write(path, shown)
    asked = ["predict", str(path), "--out", str(out), "--json", str(results), "--smooth"]
    assert cli.main(asked) == 0
    told = capsys.readouterr()
    assert told.out == ""
    assert f"{path}: {FRAMES} frames" in told.err

    body = json.loads(results.read_text())
    head = {"video": "pan.mp4", "width": 320, "height": 240, "fps": FPS, "complete": True}
    assert body.items() >= head.items()
    assert (body["representation"], body["model"]) == ("simcc", "simcc-small")
    assert body["seconds"] == pytest.approx(np.arange(FRAMES) / FPS, abs=1e-3)
    ids = [Counter(), Counter()]
    for result in body["predictions"]:
        x, y, width, height = result["bbox"]
        box = np.array([x, y, x + width, y + height])
        for man, place in enumerate(truth[result["image_id"]]):
            inside = np.clip(place, 0, [*SIZE, *SIZE])
            if result["track_id"] is not None and overlap(box, inside) > 0.5:
                ids[man][result["track_id"]] += 1
    left, stayed = ids
    # Second boxes of a man, half right, are followed as somebody else.
    [(kept, frames)] = stayed.most_common(1)
    assert frames > 0.8 * FRAMES
    # Whoever was out of sight may come back as somebody else, but never as the other one.
    assert kept not in left
    assert sum(count for _, count in left.most_common(2)) > 0.4 * FRAMES

    with Clip(out, 10**6) as drawn:
        frames = list(drawn)
    assert len(frames) == FRAMES
    with Clip(path, 10**6) as plain:
        first = next(iter(plain)).image
    seen = [result for result in body["predictions"] if result["image_id"] == 0]
    corners = [(x, y, x + width, y + height) for x, y, width, height in (r["bbox"] for r in seen)]
    expected = render.draw(
        first,
        np.reshape([result["keypoints"] for result in seen], (-1, 17, 3)),
        np.array(corners),
        np.array([result["score"] for result in seen]),
        track_ids=np.array([result["track_id"] or 0 for result in seen]),
    )
    # A video's colours are coarse, and blurred around lines: nearer to the drawing than without it.
    away = [np.abs(frames[0].image.astype(int) - image).mean() for image in (expected, first)]
    assert away[0] < 0.4 * away[1]


def test_batches_are_as_large_as_fit(clip, tmp_path):
    walker = Walker()
    assert predict(clip, walker).frames == 20
    assert [len(batch) for batch in walker.batches] == [8, 8, 4]
    # Three batches of two frames: one being read, one being worked on, one being written.
    small = Settings(max_pixels_in_flight=6 * 96 * 128)
    walker = Walker()
    done = predict(clip, walker, settings=small, results=tmp_path / "out.json")
    assert (done.frames, done.people, done.damaged) == (20, 1, 0)
    assert {len(batch) for batch in walker.batches} == {2}


def test_reading_and_writing_overlap_the_device(clip, tmp_path, monkeypatch):
    """The second batch is not done before the third is read and the first is written."""
    read, written = threading.Event(), threading.Event()
    batches, write_one = video._batches, video._Report.write

    def reading(*arguments):
        for batch in batches(*arguments):
            if batch[0].number == 16:
                read.set()
            yield batch

    def writing(report, frame, poses):
        write_one(report, frame, poses)
        if frame.number == 7:
            written.set()

    class Waiting(Walker):
        def __call__(self, images, options):
            if len(self.batches) == 1:
                assert read.wait(10)
                assert written.wait(10)
            return super().__call__(images, options)

    monkeypatch.setattr(video, "_batches", reading)
    monkeypatch.setattr(video._Report, "write", writing)
    assert predict(clip, Waiting(), results=tmp_path / "out.json").frames == 20


def test_interrupted_it_leaves_whole_files(clip, tmp_path, capsys):
    out, results = tmp_path / "drawn" / "out.mp4", tmp_path / "out.json"
    with pytest.raises(KeyboardInterrupt):
        predict(clip, Walker(stop_after=2), out=out, results=results)
    assert f"{out} and {results}: interrupted after 16 frames" in capsys.readouterr().err
    body = json.loads(results.read_text())
    assert body["complete"] is False
    assert [result["image_id"] for result in body["predictions"]] == list(range(16))
    assert {result["track_id"] for result in body["predictions"]} == {1}
    assert len(body["seconds"]) == 16
    with av.open(str(out)) as file:
        assert sum(1 for _ in file.decode(video=0)) == 16


def test_json_may_go_to_the_standard_output(clip, capfdbinary, monkeypatch):
    monkeypatch.setattr(cli, "_pipeline", lambda *_: Walker())
    assert cli.main(["predict", str(clip), "--json"]) == 0
    body = json.loads(capfdbinary.readouterr().out)
    assert len(body["predictions"]) == 20


def test_a_folder_gets_a_video_of_its_own_name(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "_pipeline", lambda *_: Walker())
    assert cli.main(["predict", str(clip), "--out", str(tmp_path / "drawn")]) == 0
    assert (tmp_path / "drawn" / "clip.simcc.mp4").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no.mp4"], "no.mp4"),
        (["no.mp4", str(BUS)], "a video is predicted alone"),
        (["clip.mp4", "--out", "out.gif"], "ends in .mp4 or .mov or .mkv"),
        (["clip.mp4", "--out", "clip.mp4"], "clip.mp4 is the video itself"),
        (["clip.mp4", "--json", "out.txt"], "its --json FILE ends in .json"),
        (["clip.mp4", "--format", "coco"], "a video's results are --json FILE.json"),
        ([], "there is nothing to predict"),
        (["empty.mp4"], "empty.mp4: cannot be read as a video"),
        ([str(BUS), "--smooth"], "--smooth and --json FILE are for a video"),
        (["no.mp4", "--cluster", "auto"], "a video is predicted on this machine"),
    ],
)
def test_what_cannot_be_is_one_line(clip, arguments, words, monkeypatch, capsys):
    monkeypatch.chdir(clip.parent)
    (clip.parent / "empty.mp4").touch()
    assert cli.main(["predict", *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("posemux: ")
    assert words in line


def test_a_video_without_frames(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(Clip, "__iter__", lambda _: iter(()))
    out = tmp_path / "out.mp4"
    with pytest.raises(ClipError, match="no frame in it that can be decoded"):
        predict(clip, Walker(), out=out)
    assert not out.exists()
