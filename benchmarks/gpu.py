"""What posemux makes of one GPU, and what the GPU could do: one command, in under nine minutes.

    python -m benchmarks.gpu --out DIR
    python -m benchmarks.gpu simcc-small --out DIR --device cpu --quick

First every network's answers are compared with the CPU's in float32: where they differ by more than
the tolerances below the command ends with 1. Then it measures the device's own
rates, people a second from normalised float32 crops on the device to their joints for each batch
size, and the bare pipeline from decoded pictures to poses. Wants nothing but this repository and
what posemux needs; networks of recipes have random weights. Medians of runs that begin and end with
an idle device. What time was too short for, the report names. Tables are written as they grow, to
`gpu.json` and `gpu.md`. `--quick` tries the script itself: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from tqdm import tqdm

import models
from benchmarks.networks import build, processor
from models import catalogue
from models.complexity import complexity
from models.crops import cut_out
from models.cuda_graphs import GraphRunner
from models.pose_model import PoseModel
from models.runtime import relative_distance

#: People a second on one H200 that are aimed at, by network; the bundled ones have no mark.
MARKS = {
    "hrnet-w32-heatmap@dark": 6_000,
    "res50-simcc-upfree@equal": 20_000,
    "rtmpose-m": 15_000,
    "pct-swin-base": 5_000,
}
#: The share of the time that decoding may take, and images a second of the whole pipeline.
DECODE_MARK, IMAGES_MARK = 0.03, 1_500
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}

#: How far each type may be from the CPU's float32: raw outputs, as a share of their norm; joints of
#: trained networks, in input pixels, and their scores, both of 90 in 100. Of SimCC's bins of half a
#: pixel rounding chooses among neighbours that are nearly alike.
TYPES = {"fp32": torch.float32, **HALVES}
RAW = {"fp32": 0.002, "bf16": 0.06, "fp16": 0.01}
PIXELS = {"fp32": 0.1, "bf16": 2.5, "fp16": 1.5}
SCORES = {"fp32": 0.002, "bf16": 0.06, "fp16": 0.02}
#: Only joints of higher scores are compared: others have several peaks, of which rounding chooses.
SURE = 0.5

PHOTO = Path(__file__).parents[1] / "docs/bus.jpg"
#: Three of the people in it, as x1, y1, x2, y2.
PEOPLE = ((56, 389, 211, 881), (182, 396, 351, 861), (669, 390, 810, 875))


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Args:
        batches: crops in one batch.
        runs: of which the median is taken.
        run_seconds: how long a run lasts at least.
        matrix: rows and columns of the matrices that are multiplied.
        copied: bytes that are copied.
        images: pictures in one batch of the pipeline.
    """

    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    runs: int = 7
    run_seconds: float = 0.03
    matrix: int = 8192
    copied: int = 2**32
    images: tuple[int, ...] = (1, 8, 32)


QUICK = Size(batches=(1, 2), runs=1, run_seconds=0.0, matrix=128, copied=2**20, images=(1,))


@dataclass
class Measuring:
    """Where, how much, for how long, and what has been found so far."""

    device: torch.device
    size: Size
    end: float
    out: Path
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def captures(self) -> bool:
        """Whether there are CUDA graphs."""
        return self.device.type == "cuda"

    def add(self, table: str, **row: Any) -> None:
        """One more row of a table, also on the disk."""
        self.report.setdefault(table, []).append(row)
        self.save()

    def save(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "gpu.json").write_text(json.dumps(self.report, indent=1))
        (self.out / "gpu.md").write_text(markdown(self.report))

    def may(self, what: str, seconds: float = 0.0) -> bool:
        """Whether there is time for it; if not, the report says that it is missing."""
        enough = time.monotonic() + seconds < self.end
        if not enough:
            self.add("left_out", what=what, why="no time was left")
        return enough

    @torch.inference_mode()
    def seconds(self, call: Callable[[], object]) -> float:
        """The median time of a call, over runs of several."""
        call()
        once = self._run(call, 1)
        times = max(int(self.size.run_seconds / once), 1)
        return statistics.median(self._run(call, times) / times for _ in range(self.size.runs))

    def _run(self, call: Callable[[], object], times: int) -> float:
        self.wait()
        begin = time.perf_counter()
        for _ in range(times):
            call()
        self.wait()
        return time.perf_counter() - begin

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


