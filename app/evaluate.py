"""`posemux evaluate`: pictures with annotations go in, the figures of the literature come out.

The answers come through the service's own pipeline, or from a running service, so what is measured
is what users get.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

import models
from app import images
from app.main import build_detector, build_pipeline, posemux_version
from app.metrics import Metrics
from app.pipeline import Options, Pipeline, distinct_people
from app.schemas import coco_results
from app.settings import Settings
from models import sources
from models.benchmarks import (
    PERSON,
    Benchmark,
    MpiiBenchmark,
    corners,
    is_box,
    is_number,
    read_benchmark,
    read_boxes,
)
from models.complexity import complexity
from models.evaluation import Dataset, Results, coco_figures
from models.pose_model import Card
from models.training.datasets import DatasetError, Pictures

#: Images in one call of the pipeline: nobody waits for each answer.
_BATCH = 8
#: The detector's threshold when poses are measured: COCO ranks people, it does not threshold them.
_LOWEST_SCORE = 0.02
#: The detector's threshold when it is measured itself.
_LOWEST_BOX_SCORE = 0.001

_ACCEPTED_BOXES = (
    "accepted are COCO detection results: a list of image_id, category_id 1, "
    "bbox [x, y, width, height] in pixels and score"
)

Report = dict[str, Any]


class UsageError(ValueError):
    """What was asked for on the command line cannot be done: the message says why."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What is measured, and on what."""

    annotations: Path
    """COCO's, CrowdPose's or MPII's: see `read_benchmark`."""
    pictures: tuple[Path, ...]
    """A folder, or tar files, of the pictures."""
    boxes: str = "gt"
    """Where the people are: `gt`, annotated; `detector`; or a file of COCO detection results."""
    flip_test: bool = False
    """Whether poses are averaged with those of the mirror image."""
    url: str | None = None
    """A running service to ask in place of an own pipeline."""
    weights: Path | None = None
    """A weights file to measure in place of the catalogue's models."""
    layout: str | None = None
    """What the weights file is of, where several fit: see `models.load`."""
    as_authors: bool = False
    """Whether outputs are decoded, merged and scored as by the models' authors: see
    `models.reference`."""


@dataclass(frozen=True, slots=True)
class GivenPeople:
    """The people of one picture that poses are asked for."""

    boxes: npt.NDArray[np.float32]
    """`(P, 4)` as `x1, y1, x2, y2`."""
    scores: npt.NDArray[np.float64] | None
    """`(P,)` a detector's scores; None for annotated people."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about every picture, whoever answers."""

    model: str
    pictures: Pictures
    people: dict[int, GivenPeople] | None
    """By image id; None where the answerer's own detector finds them."""
    flip_test: bool = False
    """Whether poses are averaged with those of the mirror image."""
    min_score: float = _LOWEST_SCORE
    """The detector's threshold."""


# ------------------------------------------------------------------------------------------ poses


