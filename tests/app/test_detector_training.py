import shutil

import pytest

from app import detector
from app.detector import read_detector, train_detector
from models.training.recipes import DetectorRecipe
from tests.models.training_support import write_dots

RECIPE = DetectorRecipe(
    name="tiny-detector",
    architecture="yolo11n.yaml",
    train=("dots",),
    validate="dots",
    size=64,
    common={"batch": 6, "imgsz": 32, "optimizer": "AdamW", "lr0": 0.001, "val": False},
    stages=({"epochs": 2},),
)


class Epochs:
    """Those that were begun; the training is interrupted where one more would be too many."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.most: int | None = None


@pytest.fixture
def epochs(monkeypatch):
    epochs = Epochs()

    def progress(stage):
        def begin(trainer):
            if len(epochs.begun) == epochs.most:
                raise KeyboardInterrupt
            epochs.begun.append(trainer.epoch)

        return {**shown(stage), "on_train_epoch_start": begin}

    shown = detector._progress
    monkeypatch.setattr(detector, "_progress", progress)
    return epochs


def test_an_interrupted_training_goes_on_from_its_last_epoch(epochs, tmp_path, monkeypatch):
    data, runs, elsewhere = (tmp_path / name for name in ("data", "runs", "elsewhere"))
    data.mkdir()
    elsewhere.mkdir()
    write_dots(data)
    epochs.most = 1
    with pytest.raises(KeyboardInterrupt):
        train_detector(RECIPE, data, runs, "cpu")
    assert epochs.begun == [0]

    # Another's checkpoint below the working folder is not what it goes on from.
    shutil.copytree(runs / "tiny-detector" / "stage0", elsewhere / "runs" / "other")
    monkeypatch.chdir(elsewhere)
    epochs.most = None
    path = train_detector(RECIPE, data, runs, "cpu")
    assert epochs.begun == [0, 1]
    assert path == runs / "tiny-detector" / "tiny-detector.safetensors"
    read_detector(path)
