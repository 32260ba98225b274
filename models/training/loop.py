"""Trainings of pose networks and of PCT's tokenizer.

A training's folder (see `models.training.engine`) ends up with `NAME.safetensors`, its averaged
weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn
from tqdm import tqdm

from models import geometry, pct
from models.checkpoints import read_tensors, with_counters
from models.evaluation import coco_figures
from models.files import replacing
from models.layouts import TOKENIZER
from models.network import Architecture
from models.pose_model import Card, PoseModel
from models.skeletons import COCO, Skeleton
from models.training.datasets import read_keypoints
from models.training.drawing import people_grid
from models.training.engine import accelerator_of, fit, launch
from models.training.growing import grow
from models.training.people import MEMORY, People, Samples, in_order, loader, random_affines
from models.training.precision import mixed_precision
from models.training.recipes import PoseRecipe, RecipeError, Stage, TokenizerRecipe

if TYPE_CHECKING:
    from accelerate import Accelerator

#: How many people of the validation set are drawn after every epoch.
_DRAWN = 8

#: How the name of a weights file ends, which a training may start from.
_WEIGHTS = (".safetensors", ".pth", ".pt", ".tar")


def train_pose(
    recipe: PoseRecipe, data: Path, runs: Path, device: str, workers: int = 0, devices: int = 1
) -> Path:
    """Train a pose network, or go on with an interrupted training.

    Args:
        recipe: what to train and how.
        data: the folder of the sets.
        runs: where the training's folder is made, and where `start` and `tokenizer` are looked for.
        device: `cpu` or `cuda`; see `mixed_precision` for the number format.
        workers: processes on each device that prepare samples; 0 prepares them in between.
        devices: how many GPUs, or processes on a CPU, share each batch.

    Returns:
        The weights file.

    Raises:
        RecipeError: the batch cannot be shared by the devices, the recipe starts from a training
            that is not there, or its tokenizer is image-guided.
        DatasetError: a set cannot be used.
        TrainingError: the checkpoint is damaged, the loss is not finite, or a device has failed.
    """
    if recipe.batch % devices:
        raise RecipeError(f"a batch of {recipe.batch} cannot be shared by {devices} devices")
    if recipe.architecture.options.get("guidance"):
        raise RecipeError(f"{recipe.name} is image-guided: it loads and decodes, and cannot train")
    if devices == 1:
        return _train_pose(recipe, data, runs, device, workers)
    # Whatever is wrong with the sets is said here, once, before any process starts.
    for name in (*recipe.train, recipe.validate):
        read_keypoints(data, name)
    return launch(_train_pose, devices, recipe, data, runs, device, workers)


def _train_pose(recipe: PoseRecipe, data: Path, runs: Path, device: str, workers: int) -> Path:
    """One process's part of `train_pose`."""
    accelerator = accelerator_of(device)
    folder = _folder(runs, recipe, accelerator)
    training = _PoseTraining(recipe, data, runs, accelerator, workers)
    averaged = fit(
        training,
        folder,
        recipe.stages,
        accelerator,
        seed=recipe.seed,
        ema=recipe.ema,
        optimizer_name=recipe.optimizer,
        weight_decay=recipe.weight_decay,
        validate_every=recipe.validate_every,
    )
    path = _finish(training.model, training.module, averaged, folder, recipe.name, accelerator)
    accelerator.end_training()
    return path


