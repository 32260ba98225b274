"""Reports of `posemux evaluate --json` as Markdown tables, a row for each model.

    posemux evaluate --annotations coco-dev.json --images coco-dev-1.tar --json > plain.json
    python benchmarks/results_table.py plain.json ...

What was measured on the same people in the same way shares a table. Figures are percentages; what a
report does not say is `-`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Report = dict[str, Any]


def tables(reports: Iterable[Report]) -> str:
    """All reports as Markdown."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for report in reports:
        grouped.setdefault(_title(report), []).extend(report["models"])
    return "\n\n".join(f"{title}\n\n{_table(rows)}" for title, rows in grouped.items())


def _title(report: Report) -> str:
    settings = report["settings"]
    parts = [f"{report['benchmark']}, {report['people']} people of {report['annotations']}"]
    if "boxes" in settings:
        boxes = {"gt": "annotated", "detector": "detected"}.get(settings["boxes"])
        parts.append(f"{boxes} boxes" if boxes else f"boxes of {Path(settings['boxes']).name}")
        parts.append(f"flip test {'on' if settings['flip_test'] else 'off'}")
    return ", ".join(parts)


def _table(rows: Sequence[dict[str, Any]]) -> str:
    figures = list(rows[0]["figures"])
    header = ["method", "representation", "backbone", "input size", "params", "GMACs", *figures]
    lines = [header, ["---"] * 4 + ["---:"] * (len(header) - 4)]
    lines += [[*_about(row), *(_percent(row["figures"][name]) for name in figures)] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _about(row: dict[str, Any]) -> list[str]:
    size = row["input_size"]
    parameters, gmacs = row.get("parameters"), row.get("gmacs")
    return [
        row["name"],
        row.get("representation", "-"),
        row.get("backbone", "-"),
        # Height first, as in the literature's tables.
        "x".join(map(str, reversed(size))) if isinstance(size, list) else str(size),
        "-" if parameters is None else f"{parameters / 1e6:.2f}M",
        "-" if gmacs is None else f"{gmacs:.2f}",
    ]


def _percent(share: float) -> str:
    return "-" if share < 0 else f"{100 * share:.1f}"


if __name__ == "__main__":
    print(tables(json.loads(Path(path).read_text()) for path in sys.argv[1:]))
