"""What was measured, for people and programs: JSON, Markdown and drawings."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from app.bench.soak import Soak
from app.bench.sweep import Row
from app.main import posemux_version
from app.settings import Settings

_STAGES = ("decode", "queue", "detect", "crop", "pose", "postprocess", "total")
_PACKAGES = (
    *("torch", "openvino", "onnxruntime", "opencv-python", "numpy", "ultralytics"),
    *("fastapi", "uvicorn", "uvloop", "httptools", "aiohttp", "litserve", "ray"),
)


@dataclass(frozen=True, slots=True)
class Report:
    """All that was measured, and on what."""

    command: str
    hardware: dict[str, Any]
    versions: dict[str, str]
    settings: dict[str, Any] | None
    """Of an own service."""
    rows: Sequence[Row]
    soak: Soak | None


def hardware() -> dict[str, Any]:
    """This machine: processor, cores that may be used, memory, GPU."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Of Python, posemux, and the packages that matter for speed."""
    found = {"python": platform.python_version(), "posemux": posemux_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def settings_of(settings: Settings) -> dict[str, Any]:
    """The settings that matter for speed."""
    others = {"host", "port", "weights_dir", "api_keys_file", "client_key", "cors_origins"}
    return settings.model_dump(mode="json", exclude=others)


def write(report: Report, folder: Path) -> None:
    """Write `bench.json`, `bench.md` and drawings into a folder.

    Raises:
        ModuleNotFoundError: matplotlib, of the extra `bench`, is not installed.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(report), indent=2)
    (folder / "bench.json").write_text(text + "\n", encoding="utf-8")
    (folder / "bench.md").write_text(markdown(report) + "\n", encoding="utf-8")
    swept = [row for row in report.rows if row.concurrency is not None]
    if len({row.concurrency for row in swept}) > 1:
        draw_sweep(swept, folder / "sweep.svg")
    if report.soak is not None:
        draw_soak(report.soak, folder / "soak.svg")


# --------------------------------------------------------------------------------------- Markdown


def markdown(report: Report) -> str:
    """The report for people."""
    parts = [about(report.hardware, report.versions), f"`{report.command}`"]
    if report.rows:
        parts += [_speed(report.rows), _stages(report.rows)]
    if report.soak is not None:
        parts.append(_memory(report.soak))
    return "\n\n".join(parts)


def about(machine: dict[str, Any], packages: dict[str, str]) -> str:
    """Hardware and versions in a sentence."""
    named = ", ".join(f"{name} {number}" for name, number in packages.items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB, "
        f"{machine['gpu'] or 'no GPU'}, {machine['system']}; {named}."
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], names: int = 1) -> str:
    """A Markdown table whose first columns are names and the others numbers."""
    lines = [header, ["---"] * names + ["---:"] * (len(header) - names), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def number(value: float | None, digits: int = 1) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def _speed(rows: Sequence[Row]) -> str:
    header = (
        *("representation", "photos", "load", "images/s", "people/s", "p50 ms", "p95 ms", "p99 ms"),
        *("images/batch", "people/batch", "errors", "bare people/s", "efficiency"),
        *("service CPUs", "clients' CPUs"),
    )
    cells = [
        [
            *_name(row),
            number(row.images_per_second),
            number(row.people_per_second),
            *(number(value) for value in (row.p50_ms, row.p95_ms, row.p99_ms)),
            *(number(row.mean_batch.get(stage)) for stage in ("detect", "pose")),
            ", ".join(f"{count} x {status}" for status, count in row.errors.items()) or "0",
            number(row.bare["people_per_second"] if row.bare else None),
            *(number(value, 2) for value in (row.efficiency, row.service_cpu, row.client_cpu)),
        ]
        for row in rows
    ]
    return table(header, cells, names=3)


def _stages(rows: Sequence[Row]) -> str:
    header = ("representation", "photos", "load", *(f"{stage} ms" for stage in _STAGES))
    cells = [
        [
            *_name(row),
            *(number(row.stages_ms.get(stage)) for stage in _STAGES),
            number(row.beyond_ms),
        ]
        for row in rows
    ]
    return table((*header, "p50 beyond decode + detect + pose"), cells, names=3)


def _name(row: Row) -> list[str]:
    load = f"{row.concurrency} at a time" if row.concurrency else f"{row.rate:g} images/s"
    return [row.representation, row.photos, load]


def _memory(soak: Soak) -> str:
    chosen = soak.samples[:: max(len(soak.samples) // 10, 1)]
    cells = [
        [
            str(sample.requests),
            f"{sample.rss_bytes / 1e6:.1f}",
            str(sample.open_files),
            str(sample.threads),
        ]
        for sample in dict.fromkeys([*chosen, soak.samples[-1]])
    ]
    errors = ", ".join(f"{count} x {status}" for status, count in soak.errors.items()) or "none"
    return (
        table(("requests", "memory MB", "open files", "threads"), cells, names=0)
        + f"\n\n{'Flat' if soak.flat else 'NOT flat'}, in {soak.seconds:.0f} s; errors: {errors}. "
        f"Here {soak.rule}."
    )


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    if described.is_file():
        named = re.search(r"model name\s*: (.*)", described.read_text())
        if named:
            return named[1]
    return platform.processor() or platform.machine()


# --------------------------------------------------------------------------------------- drawings


def draw_sweep(rows: Sequence[Row], path: Path) -> None:
    """People a second and latency over the requests under way, a column for each representation.

    Args:
        rows: of closed loops.
        path: the file; its ending, such as `.svg` or `.png`, tells the format.
    """
    names = list(dict.fromkeys(row.representation for row in rows))

    def fill(panels: Any) -> None:
        for column, name in enumerate(names):
            upper, lower = panels[:, column]
            own = [row for row in rows if row.representation == name]
            for photos in dict.fromkeys(row.photos for row in own):
                kind = [row for row in own if row.photos == photos]
                at = [row.concurrency for row in kind]
                [line] = upper.plot(at, [row.people_per_second for row in kind], "o-", label=photos)
                bare = [row.bare["people_per_second"] if row.bare else None for row in kind]
                if None not in bare:
                    upper.plot(at, bare, ":", color=line.get_color())
                lower.plot(at, [row.p50_ms for row in kind], "o-", color=line.get_color())
                lower.plot(at, [row.p99_ms for row in kind], "--", color=line.get_color())
            ticks = sorted({row.concurrency for row in own if row.concurrency is not None})
            upper.set(title=name, xscale="log", yscale="log")
            lower.set(xlabel="requests under way", yscale="log")
            lower.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
            lower.minorticks_off()
        panels[0, 0].set_ylabel("people/s (dotted: bare pipeline)")
        panels[1, 0].set_ylabel("ms (p50; dashed: p99)")
        panels[0, 0].legend()

    _draw((3.6 * len(names), 6), (2, len(names)), fill, path)


def draw_soak(soak: Soak, path: Path) -> None:
    """Memory, open files and threads over the requests answered.

    Args:
        soak: with a sample at least.
        path: the file; its ending, such as `.svg` or `.png`, tells the format.
    """

    def fill(panels: Any) -> None:
        requests = [sample.requests for sample in soak.samples]
        values: dict[str, list[float]] = {
            "memory MB": [sample.rss_bytes / 1e6 for sample in soak.samples],
            "open files": [sample.open_files for sample in soak.samples],
            "threads": [sample.threads for sample in soak.samples],
        }
        for panel, (title, column) in zip(panels[:, 0], values.items(), strict=True):
            panel.plot(requests, column)
            panel.set(ylabel=title, ylim=(0, 1.2 * max(column)))
        panels[-1, 0].set_xlabel("requests")

    _draw((6, 6), (3, 1), fill, path)


def _draw(
    size: tuple[float, float], shape: tuple[int, int], fill: Callable[[Any], None], path: Path
) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Without a salt, and with a date, no two drawings of the same figures would be equal.
    with mpl.rc_context({"svg.hashsalt": "posemux"}):
        figure = Figure(figsize=size, layout="constrained")
        fill(figure.subplots(*shape, sharex="col", squeeze=False))
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