class _PoseTraining:
    """A pose network's training; see `models.training.engine.Training`."""

    def __init__(
        self, recipe: PoseRecipe, data: Path, runs: Path, accelerator: Accelerator, workers: int
    ) -> None:
        self.recipe, self.accelerator, self.workers = recipe, accelerator, workers
        self.people = People(recipe.train, data, memory=0)
        self.validation = People({recipe.validate: 1.0}, data, memory=0)
        if self.validation.skeleton != self.people.skeleton:
            raise RecipeError(f"{recipe.validate} has other joints than {', '.join(recipe.train)}")
        if self.people.epoch_size() < recipe.batch:
            raise RecipeError(
                f"an epoch has {self.people.epoch_size()} people, no batch of {recipe.batch}"
            )
        torch.manual_seed(recipe.seed)
        self.architecture = replace(recipe.architecture, joints=self.people.skeleton.names)
        model = PoseModel.fresh(card_of(recipe.name, self.architecture))
        _start_from(model, recipe, runs)
        if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
            # timm's, since PyTorch's own would lose the activations of timm's layers.
            model.network = convert_sync_batchnorm(model.network)  # type: ignore[no-untyped-call]
        self.model = model.to(accelerator.device)
        model.network.to(memory_format=torch.channels_last)
        self.module = model.module()
        if isinstance(model.representation, nn.Module):
            model.representation.requires_grad_(False)
        self._network: nn.Module = model.network
        if accelerator.is_main_process:
            _announce(recipe, self.people, self.module, accelerator)
        self.people.hold(MEMORY // accelerator.num_processes)
        if accelerator.is_main_process:
            self.validation.hold(MEMORY // 4)

    def prepare(self, stage: Stage) -> list[nn.Parameter]:
        network = self.model.network
        network.requires_grad_(not stage.frozen)
        network.head.requires_grad_(True)
        # Joins the processes anew, because what learns must be known then.
        self.accelerator.free_memory()
        self._network = self.accelerator.prepare_model(network)
        return [parameter for parameter in network.parameters() if parameter.requires_grad]

    def steps(self, stage: Stage) -> int:
        return self.people.epoch_size() // self.recipe.batch

    def batches(
        self, stage: Stage, epochs: range, first: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        size = stage.input_size or self.model.input_size
        augmentation, mapping = self.recipe.augmentation, self.architecture.mapping
        samples = Samples(self.people, size, augmentation, self.recipe.seed, mapping=mapping)
        return loader(samples, self._keys(epochs, first), self.workers)

    def _keys(self, epochs: range, first: int) -> Iterator[list[tuple[int, int]]]:
        """Epoch and person of each sample of this process's part of each batch."""
        batch, processes = self.recipe.batch, self.accelerator.num_processes
        for epoch in epochs:
            order = self.people.epoch(np.random.default_rng((self.recipe.seed, epoch)))
            whole = order[: len(order) // batch * batch].reshape(-1, processes, batch // processes)
            for rows in whole[first:, self.accelerator.process_index].tolist():
                yield [(epoch, row) for row in rows]
            first = 0

    def loss(self, batch: tuple[Tensor, Tensor, Tensor], stage: Stage) -> Tensor:
        device = self.accelerator.device
        crops, keypoints, labelled = (part.to(device, non_blocking=True) for part in batch)
        # A frozen network is also spared its batch statistics.
        self._network.train(not stage.frozen)
        self.model.network.head.train()
        raw = forward(self._network, normalise(crops, self.model))
        return self.model.representation.loss(raw, keypoints, labelled)

    def measure(self, averaged: nn.Module, stage: Stage) -> dict[str, float]:
        return validate(self._at_stage(averaged, stage), self.validation, self.workers)

    @torch.inference_mode()
    def picture(self, averaged: nn.Module, stage: Stage) -> npt.NDArray[np.uint8]:
        model = self._at_stage(averaged, stage)
        rows = np.linspace(0, len(self.validation.people) - 1, _DRAWN).astype(int)
        samples = plain_samples(self.validation, model)
        [(crops, keypoints, labelled)] = loader(samples, in_order(rows.tolist(), _DRAWN))
        raw = forward(model.network, normalise(crops.to(model.device), model))
        decoded = model.decode(raw).cpu()
        host = tuple(part.cpu() for part in raw) if isinstance(raw, tuple) else raw.cpu()
        return people_grid(crops, keypoints, labelled, decoded, host)

    def _at_stage(self, averaged: nn.Module, stage: Stage) -> PoseModel:
        """Averaged weights as a pose model for the stage's input size."""
        size = stage.input_size or self.model.input_size
        card = card_of(self.recipe.name, replace(self.architecture, input_size=size))
        averaged.eval()
        return PoseModel(card, averaged["network"], self.model.representation)  # type: ignore[index]


def forward(network: nn.Module, crops: Tensor) -> Any:
    """Normalised crops `(N, 3, H, W)` to float32 raw outputs, computed in mixed precision."""
    with mixed_precision(crops.device.type):
        raw = network(crops)
    return tuple(part.float() for part in raw) if isinstance(raw, tuple) else raw.float()


def normalise(crops: Tensor, model: PoseModel) -> Tensor:
    """Uint8 RGB crops `(N, 3, H, W)` to what the network wants, channels last."""
    if model.bgr:
        crops = crops.flip(1)
    mean, std = (
        torch.tensor(v, device=crops.device)[:, None, None] for v in (model.mean, model.std)
    )
    return ((crops.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def plain_samples(people: People, model: PoseModel) -> Samples:
    """People as crops for a pose model, without augmentation."""
    return Samples(people, model.input_size, padding=model.padding, mapping=model.mapping)


@torch.inference_mode()
def validate(model: PoseModel, people: People, workers: int = 0) -> dict[str, float]:
    """The figures of a pose model on the ground-truth boxes of one set, without flip test.

    COCO's own for its joints; for others, whose precision COCO does not know, PCK.

    Args:
        model: in evaluation mode.
        people: everybody of one set.
        workers: processes that prepare samples.
    """
    samples = plain_samples(people, model)
    batches = in_order(range(len(people.people)), 64)
    decoded = torch.cat(
        [
            model.decode(model.network(normalise(crops.to(model.device), model))).cpu()
            for crops, _, _ in loader(samples, batches, workers)
        ]
    )
    boxes = torch.from_numpy(np.stack([person.box for person in people.people]))
    back = geometry.invert_affines(model.affines(boxes))
    positions = geometry.apply_affines(back, decoded[..., :2]).float()
    [truth] = people.sets
    if not truth.coco or truth.skeleton != COCO:
        known = torch.from_numpy(np.stack([person.keypoints for person in people.people]))
        distances = (positions - known[..., :2]).norm(dim=-1)
        # Yang and Ramanan, PAMI 2013, section 6.2.
        right = distances <= 0.1 * (boxes[:, 2:] - boxes[:, :2]).amax(1, keepdim=True)
        return {"PCK@0.1": right[known[..., 2] > 0].double().mean().item()}
    keypoints = torch.cat((positions, decoded[..., 2:]), -1)
    results = [
        {
            "image_id": person.image_id,
            "category_id": 1,
            "score": joints[:, 2].mean().item(),
            "keypoints": joints.flatten().tolist(),
        }
        for person, joints in zip(people.people, keypoints, strict=True)
    ]
    return coco_figures(truth.annotations, results)


def train_tokenizer(recipe: TokenizerRecipe, data: Path, runs: Path, device: str) -> Path:
    """PCT's stage I: learn the tokenizer from poses alone.

    Args:
        recipe: what to train and how.
        data: the folder that holds the poses.
        runs: where the training's folder is made.
        device: `cpu` or `cuda`.

    Returns:
        The weights file, which `models.load_tokenizer` reads.

    Raises:
        RecipeError: the file of poses is missing or has another layout.
        DatasetError: the set of poses cannot be used.
        TrainingError: the checkpoint is damaged or the loss is not finite.
    """
    accelerator = accelerator_of(device)
    folder = _folder(runs, recipe, accelerator)
    training = _TokenizerTraining(recipe, data, accelerator)
    averaged = fit(
        training,
        folder,
        (Stage(recipe.epochs, recipe.learning_rate),),
        accelerator,
        seed=recipe.seed,
        ema=0.99,
        weight_decay=recipe.weight_decay,
        validate_every=1,
    )
    path = _finish(
        training.model, training.module, averaged, folder, recipe.name, accelerator, TOKENIZER
    )
    accelerator.end_training()
    return path


class _TokenizerTraining:
    """A tokenizer's training; see `models.training.engine.Training`."""

    def __init__(self, recipe: TokenizerRecipe, data: Path, accelerator: Accelerator) -> None:
        self.recipe, self.device = recipe, accelerator.device
        self.skeleton, keypoints, boxes = _read_poses(data, recipe.poses)
        torch.manual_seed(recipe.seed)
        architecture = replace(recipe.architecture, joints=self.skeleton.names)
        self.model = PoseModel.fresh(card_of(recipe.name, architecture)).to(self.device)
        self.tokenizer = cast(pct.PCT, self.model.representation).tokenizer
        self.module: nn.Module = self.tokenizer
        generator = torch.Generator().manual_seed(recipe.seed)
        held_out = (torch.rand(len(boxes), generator=generator) < 0.02).numpy()
        if len(boxes) and not held_out.any():
            held_out[0] = True
        if held_out.sum() + recipe.batch > len(boxes):
            raise RecipeError(
                f"{recipe.poses} has {len(boxes)} poses: too few for a batch of {recipe.batch}"
            )
        plain = self._draw(keypoints[held_out], boxes[held_out], epoch=-1)
        self.test = tuple(part.to(self.device) for part in plain)
        self.poses = keypoints[~held_out], boxes[~held_out]
        tqdm.write(
            f"{recipe.name}: {len(boxes) - held_out.sum():,} poses, {recipe.epochs} epochs of "
            f"{self._steps:,} steps of {recipe.batch}, on {self.device}"
        )

    @property
    def _steps(self) -> int:
        return len(self.poses[0]) // self.recipe.batch

    def _draw(
        self, keypoints: npt.NDArray[np.float32], boxes: npt.NDArray[np.float32], epoch: int
    ) -> tuple[Tensor, Tensor]:
        size = self.model.input_size
        return augment_poses(keypoints, boxes, size, self.recipe, epoch, self.skeleton)

    def prepare(self, stage: Stage) -> list[nn.Parameter]:
        return list(self.tokenizer.parameters())

    def steps(self, stage: Stage) -> int:
        return self._steps

    def batches(self, stage: Stage, epochs: range, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        size = self.recipe.batch
        for epoch in epochs:
            moved, seen = self._draw(*self.poses, epoch=epoch)
            order = torch.randperm(len(moved), generator=torch.Generator().manual_seed(epoch))
            for rows in torch.split(order[first * size : self._steps * size], size):
                yield moved[rows], seen[rows]
            first = 0

    def loss(self, batch: tuple[Tensor, Tensor], stage: Stage) -> Tensor:
        points, seen = (part.to(self.device) for part in batch)
        tokenizer = self.tokenizer.train()
        kept = seen * (torch.rand_like(seen) >= self.recipe.drop)
        tokenized = tokenizer(points, kept)
        tokenizer.update_codebook(tokenized.features.detach(), tokenized.tokens)
        tokenizer.revive(tokenized.features.detach(), threshold=0.01)
        return pct.tokenizer_loss(tokenized, points, seen)

    @torch.inference_mode()
    def measure(self, averaged: nn.Module, stage: Stage) -> dict[str, float]:
        points, seen = self.test
        tokenized = averaged.eval()(points, seen)
        error = (tokenized.keypoints - points).norm(dim=-1)[seen > 0].mean()
        return {
            "mean_error_px": error.item(),
            "entries_used": float(tokenized.tokens.unique().numel()),
        }

    def picture(self, averaged: nn.Module, stage: Stage) -> None:
        return None


def augment_poses(
    keypoints: np.ndarray[Any, np.dtype[np.float32]],
    boxes: np.ndarray[Any, np.dtype[np.float32]],
    input_size: tuple[int, int],
    recipe: TokenizerRecipe,
    epoch: int,
    skeleton: Skeleton = COCO,
) -> tuple[Tensor, Tensor]:
    """Poses as they would lie in augmented crops, all at once.

    Args:
        keypoints: `(N, K, 3)` in image pixels and COCO visibilities.
        boxes: `(N, 4)` as `x, y, w, h`.
        input_size: width and height of the crop.
        recipe: its augmentation and seed.
        epoch: which draw; -1 for plain crops.
        skeleton: the joints.

    Returns:
        `(N, K, 2)` in crop pixels and `(N, K)` 1 where labelled.
    """
    rng = np.random.default_rng((recipe.seed, epoch + 1))
    corners = torch.from_numpy(np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), 1))
    augmentation = recipe.augmentation if epoch >= 0 else None
    points, labelled = torch.from_numpy(keypoints[..., :2]), torch.from_numpy(keypoints[..., 2] > 0)
    affines = random_affines(corners, input_size, 1.25, augmentation, rng)
    moved = geometry.apply_affines(affines, points)
    if augmentation is not None:
        mirrored = torch.from_numpy(rng.random(len(boxes)) < augmentation.flip_probability)
        mirror = list(skeleton.mirrored)
        flipped = moved[:, mirror] * moved.new_tensor([-1, 1])
        flipped[..., 0] += input_size[0] - 1
        moved = torch.where(mirrored[:, None, None], flipped, moved)
        labelled = torch.where(mirrored[:, None], labelled[:, mirror], labelled)
    return moved.float(), labelled.float()


def card_of(name: str, architecture: Architecture) -> Card:
    """A card for weights that only a recipe describes so far."""
    return Card(
        name=name,
        architecture=architecture,
        weights=f"{name}.safetensors",
        sha256="",
        licence="",
        training_data="",
        note="",
    )


# ------------------------------------------------------------------------------------------ parts


def _announce(
    recipe: PoseRecipe, people: People, module: nn.Module, accelerator: Accelerator
) -> None:
    """Say what is about to happen, while it can still be stopped cheaply."""
    epochs, steps = (
        sum(stage.epochs for stage in recipe.stages),
        people.epoch_size() // recipe.batch,
    )
    parameters = sum(parameter.numel() for parameter in module.parameters())
    tqdm.write(
        f"{recipe.name}: {parameters / 1e6:.1f} million parameters, {len(people.people):,} people, "
        f"{epochs} epochs of {steps:,} steps of {recipe.batch}, {epochs * steps:,} steps in all, "
        f"on {accelerator.num_processes} x {accelerator.device.type}"
    )


def _folder(runs: Path, recipe: PoseRecipe | TokenizerRecipe, accelerator: Accelerator) -> Path:
    """The training's folder, which belongs to one recipe from its first checkpoint on.

    Raises:
        RecipeError: the folder holds a training by another recipe of the same name.
    """
    folder = runs / recipe.name
    used, text = folder / "recipe.json", json.dumps(asdict(recipe), indent=1)
    known = used.read_text() if used.is_file() else None
    if known != text and (folder / "checkpoint.pt").is_file():
        raise RecipeError(
            f"{folder} holds a training by another recipe named {recipe.name}: move it"
        )
    if accelerator.is_main_process and known != text:
        folder.mkdir(parents=True, exist_ok=True)
        written = used.with_suffix(".part")
        written.write_text(text)
        written.replace(used)
    return folder


def _finish(
    model: PoseModel,
    module: nn.Module,
    averaged: nn.Module,
    folder: Path,
    name: str,
    accelerator: Accelerator,
    prefix: str = "",
) -> Path:
    """Write the averaged weights; a kill while writing leaves no torn file."""
    path = folder / f"{name}.safetensors"
    if accelerator.is_main_process:
        module.load_state_dict(averaged.state_dict())
        with replacing(path) as draft:
            model.save(draft, prefix)
    accelerator.wait_for_everyone()
    return path


def _start_from(model: PoseModel, recipe: PoseRecipe, runs: Path) -> None:
    """Take over others' backbone, neck and maps, and PCT's tokenizer: a training's or a file's."""
    state = model.module().state_dict()
    wanted = [
        (
            recipe.start,
            (
                "network.backbone.",
                "network.pyramid.",
                "network.deconvolution.",
                "network.tokens.",
            ),
            # One map a joint means the same in a heatmap head and a SimCC head.
            ("network.head.final_layer.",),
        ),
        (recipe.tokenizer, (TOKENIZER,), ()),
    ]
    for name, prefixes, if_fitting in wanted:
        if name is None:
            continue
        published = Path(name).suffix in _WEIGHTS
        path = Path(name) if published else runs / name / f"{name}.safetensors"
        if not published and not path.is_file():
            raise RecipeError(
                f"{recipe.name} starts from {name}: train that first ({path} is missing)"
            )
        taken = with_counters(read_tensors(path), state)
        if recipe.grow and name == recipe.start:
            try:
                taken = grow(taken, model.module())
            except ValueError as error:
                raise RecipeError(f"{path} cannot grow into {recipe.name}: {error}") from error
        fits = {k: v for k, v in taken.items() if k in state and state[k].shape == v.shape}
        unfit = [key for key in state if key.startswith(prefixes) and key not in fits]
        if unfit:
            raise RecipeError(f"{path} does not fit {recipe.name}: {len(unfit)} keys, {unfit[0]}")
        prefixes += if_fitting
        state |= {key: value for key, value in fits.items() if key.startswith(prefixes)}
    model.module().load_state_dict(state)


def _read_poses(
    data: Path, name: str
) -> tuple[Skeleton, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Keypoints `(N, K, 3)` and boxes `(N, 4)` of poses with at least five labelled joints.

    They come from a `.npz` file of COCO poses or from a set's annotations.
    """
    if name.endswith(".npz"):
        path, skeleton = data / name, COCO
        if not path.is_file():
            raise RecipeError(f"the poses {path} are missing")
        try:
            with np.load(path) as poses:
                keypoints = poses["keypoints"].astype(np.float32).reshape(-1, COCO.joints, 3)
                boxes = poses["bbox_xywh"].astype(np.float32).reshape(len(keypoints), 4)
        except (ValueError, KeyError, OSError, BadZipFile) as error:
            raise RecipeError(
                f"{path} must hold keypoints (N, {COCO.joints}, 3) and bbox_xywh (N, 4): {error}"
            ) from error
    else:
        read = read_keypoints(data, name)
        skeleton = read.skeleton
        keypoints = np.stack([person.keypoints for person in read.people])
        corners = np.stack([person.box for person in read.people])
        boxes = np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), 1)
    enough = (keypoints[..., 2] > 0).sum(1) >= 5
    return skeleton, keypoints[enough], boxes[enough]
