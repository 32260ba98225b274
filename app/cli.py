"""The command line: `posemux serve | predict | evaluate | calibrate | train | models`."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from tqdm import tqdm

import models
from app import images, render
from app.calibrate import calibrate_models, describe
from app.detector import train_detector
from app.errors import PosemuxError
from app.metrics import Metrics
from app.pipeline import Options, Pipeline, Poses
from app.schemas import coco_results
from app.settings import Settings
from models import catalogue
from models.calibration import draw_reliability
from models.coco import JOINT_NAMES
from models.evaluation import KEYPOINT_FIGURES, coco_figures
from models.training import recipes
from models.training.datasets import Pictures
from models.training.loop import train_pose, train_tokenizer

#: Images in one call of the pipeline where nobody waits for each answer.
_BATCH = 8
#: The detector's threshold when average precision is measured: COCO ranks, it does not threshold.
_LOWEST_SCORE = 0.02

#: `(P, 4)` boxes as `x1, y1, x2, y2` by image id.
Boxes = dict[int, npt.NDArray[np.float32]]


class UsageError(ValueError):
    """What was asked for on the command line cannot be done: the message says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the process's exit code.

    Errors that the user can mend are one line on the standard error and exit code 2.
    """
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except ValidationError as error:
        for problem in error.errors():
            name = "_".join(str(part) for part in problem["loc"]).upper()
            print(f"posemux: setting POSE_{name}: {problem['msg']}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(
            f"posemux: {error.name} is not installed: pip install 'posemux[eval,train]'",
            file=sys.stderr,
        )
        return 2
    except (PosemuxError, ValueError, OSError, models.UnknownModelError) as error:
        print(f"posemux: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


# --------------------------------------------------------------------------------------- commands


def _serve(options: argparse.Namespace) -> int:
    from app.main import serve

    given = {name: getattr(options, name) for name in ("host", "port")}
    return serve(Settings(**{name: value for name, value in given.items() if value is not None}))


def _predict(options: argparse.Namespace) -> int:
    settings = Settings()
    paths = [Path(path) for path in options.images]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise UsageError(f"no such file: {', '.join(missing)}")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    for name in _models(options, [models.default(settings.representation)]):
        pipeline = _pipeline(settings, name)
        asked = Options(name, min_score=settings.min_score, max_people=settings.max_people)
        for index, path in enumerate(tqdm(paths, unit="image", disable=None)):
            image = images.decode(path.read_bytes(), settings.max_image_pixels)
            [poses] = pipeline([image], [asked])
            if options.json:
                body = {
                    "image": str(path),
                    "model": name,
                    "predictions": coco_results(index, poses),
                }
                print(json.dumps(body))
            else:
                _print_poses(path, poses)
            if options.out is not None:
                drawn = options.out / f"{path.stem}.{models.card(name).representation}.jpg"
                drawn.write_bytes(
                    render.encode(
                        render.draw(image, poses.keypoints, poses.boxes, poses.scores), "jpeg"
                    )
                )
    return 0


def _print_poses(path: Path, poses: Poses) -> None:
    """Who was found, in a form for people: each one's score and surest joints."""
    tqdm.write(f"{path}: {len(poses.scores)} people by {poses.model}")
    for number, (score, keypoints) in enumerate(zip(poses.scores, poses.keypoints, strict=True)):
        best = np.argsort(-keypoints[:, 2])[:4]
        joints = ", ".join(
            f"{JOINT_NAMES[joint]} ({keypoints[joint, 0]:.0f}, {keypoints[joint, 1]:.0f})"
            for joint in sorted(best)
        )
        tqdm.write(f"  person {number}: score {score:.2f}, {joints}, ...")