# --------------------------------------------------------------------------------- the device


def hardware(device: torch.device) -> dict[str, Any]:
    """What everything was measured on."""
    found: dict[str, Any] = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "device": "cpu",
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device": properties.name,
            "memory_gib": round(properties.total_memory / 2**30),
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def measure_limits(work: Measuring) -> None:
    """The rate of large matrix products, and of a copy, counting bytes read and written."""
    rows, limits = work.size.matrix, {}
    for name, dtype in HALVES.items():
        # Random: products of zeros run faster than any real ones.
        a, b = (torch.randn(rows, rows, device=work.device).to(dtype) for _ in range(2))
        limits[name] = 2 * rows**3 / work.seconds(lambda a=a, b=b: a @ b)
    source = torch.randint(255, (work.size.copied,), dtype=torch.uint8, device=work.device)
    target = torch.empty_like(source)
    limits["bytes"] = 2 * work.size.copied / work.seconds(lambda: target.copy_(source))
    work.report["limits"] = limits
    work.save()


class _Traffic(TorchDispatchMode):
    """Counts the bytes that convolutions, products and attention read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        result = function(*arguments, **(options or {}))
        if function._overloadpacket in flop_registry:
            for tensor in tree_leaves((arguments, options, result)):
                if isinstance(tensor, Tensor):
                    self.total += tensor.numel() * tensor.element_size()
        return result


@dataclass(frozen=True)
class Cost:
    """What a network computes and moves at least, if all but its products is fused away."""

    macs: int
    """Multiply-adds of a crop, decoding included."""
    fixed_bytes: int
    """Of a batch whatever its size: the weights."""
    crop_bytes: int
    """Of each crop, in half precision."""

    @classmethod
    def of(cls, model: PoseModel) -> Cost:
        width, height = model.input_size
        with torch.device("meta"):
            empty = PoseModel.fresh(model.card).to("meta", torch.bfloat16).eval()
        one, two = _Traffic(), _Traffic()
        for batch, counted in ((1, one), (2, two)):
            crops = torch.empty(batch, 3, height, width, dtype=torch.bfloat16, device="meta")
            with torch.no_grad(), counted:
                empty.network(crops)
        macs, each = complexity(model.card).macs, two.total - one.total
        return cls(macs, one.total - each, each)


# -------------------------------------------------------------------------------- the answers


def people_of(model: PoseModel) -> Tensor:
    """The crops `(3, 3, H, W)` of the people in the photo, normalised, on the CPU."""
    photo = _photo()
    boxes = torch.tensor(PEOPLE, dtype=torch.float32)
    height, width = photo.shape[:2]
    heights, widths, starts = (torch.full((len(boxes),), n) for n in (height, width, 0))
    pixels, affines = torch.from_numpy(photo).view(-1, 3), model.affines(boxes)
    return cut_out(pixels, heights, widths, starts, affines, model.crop_form)


@lru_cache
def reference(name: str) -> PoseModel:
    """A network on the CPU in float32; random weights of recipes keep activations in bounds."""
    model, path = build(name)
    if path is None:
        norms = [layer for layer in model.network.modules() if isinstance(layer, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
            norm.train()
        # Norms that have seen no batch let values grow from layer to layer, beyond fp16's largest.
        with torch.no_grad():
            model.network(people_of(model))
    return model.eval()


def copy_of(name: str, device: torch.device, dtype: torch.dtype) -> PoseModel:
    """A copy of a network elsewhere and in another type."""
    # In evaluation anew: what an earlier call kept is not for the copy.
    return deepcopy(reference(name).eval()).to(device, dtype)


def network(model: PoseModel) -> Callable[[Tensor], Any]:
    """From normalised crops to raw outputs."""
    return lambda crops: model.network(crops.to(model.dtype))


def estimator(model: PoseModel) -> Callable[[Tensor], Tensor]:
    """From normalised crops to their joints: what is measured, and captured."""
    return lambda crops: model.decode(model.network(crops.to(model.dtype)))


def graphs(
    compute: Callable[[Tensor], Any], model: PoseModel, sizes: tuple[int, ...]
) -> GraphRunner:
    width, height = model.input_size
    return GraphRunner(compute, (3, height, width), model.dtype, model.device, sizes)


def check(work: Measuring, name: str) -> bool:
    """Compare each type's answers, eager and out of graphs, with the CPU's in float32.

    A network of random weights may make anything of what half precision rounds, so it is judged in
    float32 alone.
    """
    original = reference(name)
    crops = people_of(original)
    with torch.inference_mode():
        raw = original.network(crops)
        joints = original.decode(raw)
    right = True
    for kind, dtype in TYPES.items():
        model = copy_of(name, work.device, dtype)
        there = crops.to(work.device)
        with torch.inference_mode():
            raws = {"eager": model.network(there.to(dtype))}
            found = {"eager": model.decode(raws["eager"])}
        if work.captures:
            ways = network(model), estimator(model)
            # Kept for as long as what they return, which is their memory, is looked at.
            runners = [graphs(compute, model, (len(crops),)) for compute in ways]
            raws["graphs"], found["graphs"] = (runner(there) for runner in runners)
        row: dict[str, Any] = {"network": name, "type": kind}
        row["raw"] = {way: relative_distance(output, raw) for way, output in raws.items()}
        trained = name in catalogue.bundled()
        if trained or kind == "fp32":
            row["right"] = max(row["raw"].values()) <= RAW[kind]
        if trained:
            sure = joints[..., 2] > SURE
            off = {way: (result.cpu() - joints)[sure] for way, result in found.items()}
            row["joints"] = int(sure.sum())
            row["pixels"] = {way: _most(d[:, :2].norm(dim=-1)) for way, d in off.items()}
            row["scores"] = {way: _most(d[:, 2].abs()) for way, d in off.items()}
            row["right"] &= max(row["pixels"].values()) <= PIXELS[kind]
            row["right"] &= max(row["scores"].values()) <= SCORES[kind]
        work.add("checks", **row)
        right &= row.get("right", True)
    return right


def _most(differences: Tensor) -> float:
    """What 90 of 100 of them do not exceed."""
    return float(differences.quantile(0.9))


# ----------------------------------------------------------------------------------- the speed


def measure(work: Measuring, name: str) -> None:
    """People a second by batch size, eager and with graphs, and how much of it is decoding."""
    cost = Cost.of(reference(name))
    for half, dtype in HALVES.items():
        if not work.may(f"{name} in {half}", 15):
            continue
        model = copy_of(name, work.device, dtype)
        estimate = estimator(model)
        if half == "bf16":
            _measure_way(work, model, cost, name, f"{half} eager", estimate)
        if not work.captures:
            continue
        begin = time.perf_counter()
        replayed = graphs(estimate, model, work.size.batches)
        row = {"network": name, "type": half, "seconds": time.perf_counter() - begin}
        work.add("captures", **row, memory=torch.cuda.memory_reserved(work.device))
        _measure_way(work, model, cost, name, f"{half} graphs", replayed)
        del replayed
        torch.cuda.empty_cache()


def _measure_way(
    work: Measuring,
    model: PoseModel,
    cost: Cost,
    name: str,
    way: str,
    estimate: Callable[[Tensor], Any],
) -> None:
    limits = work.report["limits"]
    for batch in work.size.batches:
        if not work.may(f"{name}, {way}, batches of {batch}"):
            continue
        crops = _crops(model, batch)
        seconds = work.seconds(lambda crops=crops: estimate(crops))
        least = {
            "matrix_share": 2 * cost.macs * batch / limits[way.split()[0]],
            "bytes_share": (cost.fixed_bytes + cost.crop_bytes * batch) / limits["bytes"],
        }
        shares = {share: possible / seconds for share, possible in least.items()}
        row = {"network": name, "way": way, "batch": batch, "people": batch / seconds}
        work.add("speeds", **row, **shares)


def _crops(model: PoseModel, batch: int) -> Tensor:
    width, height = model.input_size
    # Colours innermost, as they are cut out.
    return torch.randn(batch, height, width, 3, device=model.device).permute(0, 3, 1, 2)


def measure_decoding(work: Measuring, name: str) -> None:
    """Which share of the time decoding takes: what leaving it out saves, in the same run."""
    batch = min(work.size.batches[-1], 64)
    if not work.may(f"decoding of {name}", 5):
        return
    model = copy_of(name, work.device, torch.bfloat16)
    ways: dict[str, Callable[[Tensor], Any]] = {
        "whole": estimator(model),
        "network": network(model),
    }
    if work.captures:
        ways = {way: graphs(compute, model, (batch,)) for way, compute in ways.items()}
    crops = _crops(model, batch)
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(3):
        for way, compute in ways.items():
            times[way].append(work.seconds(lambda compute=compute: compute(crops)))
    whole, alone = (statistics.median(times[way]) for way in ("whole", "network"))
    work.add(
        "decoding",
        network=name,
        batch=batch,
        milliseconds_a_person=1000 * (whole - alone) / batch,
        share=(whole - alone) / whole,
    )


@torch.inference_mode()
def measure_parts(work: Measuring, name: str) -> None:
    """Which operations the device's time goes to, those that take most of it."""
    batch = min(work.size.batches[-1], 64)
    if not work.may(f"the parts of {name}", 5):
        return
    model = copy_of(name, work.device, torch.bfloat16)
    estimate, crops = estimator(model), _crops(model, batch)
    estimate(crops)
    activities = [ProfilerActivity.CUDA] if work.device.type == "cuda" else []
    with profile(activities=[ProfilerActivity.CPU, *activities], acc_events=True) as profiled:
        estimate(crops)
        work.wait()
    spent = "self_device_time_total" if activities else "self_cpu_time_total"
    # Kernels are listed too, beside the operations that launched them.
    operations = {
        event.key: getattr(event, spent)
        for event in profiled.key_averages()
        if event.key.startswith("aten::")
    }
    total = sum(operations.values())
    for operation in sorted(operations, key=operations.__getitem__, reverse=True)[:6]:
        share = operations[operation] / total
        work.add("parts", network=name, batch=batch, operation=operation, share=share)


