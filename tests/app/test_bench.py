"""`posemux bench`: the load, what is made of it, and one run from end to end."""

from __future__ import annotations

import asyncio
import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app import cli
from app.bench import bare, photos, report, soak, sweep
from app.bench.load import Answer, Load, arrivals, closed_loop, in_turn, open_loop, percentiles
from app.bench.processes import Child, ProcessError, Served, free_port
from app.main import build_detector
from app.settings import Settings
from tests.app.api_support import FakePipeline, Running, png

PHOTO = png(7, 8, 9)


# ---------------------------------------------------------------------------------------- the load


def test_a_closed_loop_keeps_so_many_under_way(served: str, running: Running) -> None:
    most = 0

    def watch(_: Answer) -> None:
        nonlocal most
        most = max(most, running.engine.in_flight)

    requests = in_turn([f"{served}/pose"], [PHOTO])
    load = asyncio.run(closed_loop(requests, 3, most=30, watch=watch))
    assert [answer.status for answer in load.answers] == ["200"] * 30
    assert {answer.people for answer in load.answers} == {1}
    assert load.answers[0].timings.keys() >= {"decode", "detect", "pose", "total"}
    assert most <= 3
    assert load.images_per_second == pytest.approx(30 / load.seconds)
    assert load.cpu_seconds > 0
    assert load.latencies.max() <= load.seconds


def test_a_closed_loop_ends_in_time(served: str) -> None:
    requests = in_turn([f"{served}/pose"], [PHOTO])
    load = asyncio.run(closed_loop(requests, 2, seconds=0.05))
    assert load.answers
    assert load.seconds - load.answers[-1].seconds < 5


def test_every_photo_goes_to_every_url() -> None:
    requests = in_turn(["a", "b"], [b"1", b"2"])
    sent = [(request.url, request.body) for request, _ in zip(requests, range(5), strict=False)]
    assert sent == [("a", b"1"), ("b", b"1"), ("a", b"2"), ("b", b"2"), ("a", b"1")]


def test_an_open_loop_counts_from_when_a_request_was_due(served: str) -> None:
    # Due before the run begins: as if the clients had been held up so long.
    load = asyncio.run(open_loop(in_turn([f"{served}/pose"], [PHOTO]), np.array([-0.5, 0.0])))
    late, punctual = (answer.seconds for answer in load.answers)
    assert late >= 0.5
    assert late > punctual


def test_an_open_loop_does_not_wait_for_answers(served: str, running: Running) -> None:
    running.pipeline.hold()
    answered: list[Answer] = []

    async def run() -> Load:
        requests = in_turn([f"{served}/pose"], [PHOTO])
        loop = asyncio.create_task(open_loop(requests, np.zeros(10), answered.append))
        # Nobody has been answered, and all are there.
        await asyncio.to_thread(running.until, lambda: running.engine.in_flight == 10)
        assert not answered
        running.pipeline.go.set()
        return await loop

    assert len(asyncio.run(run()).good) == 10


def test_errors_count_by_status_and_have_no_latency(served: str) -> None:
    urls = [f"{served}/pose", f"{served}/nowhere", f"http://127.0.0.1:{free_port()}/pose"]
    load = asyncio.run(closed_loop(in_turn(urls, [PHOTO]), 1, most=3))
    assert load.errors == {"404": 1, "connection": 1}
    assert len(load.latencies) == 1


def test_strangers_come_at_random_but_each_time_the_same() -> None:
    moments = arrivals(200, 50, seed=1)
    assert (np.diff(moments) > 0).all()
    assert moments[0] > 0
    assert moments[-1] < 50
    assert len(moments) == pytest.approx(10_000, rel=0.05)
    gaps = np.diff(moments)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)  # as Poisson's are
    assert np.array_equal(moments, arrivals(200, 50, seed=1))
    assert not np.array_equal(moments, arrivals(200, 50, seed=2))


def test_percentiles_are_in_milliseconds() -> None:
    assert percentiles(np.arange(101) / 1000) == pytest.approx((50, 95, 99))
    assert percentiles(np.array([])) == (None, None, None)


# ----------------------------------------------------------------------------- what is made of it


def row(**given: Any) -> sweep.Row:
    timings = {"decode": 1.0, "queue": 0.0, "detect": 20.0, "pose": 10.0, "total": 33.0}
    answers = [Answer("200", seconds, 5, timings) for seconds in (0.034, 0.035, 0.039)]
    load = Load([*answers, Answer("503", 0.001)], 0.1, 0.02)
    about = {"representation": "simcc", "model": "simcc-small", "photos": "5 people"}
    bare = {"batch": 1, "images_per_second": 32.0, "people_per_second": 160.0, "stages_ms": {}}
    return sweep.summarise(
        load, about | {"concurrency": 1, "rate": None} | given, {"detect": 1.0}, 1.5, bare
    )


