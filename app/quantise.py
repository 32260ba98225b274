"""`posemux quantise`: from the pictures that the networks see to the ranges that int8 needs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from tqdm import tqdm

from app import images
from app.detector import YoloDetector, read_detector
from app.main import BUNDLED_DETECTOR
from app.pipeline import Options, Pipeline
from app.settings import Settings
from models import sources
from models.quantisation import observed, write_ranges
from models.training.datasets import DatasetError, Pictures


def note_ranges(
    pictures: Pictures, given: Sequence[str], most: int, settings: Settings
) -> list[Path]:
    """Write beside the weights of the detector and of pose models what their convolutions see.

    The networks run as the service runs them, in float32, on the people that the detector finds.

    Args:
        pictures: such as the networks were trained on; those of a benchmark would tell it to them.
        given: the pose models, by name or weights file.
        most: pictures that are looked at, spread over all.
        settings: the pipeline's.

    Returns:
        The files that were written.

    Raises:
        DatasetError: there are no pictures, or nobody is in them.
        PosemuxError: a picture does not decode.
        OSError: a file cannot be written.
    """
    exact = settings.model_copy(
        update={"runtime": "torch", "precision": "float32", "device": "cpu"}
    )
    device = torch.device("cpu")
    weights = exact.detector_weights or BUNDLED_DETECTOR
    # Not as the service loads it, which would refuse ranges that are of other weights by now.
    detector = YoloDetector(read_detector(weights), device, exact.detector_size)
    found = [sources.load(source, None, exact.weights_dir) for source in given]
    loaded = {model.card.name: model for model in found}
    pipeline = Pipeline(detector, loaded, device, exact.max_batch_people)
    files = [weights, *(sources.path_of(source, exact.weights_dir) for source in given)]
    networks = [detector.network, *(model.network for model in loaded.values())]
    names = pictures.names
    chosen = names[:: max(len(names) // most, 1)][:most]
    with ExitStack() as watched:
        ranges = [watched.enter_context(observed(network)) for network in networks]
        for file_name in tqdm(chosen, unit="image", disable=None):
            image = images.decode(pictures.read(file_name), exact.max_image_pixels)
            for name in loaded:
                options = Options(name, min_score=exact.min_score, max_people=exact.max_people)
                pipeline([image], [options])
    if not all(ranges):
        raise DatasetError(f"nobody was found in {len(chosen)} pictures: there is nothing to see")
    return [write_ranges(file, seen) for file, seen in zip(files, ranges, strict=True)]
