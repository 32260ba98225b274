"""`posemux calibrate`: what scores are worth, measured through the service's pipeline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from app.evaluate import GivenPeople, Question, ask_pipeline
from app.main import build_pipeline
from app.metrics import Metrics
from app.pipeline import Pipeline
from app.settings import Settings
from models.calibration import Report, calibrate, outcomes
from models.coco import JOINTS
from models.training.datasets import DatasetError, Pictures

_COLUMNS = (
    ("joints", "joints"),
    ("right", "right"),
    ("AUROC raw", "ranking_before"),
    ("AUROC", "ranking"),
    ("ECE raw", "error_before"),
    ("ECE", "error"),
    ("swapped", "error_swapped"),
    ("detected", "error_detected"),
)


def calibrate_models(
    annotations: Path, pictures: Pictures, names: Sequence[str], settings: Settings
) -> dict[str, Report]:
    """Fit each model's calibration anew on one half of the pictures, and measure on the other.

    Args:
        annotations: people in COCO layout.
        pictures: the pictures that they are in.
        names: pose models.
        settings: the pipeline's.

    Returns:
        A report for each model, by its name.

    Raises:
        CalibrationError: nobody is found, or all joints are right, or all are wrong.
        DatasetError: the annotations are not in COCO layout, or a picture is missing.
    """
    dataset = _read(annotations)
    reports = {}
    for name in names:
        one = settings.model_copy(update={"models": (name,)})
        pipeline = build_pipeline(one, Metrics(), calibrated=False)
        annotated, detected = (
            outcomes(dataset, _results(pipeline, name, dataset, pictures, settings, given))
            for given in (True, False)
        )
        reports[name] = calibrate(annotated, detected)
    return reports


def describe(reports: dict[str, Report]) -> str:
    """The figures as a table, and of each model the lines that its card wants."""
    width = max(map(len, reports))
    lines = [" " * width + "".join(f"{title:>11}" for title, _ in _COLUMNS)]
    for name, report in reports.items():
        figures = (getattr(report, field) for _, field in _COLUMNS)
        cells = (f"{x:11d}" if isinstance(x, int) else f"{x:11.3f}" for x in figures)
        lines.append(f"{name:<{width}}" + "".join(cells))
    for name, report in reports.items():
        lines += ["", f"# {name}", "[model.calibration]"]
        for key, values in report.calibration.table().items():
            lines.append(f"{key} = [{', '.join(f'{value:.3f}' for value in values)}]")
    return "\n".join(lines)


def _read(annotations: Path) -> dict[str, Any]:
    try:
        dataset = json.loads(annotations.read_text())
        people = [person for person in dataset["annotations"] if person.get("num_keypoints", 0)]
        for person in people:
            _ = person["image_id"], person["bbox"], person["area"]
            if len(person["keypoints"]) != 3 * JOINTS:
                raise ValueError(f"somebody has not {JOINTS} joints of x, y and visibility")
        _ = [(entry["id"], entry["file_name"]) for entry in dataset["images"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{annotations} is not in COCO layout: {error!r}") from error
    if not people:
        raise DatasetError(f"nobody in {annotations} has labelled keypoints")
    return {"images": dataset["images"], "annotations": people}


def _results(
    pipeline: Pipeline,
    name: str,
    dataset: dict[str, Any],
    pictures: Pictures,
    settings: Settings,
    given: bool,
) -> list[dict[str, Any]]:
    """COCO results of everybody, in given boxes or in those that the service would find."""
    boxes: dict[int, list[list[float]]] = {}
    for person in dataset["annotations"]:
        x, y, width, height = person["bbox"]
        boxes.setdefault(person["image_id"], []).append([x, y, x + width, y + height])
    people = {image: GivenPeople(np.array(own, np.float32), None) for image, own in boxes.items()}
    question = Question(name, pictures, people if given else None, min_score=settings.min_score)
    title = f"{name}, {'annotated' if given else 'detected'} boxes"
    entries = [entry for entry in dataset["images"] if entry["id"] in boxes]
    bar = tqdm(entries, desc=title, unit="image", disable=None)
    return list(chain.from_iterable(ask_pipeline(pipeline, settings, question, bar)))