def test_a_loads_figures() -> None:
    found = row()
    assert found.images_per_second == pytest.approx(30)
    assert found.people_per_second == pytest.approx(150)
    assert found.people_per_image == pytest.approx(5)
    assert found.p50_ms == pytest.approx(35)
    assert found.beyond_ms == pytest.approx(35 - 31)
    assert found.errors == {"503": 1}
    assert found.client_cpu == pytest.approx(0.2)
    assert found.efficiency == pytest.approx(150 / 160)


def test_nothing_answered_has_no_latency_and_no_efficiency_where_nobody_is() -> None:
    load = Load([Answer("504", 10.0)], 10, 0)
    about = {"representation": "simcc", "model": "simcc-small", "photos": "", "rate": None}
    found = sweep.summarise(load, about | {"concurrency": 1}, {}, None, None)
    assert (found.p50_ms, found.people_per_image, found.beyond_ms, found.efficiency) == (None,) * 4
    assert sweep.efficiency(0.0, {"people_per_second": 0.0}) is None


def test_mean_batches_are_of_what_came_between() -> None:
    before = {"detect": (10.0, 10.0), "pose": (3.0, 1.0)}
    after = {"detect": (34.0, 16.0), "pose": (3.0, 1.0), "new": (8.0, 2.0)}
    assert sweep.mean_batches(before, after) == {"detect": 4.0, "new": 4.0}


def samples(grown: Callable[[int], tuple[float, int, int]]) -> list[soak.Sample]:
    found = []
    for number in range(100):
        memory, files, threads = grown(number)
        found.append(soak.Sample(number, int(1e9 * memory), files, threads))
    return found


