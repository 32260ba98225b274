"""Do the papers' claims hold on our data and backbone? The study of docs/study.md.

    python benchmarks/study.py train --data DATA --runs RUNS [--size 64 ...]
    python benchmarks/study.py occlude --data DATA --runs RUNS
    python benchmarks/study.py cost --runs RUNS
    python benchmarks/study.py report --runs RUNS --docs docs

Every variant gets the same backbone, pyramid, people, augmentation, schedule and seed; only the
representation changes. `train` skips what is done and goes on with what was interrupted; `cost`
wants a machine that does nothing else; `report` writes tables and plots of all three's results.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot

import models
from models import geometry
from models.evaluation import coco_figures
from models.heatmap import Heatmap, Method
from models.network import Architecture, Representation
from models.pose_model import PoseModel
from models.training.loop import card_of, normalise, plain_samples, train_pose, validate
from models.training.people import Augmentation, People
from models.training.recipes import PoseRecipe, Stage

#: Whose backbone and pyramid all variants start from: see `write_start`.
TRAINED = "simcc-small"
BACKBONE = models.card(TRAINED).architecture.backbone
PYRAMID = models.card(TRAINED).architecture.pyramid
START = "study-start"
#: Side of the square input to epochs: width and height where it is not square.
SIZES = {64: (64, 64), 128: (128, 128), 256: (192, 256)}
#: Everything learns. Fewer epochs where one costs more: variants of one size are compared.
STAGES = {64: Stage(6, 0.001), 128: Stage(3, 0.001), 256: Stage(2, 0.001)}
#: The side of the grey square of the occlusion test, as a share of the root of the box's area.
OCCLUSIONS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)


# -------------------------------------------------------------------------------------- variants


def variants(size: int) -> dict[str, Architecture]:
    """The architectures that are compared at an input size, by name."""
    # Targets equally wide in pixels whatever k is; HRNet's and DarkPose's sigma for heatmaps.
    pixels, sigma, blur = (3.0, 2.0, 11) if size == 256 else (2.0, 1.0, 3)

    def simcc(k: float, smoothing: str, spread: float, **options: Any) -> Architecture:
        table = {"k": k, "smoothing": smoothing, "spread": spread, **options}
        pyramid = 0 if options.get("feature_stride") == 32 else PYRAMID
        return Architecture("simcc", BACKBONE, SIZES[size], pyramid, table)

    def heatmap(unbiased: bool) -> Architecture:
        options = {"sigma": sigma, "blur_kernel": blur, "unbiased": unbiased}
        return Architecture("dark", BACKBONE, SIZES[size], PYRAMID, options)

    return {
        "heatmap, unbiased targets": heatmap(True),
        "heatmap, biased targets": heatmap(False),
        "SimCC k=1, Gaussian": simcc(1.0, "gaussian", pixels),
        "SimCC k=2, Gaussian": simcc(2.0, "gaussian", pixels * 2),
        "SimCC k=3, Gaussian": simcc(3.0, "gaussian", pixels * 3),
        # The scale of a Laplacian as spread as the Gaussian.
        "SimCC k=2, Laplace": simcc(2.0, "laplace", pixels * 2 / 2**0.5),
        "SimCC k=2, equal": simcc(2.0, "equal", 0.1),
        "SimCC k=2, no smoothing": simcc(2.0, "none", 0.0),
        "SimCC k=2, Gaussian, upsampling-free": simcc(
            2.0, "gaussian", pixels * 2, feature_stride=32, maps=32
        ),
    }


def run_name(size: int, variant: str, seed: int) -> str:
    """A training's name: also its folder's."""
    plain = "".join(c if c.isalnum() else "-" for c in variant.lower()).replace("--", "-")
    return f"study-{size}-{plain}-{seed}"


def recipe(name: str, architecture: Architecture, size: int, seed: int) -> PoseRecipe:
    """The one schedule of all of a size."""
    return PoseRecipe(
        name=name,
        architecture=architecture,
        train={"coco-train": 1.0, "coco-extra": 1.0},
        validate="coco-dev",
        stages=(STAGES[size],),
        batch=32,
        ema=0.995,
        seed=seed,
        start=START,
        validate_every=STAGES[size].epochs,
        augmentation=Augmentation(
            scale=0.3,
            rotation=30.0,
            rotation_probability=0.4,
            half_body_probability=0.15,
            colour=0.2,
            cutout_probability=0.1,
        ),
    )


def write_start(runs: Path) -> None:
    """What all start from: a bundled model's backbone and pyramid, under heads with random weights.

    They were trained with heatmaps for most of the time, which favours heatmaps; random ones learn
    nothing in a schedule this short. A file that lies there already is taken as it is.
    """
    path = runs / START / f"{START}.safetensors"
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    trained = models.load(TRAINED)
    # Without its head: heatmaps and SimCC would take over maps that a trained head made.
    trained.network.head = torch.nn.Identity()
    trained.save(path)


# -------------------------------------------------------------------------------------- training


def train(arguments: argparse.Namespace) -> None:
    """Train and measure every variant that is asked for."""
    write_start(arguments.runs)
    for size in arguments.size:
        for variant, architecture in variants(size).items():
            if arguments.only and not any(part in variant for part in arguments.only):
                continue
            name = run_name(size, variant, arguments.seed)
            written = arguments.runs / name / "study.json"
            if written.is_file():
                continue
            print(name, flush=True)
            chosen = recipe(name, architecture, size, arguments.seed)
            weights = train_pose(chosen, arguments.data, arguments.runs, arguments.device)
            model = PoseModel.fresh(card_of(name, architecture)).load_weights(weights).eval()
            result = {
                "size": size,
                "variant": variant,
                "seed": arguments.seed,
                "figures": measure(model, arguments.data),
                "device": arguments.device,
            }
            written.write_text(json.dumps(result, indent=1))


def measure(model: PoseModel, data: Path) -> dict[str, dict[str, float]]:
    """COCO's figures for each way of decoding that the representation has."""
    people = People({"coco-dev": 1.0}, data)
    return {
        method: validate(PoseModel(model.card, model.network, representation), people)
        for method, representation in decodings(model).items()
    }