def measure_compiled(work: Measuring, name: str) -> None:
    """torch.compile, captured as a graph: by far the longest to prepare, so it comes last."""
    batch = min(work.size.batches[-1], 128)
    if not work.captures or not work.may(f"{name} compiled", 60):
        return
    model = copy_of(name, work.device, torch.bfloat16)
    compiled = torch.compile(model.network, dynamic=False)

    def estimate(crops: Tensor) -> Tensor:
        return model.decode(compiled(crops.to(model.dtype)))

    begin = time.perf_counter()
    try:
        with _at_most(work.end - time.monotonic()):
            runner = graphs(estimate, model, (batch,))
    except Exception as error:
        # Whatever a compiler fails with is a result too.
        why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        work.add("left_out", what=f"{name} compiled", why=why[:200])
        return
    row = {"network": name, "type": "bf16 compiled", "seconds": time.perf_counter() - begin}
    work.add("captures", **row, memory=torch.cuda.memory_reserved(work.device))
    crops = _crops(model, batch)
    seconds = work.seconds(lambda: runner(crops))
    row = {"network": name, "way": "bf16 compiled, graphs", "batch": batch}
    work.add("speeds", **row, people=batch / seconds)


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise TimeoutError within it once it takes longer."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError("no time was left")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --------------------------------------------------------------------------------- end to end


