"""A pose model as one ONNX file: an image and boxes go in, joints in the image's pixels come out.

What lies around the network is in the file too: crops, normalisation, decoding, calibration and the
way back to the image. It is what the service answers for one's own boxes, without a flip test.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn

from models.crops import cut_out
from models.files import replacing
from models.geometry import apply_affines, invert_affines
from models.pose_model import PoseModel
from models.runtime import first_line

#: Joints further apart than so many pixels are not the same, as are scores by so much.
_SAME_PLACE, _SAME_SCORE = 0.05, 1e-3
#: The share of joints that may lie elsewhere: of two peaks that are equally high but for rounding,
#: each runtime may take another.
_TIES = 0.03


class ExportError(ValueError):
    """A model that cannot be exported: the message says why."""


@dataclass(frozen=True)
class Agreement:
    """How ONNX Runtime's answers differ from torch's."""

    joints: int
    """How many were compared."""
    elsewhere: int
    """How many of them lie in another place: see `_TIES`."""
    pixels: float
    """The largest distance among all others."""
    scores: float
    """The largest difference of two scores."""


class ImageToPoses(nn.Module):
    """A pose model with all that lies between an image and the joints in it.

    Args:
        model: ready for inference, on the CPU, in float32.
    """

    def __init__(self, model: PoseModel) -> None:
        super().__init__()
        self.model = model
        # Registers the weights.
        self.parts = model.module()

    def forward(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Estimate the poses of people in boxes.

        Args:
            image: `(H, W, 3)` uint8 RGB.
            boxes: `(P, 4)` float32 as `x1, y1, x2, y2` in image pixels; one at least.

        Returns:
            `(P, K, 3)` float32: x, y in image pixels and score in [0, 1].
        """
        model = self.model
        affines = model.affines(boxes)
        heights, widths, starts = (
            image.new_full(boxes.shape[:1], value, dtype=torch.int64)
            for value in (image.shape[0], image.shape[1], 0)
        )
        pixels = image.reshape(-1, 3)
        crops = cut_out(pixels, heights, widths, starts, affines, model.crop_form)
        keypoints = model.decode(model.network(crops))
        points = apply_affines(invert_affines(affines), keypoints[..., :2])
        return torch.cat((points.float(), keypoints[..., 2:]), -1)


def export(model: PoseModel, path: Path) -> Agreement:
    """Write an ONNX file, and compare what ONNX Runtime makes of it with torch.

    The inputs `image` and `boxes` and the output `keypoints` are those of `ImageToPoses`, for all
    sizes of images and any number of people. Weights of more than 1.5 GB, which do not fit into the
    file, lie beside it in `NAME.onnx.data`. The file's metadata has the model's name, joints,
    limbs and licence.

    Args:
        model: ready for inference, on the CPU, in float32.
        path: the file to write; it is there as a whole or not at all.

    Raises:
        ExportError: PyTorch cannot export the model, or ONNX Runtime gives other answers.
        ModuleNotFoundError: onnx, onnxscript or onnxruntime, of the extra `export`, is missing.
        OSError: the file cannot be written.
    """
    # All of them here, so that nobody waits for the export to hear of the last one.
    for package in ("onnx", "onnxscript", "onnxruntime"):
        import_module(package)
    estimator = ImageToPoses(model).eval()
    image, boxes = _example((240, 320), 3)
    with replacing(path) as draft, torch.no_grad():
        # Once as usual, since what is kept for the next call must not be kept from the export.
        estimator(image, boxes)
        try:
            with warnings.catch_warnings():
                # Of PyTorch's own parts, to each other.
                warnings.simplefilter("ignore")
                program = torch.onnx.export(
                    estimator,
                    (image, boxes),
                    dynamo=True,
                    input_names=["image", "boxes"],
                    output_names=["keypoints"],
                    dynamic_shapes={"image": {0: "H", 1: "W"}, "boxes": {0: "P"}},
                    verbose=False,
                )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ExportError(
                f"PyTorch cannot export {model.card.name}: {first_line(error.__cause__ or error)}"
            ) from error
        assert program is not None
        program.model.metadata_props.update(_metadata(model))
        program.save(draft)
        agreement = compare(estimator, draft)
        if agreement.elsewhere > _TIES * agreement.joints or agreement.scores > _SAME_SCORE:
            raise ExportError(
                f"ONNX Runtime does not answer as torch does: {agreement.elsewhere} of "
                f"{agreement.joints} joints lie elsewhere, scores differ by up to "
                f"{agreement.scores:.2g}; no file was written"
            )
    return agreement


def compare(estimator: ImageToPoses, path: Path) -> Agreement:
    """Ask torch and ONNX Runtime about people in random images, borders and all.

    Raises:
        ExportError: ONNX Runtime cannot run the file.
        ModuleNotFoundError: onnxruntime, of the extra `export`, is not installed.
    """
    asked = [_example((177, 241), 1), _example((310, 200), 7)]
    ours = torch.cat([estimator(image, boxes) for image, boxes in asked])
    theirs = torch.cat(_run(path, asked))
    distances = (ours[..., :2] - theirs[..., :2]).norm(dim=-1)
    # What is no number is no place either.
    same = distances <= _SAME_PLACE
    return Agreement(
        joints=same.numel(),
        elsewhere=int((~same).sum()),
        pixels=float(distances[same].max()) if same.any() else 0.0,
        scores=float((ours[..., 2] - theirs[..., 2]).abs().max()),
    )


def _run(path: Path, asked: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """ONNX Runtime's answers."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Errors alone: what it says of its own optimisations is not for users.
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        answers = [
            session.run(None, {"image": image.numpy(), "boxes": boxes.numpy()})
            for image, boxes in asked
        ]
    # Its exceptions have no base of their own.
    except Exception as error:
        raise ExportError(f"ONNX Runtime cannot run it: {first_line(error)}") from error
    return [torch.from_numpy(keypoints) for [keypoints] in answers]


def _example(size: tuple[int, int], people: int) -> tuple[Tensor, Tensor]:
    """A random image of that height and width, and boxes that reach beyond its borders."""
    height, width = size
    random = torch.Generator().manual_seed(height)
    image = torch.randint(0, 256, (height, width, 3), generator=random, dtype=torch.uint8)
    limits = torch.tensor([width, height])
    corners = (torch.rand(people, 2, generator=random) * 1.2 - 0.2) * limits
    sizes = (0.2 + torch.rand(people, 2, generator=random)) * limits
    return image, torch.cat((corners, corners + sizes), -1)


def _metadata(model: PoseModel) -> dict[str, str]:
    """What users of the file need to know, as ONNX keeps it."""
    card, skeleton = model.card, model.skeleton
    return {
        "name": card.name,
        "representation": card.representation,
        "scores": card.scores,
        "joint_names": json.dumps(skeleton.names),
        "skeleton": json.dumps(skeleton.limbs),
        "licence": card.licence,
    }