def decodings(model: PoseModel) -> dict[str, Representation]:
    """The representation with each way of decoding that it has."""
    if not isinstance(model.representation, Heatmap):
        return {"peak": model.representation}
    methods: tuple[Method, ...] = ("argmax", "shift", "dark")
    return {method: replace(model.representation, method=method) for method in methods}


# ------------------------------------------------------------------------------------------ cost


@torch.inference_mode()
def cost(arguments: argparse.Namespace, batch: int = 8, turns: int = 30) -> None:
    """Median milliseconds of network and decoding for a person, float32, one CPU thread.

    Variants take turns, so that whatever else the machine does strikes all alike.
    """
    torch.set_num_threads(1)
    found: dict[int, dict[str, float]] = {}
    for size in SIZES:
        built = {
            f"{variant}, {method}": PoseModel(model.card, model.network, representation)
            for variant, architecture in variants(size).items()
            for model in [PoseModel.fresh(card_of(variant, architecture)).eval()]
            for method, representation in decodings(model).items()
        }
        width, height = SIZES[size]
        crops = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)
        seconds: dict[str, list[float]] = {name: [] for name in built}
        for turn in range(turns + 3):
            for name, model in built.items():
                begin = time.perf_counter()
                model.decode(model.network(normalise(crops, model)))
                if turn >= 3:
                    seconds[name].append(time.perf_counter() - begin)
        found[size] = {
            name: round(statistics.median(times) * 1000 / batch, 3)
            for name, times in seconds.items()
        }
        print(size, json.dumps(found[size], indent=1), flush=True)
    (arguments.runs / "cost.json").write_text(json.dumps(found, indent=1))


# ------------------------------------------------------------------------------------- occlusion


@torch.inference_mode()
def occlude(arguments: argparse.Namespace) -> None:
    """AP of the bundled models when a grey square hides a random labelled joint of everybody."""
    annotations = arguments.data / "coco-dev.json"
    people = People({"coco-dev": 1.0}, arguments.data)
    results: list[dict[str, Any]] = []
    for name in ("dark-small", "simcc-small", "pct-small"):
        model = models.load(name)
        for share in OCCLUSIONS:
            poses = list(occluded_poses(model, people, share))
            figures = coco_figures(annotations, poses)
            results.append({"model": name, "share": share, "figures": figures})
            print(name, share, round(figures["AP"], 4), flush=True)
    (arguments.runs / "occlusion.json").write_text(json.dumps(results, indent=1))


def occluded_poses(model: PoseModel, people: People, share: float) -> Iterator[dict[str, Any]]:
    """COCO results of everybody; each crop has the same joint hidden whatever the model."""
    samples = plain_samples(people, model)
    for first in range(0, len(people.people), 32):
        rows = range(first, min(first + 32, len(people.people)))
        crops, boxes = [], []
        for row in rows:
            crop, keypoints, labelled = samples[0, row]
            rng = np.random.default_rng((7, row))
            joint = rng.choice(np.flatnonzero(labelled.numpy()))
            # Equally large in the image for all models: PCT's crop is square.
            box = people.people[row].box
            affine = model.affines(torch.from_numpy(box))
            side = share * np.sqrt((box[2:] - box[:2]).prod()) * affine[0, 0].item()
            low = (keypoints[joint] - side / 2).round().int().clamp(min=0).tolist()
            high = (keypoints[joint] + side / 2).round().int().clamp(min=0).tolist()
            crop = crop.clone()
            crop[:, low[1] : high[1], low[0] : high[0]] = 114
            crops.append(crop)
            boxes.append(torch.from_numpy(box))
        decoded = model.decode(model.network(normalise(torch.stack(crops), model)))
        back = geometry.invert_affines(model.affines(torch.stack(boxes)))
        positions = geometry.apply_affines(back, decoded[..., :2]).float()
        for row, joints in zip(rows, torch.cat((positions, decoded[..., 2:]), -1), strict=True):
            yield {
                "image_id": people.people[row].image_id,
                "category_id": 1,
                "score": joints[:, 2].mean().item(),
                "keypoints": joints.flatten().tolist(),
            }


