"""A pose model as ONNX answers as it does here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from models import export
from models.network import Architecture
from models.pose_model import PoseModel
from models.skeletons import MPII
from models.training.loop import card_of

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
pytest.importorskip("onnxscript", reason="the extra `export` is not installed")


@pytest.fixture
def tiny() -> PoseModel:
    """A small network with MPII's joints, whose every map has one clear peak."""
    torch.manual_seed(0)
    architecture = Architecture(
        "dark", "test_resnet.r160_in1k", (48, 64), options={"stride": 4}, joints=MPII.names
    )
    model = PoseModel.fresh(card_of("tiny", architecture))
    torch.nn.init.normal_(model.network.head.final_layer.weight)  # type: ignore[union-attr,arg-type]
    return model.eval()


def test_the_file_says_what_it_holds_and_answers_for_any_crowd(
    tiny: PoseModel, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.onnx"
    agreement = export.export(tiny, path)
    assert agreement.joints == 8 * 16
    assert agreement.elsewhere <= 2
    assert agreement.pixels < 0.01
    assert agreement.scores < 1e-4
    assert list(tmp_path.iterdir()) == [path]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["joint_names"]) == list(MPII.names)
    shapes = {value.name: value.shape for value in session.get_inputs() + session.get_outputs()}
    assert shapes == {"image": ["H", "W", 3], "boxes": ["P", 4], "keypoints": ["P", 16, 3]}

    # The same file beside another model: what differs is found out.
    tiny.network.head.final_layer.weight.neg_()  # type: ignore[union-attr,operator]
    other = export.compare(export.ImageToPoses(tiny), path)
    assert other.elsewhere > other.joints / 2


def test_other_answers_are_an_error_and_leave_no_file(
    tiny: PoseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = export.Agreement(joints=100, elsewhere=50, pixels=0.0, scores=0.0)
    monkeypatch.setattr(export, "compare", lambda *_: wrong)
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: Program())
    with pytest.raises(export.ExportError, match="50 of 100 joints lie elsewhere"):
        export.export(tiny, tmp_path / "tiny.onnx")
    assert list(tmp_path.iterdir()) == []


class Program:
    """What `torch.onnx.export` returns, as far as it is used."""

    def __init__(self) -> None:
        self.model = type("Model", (), {"metadata_props": {}})

    def save(self, path: Path) -> None:
        path.write_bytes(b"onnx")


def test_a_file_that_cannot_be_run_is_one_clear_error(tiny: PoseModel, tmp_path: Path) -> None:
    path = tmp_path / "tiny.onnx"
    path.write_bytes(b"no graph at all")
    with pytest.raises(export.ExportError, match=r"^ONNX Runtime cannot run it: [^\n]+$"):
        export.compare(export.ImageToPoses(tiny), path)


def test_what_cannot_be_traced_is_one_clear_error(tiny: PoseModel, tmp_path: Path) -> None:
    class Undecided(torch.nn.Module):
        def forward(self, crops: torch.Tensor) -> torch.Tensor:
            maps = torch.zeros(len(crops), 16, 16, 12)
            return maps + 1 if crops.sum() > 0 else maps

    tiny.network = Undecided()  # type: ignore[assignment]
    with pytest.raises(export.ExportError, match=r"^PyTorch cannot export tiny: [^\n]+$"):
        export.export(tiny, tmp_path / "tiny.onnx")
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_nothing_is_tried(
    tiny: PoseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ModuleNotFoundError, match="onnxscript"):
        export.export(tiny, tmp_path / "tiny.onnx")
