"""`posemux predict --cluster`: the poses in very many pictures, by Ray Data.

The pictures are shared out in small parts to processes with a pipeline each, on all devices that
the cluster has free. A part whose process dies is done again, and what it had answered already is
not taken twice; what is answered is in the journal of whoever asked, who may be killed and go on
later.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from math import ceil
from pathlib import Path
from typing import Any

import ray
import ray.data

from app.cluster import connect, placed
from app.inputs import Pictures
from app.journal import Entry, parse
from app.predict import Answers, Estimator
from app.settings import Settings

#: Pictures that are done again when a process dies.
_PART = 64


class Worker:
    """One pipeline on one device.

    Args:
        root: the folder that the pictures are in, absolute.
        model: the pose model's name, or its weights file.
        settings: the pipeline's.
    """

    def __init__(self, root: Path, model: str, settings: Settings) -> None:
        self._estimator = Estimator(Pictures(root, [], 0), model, settings)

    def __call__(self, rows: Mapping[str, Any]) -> Iterator[dict[str, list[str]]]:
        """Answer the pictures `file`; an entry of the journal is a text of JSON."""
        given = dict(zip(rows["file"].tolist(), rows["path"].tolist(), strict=True))
        for file, entry in self._estimator(list(given)):
            yield {"path": [given[file]], "entry": [json.dumps(asdict(entry))]}


def estimate_there(
    address: str, pictures: Pictures, model: str, settings: Settings, paths: Sequence[str]
) -> Answers:
    """Estimate poses on a Ray cluster, whose nodes must all see the pictures by the same paths.

    Args:
        address: the cluster's, as Ray takes it.
        pictures: what `paths` are some of.
        model: the pose model's name, or its weights file.
        settings: of each pipeline.
        paths: the pictures, which are answered in any order, each once.

    Raises:
        OSError: there is no cluster.
        ValueError: the device of the settings is one of a machine's.
    """
    connect(address)
    settings, needs = placed(settings)
    kind = "GPU" if "num_gpus" in needs else "CPU"
    devices = int(ray.available_resources().get(kind, 0) / needs[f"num_{kind.lower()}s"])
    parts = ceil(len(paths) / _PART)
    rows = [{"path": path, "file": str(pictures.root / pictures.name(path))} for path in paths]
    ray.data.DataContext.get_current().enable_progress_bars = False
    answered = ray.data.from_items(rows, override_num_blocks=parts).map_batches(
        Worker,
        fn_constructor_args=(pictures.root, model, settings),
        batch_size=None,  # a part is what a process gets, and answers, at a time
        compute=ray.data.ActorPoolStrategy(
            min_size=1,
            max_size=max(devices, 1),
            initial_size=max(min(devices, parts), 1),
            max_tasks_in_flight_per_actor=2,
        ),
        **needs,
    )

    def answers() -> Answers:
        told: set[str] = set()
        for row in answered.iter_rows():
            entry: Entry = parse(row["entry"])
            if row["path"] not in told:
                told.add(row["path"])
                yield row["path"], entry
        ray.shutdown()

    return answers()
