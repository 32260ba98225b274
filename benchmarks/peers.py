"""posemux beside what a user would pick instead: the same photos and weights, in one run.

    pip install 'posemux[peers]'
    python benchmarks/peers.py
    python benchmarks/peers.py --only loop litserve --runs 5 --duration 5

The servers are in benchmarks/servers. One at a time is started, checked (its joints are those of
posemux for the same boxes), warmed up, measured and stopped. posemux goes before each of the
others, so that a machine that changes its speed changes it for both, and each is compared with the
posemux just before it. Writes `peers.json` and `peers.md`. Wants a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import shutil
import statistics
import sys
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import orjson
import torch
from torch import nn
from tqdm import tqdm

import models
from app.bench import processes, report
from app.bench.load import Load, Request, closed_loop, percentiles
from app.bench.photos import crowd
from app.bench.processes import Served, free_port
from app.main import BUNDLED_DETECTOR
from app.settings import Settings

MODEL = "simcc-small"
#: People in one photo, whose boxes are brought along, when it is seen how cost grows.
CROWDS = (1, 5, 20, 100)
#: How many answers each of these is the median of.
ANSWERS = 5
#: Joints of the same boxes lie at most so many pixels apart, but for a share of two equal peaks.
SAME_PIXELS, ELSEWHERE = 3.0, 0.05


@dataclass(frozen=True)
class Peer:
    """A server: how it is started, and what is peculiar to it."""

    title: str
    module: str
    ready: str
    json: bool = False
    """Whether it wants its image in JSON."""
    finds: bool = True
    """Whether it finds people, and takes boxes."""


PEERS = {
    "loop": Peer(
        "FastAPI, ultralytics, ONNX Runtime one person at a time",
        "benchmarks.servers.loop",
        "/ready",
    ),
    "yolo-pose": Peer(
        "FastAPI, ultralytics' YOLO11n-pose", "benchmarks.servers.yolo_pose", "/ready", finds=False
    ),
    "litserve": Peer("LitServe, batched", "benchmarks.servers.lit", "/health", json=True),
    "ray": Peer("Ray Serve, @serve.batch", "benchmarks.servers.ray_serve", "/"),
}


# ------------------------------------------------------------------------------------- the models


class _Crops(nn.Module):
    """The network alone, whose two outputs have names."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, crops: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = self.network(crops)
        return x, y


def write_network(folder: Path) -> None:
    """Write the bundled SimCC network as ONNX, and what is needed to use it."""
    model = models.load(MODEL)
    width, height = model.input_size
    torch.onnx.export(
        _Crops(model.network).eval(),
        (torch.zeros(2, 3, height, width),),
        folder / "pose.onnx",
        dynamo=True,
        input_names=["crops"],
        output_names=["x", "y"],
        dynamic_shapes={"crops": {0: "P"}},
        verbose=False,
    )
    facts = {
        **{"input_size": model.input_size, "padding": model.padding, "k": model.representation.k},
        **{"mean": model.mean, "std": model.std},
    }
    (folder / "pose.json").write_text(json.dumps(facts))


def write_detectors(folder: Path, settings: Settings) -> None:
    """Write the bundled detector, and a YOLO-pose of random weights, as ONNX."""
    # posemux keeps ultralytics from the network, so it goes first.
    from app.detector import SAME_PERSON, read_detector

    detector = read_detector(settings.detector_weights or BUNDLED_DETECTOR)
    from ultralytics import YOLO

    size = {"imgsz": settings.detector_size, "conf": settings.min_score, "iou": SAME_PERSON}
    (folder / "detector.json").write_text(json.dumps(size))
    wrapped = YOLO("yolo11n.yaml", task="detect")
    for name in ("args", "task"):
        setattr(detector, name, getattr(wrapped.model, name))
    wrapped.model = detector
    for yolo, name in (
        (wrapped, "detector"),
        (YOLO("yolo11n-pose.yaml", task="pose"), "yolo-pose"),
    ):
        # As ultralytics finds it, the file lies beside the model's own.
        yolo.model.pt_path = str(folder / f"{name}.pt")
        written = yolo.export(
            format="onnx", imgsz=settings.detector_size, dynamic=True, simplify=False, device="cpu"
        )
        if Path(written) != folder / f"{name}.onnx":
            shutil.move(written, folder / f"{name}.onnx")


# ------------------------------------------------------------------------------------ one server