def crowd() -> npt.NDArray[np.uint8]:
    """640x480 with five people: the photo's first one, before its upper part."""
    photo, size = _photo(), (640, 480)
    x1, y1, x2, y2 = PEOPLE[0]
    person = cv2.resize(photo[y1:y2, x1:x2], (94, 300), interpolation=cv2.INTER_AREA)
    shown = np.asarray(cv2.resize(photo[:380], size, interpolation=cv2.INTER_AREA), np.uint8)
    for left in range(16, 640, 128):
        shown[180:, left : left + 94] = person
    return shown


def _photo() -> npt.NDArray[np.uint8]:
    pixels = cv2.imread(str(PHOTO), cv2.IMREAD_COLOR_RGB)
    assert pixels is not None
    return np.asarray(pixels, np.uint8)


def measure_pipeline(work: Measuring, names: Sequence[str]) -> None:
    """Decoded pictures to poses, without HTTP or queue, and what the host takes to decode them."""
    try:
        from app import images
        from app.main import build_pipeline
        from app.metrics import Metrics
        from app.pipeline import Options
        from app.settings import Settings
    except ModuleNotFoundError as error:
        work.add("left_out", what="the pipeline", why=f"{error.name} is not installed")
        return
    picture = crowd()
    encoded = cv2.imencode(".jpg", picture[..., ::-1])[1].tobytes()
    decoding = work.seconds(lambda: images.decode(encoded, 10**6))
    work.report["host"] = {"images_decoded_a_second_and_core": 1 / decoding}
    ways: list[dict[str, Any]] = [{"runtime": "torch", "precision": "float32"}]
    if work.captures:
        ways.append({"runtime": "graphs", "precision": "float16"})
    for way in ways:
        settings = Settings(
            device=str(work.device),
            models=tuple(names),
            representation=models.card(names[0]).representation,
            **way,
        )
        try:
            pipeline = build_pipeline(settings, Metrics())
        except ValueError as error:
            work.add("left_out", what=f"the pipeline, {' '.join(way.values())}", why=str(error))
            continue
        pipeline.warm_up()
        for name in names:
            for batch in work.size.images:
                if not work.may(f"the pipeline with {name}, {batch} pictures", 5):
                    continue
                pictures, options = [picture] * batch, [Options(name)] * batch
                ask = partial(pipeline, pictures, options)
                seconds = work.seconds(ask)
                answers = ask()
                stages = {stage: 1000 * spent for stage, spent in answers[0].timings.items()}
                people = float(np.mean([len(answer.scores) for answer in answers]))
                row = {"model": name, "way": " ".join(way.values()), "images": batch}
                row |= {"people": people, "rate": batch / seconds}
                work.add("pipeline", **row, milliseconds=stages)