def evaluate_poses(asked: Evaluation, given: Sequence[str], settings: Settings) -> Report:
    """Measure pose models.

    Args:
        asked: what is measured.
        given: pose models of the catalogue, or of the service that is asked, or weights files; not
            used where `asked` names a weights file.
        settings: the pipeline's.

    Returns:
        A JSON object: what was measured, with which settings, and of each model its `figures`,
        `joints` (see `joint_errors`) and `seconds`.

    Raises:
        DatasetError: the annotations or pictures cannot be evaluated on, or not by these models.
        UnknownModelError: there is no such layout.
        UsageError: the boxes cannot be used, or the service does not answer.
        WeightsError: the weights file cannot be used.
    """
    if asked.url is not None and asked.weights is not None:
        raise UsageError("--url asks a service for one of its models: it takes no --weights")
    if asked.url is not None and asked.as_authors:
        raise UsageError(
            "--url asks a service, which decodes in its own way: no --decode reference"
        )
    if asked.layout is not None and asked.weights is None:
        raise UsageError("--layout says what --weights are: give both")
    benchmark = read_benchmark(asked.annotations)
    if isinstance(benchmark, MpiiBenchmark) and asked.boxes != "gt":
        raise UsageError("MPII says where its people are: --boxes must be gt")
    people = _people(asked, benchmark)
    # As everybody does: with given boxes only people are asked for whose joints are known.
    entries = [entry for entry in benchmark.pictures if people is None or entry["id"] in people]
    pictures = _pictures(asked, entries)
    cards = {source: sources.describe(source) for source in given}
    if asked.weights is not None:
        cards = {str(asked.weights): models.load(asked.layout, asked.weights).card}
    [title] = {benchmark.title(card.architecture.joints) for card in cards.values()}
    rows = []
    for source, card in cards.items():
        question = Question(card.name, pictures, people, asked.flip_test)
        bar = tqdm(entries, desc=card.name, unit="image", disable=None)
        if asked.url is None:
            one = settings.model_copy(update={"models": (source,)})
            pipeline = build_pipeline(
                one,
                Metrics(),
                asked.weights,
                layout=asked.layout,
                as_authors=asked.as_authors,
            )
            answers = ask_pipeline(pipeline, settings, question, bar)
        else:
            answers = _ask_service(asked.url, question, bar, settings.credentials)
        begin = time.perf_counter()
        results = [result for found in answers for result in _as_detected(found, people, card)]
        seconds = time.perf_counter() - begin
        figures, joints = benchmark.measure(results)
        cost = complexity(card)
        rows.append(
            {
                "name": card.name,
                "representation": card.representation,
                "backbone": card.backbone,
                "input_size": card.input_size,
                "weights_sha256": card.sha256,
                "parameters": cost.parameters,
                "gmacs": cost.gmacs,
                "figures": figures,
                "joints": joints,
                "seconds": round(seconds, 2),
            }
        )
    used: dict[str, Any] = {"boxes": asked.boxes, "flip_test": asked.flip_test}
    if asked.url is None:
        used["decode"] = "reference" if asked.as_authors else "default"
        used |= settings.model_dump(include={"device", "runtime", "detector_size", "max_people"})
    else:
        used["url"] = asked.url
    return {
        **_head(title, asked.annotations),
        "images": len(entries),
        "people": benchmark.people,
        "settings": used,
        "models": rows,
    }


def ask_pipeline(
    pipeline: Pipeline, settings: Settings, question: Question, entries: Iterable[Dataset]
) -> Iterator[Results]:
    """Each picture's COCO results by the service's own pipeline, a few pictures at a time.

    Args:
        pipeline: what answers.
        settings: its settings.
        question: what is asked.
        entries: the pictures, as COCO's `images` lists them.

    Raises:
        DatasetError: a picture is missing.
    """
    for batch in _batches(entries):
        asked = [
            Options(
                question.model,
                boxes=None if question.people is None else question.people[entry["id"]].boxes,
                min_score=question.min_score,
                max_people=settings.max_people,
                flip_test=question.flip_test,
            )
            for entry in batch
        ]
        answers = pipeline(_decoded(batch, question.pictures, settings), asked)
        # Authors' scores may be as small as a bin's probability, and must still rank people.
        digits = 9 if pipeline.as_authors else 4
        for entry, poses in zip(batch, answers, strict=True):
            yield coco_results(entry["id"], poses, digits)