class Target:
    """A started server, and how it is asked."""

    def __init__(self, served: Served, peer: Peer | None) -> None:
        self.served = served
        self.peer = peer

    def request(self, photo: bytes, boxes: np.ndarray | None = None) -> Request:
        url = f"{self.served.url}/pose"
        given = None if boxes is None else boxes.tolist()
        if self.peer is not None and self.peer.json:
            body = {"image": base64.b64encode(photo).decode(), "boxes": given}
            return Request(url, orjson.dumps(body), "application/json")
        query = {} if given is None else {"boxes": json.dumps(given)}
        if self.peer is None:
            query["model"] = MODEL
        return Request(f"{url}?{urllib.parse.urlencode(query)}", photo)

    def load(self, request: Request, concurrency: int, **limits: Any) -> Load:
        """A closed loop, all of whose requests must be answered."""
        load = asyncio.run(closed_loop(cycle([request]), concurrency, **limits))
        if load.errors:
            raise processes.ProcessError(f"{self.served.name} answered {load.errors}")
        return load

    def predictions(self, photo: bytes, boxes: np.ndarray | None = None) -> list[dict[str, Any]]:
        """One answer's people."""
        asked = self.request(photo, boxes)
        headers = {"Content-Type": asked.media_type}
        with urllib.request.urlopen(
            urllib.request.Request(asked.url, asked.body, headers), timeout=300
        ) as response:
            found: list[dict[str, Any]] = json.load(response)["predictions"]
        return found


def start(peer: Peer | None, folder: Path, settings: Settings) -> Served:
    if peer is None:
        return processes.posemux(settings.drain_seconds)
    port = free_port()
    return Served(
        peer.title,
        ["-m", peer.module, str(port)],
        f"http://127.0.0.1:{port}",
        peer.ready,
        {"PEERS_MODELS": str(folder.resolve())},
    )


def check(target: Target, expected: list[dict[str, Any]]) -> None:
    """That a server answers rightly, before it is measured.

    Args:
        target: the server.
        expected: posemux's people of `crowd(5)` and its boxes.

    Raises:
        ProcessError: it finds other people, or other joints in the same boxes.
    """
    photo, boxes = crowd(5)
    name = target.served.name
    if target.peer is not None and not target.peer.finds:
        # Random weights find nobody: that it answers is all that can be asked of it.
        target.predictions(photo)
        return
    found = len(target.predictions(photo))
    if found != len(boxes):
        raise processes.ProcessError(f"{name} finds {found} people in a photo of {len(boxes)}")
    given = target.predictions(photo, boxes)
    ours, theirs = (
        np.array([person["keypoints"] for person in people]).reshape(len(boxes), -1, 3)[..., :2]
        for people in (expected, given)
    )
    elsewhere = float((np.linalg.norm(ours - theirs, axis=-1) > SAME_PIXELS).mean())
    if elsewhere > ELSEWHERE:
        raise processes.ProcessError(
            f"{name} puts {elsewhere:.0%} of the joints more than {SAME_PIXELS:g} pixels elsewhere"
        )


@dataclass(frozen=True)
class Turn:
    """One server, started once."""

    people_per_second: float
    """At 5 people in an image and 8 requests under way."""
    images_per_second: float
    """At the same."""
    p50_ms: float
    """At 1 person in an image and 1 request under way."""
    crowds_ms: dict[int, float]
    """Median milliseconds by people brought along, 1 request under way."""


def measure(target: Target, seconds: float) -> Turn:
    """Warm up and measure a server."""
    five, one = (target.request(crowd(people)[0]) for people in (5, 1))
    target.load(five, 8, seconds=seconds / 5)
    busy = target.load(five, 8, seconds=seconds)
    target.load(one, 1, seconds=seconds / 10)
    alone = target.load(one, 1, seconds=seconds / 2)
    crowds = {}
    finds = target.peer is None or target.peer.finds
    for people in CROWDS if finds else ():
        load = target.load(target.request(*crowd(people)), 1, most=1 + ANSWERS)
        crowds[people] = 1000 * statistics.median(load.latencies[1:])
    p50, _, _ = percentiles(alone.latencies)
    assert p50 is not None
    # What finds nobody for want of weights is taken to find everybody, at no cost.
    people_per_second = busy.people_per_second if finds else 5 * busy.images_per_second
    return Turn(people_per_second, busy.images_per_second, p50, crowds)


