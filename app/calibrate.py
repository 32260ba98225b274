"""`posemux calibrate`: what scores are worth, measured through the service's pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from app.evaluate import GivenPeople, Question, ask_pipeline
from app.main import build_pipeline
from app.metrics import Metrics
from app.pipeline import Pipeline
from app.settings import Settings
from models import sources
from models.benchmarks import CocoBenchmark, read_benchmark
from models.calibration import Report, calibrate, outcomes
from models.evaluation import Results
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
    annotations: Path, pictures: Pictures, given: Sequence[str], settings: Settings
) -> dict[str, Report]:
    """Fit each model's calibration anew on one half of the pictures, and measure on the other.

    Args:
        annotations: people in COCO layout.
        pictures: the pictures that they are in.
        given: pose models, by name or weights file.
        settings: the pipeline's.

    Returns:
        A report for each model, by its name.

    Raises:
        CalibrationError: nobody is found, or all joints are right, or all are wrong.
        DatasetError: the annotations are not COCO's, or a picture is missing.
    """
    benchmark = read_benchmark(annotations)
    if type(benchmark) is not CocoBenchmark:
        raise DatasetError(f"{annotations} is not COCO's: scores are calibrated on its joints")
    reports = {}
    for source in given:
        name = sources.describe(source).name
        one = settings.model_copy(update={"models": (source,)})
        pipeline = build_pipeline(one, Metrics(), calibrated=False)
        annotated, detected = (
            outcomes(
                benchmark.dataset, _results(pipeline, name, benchmark, pictures, settings, boxed)
            )
            for boxed in (True, False)
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


def _results(
    pipeline: Pipeline,
    name: str,
    benchmark: CocoBenchmark,
    pictures: Pictures,
    settings: Settings,
    given: bool,
) -> Results:
    """COCO results of everybody, in given boxes or in those that the service would find."""
    people = {picture: GivenPeople(boxes, None) for picture, boxes in benchmark.boxes.items()}
    question = Question(name, pictures, people if given else None, min_score=settings.min_score)
    title = f"{name}, {'annotated' if given else 'detected'} boxes"
    entries = [entry for entry in benchmark.pictures if entry["id"] in people]
    bar = tqdm(entries, desc=title, unit="image", disable=None)
    return list(chain.from_iterable(ask_pipeline(pipeline, settings, question, bar)))