def _ask_service(
    url: str, question: Question, entries: Iterable[Dataset], credentials: Mapping[str, str]
) -> Iterator[Results]:
    """Each picture's COCO results by a running service."""
    for entry in entries:
        query = {
            "model": question.model,
            "min_score": str(question.min_score),
            "flip_test": str(question.flip_test).lower(),
        }
        if question.people is not None:
            query["boxes"] = json.dumps(question.people[entry["id"]].boxes.tolist())
        request = urllib.request.Request(
            f"{url.rstrip('/')}/pose?{urllib.parse.urlencode(query)}",
            data=question.pictures.read(entry["file_name"]),
            headers={"Content-Type": "application/octet-stream", **credentials},
        )
        try:
            with urllib.request.urlopen(request) as answer:
                body = json.load(answer)
        except urllib.error.HTTPError as error:
            detail = json.load(error).get("detail", error.reason)
            raise UsageError(
                f"{entry['file_name']}: {url} answered {error.code}: {detail}"
            ) from error
        except urllib.error.URLError as error:
            raise UsageError(f"{url} does not answer: {error.reason}") from error
        yield [{**result, "image_id": entry["id"]} for result in body["predictions"]]


def _as_detected(results: Results, people: dict[int, GivenPeople] | None, card: Card) -> Results:
    """One picture's results, of a file's boxes scored and freed of duplicates as detected ones."""
    if people is None or not results:
        return results
    detected = people[results[0]["image_id"]]
    if detected.scores is None:
        return results
    own = np.array([result["score"] for result in results])
    keypoints = np.array([result["keypoints"] for result in results]).reshape(len(own), -1, 3)
    scores = own * detected.scores
    skeleton = card.architecture.skeleton
    kept = distinct_people(
        detected.boxes, scores, keypoints, skeleton, card.input_size, card.profile.padding
    )
    return [{**results[index], "score": float(scores[index])} for index in kept]


# --------------------------------------------------------------------------------------- detector


def evaluate_detector(asked: Evaluation, settings: Settings) -> Report:
    """Measure the person detector of the settings: COCO's twelve box figures.

    Args:
        asked: of it only the annotations and the pictures.
        settings: which detector, and at which size.

    Returns:
        As `evaluate_poses`, without joints.

    Raises:
        DatasetError: the annotations or pictures cannot be evaluated on.
        UsageError: `asked` asks for what only poses have.
        WeightsError: the detector's weights cannot be used.
    """
    if asked.boxes != "gt" or asked.flip_test or asked.url is not None or asked.as_authors:
        raise UsageError("--detector takes neither --boxes nor --flip-test nor --url nor --decode")
    dataset = read_boxes(asked.annotations)
    pictures = _pictures(asked, dataset["images"])
    detector = build_detector(settings)
    results: Results = []
    begin = time.perf_counter()
    bar = tqdm(dataset["images"], desc="detector", unit="image", disable=None)
    for batch in _batches(bar):
        answers = detector(_decoded(batch, pictures, settings), _LOWEST_BOX_SCORE)
        for entry, people in zip(batch, answers, strict=True):
            low, high = people.boxes[:, :2], people.boxes[:, 2:]
            boxes = np.concatenate((low, high - low), 1).astype(np.float64).tolist()
            results += [
                {"image_id": entry["id"], "category_id": PERSON, "bbox": box, "score": score}
                for box, score in zip(boxes, people.scores.tolist(), strict=True)
            ]
    row = {
        "name": (settings.detector_weights or Path("person-detector")).stem,
        "input_size": settings.detector_size,
        "figures": coco_figures(dataset, results, "bbox"),
        "seconds": round(time.perf_counter() - begin, 2),
    }
    return {
        **_head("COCO person boxes", asked.annotations),
        "images": len(dataset["images"]),
        "people": sum(not person["iscrowd"] for person in dataset["annotations"]),
        "settings": settings.model_dump(include={"device", "detector_size"}),
        "models": [row],
    }


# ----------------------------------------------------------------------------------------- reports


def table(report: Report) -> str:
    """A report for people: the figures, a line for each model, and of poses the joints."""
    rows = report["models"]
    figures = list(rows[0]["figures"])
    cells = [["", *figures]]
    cells += [[row["name"], *_numbers(row["figures"].values())] for row in rows]
    lines = [f"{report['benchmark']}: {report['people']} people in {report['images']} pictures"]
    lines += _aligned(cells)
    if joints := rows[0].get("joints"):
        cells = [["within / pixels", "count", *(row["name"] for row in rows)]]
        for joint in joints:
            errors = [row["joints"][joint] for row in rows]
            ours = [f"{error['within']:.3f} / {error['median_px']:4.1f}" for error in errors]
            cells.append([joint, str(errors[0]["count"]), *ours])
        lines += ["", *_aligned(cells)]
    return "\n".join(lines)