# --------------------------------------------------------------------------------- the report


def markdown(report: dict[str, Any]) -> str:
    """The report as tables; those that are not there yet are left out."""
    machine = ", ".join(f"{name} {value}" for name, value in report["hardware"].items())
    parts = [f"# posemux on {report['hardware']['device']}", machine]
    if report.get("quick"):
        parts.append("**A trial of the script: these figures mean nothing.**")
    if limits := report.get("limits"):
        parts.append(
            "Measured limits: "
            + ", ".join(f"{limits[half] / 1e12:.4g} TFLOP/s {half}" for half in HALVES)
            + f", {limits['bytes'] / 1e12:.4g} TB/s copied (read and written)."
        )
    if rows := report.get("checks"):
        parts += ["## Against the CPU's float32", _table(rows, _CHECKS)]
    if rows := report.get("speeds"):
        best = _best(rows)
        parts += ["## People a second, crops in, joints out", _table(best, _BEST)]
        parts += ["### By batch size", _table(rows, _SPEEDS)]
    if rows := report.get("decoding"):
        parts += [f"## Decoding (mark {DECODE_MARK:.0%})", _table(rows, _DECODING)]
    if rows := report.get("parts"):
        parts += ["## Where the device's time goes, eager in bf16", _table(rows, _PARTS)]
    if rows := report.get("pipeline"):
        title = f"## Pictures of 640x480 to poses (mark, over HTTP: {IMAGES_MARK} images/s)"
        parts += [title, _table(rows, _PIPELINE)]
    if host := report.get("host"):
        rate = host["images_decoded_a_second_and_core"]
        parts.append(f"One core decodes {rate:.0f} such JPEGs a second.")
    if rows := report.get("captures"):
        parts += ["## Preparation", _table(rows, _CAPTURES)]
    if rows := report.get("left_out"):
        parts += ["## Left out", _table(rows, {"what": "{what}", "why": "{why}"})]
    return "\n\n".join(parts) + "\n"