@pytest.mark.parametrize(
    ("grown", "flat"),
    [
        (lambda n: (1.0, 20, 9), True),
        (lambda n: (1 + 0.5 * (n < 15), 20, 9), True),  # what warming up took, and gave back
        (lambda n: (0.5 + 0.5 * (n > 15), 20 - 9 * (n < 15), 9 - 5 * (n < 15)), True),
        (lambda n: (1 + 0.001 * n, 20, 9), False),
        (lambda n: (1.0, 20 + n // 10, 9), False),
        (lambda n: (1.0, 20, 9 + n // 60), False),
    ],
    ids=["flat", "shrinks", "warms up", "memory", "files", "threads"],
)
def test_a_leak_is_told_from_warming_up(
    grown: Callable[[int], tuple[float, int, int]], flat: bool
) -> None:
    assert soak.is_flat(samples(grown)) == flat


def test_a_report_is_json_markdown_and_drawings(tmp_path: Path) -> None:
    rows = [row(), row(concurrency=8), row(concurrency=None, rate=12.5)]
    soaked = soak.Soak(samples(lambda n: (1.0, 20, 9)), {"503": 2}, 60.0, True)
    machine = report.hardware()
    written = report.Report("posemux bench", machine, report.versions(), None, rows, soaked)
    report.write(written, tmp_path)
    body = json.loads((tmp_path / "bench.json").read_text())
    assert body["rows"][0]["people_per_second"] == pytest.approx(150)
    assert body["hardware"]["cores"] >= 1
    assert body["versions"]["torch"]
    assert body["soak"]["flat"] is True
    text = (tmp_path / "bench.md").read_text()
    assert machine["processor"] in text
    assert "| simcc | 5 people | 1 at a time | 30.0 | 150.0 | 35.0 |" in text
    assert "| simcc | 5 people | 12.5 images/s |" in text
    assert "1 x 503" in text
    assert "Flat, in 60 s; errors: 2 x 503." in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.count(" | ") >= 3 for line in tables)
    for name in ("sweep.svg", "soak.svg"):
        assert (tmp_path / name).read_text().startswith("<?xml")


# ---------------------------------------------------------------------------------------- photos


@pytest.mark.parametrize("people", [1, 5, 20])
def test_a_crowd_is_found_to_the_last(people: int) -> None:
    encoded, boxes = photos.crowd(people)
    assert photos.crowd(people)[0] == encoded
    settings = Settings(device="cpu")
    image = bare.images.decode(encoded, settings.max_image_pixels)
    assert image.shape == (480, 640, 3)
    [found] = build_detector(settings)([image], settings.min_score)
    assert len(found.boxes) == len(boxes) == people
    # Each where it was put.
    centres, expected = ((corners[:, :2] + corners[:, 2:]) / 2 for corners in (found.boxes, boxes))
    distances = np.linalg.norm(centres[:, None] - expected, axis=-1)
    assert sorted(distances.argmin(1)) == list(range(people))
    assert distances.min(1).max() < 20


def test_own_photos_are_a_folders_images(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(PHOTO)
    (tmp_path / "a.bin").write_bytes(PHOTO)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "empty").touch()
    found = photos.own(tmp_path)
    assert [file.name for file in found.files] == ["a.bin", "b.png"]
    assert found.read() == [PHOTO, PHOTO]


# --------------------------------------------------------------------------------------- processes


def test_a_bare_pipeline_answers_line_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = FakePipeline()
    monkeypatch.setattr(bare, "build_pipeline", lambda *_: pipeline)
    (tmp_path / "photo.png").write_bytes(PHOTO)
    asked = {"model": "simcc-small", "files": [str(tmp_path / "photo.png")], "batch": 3}
    question = json.dumps(asked | {"seconds": 0, "warm_up": 0}) + "\n"
    answers = io.StringIO()
    bare.main(io.StringIO(2 * question), answers)
    ready, *found = map(json.loads, answers.getvalue().splitlines())
    assert ready == "ready"
    assert [(one["images"], one["people"]) for one in found] == [(3, 3)] * 2
    assert found[0]["stages_ms"]["pose"] == pytest.approx(1)
    assert found[0]["stages_ms"]["decode"] > 0
    assert len(pipeline.seen) == 12  # with those of warming up


def test_a_served_child_is_ready_watched_and_stopped() -> None:
    port = free_port()
    with Served(
        "files", ["-m", "http.server", str(port), "--bind", "127.0.0.1"],
        f"http://127.0.0.1:{port}", "/",
    ) as served:  # fmt: skip
        served.check()
        assert served.cpu_seconds > 0
        [process] = served.processes
        assert soak._look(served, 1).rss_bytes > 1e6
    assert not process.is_running()


def test_a_child_that_fails_is_told_with_its_last_words() -> None:
    with pytest.raises(ProcessError, match="thing failed: it is broken"):
        Served("thing", ["-c", "import sys; sys.exit('it is broken')"], "http://127.0.0.1:1", "/")
    with Child("thing", ["-c", "pass"]) as child:
        child.processes[0].wait(30)
        with pytest.raises(ProcessError, match="thing failed: it said nothing"):
            child.check()


# ------------------------------------------------------------------------------------ command line


def test_a_running_service_is_measured(
    served: str, running: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = running.app.state.service.metrics.model_info
    shown.labels("simcc-small", "simcc", "backbone", "cpu").set(1)
    asked = ["bench", "--url", served, "--people", "1", "--concurrency", "2", "--rate", "50"]
    assert cli.main([*asked, "--duration", "0.2", "--out", str(tmp_path)]) == 0
    closed, opened = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert (closed["model"], closed["photos"], closed["concurrency"]) == (
        "simcc-small",
        "1 person",
        2,
    )
    assert closed["p50_ms"] > 0
    assert (closed["efficiency"], closed["errors"]) == (None, {})
    assert opened["rate"] == 50
    assert opened["images_per_second"] > 0
    assert (tmp_path / "photos" / "1-people.jpg").is_file()
    assert "| simcc | 1 person | 2 at a time |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--soak", "10", "--url", "http://127.0.0.1:1"], "--soak watches a service of its own"),
        (["--images", "nowhere"], "--images nowhere: no such folder"),
        (["--url", "http://127.0.0.1:1"], "http://127.0.0.1:1/metrics does not answer"),
    ],
)
def test_what_cannot_be_measured_is_one_clear_line(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", *arguments, "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert len(said.strip().splitlines()) == 1


def test_a_service_without_the_representation_is_told(
    served: str, running: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["bench", "--url", served, "--out", str(tmp_path)]
    assert cli.main(asked) == 2
    assert "tells of no pose model" in capsys.readouterr().err
    shown = running.app.state.service.metrics.model_info
    shown.labels("dark-small", "dark", "backbone", "cpu").set(1)
    assert cli.main([*asked, "--representation", "pct"]) == 2
    assert "has no model of pct loaded; accepted are dark" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="counts open files as Linux does")
def test_an_own_service_beside_its_bare_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real processes with real weights: they take a while to start."""
    monkeypatch.setenv("POSE_MODELS", "simcc-small")
    monkeypatch.setenv("POSE_DEADLINE_SECONDS", "60")
    asked = ["bench", "--people", "5", "--concurrency", "2", "--duration", "0.01"]
    assert cli.main([*asked, "--out", str(tmp_path)]) == 0
    [found] = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert found["people_per_image"] == 5
    assert found["bare"]["batch"] == 2
    assert found["errors"] == {}
    assert math.isfinite(found["efficiency"])
    assert found["efficiency"] > 0
    assert found["service_cpu"] > 0
    assert found["mean_batch"]["detect"] >= 1