def turns(
    names: Sequence[str], runs: int, seconds: float, folder: Path, settings: Settings
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Measure all servers in all runs.

    Returns:
        Each peer's name, its own turn, and posemux's just before it; and why which peers failed,
        which are left alone from then on.
    """
    measured = []
    failed: dict[str, str] = {}
    expected = None
    photo, boxes = crowd(5)
    with tqdm(total=2 * len(names) * runs, unit="server", disable=None) as bar:
        for run in range(runs):
            for name in names:
                if name in failed:
                    bar.update(2)
                    continue
                bar.set_description(f"run {run + 1}, posemux")
                with start(None, folder, settings) as served:
                    target = Target(served, None)
                    expected = expected or target.predictions(photo, boxes)
                    check(target, expected)
                    ours = measure(target, seconds)
                bar.update()
                bar.set_description(f"run {run + 1}, {name}")
                try:
                    with start(PEERS[name], folder, settings) as served:
                        target = Target(served, PEERS[name])
                        check(target, expected)
                        theirs = measure(target, seconds)
                except (processes.ProcessError, OSError) as error:
                    failed[name] = str(error)
                else:
                    entry = {"run": run, "peer": name}
                    measured.append({**entry, "posemux": asdict(ours), "turn": asdict(theirs)})
                bar.update()
    return measured, failed


# ----------------------------------------------------------------------------------------- report


def markdown(measured: Sequence[dict[str, Any]], told: str, failed: dict[str, str]) -> str:
    """Medians over the runs, and of each peer's ratios to the posemux just before it.

    Args:
        measured: of `turns`, not empty.
        told: a sentence on the machine.
        failed: of `turns`.
    """
    names = list(dict.fromkeys(entry["peer"] for entry in measured))
    speed, growth = [], []
    ours = [entry["posemux"] for entry in measured]
    speed.append(["posemux", *_medians(ours), "1.00", "1.00"])
    growth.append(["posemux", *_growth(ours)])
    for name in names:
        own = [entry for entry in measured if entry["peer"] == name]
        theirs = [entry["turn"] for entry in own]
        faster = [
            entry["posemux"]["people_per_second"] / entry["turn"]["people_per_second"]
            for entry in own
        ]
        sooner = [entry["turn"]["p50_ms"] / entry["posemux"]["p50_ms"] for entry in own]
        speed.append([PEERS[name].title, *_medians(theirs), _spread(faster), _spread(sooner)])
        if theirs[0]["crowds_ms"]:
            growth.append([PEERS[name].title, *_growth(theirs)])
    titles = ("server", "people/s, 5 people, 8 at a time", "p50 ms, 1 person, 1 at a time")
    runs = len({entry["run"] for entry in measured})
    return "\n\n".join(
        [
            told,
            f"Medians of {runs} runs; ratios (least to most) to the posemux just before.",
            report.table((*titles, "people/s, posemux by it", "p50, it by posemux"), speed),
            "Milliseconds for an image whose boxes are brought along, one at a time:",
            report.table(("server", *_CROWDS, *_SLOPES), growth),
            *(f"Not measured: {name}, since {why}." for name, why in failed.items()),
        ]
    )


_CROWDS = tuple("1 person" if people == 1 else f"{people} people" for people in CROWDS)
_SLOPES = tuple(f"ms/person, {a} to {b}" for a, b in pairwise(CROWDS))


def _medians(turns: Sequence[dict[str, Any]]) -> list[str]:
    return [
        f"{statistics.median(turn[key] for turn in turns):.1f}"
        for key in ("people_per_second", "p50_ms")
    ]


def _spread(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _growth(turns: Sequence[dict[str, Any]]) -> list[str]:
    at = {
        people: statistics.median(turn["crowds_ms"][people] for turn in turns) for people in CROWDS
    }
    slopes = [(at[b] - at[a]) / (b - a) for a, b in pairwise(CROWDS)]
    return [*(f"{value:.1f}" for value in at.values()), *(f"{slope:.2f}" for slope in slopes)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PEERS, default=list(PEERS), metavar="PEER")
    parser.add_argument("--runs", type=int, default=5, help="(5)")
    parser.add_argument("--duration", type=float, default=5, help="seconds of each load (5)")
    parser.add_argument("--out", type=Path, default=Path("runs/peers"), help="(runs/peers)")
    options = parser.parse_args()
    settings = Settings()
    machine, packages = report.hardware(), report.versions()
    with TemporaryDirectory() as folder:
        write_network(Path(folder))
        write_detectors(Path(folder), settings)
        try:
            measured, failed = turns(
                options.only, options.runs, options.duration, Path(folder), settings
            )
        except processes.ProcessError as error:
            sys.exit(f"peers: {error}")
    if not measured:
        sys.exit(f"peers: {'; '.join(failed.values())}")
    options.out.mkdir(parents=True, exist_ok=True)
    content = {"hardware": machine, "versions": packages, "turns": measured, "failed": failed}
    (options.out / "peers.json").write_text(json.dumps(content, indent=2) + "\n")
    text = markdown(measured, report.about(machine, packages), failed)
    (options.out / "peers.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