#: Columns by title: how a row is written there.
_CHECKS = {
    "network": "{network}",
    "type": "{type}",
    "raw outputs apart": "{raw[eager]:.4f}",
    "of graphs": "{raw[graphs]:.4f}",
    "joints apart px": "{pixels[eager]:.3f}",
    "scores apart": "{scores[eager]:.4f}",
    "joints of graphs px": "{pixels[graphs]:.3f}",
    "scores of graphs": "{scores[graphs]:.4f}",
    "right": "{right}",
}
_SPEEDS = {
    "network": "{network}",
    "way": "{way}",
    "batch": "{batch}",
    "people/s": "{people:.0f}",
    "of the matrix rate": "{matrix_share:.1%}",
    "of the bandwidth": "{bytes_share:.1%}",
}
_BEST = {**_SPEEDS, "mark": "{mark}", "by the mark": "{by_mark:.2f}"}
_DECODING = {
    "network": "{network}",
    "batch": "{batch}",
    "ms a person": "{milliseconds_a_person:.5f}",
    "share": "{share:.1%}",
}
_PARTS = {
    "network": "{network}",
    "batch": "{batch}",
    "operation": "{operation}",
    "share": "{share:.1%}",
}
_PIPELINE = {
    "model": "{model}",
    "way": "{way}",
    "images": "{images}",
    "people found": "{people:.1f}",
    "images/s": "{rate:.1f}",
    "detect ms": "{milliseconds[detect]:.2f}",
    "crop ms": "{milliseconds[crop]:.2f}",
    "pose ms": "{milliseconds[pose]:.2f}",
    "postprocess ms": "{milliseconds[postprocess]:.2f}",
}
_CAPTURES = {"network": "{network}", "type": "{type}", "s": "{seconds:.1f}", "bytes": "{memory}"}


def _best(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each network's quickest row, beside its mark."""
    quickest: dict[str, dict[str, Any]] = {}
    for row in rows:
        name, mark = row["network"], MARKS.get(row["network"])
        if name not in quickest or row["people"] > quickest[name]["people"]:
            quickest[name] = row | ({"mark": mark, "by_mark": row["people"] / mark} if mark else {})
    return list(quickest.values())


def _table(rows: Sequence[dict[str, Any]], columns: dict[str, str]) -> str:
    lines = [list(columns), ["---"] * len(columns)]
    lines += [[_cell(row, how) for how in columns.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(row: dict[str, Any], how: str) -> str:
    try:
        return how.format(**row)
    except (KeyError, TypeError):  # not there, or None
        return "-"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="recipes or models (marked and bundled)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (cuda)")
    parser.add_argument("--quick", action="store_true", help="next to nothing: tries the script")
    parser.add_argument("--seconds", type=float, default=480, help="begin nothing later (480)")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: no CUDA device is there; --device cpu is")
    size = QUICK if options.quick else Size()
    work = Measuring(device, size, time.monotonic() + options.seconds, options.out)
    work.report |= {"hardware": hardware(device), "quick": options.quick}
    torch.backends.cudnn.benchmark = True
    if device.type == "cuda":
        # Otherwise float32 convolutions have fp16's digits.
        torch.backends.cudnn.allow_tf32 = False
    names = options.names or [*(() if options.quick else MARKS), *catalogue.bundled()]
    bundled = [name for name in names if name in catalogue.bundled()]

    wrong = [name for name in tqdm(names, desc="checking", disable=None) if not check(work, name)]
    measure_limits(work)
    for name in tqdm(names, desc="measuring", disable=None):
        measure(work, name)
        measure_decoding(work, name)
        measure_parts(work, name)
    if bundled:
        measure_pipeline(work, bundled)
    for name in tqdm(names, desc="compiling", disable=None):
        measure_compiled(work, name)
    print(markdown(work.report))
    if wrong:
        print(f"not what the CPU computes: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