def _numbers(values: Iterable[float]) -> list[str]:
    return ["-" if value < 0 else f"{value:.3f}" for value in values]


def _aligned(cells: list[list[str]]) -> list[str]:
    """Lines of columns: the first to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if not number else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def _head(benchmark: str, annotations: Path) -> Report:
    return {
        "posemux": posemux_version(),
        "benchmark": benchmark,
        "annotations": annotations.name,
    }


def _pictures(asked: Evaluation, entries: Sequence[Dataset]) -> Pictures:
    """Where the pictures are, all of which are there."""
    pictures = Pictures(*asked.pictures)
    if missing := pictures.missing(entry["file_name"] for entry in entries):
        raise DatasetError(
            f"{len(missing)} of {len(entries)} pictures are missing, the first is {missing[0]!r}"
        )
    return pictures


def _batches(entries: Iterable[Dataset]) -> Iterator[list[Dataset]]:
    waiting = iter(entries)
    while batch := list(islice(waiting, _BATCH)):
        yield batch


def _decoded(
    batch: Sequence[Dataset], pictures: Pictures, settings: Settings
) -> list[npt.NDArray[np.uint8]]:
    return [
        images.decode(pictures.read(entry["file_name"]), settings.max_image_pixels)
        for entry in batch
    ]


# ------------------------------------------------------------------------------------------- boxes


def _people(asked: Evaluation, benchmark: Benchmark) -> dict[int, GivenPeople] | None:
    """Whose poses are asked for: nobody's in particular, the annotated ones', or a file's."""
    if asked.boxes == "detector":
        return None
    if asked.boxes == "gt":
        return {picture: GivenPeople(boxes, None) for picture, boxes in benchmark.boxes.items()}
    grouped: dict[int, Results] = {}
    known = {picture["id"] for picture in benchmark.pictures}
    for entry in _detections(Path(asked.boxes), known):
        grouped.setdefault(entry["image_id"], []).append(entry)
    people = {}
    for picture, own in grouped.items():
        boxes = corners(np.array([entry["bbox"] for entry in own], np.float32))
        scores = np.array([entry["score"] for entry in own], np.float64)
        people[picture] = GivenPeople(boxes, scores)
    return people


def _detections(path: Path, known: set[Any]) -> Results:
    """The entries of a COCO detection results file, each one checked.

    Raises:
        UsageError: an entry cannot be used: the message says which, why, and what is accepted.
    """
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}; {_ACCEPTED_BOXES}") from error
    if not isinstance(found, list):
        raise UsageError(f"{path} is not a list; {_ACCEPTED_BOXES}")
    for number, entry in enumerate(found):
        if problem := _problem(entry, known):
            raise UsageError(f"{path}, entry {number}: {problem}; {_ACCEPTED_BOXES}")
    return found


def _problem(entry: Any, known: set[Any]) -> str | None:
    """What is wrong with an entry of a detection results file."""
    if not isinstance(entry, dict):
        return f"{entry!r} is not an object"
    for field in ("image_id", "category_id", "bbox", "score"):
        if field not in entry:
            return f"{field} is missing"
    if not isinstance(entry["image_id"], (int, str)) or entry["image_id"] not in known:
        return f"image_id {entry['image_id']!r} is not among the annotations' images"
    if entry["category_id"] != PERSON:
        return f"category_id {entry['category_id']!r} is not a person's"
    if not is_box(entry["bbox"]) or min(entry["bbox"][2:]) <= 0:
        return f"bbox {entry['bbox']!r} is not a box with an area"
    if not is_number(entry["score"]):
        return f"score {entry['score']!r} is not a number"
    return None
