"""The command line, `posemux`.

serve | predict | evaluate | calibrate | quantise | train | bench | models
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import ValidationError
from tqdm import tqdm

import models
from app.calibrate import calibrate_models, describe
from app.detector import train_detector
from app.errors import PosemuxError
from app.evaluate import Evaluation, UsageError, evaluate_detector, evaluate_poses, table
from app.formats import WRITERS
from app.keys import KeyFile
from app.metrics import Metrics
from app.pipeline import Pipeline
from app.predict import Predict, predict
from app.quantise import note_ranges
from app.settings import Settings, complaints, listed
from models import catalogue, conversion, downloads, export, sources
from models.calibration import draw_reliability
from models.training import recipes
from models.training.datasets import Pictures
from models.training.loop import train_pose, train_tokenizer

#: How the names of videos end.
_VIDEOS = frozenset(
    (
        *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg"),
        *(".ts", ".mts", ".m2ts", ".wmv", ".flv", ".ogv", ".3gp"),
    )
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the process's exit code.

    Errors that the user can mend are one line on the standard error and exit code 2.
    """
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except ValidationError as error:
        for complaint in complaints(error):
            print(f"posemux: {complaint}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(
            f"posemux: {error.name} is not installed: "
            "pip install 'posemux[bench,eval,export,ray,train,video]'",
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
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    if options.show_settings:
        print(*listed(settings), sep="\n")
        if settings.api_keys_file is not None:
            print("# names with API keys:", ", ".join(KeyFile(settings.api_keys_file).names))
        return 0
    if options.cluster is not None:
        return _deploy(options, settings)
    if options.replicas is not None:
        raise UsageError("--replicas is for --cluster: without it the service is one process")
    return serve(settings)


def _deploy(options: argparse.Namespace, settings: Settings) -> int:
    from app import cluster

    asked = cluster.replicas(options.replicas or "1")
    with tqdm(desc="starting", bar_format="{desc} {elapsed}", disable=None):
        cluster.deploy(options.cluster, settings, asked)
    print("posemux: the cluster serves")
    return 0


def _predict(options: argparse.Namespace) -> int:
    settings = Settings()
    if options.json not in (None, "-") and Path(options.json).suffix != ".json":
        # It was meant as the first of what follows the option.
        options.images.insert(0, options.json)
        options.json = "-"
    if not options.images:
        raise UsageError("there is nothing to predict: give a picture, a folder or a video")
    if any(Path(path).suffix.lower() in _VIDEOS for path in options.images):
        return _predict_video(options, settings)
    if options.smooth or options.json not in (None, "-"):
        raise UsageError("--smooth and --json FILE are for a video")
    [model] = _models(options, [models.default(settings.representation)])
    if options.cluster is not None and options.format is None:
        raise UsageError("--cluster goes with --format: it writes results, and draws nothing")
    as_json = options.json is not None
    asked = Predict(options.images, model, options.out, options.format, as_json, options.cluster)
    return predict(asked, settings)


def _predict_video(options: argparse.Namespace, settings: Settings) -> int:
    from app import video

    if len(options.images) > 1:
        raise UsageError("a video is predicted alone, and its --json FILE ends in .json")
    if options.format is not None:
        raise UsageError("--format is for pictures: a video's results are --json FILE.json")
    if options.cluster is not None:
        raise UsageError("--cluster is for pictures: a video is predicted on this machine")
    path = Path(options.images[0])
    [source] = _models(options, [models.default(settings.representation)])
    card = sources.describe(source)
    out = options.out
    if out is not None and (out.is_dir() or not out.suffix):
        out /= f"{path.stem}.{card.representation}.mp4"
    results = None if options.json is None else Path(options.json)
    done = video.predict(
        path,
        lambda: _pipeline(settings, source),
        source,
        settings,
        out=out,
        results=results,
        smooth=options.smooth,
    )
    told = f"{path}: {done.frames} frames, {done.people} people followed by {card.name}"
    if done.damaged:
        told += f"; {done.damaged} damaged pieces of the file left out"
    print(told, file=sys.stderr)
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    settings = Settings()
    asked = Evaluation(
        annotations=options.annotations,
        pictures=tuple(options.images),
        boxes=options.boxes,
        flip_test=options.flip_test,
        url=options.url,
        weights=options.weights,
        layout=options.layout,
        as_authors=options.decode == "reference",
    )
    if options.detector:
        report = evaluate_detector(asked, settings)
    else:
        report = evaluate_poses(asked, _models(options, settings.models), settings)
    print(json.dumps(report) if options.json else table(report))
    return 0


def _calibrate(options: argparse.Namespace) -> int:
    settings = Settings()
    given = _models(options, settings.models)
    pictures = Pictures(*options.images)
    reports = calibrate_models(options.annotations, pictures, given, settings)
    if options.figure is not None:
        draw_reliability({name: report.curve for name, report in reports.items()}, options.figure)
    print(describe(reports))
    return 0


def _quantise(options: argparse.Namespace) -> int:
    settings = Settings()
    given = _models(options, settings.models)
    for path in note_ranges(Pictures(*options.images), given, options.most, settings):
        print(f"ranges: {path}")
    return 0


def _train(options: argparse.Namespace) -> int:
    recipe = recipes.read(options.recipe)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if options.devices > 1 and not isinstance(recipe, recipes.PoseRecipe):
        raise UsageError(f"{recipe.name} trains on one device: only pose networks share a batch")
    if device == "cuda" and options.devices > torch.cuda.device_count():
        raise UsageError(f"there are {torch.cuda.device_count()} GPUs, not {options.devices}")
    options.runs.mkdir(parents=True, exist_ok=True)
    if isinstance(recipe, recipes.DetectorRecipe):
        weights = train_detector(recipe, options.data, options.runs, device)
    elif isinstance(recipe, recipes.TokenizerRecipe):
        weights = train_tokenizer(recipe, options.data, options.runs, device)
    else:
        workers = options.workers
        if workers is None:
            workers = (os.cpu_count() or 1) // options.devices if device == "cuda" else 0
        weights = train_pose(recipe, options.data, options.runs, device, workers, options.devices)
    print(f"trained: {weights}, sha256 {downloads.sha256(weights)}")
    return 0


def _bench(options: argparse.Namespace) -> int:
    from app.bench import photos, report, soak, sweep
    from app.bench.processes import ProcessError

    quick = options.quick
    settings = Settings()
    seconds = options.duration or (2.0 if quick else 5.0)
    if options.soak is not None and (options.url is not None or options.rate):
        raise UsageError("--soak watches a service of its own: it takes neither --url nor --rate")
    if options.soak is not None and len(options.concurrency or ()) > 1:
        raise UsageError("--soak takes a single --concurrency")
    if options.images is not None:
        pictures = [photos.own(options.images)]
    else:
        people = options.people or ((5,) if quick else (1, 5) if options.soak else (1, 5, 20))
        pictures = photos.write_crowds(tuple(people), options.out / "photos")
    representations = options.representation
    if representations is None and quick:
        representations = [settings.representation]
    rows, soaked = [], None
    try:
        if options.soak is not None:
            [concurrency] = options.concurrency or (8,)
            cards = map(sources.describe, settings.models)
            loaded = dict.fromkeys(card.representation for card in cards)
            named = representations or list(loaded)
            soaked = soak.run(pictures, named, concurrency, options.soak, settings)
        else:
            otherwise = () if options.rate else (1, 8) if quick else (1, 2, 4, 8, 16)
            asked = sweep.Sweep(
                pictures,
                representations,
                concurrencies=options.concurrency or otherwise,
                rates=options.rate,
                seconds=seconds,
                warm_up=seconds / 5,
                seed=options.seed,
                url=options.url,
            )
            rows = sweep.run(asked, settings)
    except ProcessError as error:
        raise UsageError(str(error)) from error
    measured = report.Report(
        command=" ".join(["posemux", *sys.argv[1:]]),
        hardware=report.hardware(),
        versions=report.versions(),
        settings=None if options.url else report.settings_of(settings),
        rows=rows,
        soak=soaked,
    )
    report.write(measured, options.out)
    print(report.markdown(measured))
    return 0


def _list_models(_: argparse.Namespace) -> int:
    cards = [models.card(name) for name in models.names()]
    weights_dir = Settings().weights_dir
    titles = ("name", "representation", "backbone", "input", "params", "GMACs", "AP", "MB")
    rows = [(*titles, "weights", "licence")]
    for card in cards:
        size = "x".join(str(side) for side in card.input_size)
        average = "-"
        if "AP" in card.measured:
            average = f"{card.measured['AP']:.3f}"
        elif "AP" in card.published:
            average = f"{card.published['AP']:.3f}*"
        cost = catalogue.complexity_of(card)
        figures = (f"{cost.parameters / 1e6:.2f}M", f"{cost.gmacs:.2f}", average)
        path = catalogue.path_of(card, weights_dir)
        present = path.is_file()
        # Published files hold float32.
        megabytes = path.stat().st_size / 1e6 if present else cost.parameters * 4e-6
        stored = (f"{megabytes:.0f}", "present") if present else (f"~{megabytes:.0f}", "absent")
        described = (card.name, card.representation, card.backbone, size, *figures)
        rows.append((*described, *stored, card.licence))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    print("*: its authors' figure, on all of COCO val2017 with flip test: not ours to compare with")
    return 0


def _fetch_model(options: argparse.Namespace) -> int:
    card = models.card(options.name)
    if card.bundled:
        raise UsageError(f"{card.name} comes with posemux: there is nothing to fetch")
    path = catalogue.path_of(card, Settings().weights_dir)
    if options.file is not None:
        if not options.file.is_file():
            raise UsageError(f"no such file: {options.file}")
        url = options.file.resolve().as_uri()
    elif card.url is not None:
        url = card.url
    else:
        raise UsageError(
            f"{card.name} takes a browser: get {card.source}, and then "
            f"`posemux models fetch {card.name} --from FILE`"
        )
    with tqdm(desc=card.name, unit="B", unit_scale=True, unit_divisor=1000, disable=None) as bar:

        def progress(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        downloads.fetch(url, path, card.sha256, progress)
    print(f"{card.name}: {path}, licence: {card.licence}")
    if not card.sha256:
        print(f"its authors publish no sha256 to check; this file's is {downloads.sha256(path)}")
    return 0


def _verify_models(options: argparse.Namespace) -> int:
    weights_dir = Settings().weights_dir
    cards = [models.card(name) for name in options.names or models.names()]
    width = max(len(card.name) for card in cards)
    damaged = False
    for card in tqdm(cards, unit="model", disable=None, leave=False):
        intact = catalogue.verify(card, weights_dir)
        damaged |= intact is False
        state = {True: "present", False: "damaged", None: "absent"}[intact]
        if intact and not card.sha256:
            state = "present, with no published sha256 to check"
        tqdm.write(f"{card.name.ljust(width)}  {state}")
    return 1 if damaged else 0


def _convert_model(options: argparse.Namespace) -> int:
    _check_out(options.out, ".safetensors")
    card = conversion.convert(options.source, options.out, options.layout, Settings().weights_dir)
    megabytes = options.out.stat().st_size / 1e6
    print(f"{options.out}: {_described(card)}, {megabytes:.1f} MB")
    return 0


def _export_model(options: argparse.Namespace) -> int:
    _check_out(options.out, ".onnx")
    model = sources.load(options.source, options.layout, Settings().weights_dir)
    found = export.export(model, options.out)
    print(f"{options.out}: {_described(model.card)}, image and boxes in, keypoints out")
    print(
        f"ONNX Runtime and torch differ by at most {found.pixels:.2g} pixels and "
        f"{found.scores:.2g} in scores, over {found.joints - found.elsewhere} joints"
    )
    if found.elsewhere:
        print(f"{found.elsewhere} more joints have two peaks alike, of which each took another")
    return 0


# ------------------------------------------------------------------------------------------ parts


def _check_out(path: Path, suffix: str) -> None:
    if path.suffix != suffix:
        raise UsageError(f"--out must end in {suffix}, not be {path}")


def _described(card: models.Card) -> str:
    size = "x".join(str(side) for side in card.input_size)
    joints = len(card.architecture.joints)
    return f"{card.representation}, {card.backbone}, {size}, {joints} joints"


def _pipeline(settings: Settings, source: str) -> Pipeline:
    """The service's pipeline with a single pose model."""
    from app.main import build_pipeline

    return build_pipeline(settings.model_copy(update={"models": (source,)}), Metrics())


def _models(options: argparse.Namespace, otherwise: Sequence[str]) -> Sequence[str]:
    """The pose models that were asked for, by name or weights file."""
    if options.model is not None:
        chosen = sources.absolute(options.model)
        # What is wrong with it is told before anything begins.
        sources.describe(chosen)
        return [chosen]
    if options.representation is not None:
        return [models.default(options.representation)]
    return otherwise


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("posemux", description="Human poses in three representations.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="answer POST /pose over HTTP; settings are POSE_*")
    serve.add_argument("--host", help="address to listen on (POSE_HOST)")
    serve.add_argument("--port", type=int, help="port to listen on (POSE_PORT)")
    serve.add_argument(
        "--show-settings",
        action="store_true",
        help="print all settings, as a file of environment variables, and do not serve",
    )
    serve.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="serve on this Ray cluster (auto, HOST:PORT or ray://HOST:PORT), or update what it "
        "serves, and return",
    )
    serve.add_argument(
        "--replicas", metavar="N|MIN-MAX", help="on so many devices of the cluster (1)"
    )
    serve.set_defaults(run=_serve)

    predicted = commands.add_parser(
        "predict",
        help="find the poses in pictures, or follow people through a video; with --format it goes "
        "on where it was killed",
    )
    predicted.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE|VIDEO",
        help="a file, a folder, or a quoted pattern; or a video",
    )
    _choose_model(predicted)
    predicted.add_argument(
        "--out",
        type=Path,
        metavar="DIR|FILE.mp4",
        help="write drawn pictures, or the drawn video, there, or with --format the results "
        "(runs/predict)",
    )
    result = predicted.add_mutually_exclusive_group()
    result.add_argument(
        "--format", choices=WRITERS, help="write the poses of all pictures as files of this format"
    )
    result.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE.json",
        help="print a line of COCO results for each picture; of a video one object, into the file "
        "if there is one",
    )
    predicted.add_argument(
        "--smooth", action="store_true", help="smooth the joints of people in a video over time"
    )
    predicted.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="estimate on this Ray cluster, whose nodes see the pictures by the same paths",
    )
    predicted.set_defaults(run=_predict)

    evaluate = commands.add_parser("evaluate", help="measure poses or boxes on annotated pictures")
    evaluate.add_argument("--annotations", type=Path, required=True, metavar="COCO.json")
    evaluate.add_argument(
        "--images", type=Path, nargs="+", required=True, help="a folder, or tar files, of pictures"
    )
    chosen = _choose_model(evaluate)
    chosen.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="a weights file: a training's, or a published checkpoint",
    )
    chosen.add_argument(
        "--detector", action="store_true", help="the person detector's boxes in place of poses"
    )
    evaluate.add_argument(
        "--layout",
        metavar="NAME",
        help="what --weights are, where several fit: a model, or a recipe and its variants",
    )
    evaluate.add_argument(
        "--boxes",
        default="gt",
        metavar="gt|detector|FILE",
        help="where the people are: annotated, detected, or in a COCO results file (gt)",
    )
    evaluate.add_argument("--flip-test", action="store_true", help="average with the mirror image")
    evaluate.add_argument(
        "--decode",
        choices=("default", "reference"),
        default="default",
        help="reference: decode, merge and score as the model's authors do (default)",
    )
    evaluate.add_argument(
        "--url", help="ask a running service instead, such as http://localhost:8000"
    )
    evaluate.add_argument("--json", action="store_true", help="all that was measured, as JSON")
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

    quantise = commands.add_parser(
        "quantise", help="note beside weights what int8 needs to know, from pictures that they see"
    )
    quantise.add_argument(
        "--images", type=Path, nargs="+", required=True, help="a folder, or tar files, of pictures"
    )
    quantise.add_argument(
        "--most", type=_count, default=300, metavar="N", help="pictures, spread over all (300)"
    )
    _choose_model(quantise)
    quantise.set_defaults(run=_quantise)

    train = commands.add_parser("train", help="train by a recipe; goes on where it was interrupted")
    train.add_argument(
        "recipe",
        help=f"a TOML file or one of {', '.join(recipes.names())}; its variants may follow, "
        "each after an @",
    )
    train.add_argument("--data", type=Path, required=True, help="the folder of the data sets")
    train.add_argument(
        "--runs", type=Path, default=Path("runs"), help="where trainings live (runs)"
    )
    train.add_argument(
        "--device", choices=("cpu", "cuda"), help="where it computes (cuda where there is one)"
    )
    train.add_argument(
        "--devices", type=_count, default=1, help="GPUs, or processes on a CPU, share a batch (1)"
    )
    train.add_argument(
        "--workers",
        type=int,
        help="processes on each device that prepare samples (a GPU's share of the cores, else 0)",
    )
    train.set_defaults(run=_train)

    bench = commands.add_parser(
        "bench", help="how fast a service is, and how much of the bare pipeline's speed is left"
    )
    bench.add_argument(
        "--url", help="a running service, such as http://localhost:8000 (an own one)"
    )
    bench.add_argument(
        "--representation",
        nargs="+",
        choices=models.REPRESENTATIONS,
        metavar="R",
        help="which ones (all that are loaded)",
    )
    sent = bench.add_mutually_exclusive_group()
    sent.add_argument(
        "--people", nargs="+", type=_count, metavar="N", help="people in a photo (1 5 20)"
    )
    sent.add_argument("--images", type=Path, metavar="DIR", help="send the images of this folder")
    bench.add_argument(
        "--concurrency",
        nargs="+",
        type=_count,
        metavar="N",
        help="closed loops: requests under way (1 2 4 8 16, none with --rate)",
    )
    bench.add_argument(
        "--rate",
        nargs="+",
        type=_positive,
        default=(),
        metavar="R",
        help="open loops: images a second, at random moments",
    )
    bench.add_argument(
        "--duration", type=_positive, metavar="SECONDS", help="how long each is measured (5)"
    )
    bench.add_argument("--seed", type=int, default=0, help="of the random moments (0)")
    bench.add_argument(
        "--quick", action="store_true", help="2 s each of 5 people at 1 and 8, one representation"
    )
    bench.add_argument(
        "--soak", type=_count, metavar="REQUESTS", help="watch an own service's memory instead"
    )
    bench.add_argument(
        "--out", type=Path, default=Path("runs/bench"), metavar="DIR", help="(runs/bench)"
    )
    bench.set_defaults(run=_bench)

    catalogued = commands.add_parser("models", help="the pose models that posemux knows")
    catalogued.set_defaults(run=_list_models)
    verbs = catalogued.add_subparsers(metavar="list | fetch | verify | convert | export")
    verbs.add_parser(
        "list", help="name, size, cost, figures, licence, and whether the weights are here"
    )
    fetched = verbs.add_parser("fetch", help="get published weights into POSE_WEIGHTS_DIR")
    fetched.add_argument("name", metavar="NAME", help="a pose model of `posemux models list`")
    fetched.add_argument(
        "--from",
        dest="file",
        type=Path,
        metavar="FILE",
        help="take this file, which a browser got, in place of downloading",
    )
    fetched.set_defaults(run=_fetch_model)
    verified = verbs.add_parser("verify", help="check weights by their sha256; 1 if one is damaged")
    verified.add_argument("names", nargs="*", metavar="NAME", help="which ones (all)")
    verified.set_defaults(run=_verify_models)
    for verb, run, suffix, told in (
        ("convert", _convert_model, "safetensors", "write weights of any origin as safetensors"),
        (
            "export",
            _export_model,
            "onnx",
            "write ONNX with crops and decoding inside, and check it",
        ),
    ):
        written = verbs.add_parser(verb, help=told)
        written.add_argument("source", metavar="FILE_OR_NAME", help="a weights file, or a name")
        written.add_argument("--out", type=Path, required=True, metavar=f"FILE.{suffix}")
        written.add_argument(
            "--layout", metavar="NAME", help="what a file is of, where several fit: see evaluate"
        )
        written.set_defaults(run=run)
    return parser


def _count(text: str) -> int:
    """An argument that counts something: 1 or more."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _positive(text: str) -> float:
    """An argument that is a number above 0."""
    number = float(text)
    if not 0 < number < math.inf:
        raise ValueError
    return number


def _choose_model(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--representation", choices=models.REPRESENTATIONS)
    group.add_argument(
        "--model",
        metavar="NAME|FILE",
        help="a pose model of `posemux models list`, or a weights file",
    )
    return group


if __name__ == "__main__":
    sys.exit(main())
