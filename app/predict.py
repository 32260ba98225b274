"""`posemux predict`: the poses in many pictures.

The pictures go the service's own way: threads read and decode the next ones while the engine's
device thread works, which takes what is there as a batch, and tries a batch that fails picture by
picture. No picture stops the others: what was wrong with some is told in the end.
"""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from app import images, render
from app.engine import Engine
from app.errors import BadImageError, InferenceError, PosemuxError, TooLargeError
from app.formats import WRITERS
from app.inputs import Pictures, drawings, find
from app.journal import Entry, Journal, Stamp, stamp
from app.main import BUNDLED_DETECTOR, build_pipeline
from app.metrics import Metrics
from app.pipeline import Options, Poses
from app.schemas import coco_results
from app.settings import Settings
from models import Card, sources
from models.downloads import sha256
from models.files import replacing
from models.skeletons import Skeleton

#: Where results are written if nobody says where.
DEFAULT_OUT = Path("runs/predict")

#: What became of pictures, with their paths.
Answers = Generator[tuple[str, Entry], None, None]
#: Estimates the poses in the pictures of some paths. Models are loaded when it returns.
Estimate = Callable[[Sequence[str]], Answers]


@dataclass(frozen=True, slots=True)
class Predict:
    """What is asked for."""

    inputs: Sequence[str]
    """Files, folders and patterns: see `app.inputs.find`."""
    model: str
    """The pose model's name, or its weights file."""
    out: Path | None = None
    """The folder to write into."""
    format: str | None = None
    """One of `formats.WRITERS`, to be written in the end; without it pictures are drawn."""
    json: bool = False
    """Whether COCO results are printed, a line of JSON for each picture."""
    cluster: str | None = None
    """The address of the Ray cluster that estimates; this process without it."""


@dataclass(slots=True)
class Summary:
    """How a command went."""

    before: int = 0
    """Pictures that an earlier run has answered."""
    answered: int = 0
    people: int = 0
    """In the pictures that were answered now."""
    failed: dict[str, str] = field(default_factory=dict)
    """Pictures that were not answered, by their paths, and why."""
    seconds: float = 0.0
    """Without the loading of models."""

    def count(self, answers: Answers, total: int) -> Iterator[tuple[str, Entry]]:
        """Count answers as they pass by, and show how far it is.

        Args:
            answers: those that are still to come.
            total: pictures, those answered before included.
        """
        begin = time.perf_counter()
        with (
            closing(answers),
            tqdm(total=total, initial=self.before, unit="image", disable=None) as bar,
        ):
            for path, entry in answers:
                if entry.error is None:
                    self.answered += 1
                    self.people += len(entry.people)
                else:
                    self.failed[path] = entry.error
                yield path, entry
                bar.update()
        self.seconds = time.perf_counter() - begin

    def lines(self) -> Iterator[str]:
        """It, for people."""
        told = [f"{self.answered} images answered, with {self.people} people"]
        if self.before:
            told.append(f"{self.before} had been answered before")
        if self.answered:
            told.append(f"{self.answered / self.seconds:.1f} images/s")
        yield "; ".join(told)
        if self.failed:
            yield f"{len(self.failed)} failed:"
            yield from (f"  {path}: {reason}" for path, reason in self.failed.items())