def _evaluate(options: argparse.Namespace) -> int:
    settings = Settings()
    try:
        coco = json.loads(options.annotations.read_text())
        entries, people = coco["images"], coco["annotations"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{options.annotations} is not in COCO layout: {error!r}") from error
    pictures = Pictures(*options.images)
    boxes = _boxes_by_image(options.boxes, people)
    if boxes is not None:
        # As everybody does: with given boxes only people are asked for whose joints are known.
        entries = [entry for entry in entries if entry["id"] in boxes]
    rows: dict[str, dict[str, float]] = {}
    for name in _models(options, settings.models):
        bar = tqdm(entries, desc=name, unit="image", disable=None)
        if options.url is None:
            answers = _ask_pipeline(settings, name, bar, pictures, boxes, options.flip_test)
        else:
            answers = _ask_service(options.url, name, bar, pictures, boxes, options.flip_test)
        rows[name] = coco_figures(options.annotations, list(answers))
    print(json.dumps(rows) if options.json else _table(rows))
    return 0


def _ask_pipeline(
    settings: Settings,
    name: str,
    entries: Iterable[dict[str, Any]],
    pictures: Pictures,
    boxes: Boxes | None,
    flip_test: bool,
) -> Iterator[dict[str, Any]]:
    """COCO results of all entries through the service's own pipeline, a few images at a time."""
    pipeline = _pipeline(settings, name)
    waiting = iter(entries)
    while batch := list(islice(waiting, _BATCH)):
        decoded = [
            images.decode(pictures.read(entry["file_name"]), settings.max_image_pixels)
            for entry in batch
        ]
        asked = [
            Options(
                name,
                boxes=None if boxes is None else boxes[entry["id"]],
                min_score=_LOWEST_SCORE,
                max_people=settings.max_people,
                flip_test=flip_test,
            )
            for entry in batch
        ]
        for entry, poses in zip(batch, pipeline(decoded, asked), strict=True):
            yield from coco_results(entry["id"], poses)


def _ask_service(
    url: str,
    name: str,
    entries: Iterable[dict[str, Any]],
    pictures: Pictures,
    boxes: Boxes | None,
    flip_test: bool,
) -> Iterator[dict[str, Any]]:
    """COCO results of all entries through a running service."""
    for entry in entries:
        query = {
            "model": name,
            "min_score": str(_LOWEST_SCORE),
            "flip_test": str(flip_test).lower(),
        }
        if boxes is not None:
            query["boxes"] = json.dumps(boxes[entry["id"]].tolist())
        request = urllib.request.Request(
            f"{url.rstrip('/')}/pose?{urllib.parse.urlencode(query)}",
            data=pictures.read(entry["file_name"]),
            headers={"Content-Type": "application/octet-stream"},
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
        yield from ({**result, "image_id": entry["id"]} for result in body["predictions"])


def _boxes_by_image(source: str, people: list[dict[str, Any]]) -> Boxes | None:
    """Whose poses are asked for: nobody's in particular, the annotated ones', or a file's."""
    if source == "detector":
        return None
    if source == "gt":
        found = [person for person in people if person.get("num_keypoints", 0) > 0]
    else:
        found = json.loads(Path(source).read_text())
    grouped: dict[int, list[list[float]]] = {}
    for person in found:
        x, y, width, height = person["bbox"]
        grouped.setdefault(person["image_id"], []).append([x, y, x + width, y + height])
    return {image: np.array(rows, np.float32) for image, rows in grouped.items()}


def _table(rows: dict[str, dict[str, float]]) -> str:
    """COCO's figures, a line for each model."""
    width = max(len(name) for name in rows)
    lines = [" " * width + "".join(f"{figure:>7}" for figure in KEYPOINT_FIGURES)]
    lines += [
        f"{name:<{width}}" + "".join(f"{figures[figure]:7.3f}" for figure in KEYPOINT_FIGURES)
        for name, figures in rows.items()
    ]
    return "\n".join(lines)


def _calibrate(options: argparse.Namespace) -> int:
    settings = Settings()
    names = _models(options, settings.models)
    pictures = Pictures(*options.images)
    reports = calibrate_models(options.annotations, pictures, names, settings)
    if options.figure is not None:
        draw_reliability({name: report.curve for name, report in reports.items()}, options.figure)
    print(describe(reports))
    return 0


def _train(options: argparse.Namespace) -> int:
    recipe = recipes.read(options.recipe)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    options.runs.mkdir(parents=True, exist_ok=True)
    if isinstance(recipe, recipes.DetectorRecipe):
        weights = train_detector(recipe, options.data, options.runs, device)
    elif isinstance(recipe, recipes.TokenizerRecipe):
        weights = train_tokenizer(recipe, options.data, options.runs, device)
    else:
        weights = train_pose(recipe, options.data, options.runs, device, options.workers)
    print(f"trained: {weights}, sha256 {hashlib.sha256(weights.read_bytes()).hexdigest()}")
    return 0


def _list_models(_: argparse.Namespace) -> int:
    rows = [("name", "representation", "backbone", "input", "AP", "weights", "licence")]
    for name in models.names():
        card = models.card(name)
        state = {True: "present", False: "DAMAGED", None: "absent"}[catalogue.verify(card)]
        size = "x".join(str(side) for side in card.input_size)
        average = f"{card.measured['AP']:.3f}" if "AP" in card.measured else "-"
        rows.append((name, card.representation, card.backbone, size, average, state, card.licence))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    return 0


# ------------------------------------------------------------------------------------------ parts


def _pipeline(settings: Settings, name: str) -> Pipeline:
    """The service's pipeline with a single pose model."""
    from app.main import build_pipeline

    return build_pipeline(settings.model_copy(update={"models": (name,)}), Metrics())


def _models(options: argparse.Namespace, otherwise: Sequence[str]) -> Sequence[str]:
    """The pose models that were asked for."""
    if options.model is not None:
        return [models.card(options.model).name]
    if options.representation is not None:
        return [models.default(options.representation)]
    return otherwise


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("posemux", description="Human poses in three representations.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="answer POST /pose over HTTP; settings are POSE_*")
    serve.add_argument("--host", help="address to listen on (POSE_HOST)")
    serve.add_argument("--port", type=int, help="port to listen on (POSE_PORT)")
    serve.set_defaults(run=_serve)

    predict = commands.add_parser("predict", help="find the poses in pictures")
    predict.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    _choose_model(predict)
    predict.add_argument("--out", type=Path, metavar="DIR", help="write drawn pictures there")
    predict.add_argument(
        "--json", action="store_true", help="a line of COCO results for each image"
    )
    predict.set_defaults(run=_predict)

    evaluate = commands.add_parser("evaluate", help="COCO average precision on annotated pictures")
    evaluate.add_argument("--annotations", type=Path, required=True, metavar="COCO.json")
    evaluate.add_argument(
        "--images", type=Path, nargs="+", required=True, help="a folder, or tar files, of pictures"
    )
    _choose_model(evaluate)
    evaluate.add_argument(
        "--boxes",
        default="gt",
        metavar="gt|detector|FILE",
        help="where the people are: annotated, detected, or in a COCO results file (gt)",
    )
    evaluate.add_argument("--flip-test", action="store_true", help="average with the mirror image")
    evaluate.add_argument(
        "--url", help="ask a running service instead, such as http://localhost:8000"
    )
    evaluate.add_argument("--json", action="store_true", help="figures as JSON")
    evaluate.set_defaults(run=_evaluate)

    calibrate = commands.add_parser(
        "calibrate", help="fit what scores are worth on half of some pictures, report on the other"
    )
    calibrate.add_argument("--annotations", type=Path, required=True, metavar="COCO.json")
    calibrate.add_argument(
        "--images", type=Path, nargs="+", required=True, help="a folder, or tar files, of pictures"
    )
    _choose_model(calibrate)
    calibrate.add_argument(
        "--figure", type=Path, metavar="FILE", help="draw the reliability diagram (.svg, .png)"
    )
    calibrate.set_defaults(run=_calibrate)

    train = commands.add_parser("train", help="train by a recipe; goes on where it was interrupted")
    train.add_argument("recipe", help=f"a TOML file or one of {', '.join(recipes.names())}")
    train.add_argument("--data", type=Path, required=True, help="the folder of the data sets")
    train.add_argument(
        "--runs", type=Path, default=Path("runs"), help="where trainings live (runs)"
    )
    train.add_argument("--device", help="cpu or cuda (cuda where there is one)")
    train.add_argument("--workers", type=int, default=0, help="processes that prepare samples (0)")
    train.set_defaults(run=_train)

    catalogued = commands.add_parser("models", help="the pose models that posemux knows")
    verbs = catalogued.add_subparsers(metavar="list")
    verbs.add_parser("list", help="name, size, figures, licence, and whether the weights are here")
    catalogued.set_defaults(run=_list_models)
    return parser


def _choose_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--representation", choices=models.REPRESENTATIONS)
    group.add_argument("--model", metavar="NAME", help="a pose model of `posemux models list`")


if __name__ == "__main__":
    sys.exit(main())