# ---------------------------------------------------------------------------------------- report


def report(arguments: argparse.Namespace) -> None:
    """Tables to standard output, plots and all figures to the folder of documents."""
    results = [
        json.loads(path.read_text()) for path in sorted(arguments.runs.glob("study-*/study.json"))
    ]
    occlusion = json.loads((arguments.runs / "occlusion.json").read_text())
    costs = json.loads((arguments.runs / "cost.json").read_text())
    hardware = f"{os.cpu_count()} cores {platform.machine()}, torch {torch.__version__}"
    stages = {size: asdict(stage) for size, stage in STAGES.items()}
    record = {"hardware": hardware, "stages": stages, "trainings": results}
    record |= {"occlusion": occlusion, "milliseconds": costs}
    (arguments.docs / "study.json").write_text(json.dumps(record, indent=1) + "\n")
    for size in sorted({result["size"] for result in results}):
        width, height = SIZES[size]
        print(f"\n{width}x{height}\n\n| variant | decoding | AP | AP50 | AP75 | AR | ms/person |")
        print("|---|---|---|---|---|---|---|")
        for variant in variants(size):
            of_variant = [r for r in results if (r["size"], r["variant"]) == (size, variant)]
            for result in of_variant:
                for method, figures in result["figures"].items():
                    row = [f"{figures[key]:.3f}" for key in ("AP", "AP50", "AP75", "AR")]
                    seed = f" (seed {result['seed']})" if len(of_variant) > 1 else ""
                    spent = costs[str(size)][f"{variant}, {method}"]
                    cells = [variant + seed, method, *row, f"{spent:.2f}"]
                    print(f"| {' | '.join(cells)} |")
    plot_trainings(results, arguments.docs / "study.svg")
    plot_occlusion(occlusion, arguments.docs / "occlusion.svg")


def plot_trainings(results: list[dict[str, Any]], path: Path) -> None:
    """A bar of AP for each variant and decoding, a panel for each size."""
    sizes = sorted({result["size"] for result in results})
    figure, panels = pyplot.subplots(1, len(sizes), figsize=(6 * len(sizes), 4.5), squeeze=False)
    for panel, size in zip(panels[0], sizes, strict=True):
        bars = [
            (f"{result['variant']} ({method})", figures["AP"])
            for result in results
            if result["size"] == size
            for method, figures in result["figures"].items()
        ]
        names, heights = zip(*sorted(bars, key=lambda bar: bar[1]), strict=True)
        panel.barh(range(len(names)), heights)
        panel.set_yticks(range(len(names)), names, fontsize=7)
        panel.set_xlabel("AP on coco-dev, ground-truth boxes")
        panel.set_title("{}x{}".format(*SIZES[size]))
    figure.tight_layout()
    figure.savefig(path)


def plot_occlusion(occlusion: list[dict[str, Any]], path: Path) -> None:
    """AP over the size of the square, relative to no square."""
    figure, panel = pyplot.subplots(figsize=(6, 4))
    for name in dict.fromkeys(result["model"] for result in occlusion):
        line = [(r["share"], r["figures"]["AP"]) for r in occlusion if r["model"] == name]
        shares, aps = zip(*line, strict=True)
        panel.plot(shares, [ap / aps[0] for ap in aps], marker="o", label=name)
    panel.set_xlabel("side of the grey square / square root of the box's area")
    panel.set_ylabel("AP relative to no square")
    panel.legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Parse the command line."""
    mpl.use("agg")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for run in (train, occlude, cost, report):
        command = commands.add_parser(run.__name__, help=(run.__doc__ or "").splitlines()[0])
        command.set_defaults(run=run)
        command.add_argument("--runs", type=Path, required=True)
        if run is report:
            command.add_argument("--docs", type=Path, default=Path("docs"))
        if run in (train, occlude):
            command.add_argument("--data", type=Path, required=True)
        if run is train:
            command.add_argument("--size", type=int, nargs="+", choices=SIZES, default=[64])
            command.add_argument("--only", nargs="+", help="variants that contain any of these")
            command.add_argument("--seed", type=int, default=0)
            command.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