def predict(asked: Predict, settings: Settings) -> int:
    """Find the people in pictures; print, draw or write them, and in the end how it went.

    Args:
        asked: what is asked for.
        settings: the pipeline's.

    Returns:
        The process's exit code: 1 where a picture failed.

    Raises:
        InputsError: there are no such pictures.
        JournalError: the folder cannot take these results.
        OSError: results cannot be written.
        ValueError: the device or the runtime is not there, or weights are missing or damaged.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # Not every name of a file can be printed everywhere.
            stream.reconfigure(errors="backslashreplace")
    card = sources.describe(asked.model)
    skeleton = card.architecture.skeleton
    if asked.format is not None:
        out = asked.out or DEFAULT_OUT
        pictures = find(asked.inputs, out)
        estimate = partial(estimate_here, pictures, asked.model, settings)
        if asked.cluster is not None:
            from app.cluster_predict import estimate_there

            estimate = partial(estimate_there, asked.cluster, pictures, asked.model, settings)
        question = question_of(asked.model, settings)
        summary = write_results(pictures, question, asked.format, out, skeleton, estimate)
    else:
        pictures = find(asked.inputs, asked.out)
        drawn = {}
        if asked.out is not None:
            asked.out.mkdir(parents=True, exist_ok=True)
            drawn = drawings(pictures, card.representation, asked.out)
        summary = Summary()
        answers = estimate_here(pictures, asked.model, settings, pictures.paths, drawn)
        counted = summary.count(answers, len(pictures.paths))
        for index, (path, entry) in enumerate(counted):
            _tell(path, index, entry, card, asked.json)
    for line in summary.lines():
        print(line, file=sys.stderr)
    if pictures.passed_over:
        print(f"other files passed over: {pictures.passed_over}", file=sys.stderr)
    return 1 if summary.failed else 0


# ------------------------------------------------------------------------------ results in a folder


def question_of(model: str, settings: Settings) -> dict[str, Any]:
    """All that answers depend on, besides the pictures: see `Journal`.

    Raises:
        OSError: the detector's weights cannot be read.
    """
    card = sources.describe(model)
    return {
        "model": card.name,
        "weights": card.sha256,
        "detector": sha256(settings.detector_weights or BUNDLED_DETECTOR),
        **settings.model_dump(include={"detector_size", "min_score", "max_people"}),
    }


def write_results(
    pictures: Pictures,
    question: Mapping[str, Any],
    format: str,
    out: Path,
    skeleton: Skeleton,
    estimate: Estimate,
) -> Summary:
    """Have the poses estimated that are not known yet, note each, and write the result files.

    Args:
        pictures: of which the results are.
        question: all that answers depend on, besides the pictures.
        format: one of `formats.WRITERS`.
        out: the folder of the journal and of the result files.
        skeleton: of the people.
        estimate: gives the answers, in any order.

    Raises:
        JournalError: the folder cannot take these results.
        OSError: they cannot be written.
    """
    with Journal(out, {"pictures": str(pictures.root), **question}) as journal:
        waiting = [
            path
            for path in pictures.paths
            if not journal.knows(pictures.name(path), _stamp_of(path))
        ]
        summary = Summary(before=len(pictures.paths) - len(waiting))
        if waiting:
            for _, entry in summary.count(estimate(waiting), len(pictures.paths)):
                journal.add(entry)
        written = WRITERS[format](journal.entries, out, skeleton)
    summary.failed |= {str(pictures.root / name): why for name, why in written.left_out.items()}
    for path in written.paths:
        print(path)
    return summary


def _stamp_of(path: str) -> Stamp | None:
    try:
        return stamp(path)
    except OSError:
        return None


# ----------------------------------------------------------------------------- results to look at


def _tell(path: str, index: int, entry: Entry, card: Card, as_json: bool) -> None:
    """Print one picture's answer."""
    if as_json:
        ids = {"image_id": index, "category_id": 1}
        found = {"predictions": [{**ids, **person} for person in entry.people]}
        outcome = found if entry.error is None else {"error": entry.error}
        tqdm.write(json.dumps({"image": path, "model": card.name, **outcome}))
    elif entry.error is None:
        tqdm.write(f"{path}: {len(entry.people)} people by {card.name}")
        for number, person in enumerate(entry.people):
            tqdm.write(_describe(number, person, card.architecture.skeleton))


def _describe(number: int, person: Mapping[str, Any], skeleton: Skeleton) -> str:
    """Somebody's score and surest joints."""
    joints = np.array(person["keypoints"]).reshape(-1, 3)
    best = sorted(np.argsort(-joints[:, 2])[:4])
    told = ", ".join(
        f"{skeleton.names[joint]} ({joints[joint, 0]:.0f}, {joints[joint, 1]:.0f})"
        for joint in best
    )
    return f"  person {number}: score {person['score']:.2f}, {told}, ..."


# -------------------------------------------------------------------------------- on this machine


def estimate_here(
    pictures: Pictures,
    model: str,
    settings: Settings,
    paths: Sequence[str],
    drawings: Mapping[str, Path] | None = None,
) -> Answers:
    """Estimate poses with the service's own pipeline.

    Args:
        pictures: what `paths` are some of.
        model: the pose model's name, or its weights file.
        settings: the pipeline's.
        paths: the pictures, which are answered in their order.
        drawings: where those are written that are to be drawn, by their paths.

    Raises:
        InferenceError: the device has failed: the pictures are not at fault.
        ValueError: the device or the runtime is not there, or weights are missing or damaged.
    """
    estimator = Estimator(pictures, model, settings, drawings)

    def answers() -> Answers:
        with closing(estimator):
            yield from estimator(paths)

    return answers()


