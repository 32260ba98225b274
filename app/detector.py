"""Where the people are: the detector's interface, and YOLO behind it.

This is the only file that knows of ultralytics. Its network is called directly: no predictor
object, no state between calls, no threads, no downloads, no telemetry.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import cv2
import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad
from torch.utils._pytree import tree_map
from torchvision.ops import batched_nms
from tqdm import tqdm

from app.errors import NotFiniteError
from app.runtime import Runtime
from models.files import replacing
from models.pose_model import full_precision
from models.quantisation import Ranges, read_ranges
from models.training.datasets import CocoSet, Picture, is_crowd_like
from models.training.precision import mixed_precision
from models.training.recipes import DetectorRecipe

# Ultralytics reads its environment while it is imported: it must neither look for a network nor
# install anything, and the home directory may be read-only.
os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")
os.environ.setdefault("YOLO_VERBOSE", "false")
os.environ.setdefault("YOLO_CONFIG_DIR", str(Path(tempfile.gettempdir()) / "posemux"))
from ultralytics.nn.modules import Detect
from ultralytics.nn.tasks import DetectionModel, load_checkpoint

_STRIDE = 32
#: What ultralytics pads with, in training and prediction.
_GREY = 114
#: The person's class, in COCO's 80 as well as in this service's one.
_PERSON = 0
#: Intersection over union from which on two boxes are one person. The bundled detector's AP50 on
#: coco-dev is 0.40 with it and 0.37 with ultralytics' 0.7, which keeps two boxes of many people.
SAME_PERSON = 0.5

#: `(H, W, 3)` uint8 RGB, on the host or on the device.
Image = npt.NDArray[np.uint8] | Tensor


@dataclass(frozen=True, slots=True)
class Detections:
    """The people of one image, best first."""

    boxes: npt.NDArray[np.float32]
    """`(P, 4)` as `x1, y1, x2, y2` in image pixels, inside of the image."""
    scores: npt.NDArray[np.float32]
    """`(P,)` in [0, 1]."""


class Detector(Protocol):
    """Finds the people of several images at once."""

    def __call__(self, images: Sequence[Image], min_score: float) -> list[Detections]:
        """Find people.

        Args:
            images: `(H, W, 3)` uint8 RGB each, of any sizes; never none.
            min_score: people of lower scores are left out.

        Returns:
            One entry for each image, on the host.

        Raises:
            NotFiniteError: the network's output is not finite.
        """
        ...


class YoloDetector:
    """A YOLO of ultralytics, on letterboxed images.

    An image is shrunk or grown until its longer side is `size` and padded with grey to multiples of
    32, as in ultralytics' own prediction. Images that come out equally large share a forward pass.
    Every image keeps its own padding whatever it shares a batch with, because the padding is felt
    by all of the network: so an image's people do not depend on who else asked at the time.

    Args:
        model: the network, its first class being the person.
        device: where it computes.
        size: the longer side in pixels, a multiple of 32.
        runtime: makes what runs the network; PyTorch if left out.
        ranges: of the convolutions, where they may compute in int8.

    Raises:
        ValueError: the size, or the network's head, is none that this class knows.
    """

    def __init__(
        self,
        model: DetectionModel,
        device: torch.device,
        size: int,
        runtime: Runtime | None = None,
        ranges: Ranges | None = None,
    ) -> None:
        if size < _STRIDE or size % _STRIDE:
            raise ValueError(f"the detector's size is {size}, not a multiple of {_STRIDE}")
        model = model.eval().requires_grad_(False).fuse(verbose=False)  # type: ignore[no-untyped-call]
        head = cast(nn.Sequential, model.model)[-1]
        if not isinstance(head, Detect):
            raise ValueError(f"the detector's head is a {type(head).__name__}, not one of YOLO")
        runtime = runtime or Runtime("torch", device)
        # Colours innermost: what convolutions are quickest with, by a third and more on a CPU.
        heads = _Heads(model).to(device, runtime.dtype).to(memory_format=torch.channels_last)
        self._strides = head.stride.to(device)
        side = int(head.stride.max())
        example = torch.zeros(2, 3, 2 * side, 3 * side)
        self.network: nn.Module = heads
        self._run = runtime("the detector", heads, example, any_size=True, ranges=ranges)
        self._device = device
        self._size = size

    @classmethod
    def load(
        cls, path: Path, device: torch.device, size: int, runtime: Runtime | None = None
    ) -> YoloDetector:
        """Load a detector.

        Args:
            path: see `read_detector`.
            device: where it will compute.
            size: the longer side in pixels, a multiple of 32.
            runtime: makes what runs the network; PyTorch if left out.

        Raises:
            ValueError: see `read_detector`, or for the size.
        """
        return cls(read_detector(path), device, size, runtime, read_ranges(path))

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image], min_score: float) -> list[Detections]:
        """Find people: see `Detector`."""
        letterboxes = [self._letterbox(image) for image in images]
        groups: dict[torch.Size, list[int]] = {}
        for index, letterbox in enumerate(letterboxes):
            groups.setdefault(letterbox.canvas.shape, []).append(index)

        owners, boxes, scores, finite = [], [], [], []
        for members in groups.values():
            batch = torch.stack([letterboxes[index].canvas for index in members])
            shape = (batch.shape[1], batch.shape[2])
            raw = full_precision(self._run(batch.float().div_(255).permute(0, 3, 1, 2)))
            person, box, score = _candidates(raw, shape, self._strides, min_score)
            owners.append(torch.tensor(members, device=self._device)[person])
            boxes.append(box)
            scores.append(score)
            # No threshold lets NaN pass: it would look as if there were nobody.
            finite += [part.sum(dtype=torch.float32).isfinite() for part in raw]
        return self._select(
            letterboxes,
            torch.cat(owners),
            torch.cat(boxes),
            torch.cat(scores),
            torch.stack(finite).all(),
        )

    def _letterbox(self, image: Image) -> _Letterbox:
        height, width = image.shape[:2]
        ratio = self._size / max(height, width)
        # At least one pixel: pictures may be as thin as a line.
        new = max(round(height * ratio), 1), max(round(width * ratio), 1)
        down, across = (-side % _STRIDE for side in new)
        top, left = down // 2, across // 2
        if self._device.type == "cpu":
            pixels = image.numpy() if isinstance(image, Tensor) else image
            grey = np.full((new[0] + down, new[1] + across, 3), _GREY, np.uint8)
            inside = grey[top : top + new[0], left : left + new[1]]
            # Ultralytics' own, which takes a third of the time of PyTorch's.
            cv2.resize(pixels, new[::-1], dst=inside, interpolation=cv2.INTER_LINEAR)
            canvas = torch.from_numpy(grey)
        else:
            on_device = torch.as_tensor(image).to(self._device).permute(2, 0, 1)[None]
            # There is no kernel for bytes.
            scaled = interpolate(on_device.float(), new, mode="bilinear", align_corners=False)[0]
            padded = pad(scaled, (left, across - left, top, down - top), value=_GREY)
            canvas = padded.permute(1, 2, 0)
        return _Letterbox(canvas, (left, top), (new[1] / width, new[0] / height), (width, height))

    def _select(
        self,
        letterboxes: Sequence[_Letterbox],
        owners: Tensor,
        boxes: Tensor,
        scores: Tensor,
        finite: Tensor,
    ) -> list[Detections]:
        """The best of each pile of candidates, back in image pixels; one copy to the host."""
        best = batched_nms(boxes, scores, owners, SAME_PERSON)
        piles = torch.cat((owners[best, None], scores[best, None], boxes[best]), -1)
        on_host = torch.cat((piles.flatten(), finite[None])).cpu().numpy()
        if not on_host[-1]:
            raise NotFiniteError
        rows = on_host[:-1].reshape(-1, 6)
        detections = []
        for index, letterbox in enumerate(letterboxes):
            found = rows[rows[:, 0] == index]
            shift, scale, limit = np.array(
                (letterbox.shift * 2, letterbox.scale * 2, letterbox.size * 2), dtype=np.float32
            )
            corners = np.clip((found[:, 2:] - shift) / scale, 0, limit)
            inside = (corners[:, 2:] > corners[:, :2]).all(-1)
            detections.append(Detections(corners[inside], found[inside, 1]))
        return detections


@dataclass(frozen=True, slots=True, eq=False)
class _Letterbox:
    canvas: Tensor
    """`(h, w, 3)` uint8 or float32, 0 to 255."""
    shift: tuple[int, int]
    """Left and top padding."""
    scale: tuple[float, float]
    """Canvas pixels for each image pixel, across and down."""
    size: tuple[int, int]
    """Width and height of the image."""


class _Heads(nn.Module):
    """A detector up to the raw outputs of its heads: `(N, 3, h, w)` to boxes and logits.

    The boxes are `(N, 4 * B, A)`, a distribution over B distances for each side of each anchor, and
    the logits `(N, classes, A)`. What follows is only computed of the few anchors that see people,
    and depends on the picture's shape, which a converted network must not.
    """

    def __init__(self, model: DetectionModel) -> None:
        super().__init__()
        self.model = model
        # In training a head returns what it would make boxes of. Its layers stay in evaluation.
        cast(nn.Sequential, model.model)[-1].training = True

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        found = self.model(pictures)
        # Heads that need no NMS (YOLOv10, YOLO26) have, once fused, only these.
        found = found.get("one2one", found)
        return found["boxes"], found["scores"]


def _candidates(
    raw: tuple[Tensor, Tensor], shape: tuple[int, int], strides: Tensor, min_score: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates above the threshold whose likeliest class is the person.

    This and torchvision's NMS stand in for ultralytics' `non_max_suppression`, which goes through
    the images one at a time and, when that takes long, returns nothing for those that are left.

    Args:
        raw: what `_Heads` returns.
        shape: height and width of the canvases.
        strides: pixels for each anchor, in each of the network's levels.
        min_score: the threshold.

    Returns:
        For each candidate which image of the batch it is in, its box `(4,)` as `x1, y1, x2, y2` in
        canvas pixels, and its score.
    """
    boxes, logits = raw
    best, classes = logits.max(1)
    scores = best.sigmoid()
    images, anchors = ((scores >= min_score) & (classes == _PERSON)).nonzero(as_tuple=True)

    # Anchors are the centres of each level's cells, row by row, the finest level first.
    rows, columns = ((side / strides).ceil().long() for side in shape)
    ends = (rows * columns).cumsum(0)
    level = torch.bucketize(anchors, ends, right=True)
    cell = anchors - (ends - rows * columns)[level]
    across = columns[level]
    centres = torch.stack((cell % across, cell // across), -1) + 0.5

    # "Generalized Focal Loss" (Li et al., NeurIPS 2020): a side's distance is the mean of a
    # distribution. YOLO26 has the distance itself.
    bins = boxes.shape[1] // 4
    sides = boxes[images, :, anchors].view(-1, 4, bins)
    if bins > 1:
        sides = sides.softmax(-1) @ torch.arange(bins, dtype=sides.dtype, device=sides.device)
    sides = sides.view(-1, 4)
    corners = torch.cat((centres - sides[:, :2], centres + sides[:, 2:]), -1)
    return images, corners * strides[level, None], scores[images, anchors]


def read_detector(path: Path) -> DetectionModel:
    """Read a detector's network, on the CPU.

    Args:
        path: a `.safetensors` file as `save_detector` writes it, or a `.pt` of ultralytics such as
            `yolo11n.pt`. A `.pt` is a pickle, which can run any code when it is opened: only ever
            pass one that the operator chose.

    Raises:
        ValueError: the file is missing, damaged, or not a detector.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such detector file")
    if path.suffix == ".pt":
        model, _ = load_checkpoint(path, torch.device("cpu"))  # type: ignore[no-untyped-call]
        if not isinstance(model, DetectionModel):
            raise ValueError(f"{path} holds a {type(model).__name__}, not a DetectionModel")
        return model
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        model = DetectionModel(  # type: ignore[no-untyped-call]
            metadata["architecture"], nc=int(metadata["classes"]), verbose=False
        )
        model.load_state_dict(tensors)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path} is not a detector of this service: {error}") from error
    return model


def save_detector(model: DetectionModel, path: Path, size: int) -> None:
    """Write a one-class detector's weights as float16 safetensors.

    What is one-dimensional, such as running variances, stays in float32, since it is small and half
    precision may round it to zero.

    Args:
        model: the network as it was trained, not fused.
        path: the file to write.
        size: the longer image side in pixels that it was trained for.

    Raises:
        ValueError: the network is fused: its layers are no longer those of its architecture.
    """
    if model.is_fused():  # type: ignore[no-untyped-call]
        raise ValueError("a fused detector cannot be saved: save it as it was trained")
    tensors = {
        key: (value.half() if value.is_floating_point() and value.ndim > 1 else value).contiguous()
        for key, value in model.state_dict().items()
    }
    layout = cast("dict[str, Any]", model.yaml)
    metadata = {
        "architecture": Path(layout["yaml_file"]).name,
        "classes": str(layout["nc"]),
        "class_index_person": str(_PERSON),
        "size": str(size),
    }
    with replacing(path) as draft:
        save_file(tensors, draft, metadata)


# --------------------------------------------------------------------------------------- training


class _MixedPrecisionDetector(DetectionModel):
    """Trains in bfloat16 on CPUs too, where ultralytics knows only full precision."""

    def predict(self, x: Tensor, *args: Any, **options: Any) -> Any:
        if not self.training or x.is_cuda:
            return super().predict(x, *args, **options)  # type: ignore[no-untyped-call]
        # Channels last: a tenth faster on CPUs.
        x = x.contiguous(memory_format=torch.channels_last)
        with mixed_precision("cpu"):
            raw = super().predict(x, *args, **options)  # type: ignore[no-untyped-call]
        return tree_map(lambda part: part.float() if isinstance(part, Tensor) else part, raw)


def train_detector(recipe: DetectorRecipe, data: Path, runs: Path, device: str) -> Path:
    """Train a person detector with ultralytics' own trainer, stage by stage.

    A stage that a kill interrupted goes on from its last epoch.

    Args:
        recipe: what to train and how.
        data: the folder of the sets.
        runs: where the training's folder is made.
        device: `cpu` or `cuda`.

    Returns:
        The weights file.

    Raises:
        DatasetError: a set cannot be used.
    """
    folder = (runs / recipe.name).resolve()
    layout = folder / "data" / "data.yaml"
    if not layout.is_file():
        _write_yolo_layout(recipe, data, layout)
    trained_so_far: str | bool = False
    for number, stage in enumerate(recipe.stages):
        last = folder / f"stage{number}" / "weights" / "last.pt"
        done = last.with_name("done")
        if not done.is_file():
            overrides = {
                **recipe.common,
                **stage,
                "model": str(last) if last.is_file() else recipe.architecture,
                # By its path: else ultralytics takes the newest one below the working folder.
                "resume": str(last) if last.is_file() else False,
                "data": str(layout),
                "project": str(folder),
                "name": f"stage{number}",
                "exist_ok": True,
                "pretrained": trained_so_far,
                "device": device,
                "workers": 0 if device == "cpu" else 8,
                "amp": device != "cpu",
                "plots": False,
                "patience": 0,
            }
            shown = _progress(f"stage {number + 1}/{len(recipe.stages)}")
            _trainer(overrides, shown).train()
            done.touch()
        trained_so_far = str(last)
    trained, _ = load_checkpoint(trained_so_far, torch.device("cpu"))  # type: ignore[no-untyped-call]
    path = folder / f"{recipe.name}.safetensors"
    save_detector(trained, path, recipe.size)
    return path


def _trainer(overrides: dict[str, Any], callbacks: Mapping[str, Callable[[Any], object]]) -> Any:
    """Ultralytics' own trainer of a detector with one class.

    Args:
        overrides: its arguments.
        callbacks: called with the trainer, by the event that they are for. There are no others:
            ultralytics would add those of every experiment tracker that happens to be installed,
            and most of them talk to a server.
    """
    from ultralytics.models.yolo.detect import DetectionTrainer

    class Trainer(DetectionTrainer):
        def get_model(
            self,
            cfg: str | dict[str, Any] | None = None,
            weights: torch.nn.Module | None = None,
            verbose: bool = True,
        ) -> DetectionModel:
            model = _MixedPrecisionDetector(cfg, nc=1, verbose=verbose)  # type: ignore[no-untyped-call]
            if weights is not None:
                model.load(weights)  # type: ignore[no-untyped-call]
            return model.to(memory_format=torch.channels_last)

        def run_callbacks(self, event: str) -> None:
            if event in callbacks:
                callbacks[event](self)

    return Trainer(overrides=overrides)


def _progress(stage: str) -> dict[str, Callable[[Any], object]]:
    """A bar for each epoch and a line of its figures: ultralytics itself is kept silent."""
    bar = tqdm(unit="batch")

    def begin(trainer: Any) -> None:
        bar.reset(total=len(trainer.train_loader))
        bar.set_description(f"{stage}, epoch {trainer.epoch + 1}/{trainer.epochs}")

    def report(trainer: Any) -> None:
        figures = {"AP50": "metrics/mAP50(B)", "AP": "metrics/mAP50-95(B)"}
        found = {name: round(trainer.metrics.get(key, 0.0), 4) for name, key in figures.items()}
        tqdm.write(json.dumps({"epoch": trainer.epoch + 1, **found}))

    return {
        "on_train_epoch_start": begin,
        "on_train_batch_end": lambda _: bar.update(),
        "on_fit_epoch_end": report,
        "on_train_end": lambda _: bar.close(),
    }


def _write_yolo_layout(recipe: DetectorRecipe, data: Path, layout: Path) -> None:
    """Unpack the sets as ultralytics reads them: a folder of pictures and one of label files."""
    for split, names in (("train", recipe.train), ("val", (recipe.validate,))):
        pictures, labels = layout.parent / "images" / split, layout.parent / "labels" / split
        pictures.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        for name in names:
            people = CocoSet(data, name)
            for picture in tqdm(people, desc=f"unpacking {name}", unit="picture", disable=None):
                rows = _yolo_rows(picture, drop_crowds=split == "train")
                encoded = people.pictures.read(picture.file_name)
                (pictures / picture.file_name).write_bytes(encoded)
                lines = "".join("0 {:.6f} {:.6f} {:.6f} {:.6f}\n".format(*row) for row in rows)
                (labels / picture.file_name).with_suffix(".txt").write_text(lines)
    # Written last: its being there says that the layout is complete.
    layout.write_text(
        f"path: {layout.parent}\ntrain: images/train\nval: images/val\nnames: {{0: person}}\n"
    )


def _yolo_rows(picture: Picture, drop_crowds: bool) -> npt.NDArray[np.float32]:
    """A picture's people as `(P, 4)` centre and size, relative to the picture's."""
    boxes = np.array([person["bbox"] for person in picture.people], np.float32).reshape(-1, 4)
    if drop_crowds:
        labelled = np.array([person.get("num_keypoints", 0) > 0 for person in picture.people], bool)
        boxes = boxes[~is_crowd_like(boxes, labelled)]
    boxes = boxes[(boxes[:, 2:] > 1).all(1)]
    size = np.array([picture.width, picture.height], np.float32)
    low = np.clip(boxes[:, :2] / size, 0, 1)
    high = np.clip((boxes[:, :2] + boxes[:, 2:]) / size, 0, 1)
    return np.concatenate(((low + high) / 2, high - low), 1)
