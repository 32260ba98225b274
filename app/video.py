"""`posemux predict clip.mp4`: people followed through a video.

One thread reads the next frames and another one draws and writes the last ones while the pipeline
works: three batches are in memory, however long the video is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import orjson
from tqdm import tqdm

from app import render
from app.clips import WRITTEN, Clip, ClipError, ClipWriter, Frame
from app.pipeline import Options, Pipeline, Poses
from app.schemas import coco_results
from app.settings import Settings
from app.tracking import Tracker
from models import sources
from models.skeletons import Skeleton

#: Batches in memory: one being read, one in the pipeline, one being written.
_BATCHES = 3


@dataclass(frozen=True, slots=True)
class Followed:
    """What was found in a video."""

    frames: int
    people: int
    """Tracks: somebody who comes back after a while counts again."""
    damaged: int
    """Pieces of the file that could not be decoded: frames are missing there."""


def predict(
    path: Path,
    build: Callable[[], Pipeline],
    model: str,
    settings: Settings,
    *,
    out: Path | None = None,
    results: Path | None = None,
    smooth: bool = False,
) -> Followed:
    """Follow the people in a video, draw them, and write down where their joints are.

    Interrupted, it finishes both files with the frames that are done, says how many those are, and
    passes the interruption on.

    Args:
        path: the video.
        build: makes what estimates poses, once the video is known to be one.
        model: the pose model's name, or its weights file.
        settings: how sure a person must be, and how much may be in memory.
        out: where the drawn video goes; its folder is made.
        results: where the JSON goes that docs/video.md describes; `-` is the standard output.
        smooth: whether joints are smoothed over time.

    Raises:
        ClipError: the video cannot be read or written, or has no frames.
        OSError: a file cannot be opened or written.
    """
    _check(path, out, results)
    card = sources.describe(model)
    asked = Tracker.asking(
        Options(card.name, min_score=settings.min_score, max_people=settings.max_people)
    )
    track = Tracker(settings.min_score, smooth)
    people: set[int] = set()
    done = 0
    try:
        # Left from the last to the first: the threads, and then the files that they write.
        with ExitStack() as stack:
            clip = stack.enter_context(Clip(path, settings.max_image_pixels))
            batches = _batches(clip, settings)
            frames = next(batches, [])
            if not frames:
                raise ClipError(f"{path}: there is no frame in it that can be decoded")
            pipeline = build()
            drawn = report = None
            written: Future[None] | None = None
            if out is not None:
                out.parent.mkdir(parents=True, exist_ok=True)
                drawn = stack.enter_context(ClipWriter(out, clip.fps))
            if results is not None:
                height, width = frames[0].image.shape[:2]
                head = {"video": path.name, "width": width, "height": height, "fps": clip.fps}
                head |= {"model": card.name, "representation": card.representation}
                report = stack.enter_context(_Report(results, head))
            bar = stack.enter_context(
                tqdm(total=clip.frames, desc=path.name, unit="frame", disable=None)
            )
            reading, writing = (stack.enter_context(ThreadPoolExecutor(1)) for _ in range(2))

            def write(frames: Sequence[Frame], answers: Sequence[Poses]) -> None:
                nonlocal done
                for frame, poses in zip(frames, answers, strict=True):
                    if drawn is not None:
                        drawn.write(
                            _drawing(frame, poses, card.architecture.skeleton), frame.seconds
                        )
                    if report is not None:
                        report.write(frame, poses)
                    done += 1

            while frames:
                upcoming: Future[list[Frame]] = reading.submit(next, batches, [])
                found = pipeline([frame.image for frame in frames], [asked] * len(frames))
                answers = [
                    track(poses, frame.seconds) for frame, poses in zip(frames, found, strict=True)
                ]
                for poses in answers:
                    assert poses.track_ids is not None
                    people.update(poses.track_ids.tolist())
                if written is not None:
                    written.result()
                written = writing.submit(write, frames, answers)
                bar.update(len(frames))
                frames = upcoming.result()
            assert written is not None
            written.result()
            if report is not None:
                report.complete = True
    except KeyboardInterrupt:
        files = " and ".join(str(file) for file in (out, results) if file is not None)
        print(f"{files or path}: interrupted after {done} frames", file=sys.stderr)
        raise
    return Followed(done, len(people - {0}), clip.damaged)


def _check(path: Path, out: Path | None, results: Path | None) -> None:
    for target in (out, results):
        if target is not None and target.exists() and target.samefile(path):
            raise ClipError(f"{target} is the video itself, which would be lost")
    if out is not None and out.suffix.lower() not in WRITTEN:
        raise ClipError(f"{out}: a drawn video's name ends in {' or '.join(WRITTEN)}")


def _batches(clip: Clip, settings: Settings) -> Iterator[list[Frame]]:
    """The frames, as many at a time as go through the pipeline together and fit into memory."""
    frames = iter(clip)
    for first in frames:
        pixels = first.image.shape[0] * first.image.shape[1]
        fitting = settings.max_pixels_in_flight // (_BATCHES * pixels)
        more = min(settings.max_batch_images, max(fitting, 1)) - 1
        yield [first, *islice(frames, more)]


def _drawing(frame: Frame, poses: Poses, skeleton: Skeleton) -> npt.NDArray[np.uint8]:
    return render.draw(
        frame.image,
        poses.keypoints,
        poses.boxes,
        poses.scores,
        skeleton=skeleton,
        track_ids=poses.track_ids,
    )


class _Report:
    """The JSON of a video, which is written as it grows: a context manager.

    Args:
        path: the file; `-` is the standard output.
        head: what is known of all frames.

    Attributes:
        complete: whether the video was read to its end.
    """

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        self._file = sys.stdout.buffer if str(path) == "-" else path.open("wb")
        self._seconds: list[float] = []
        self._between = b"\n"
        self.complete = False
        self._file.write(orjson.dumps(head)[:-1] + b',\n"predictions": [')

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Finish it: it is valid JSON, however it came to its end."""
        tail = {"seconds": self._seconds, "complete": self.complete}
        self._file.write(b"\n],\n" + orjson.dumps(tail)[1:] + b"\n")
        if self._file is sys.stdout.buffer:
            self._file.flush()
        else:
            self._file.close()

    def write(self, frame: Frame, poses: Poses) -> None:
        """Write the people of one more frame."""
        self._seconds.append(round(frame.seconds, 4))
        for result in coco_results(frame.number, poses):
            self._file.write(self._between + orjson.dumps(result))
            self._between = b",\n"