class Estimator:
    """The service's own pipeline, for the pictures of one command: to be closed in the end.

    No more pictures are held at once than two batches, and of large ones fewer.

    Args:
        pictures: what the paths are some of.
        model: the pose model's name, or its weights file.
        settings: the pipeline's.
        drawings: where those are written that are to be drawn, by their paths.

    Raises:
        InferenceError: the device has failed.
        ValueError: the device or the runtime is not there, or weights are missing or damaged.
    """

    def __init__(
        self,
        pictures: Pictures,
        model: str,
        settings: Settings,
        drawings: Mapping[str, Path] | None = None,
    ) -> None:
        self._pictures = pictures
        self._drawings = drawings or {}
        pipeline = build_pipeline(settings.model_copy(update={"models": (model,)}), Metrics())
        self._most = 2 * settings.max_batch_images + settings.decode_threads
        self._engine = Engine(
            lambda: pipeline,
            max_queue=self._most,
            max_pixels_in_flight=settings.max_pixels_in_flight,
            max_batch_images=settings.max_batch_images,
            max_batch_people=settings.max_batch_people,
            heartbeat_seconds=settings.heartbeat_seconds,
            metrics=Metrics(),
        )
        self._engine.start()
        self._engine.wait_until_ready()
        self._way = _Way(self._engine, model, settings)
        # Each picture has a thread of its own: what is scarce, they wait for.
        self._threads = ThreadPoolExecutor(self._most)

    def __call__(self, paths: Sequence[str]) -> Answers:
        """Answer some pictures, in their order.

        Raises:
            InferenceError: the device has failed: the pictures are not at fault.
        """
        waiting = iter(paths)

        def started() -> Iterator[tuple[str, Any]]:
            for path in waiting:
                name, drawing = self._pictures.name(path), self._drawings.get(path)
                yield path, self._threads.submit(self._way, path, name, drawing)

        starting = started()
        under_way = deque(islice(starting, self._most))
        while under_way:
            path, future = under_way.popleft()
            entry = future.result()
            if self._engine.failure is not None:
                raise InferenceError(f"the device has failed: {self._engine.failure}")
            yield path, entry
            under_way.extend(islice(starting, 1))

    def close(self) -> None:
        """Stop, and forget the pictures that are under way."""
        self._engine.drain(0)
        self._threads.shutdown(cancel_futures=True)


class _Way:
    """The way of one picture, from its file to its people, for many threads.

    Args:
        engine: estimates poses.
        model: the pose model's name, or its weights file.
        settings: the limits.
    """

    def __init__(self, engine: Engine, model: str, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings
        card = sources.describe(model)
        self._options = Options(
            card.name, min_score=settings.min_score, max_people=settings.max_people
        )
        self._skeleton = card.architecture.skeleton
        self._processors = threading.Semaphore(settings.decode_threads)
        self._pixels = _Pixels(settings.max_pixels_in_flight)

    def __call__(self, path: str, name: str, drawing: Path | None) -> Entry:
        """Answer a picture, whatever is wrong with it."""
        seen = _stamp_of(path)
        try:
            width, height, poses = self._estimate(path, drawing)
        except PosemuxError as error:
            return Entry(name, seen, error=error.detail)
        except OSError as error:
            return Entry(name, seen, error=error.strerror or str(error))
        except MemoryError:
            return Entry(name, seen, error="There is not enough memory for this image.")
        people = [
            {kept: result[kept] for kept in ("bbox", "score", "keypoints")}
            for result in coco_results(0, poses)
        ]
        return Entry(name, seen, width, height, people)

    def _estimate(self, path: str, drawing: Path | None) -> tuple[int, int, Poses]:
        data = self._read(path)
        width, height = images.size(data, self._settings.max_image_pixels)
        with self._pixels.held(width * height):
            with self._processors:
                image = images.decode(data, self._settings.max_image_pixels)
            poses = self._engine.submit(image, self._options, "", math.inf).result()
            if drawing is not None:
                with self._processors:
                    self._draw(image, poses, drawing)
        return image.shape[1], image.shape[0], poses

    def _read(self, path: str) -> bytes:
        # A pipe, or what else may be called a picture, would keep one waiting.
        source = Path(path)
        if source.exists() and not source.is_file():
            raise BadImageError("It is not a file.")
        most = self._settings.max_image_bytes
        with source.open("rb") as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise TooLargeError(f"There are more bytes than the {most} that are accepted.")
        return data

    def _draw(self, image: npt.NDArray[np.uint8], poses: Poses, drawing: Path) -> None:
        drawn = render.draw(
            image, poses.keypoints, poses.boxes, poses.scores, skeleton=self._skeleton
        )
        drawing.parent.mkdir(parents=True, exist_ok=True)
        with replacing(drawing) as temporary:
            temporary.write_bytes(render.encode(drawn, "jpeg"))


class _Pixels:
    """So many pixels that may be held at the same time; one picture alone may have more."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0
        self._changed = threading.Condition()

    @contextmanager
    def held(self, pixels: int) -> Iterator[None]:
        """Wait until there is room for so many, and hold them."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + pixels <= self._most)
            self._held += pixels
        try:
            yield
        finally:
            with self._changed:
                self._held -= pixels
                self._changed.notify_all()
