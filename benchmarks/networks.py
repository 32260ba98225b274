"""What pose networks cost on a CPU: to load, to keep, and for each crop.

    python benchmarks/networks.py
    python benchmarks/networks.py hrnet-w32-simcc@equal dark-small --threads 2 --runs 20

Networks are named by their recipes and variants, with random weights, or by the catalogue, with
those that are here. Each is loaded in a process of its own from a file that was just read or
written; the memory is what that process had at most, less what it had before. The forward passes of
all networks take turns; times are medians. Wants Linux, and a machine that does nothing else.

Reference figures, in brackets, are of the authors' own code in float32 on two threads of such a
machine, and of its networks: what is slower than there deserves a look.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tqdm import tqdm

import models
from models import catalogue
from models.complexity import complexity
from models.layouts import architecture_of
from models.pose_model import PoseModel
from models.training import recipes
from models.training.loop import card_of

BATCHES = (1, 8)
WARM_UP = 2
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Reference:
    """The authors' own network: milliseconds by batch size, millions of parameters, GMACs."""

    milliseconds: tuple[float, float]
    parameters: float | None = None
    gmacs: float | None = None


#: By recipe; of a range of times, from two runs, the shorter.
REFERENCES = {
    "hrnet-w32-heatmap": Reference((157.5, 801.9), 28.5, 7.65),
    "hrnet-w48-heatmap": Reference((258.2, 1445.6), 63.6, 15.69),
    "hrnet-w32-simcc@equal": Reference((161.0, 836.9), 31.3, 7.69),
    "simba-res50-heatmap": Reference((111.4, 664.3), 34.0, 5.43),
    "simba-res50-simcc": Reference((112.8, 663.7), 36.8, 5.47),
    "res50-simcc-upfree@equal": Reference((79.8, 503.9), 25.7, 4.07),
    "rtmpose-t": Reference((13.0, 64), 3.34),
    "rtmpose-s": Reference((17.7, 99), 5.47),
    "rtmpose-m": Reference((37.6, 237), 13.59),
    "rtmpose-l": Reference((64.9, 460), 27.66),
    "pct-swin-base": Reference((421, 3388), 128, 22.2),
    "swin-base-heatmap": Reference((409.5, 3331), 87.0, 22.0),
}

_LOAD = """
import json, re, sys, time
from pathlib import Path
import models
def peak():
    # Not getrusage, whose peak begins with the parent's.
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1000
before, begin = peak(), time.perf_counter()
model = models.load(*sys.argv[1:])
print(json.dumps({"seconds": time.perf_counter() - begin, "megabytes": peak() - before}))
"""


def build(name: str) -> tuple[PoseModel, Path | None]:
    """A pose model ready for inference, and its weights file if there is one."""
    if name in models.names():
        return models.load(name), catalogue.path_of(models.card(name))
    return PoseModel.fresh(card_of(name, architecture_of(name))).eval(), None


def load(name: str, model: PoseModel, path: Path | None) -> dict[str, float]:
    """Seconds and megabytes of loading a model in a process of its own."""
    with TemporaryDirectory() as folder:
        if path is None:
            path = Path(folder) / "weights.pth"
            torch.save(model.module().state_dict(), path)
        path.read_bytes()
        done = subprocess.run(
            [sys.executable, "-c", _LOAD, name, str(path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    found: dict[str, float] = json.loads(done.stdout)
    return found


@torch.inference_mode()
def forward(built: dict[str, PoseModel], runs: int) -> dict[str, list[float]]:
    """Milliseconds of each network's forward pass, one for each batch size."""
    seconds: dict[tuple[str, int], list[float]] = {}
    for turn in tqdm(range(WARM_UP + runs), unit="turn", disable=None):
        for name, model in built.items():
            width, height = model.input_size
            for batch in BATCHES:
                # Colours innermost, as the service cuts them out.
                crops = torch.randn(batch, height, width, 3).permute(0, 3, 1, 2)
                begin = time.perf_counter()
                model.network(crops)
                if turn >= WARM_UP:
                    seconds.setdefault((name, batch), []).append(time.perf_counter() - begin)
    return {
        name: [1000 * statistics.median(seconds[name, batch]) for batch in BATCHES]
        for name in built
    }


def table(
    built: dict[str, PoseModel],
    loads: dict[str, dict[str, float]],
    times: dict[str, list[float]],
) -> str:
    """Markdown; a reference figure follows ours in brackets."""
    titles = ["network", "params M", "GMACs", "load s", "load MB"]
    titles += [f"batch {batch} ms" for batch in BATCHES]
    rows = [titles, ["---", *["---:"] * (len(titles) - 1)]]
    for name, model in built.items():
        cost, known = complexity(model.card), REFERENCES.get(name)
        expected = (known.parameters, known.gmacs, *known.milliseconds) if known else (None,) * 4
        rows.append(
            [
                name,
                _beside(cost.parameters / 1e6, expected[0], 2),
                _beside(cost.gmacs, expected[1], 2),
                f"{loads[name]['seconds']:.2f}",
                f"{loads[name]['megabytes']:.0f}",
                *(
                    _beside(ours, theirs, 1)
                    for ours, theirs in zip(times[name], expected[2:], strict=True)
                ),
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _beside(ours: float, theirs: float | None, digits: int) -> str:
    return f"{ours:.{digits}f}" + (f" ({theirs:g})" if theirs is not None else "")


def processor() -> str:
    """The processor's name, as Linux tells it."""
    named = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return named[1] if named else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="recipes or models (those with a reference)")
    parser.add_argument("--threads", type=int, default=2, help="threads of a forward pass (2)")
    parser.add_argument("--runs", type=int, default=10, help="forward passes of each kind (10)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = options.names or [
        name for name in REFERENCES if name.partition("@")[0] in recipes.names()
    ]
    built, loads = {}, {}
    for name in tqdm(names, unit="network", disable=None):
        built[name], path = build(name)
        loads[name] = load(name, built[name], path)
    print(f"{processor()}, {os.cpu_count()} cores, torch {torch.__version__}, ", end="")
    print(f"{options.threads} threads\n")
    print(table(built, loads, forward(built, options.runs)))


if __name__ == "__main__":
    main()
