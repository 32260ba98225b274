"""The training loop of pose networks and of PCT's tokenizer.

A training lives in a folder outside of git: `checkpoint.pt` after every epoch, from which it goes
on after a kill with the result that it would have had; `curve.jsonl`, a line for every epoch; and
`NAME.safetensors`, the averaged weights, once it is done.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm import tqdm

from models import geometry, pct
from models.coco import JOINTS, MIRRORED
from models.evaluation import coco_figures
from models.network import Architecture
from models.pose_model import Card, PoseModel, read_tensors
from models.training.people import People, Samples
from models.training.precision import mixed_precision
from models.training.recipes import PoseRecipe, RecipeError, Stage, TokenizerRecipe

#: Steps over which each stage's learning rate rises to its peak.
WARM_UP_STEPS = 100
#: The share of its peak at which a stage's learning rate ends.
FINAL_SHARE = 0.02
#: The largest gradient norm of a step.
GRADIENT_NORM = 5.0


def train_pose(recipe: PoseRecipe, data: Path, runs: Path, device: str, workers: int = 0) -> Path:
    """Train a pose network, or go on with an interrupted training.

    Args:
        recipe: what to train and how.
        data: the folder of the sets.
        runs: where the training's folder is made, and where `start` and `tokenizer` are looked for.
        device: `cpu` or `cuda`; see `mixed_precision` for the number format.
        workers: processes that prepare samples; 0 prepares them in between.

    Returns:
        The weights file.

    Raises:
        RecipeError: the recipe starts from a training that is not there.
        DatasetError: a set cannot be used.
    """
    torch.manual_seed(recipe.seed)
    model = PoseModel.fresh(card_of(recipe.name, recipe.architecture)).to(device)
    _start_from(model, recipe, runs)
    folder = _folder(runs, recipe)
    people = People(recipe.train, data)
    validation = People({recipe.validate: 1.0}, data)
    module = model.module()
    if isinstance(model.representation, nn.Module):
        model.representation.requires_grad_(False)

    def batches(stage: Stage, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        order = people.epoch(np.random.default_rng((recipe.seed, epoch)))
        samples = Samples(
            people,
            order[: len(order) // recipe.batch * recipe.batch],
            stage.input_size or model.input_size,
            recipe.augmentation,
            (recipe.seed, epoch),
        )
        yield from _loader(samples, recipe.batch, workers)

    def loss(batch: tuple[Tensor, Tensor, Tensor], stage: Stage) -> Tensor:
        crops, keypoints, labelled = (part.to(device, non_blocking=True) for part in batch)
        # A frozen network is also spared its batch statistics.
        model.network.train(not stage.frozen)
        model.network.head.train()
        raw = forward(model, crops)
        return model.representation.loss(raw, keypoints, labelled)

    def measure(averaged: nn.Module, stage: Stage) -> dict[str, float]:
        size = stage.input_size or model.input_size
        card = card_of(recipe.name, replace(recipe.architecture, input_size=size))
        chosen = PoseModel(card, averaged["network"], model.representation)  # type: ignore[index]
        averaged.eval()
        return validate(chosen, validation, data / f"{recipe.validate}.json")

    def trainable(stage: Stage) -> list[nn.Parameter]:
        chosen = model.network.head if stage.frozen else model.network
        return list(chosen.parameters())

    averaged = _fit(
        module,
        folder,
        recipe.stages,
        trainable,
        batches,
        loss,
        measure,
        validate_every=recipe.validate_every,
        ema=recipe.ema,
        weight_decay=recipe.weight_decay,
        steps_per_epoch=_steps(people, recipe.batch),
    )
    module.load_state_dict(averaged.module.state_dict())
    path = folder / f"{recipe.name}.safetensors"
    model.save(path)
    return path


def forward(model: PoseModel, crops: Tensor) -> Any:
    """Uint8 RGB crops `(N, 3, H, W)` to raw outputs in float32, computed in mixed precision."""
    with mixed_precision(crops.device.type):
        raw = model.network(normalise(crops, model))
    return tuple(part.float() for part in raw) if isinstance(raw, tuple) else raw.float()


def normalise(crops: Tensor, model: PoseModel) -> Tensor:
    """Uint8 RGB crops `(N, 3, H, W)` to what the network wants, channels last."""
    mean, std = (
        torch.tensor(v, device=crops.device)[:, None, None] for v in (model.mean, model.std)
    )
    return ((crops.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def validate(model: PoseModel, people: People, annotations: Path) -> dict[str, float]:
    """COCO's figures of a pose model on ground-truth boxes, without flip test."""
    samples = Samples(people, range(len(people.people)), model.input_size, padding=model.padding)
    crops = DataLoader(samples, batch_size=64)
    decoded = torch.cat(
        [
            model.decode(model.network(normalise(c.to(model.device), model))).cpu()
            for c, _, _ in crops
        ]
    )
    boxes = torch.from_numpy(np.stack([person.box for person in people.people]))
    back = geometry.invert_affines(geometry.crop_affines(boxes, model.input_size, model.padding))
    positions = geometry.apply_affines(back, decoded[..., :2]).float()
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
    return coco_figures(annotations, results)


def train_tokenizer(recipe: TokenizerRecipe, data: Path, runs: Path, device: str) -> Path:
    """PCT's stage I: learn the tokenizer from poses alone.

    Args:
        recipe: what to train and how.
        data: the folder that holds the poses and the validation set's annotations.
        runs: where the training's folder is made.
        device: `cpu` or `cuda`.

    Returns:
        The weights file: the `representation.*` keys of a PCT pose model.

    Raises:
        RecipeError: the file of poses is missing.
    """
    torch.manual_seed(recipe.seed)
    model = PoseModel.fresh(card_of(recipe.name, recipe.architecture)).to(device)
    representation = cast(pct.PCT, model.representation)
    tokenizer = representation.tokenizer
    folder = _folder(runs, recipe)
    poses = _read_poses(data / recipe.poses)
    keypoints, visible = augment_poses(*poses, model.input_size, recipe, epoch=-1)
    held_out = torch.rand(len(visible), generator=torch.Generator().manual_seed(recipe.seed)) < 0.02
    test = (keypoints[held_out].to(device), visible[held_out].to(device))
    chosen = ~held_out.numpy()
    steps = int(chosen.sum()) // recipe.batch

    def batches(_: Stage, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        moved, seen = augment_poses(
            poses[0][chosen], poses[1][chosen], model.input_size, recipe, epoch
        )
        order = torch.randperm(len(moved), generator=torch.Generator().manual_seed(epoch))
        for rows in torch.split(order[: steps * recipe.batch], recipe.batch):
            yield moved[rows], seen[rows]

    def loss(batch: tuple[Tensor, Tensor], _: Stage) -> Tensor:
        points, seen = (part.to(device) for part in batch)
        tokenizer.train()
        kept = seen * (torch.rand_like(seen) >= recipe.drop)
        tokenized = tokenizer(points, kept)
        tokenizer.update_codebook(tokenized.features.detach(), tokenized.tokens)
        tokenizer.revive(tokenized.features.detach(), threshold=0.01)
        return pct.tokenizer_loss(tokenized, points, seen)

    @torch.inference_mode()
    def measure(averaged: nn.Module, _: Stage) -> dict[str, float]:
        averaged.eval()
        tokenized = averaged(*test)
        error = (tokenized.keypoints - test[0]).norm(dim=-1)[test[1] > 0].mean()
        return {
            "mean_error_px": error.item(),
            "entries_used": float(tokenized.tokens.unique().numel()),
        }

    averaged = _fit(
        tokenizer,
        folder,
        (Stage(recipe.epochs, recipe.learning_rate),),
        lambda _: list(tokenizer.parameters()),
        batches,
        loss,
        measure,
        validate_every=1,
        ema=0.99,
        weight_decay=recipe.weight_decay,
        steps_per_epoch=lambda _: steps,
    )
    tokenizer.load_state_dict(averaged.module.state_dict())
    path = folder / f"{recipe.name}.safetensors"
    model.save(path)
    return path


def augment_poses(
    keypoints: np.ndarray[Any, np.dtype[np.float32]],
    boxes: np.ndarray[Any, np.dtype[np.float32]],
    input_size: tuple[int, int],
    recipe: TokenizerRecipe,
    epoch: int,
) -> tuple[Tensor, Tensor]:
    """Poses as they would lie in augmented crops, all at once.

    Args:
        keypoints: `(N, K, 3)` in image pixels and COCO visibilities.
        boxes: `(N, 4)` as `x, y, w, h`.
        input_size: width and height of the crop.
        recipe: its augmentation and seed.
        epoch: which draw; -1 for plain crops.

    Returns:
        `(N, K, 2)` in crop pixels and `(N, K)` 1 where labelled.
    """
    rng = np.random.default_rng((recipe.seed, epoch + 1))
    corners = torch.from_numpy(np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), 1))
    centres, sizes = geometry.crop_regions(corners, input_size, 1.25)
    scales, degrees = input_size[0] / sizes[:, 0], torch.zeros(len(boxes))
    points, labelled = torch.from_numpy(keypoints[..., :2]), torch.from_numpy(keypoints[..., 2] > 0)
    if epoch >= 0:
        varied, count = recipe.augmentation, len(boxes)
        scales = scales / torch.from_numpy(
            1 + rng.normal(0, varied.scale / 2, count).clip(-varied.scale, varied.scale)
        )
        limit = 1.5 * varied.rotation
        turned = rng.random(count) < varied.rotation_probability
        degrees = torch.from_numpy(turned * rng.normal(0, limit / 2.25, count).clip(-limit, limit))
        centres = centres + sizes * torch.from_numpy(
            rng.uniform(-varied.shift, varied.shift, (count, 2))
        )
    moved = geometry.apply_affines(geometry.affines(centres, scales, input_size, degrees), points)
    if epoch >= 0:
        mirrored = torch.from_numpy(rng.random(len(boxes)) < recipe.augmentation.flip_probability)
        flipped = moved[:, list(MIRRORED)] * moved.new_tensor([-1, 1])
        flipped[..., 0] += input_size[0] - 1
        moved = torch.where(mirrored[:, None, None], flipped, moved)
        labelled = torch.where(mirrored[:, None], labelled[:, list(MIRRORED)], labelled)
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


# --------------------------------------------------------------------------------------- the loop


def _fit(
    module: nn.Module,
    folder: Path,
    stages: tuple[Stage, ...],
    trainable: Callable[[Stage], list[nn.Parameter]],
    batches: Callable[[Stage, int], Iterator[Any]],
    loss: Callable[[Any, Stage], Tensor],
    measure: Callable[[nn.Module, Stage], dict[str, float]],
    *,
    validate_every: int,
    ema: float,
    weight_decay: float,
    steps_per_epoch: Callable[[Stage], int],
) -> AveragedModel:
    """Run all stages from wherever the folder's checkpoint left off; returns averaged weights."""
    average = get_ema_multi_avg_fn(ema)  # type: ignore[no-untyped-call]
    averaged = AveragedModel(module, multi_avg_fn=average, use_buffers=True)
    checkpoint = folder / "checkpoint.pt"
    done, saved_optimizer = 0, None
    if checkpoint.is_file():
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        module.load_state_dict(saved["module"])
        averaged.load_state_dict(saved["averaged"])
        torch.set_rng_state(saved["rng"])
        done, saved_optimizer = saved["epochs"], saved["optimizer"]
    first = 0
    for stage in stages:
        last = first + stage.epochs
        if done < last:
            parameters = trainable(stage)
            for parameter in module.parameters():
                parameter.requires_grad_(False)
            for parameter in parameters:
                parameter.requires_grad_(True)
            optimizer = AdamW(parameters, stage.learning_rate, weight_decay=weight_decay)
            if done > first and saved_optimizer is not None:
                optimizer.load_state_dict(saved_optimizer)
            steps = steps_per_epoch(stage)
            for epoch in range(max(first, done), last):
                step = (epoch - first) * steps
                total = 0.0
                bar = tqdm(
                    batches(stage, epoch), total=steps, desc=f"epoch {epoch + 1}/{_end(stages)}"
                )
                for count, batch in enumerate(bar, 1):
                    rate = schedule(step + count, steps * stage.epochs)
                    for group in optimizer.param_groups:
                        group["lr"] = stage.learning_rate * rate
                    value = loss(batch, stage)
                    optimizer.zero_grad()
                    value.backward()  # type: ignore[no-untyped-call]
                    nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM)
                    optimizer.step()
                    averaged.update_parameters(module)
                    total += value.item()
                    bar.set_postfix(loss=f"{total / count:.5f}", refresh=False)
                line: dict[str, Any] = {"epoch": epoch + 1, "loss": total / steps}
                if (epoch + 1) % validate_every == 0 or epoch + 1 == _end(stages):
                    line |= measure(averaged.module, stage)
                with (folder / "curve.jsonl").open("a") as curve:
                    curve.write(json.dumps(line) + "\n")
                tqdm.write(json.dumps(line))
                _save_atomically(
                    {
                        "module": module.state_dict(),
                        "averaged": averaged.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "rng": torch.get_rng_state(),
                        "epochs": epoch + 1,
                    },
                    checkpoint,
                )
        first = last
    return averaged


def schedule(step: int, steps: int) -> float:
    """The learning rate of a step as a share of the stage's peak: linear warm-up, then a cosine."""
    warm_up = min(WARM_UP_STEPS, steps // 5)
    if step < warm_up:
        return step / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * progress))


def _end(stages: tuple[Stage, ...]) -> int:
    return sum(stage.epochs for stage in stages)


def _save_atomically(state: dict[str, Any], path: Path) -> None:
    """A kill while writing leaves the checkpoint of the epoch before."""
    written = path.with_suffix(".part")
    torch.save(state, written)
    written.replace(path)


def _folder(runs: Path, recipe: PoseRecipe | TokenizerRecipe) -> Path:
    """The training's folder, which belongs to exactly this recipe.

    Raises:
        RecipeError: the folder holds a training by another recipe of the same name.
    """
    folder = runs / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    used, text = folder / "recipe.json", json.dumps(asdict(recipe), indent=1)
    if used.is_file() and used.read_text() != text:
        raise RecipeError(
            f"{folder} holds a training by another recipe named {recipe.name}: move it"
        )
    used.write_text(text)
    return folder


def _steps(people: People, batch: int) -> Callable[[Stage], int]:
    size = sum(round((last - first) * share) for first, last, share in people.spans)
    return lambda _: size // batch


def _loader(
    samples: Samples, batch: int, workers: int
) -> DataLoader[tuple[Tensor, Tensor, Tensor]]:
    return DataLoader(
        samples, batch_size=batch, num_workers=workers, pin_memory=torch.cuda.is_available()
    )


def _start_from(model: PoseModel, recipe: PoseRecipe, runs: Path) -> None:
    """Take over another training's backbone, pyramid and maps, and PCT's tokenizer."""
    state = model.module().state_dict()
    wanted = [
        (recipe.start, ("network.backbone.", "network.pyramid.")),
        (recipe.tokenizer, ("representation.",)),
    ]
    for name, prefixes in wanted:
        if name is None:
            continue
        path = runs / name / f"{name}.safetensors"
        if not path.is_file():
            raise RecipeError(
                f"{recipe.name} starts from {name}: train that first ({path} is missing)"
            )
        taken = read_tensors(path)
        fits = {k: v for k, v in taken.items() if k in state and state[k].shape == v.shape}
        unfit = [key for key in state if key.startswith(prefixes) and key not in fits]
        if unfit:
            raise RecipeError(f"{path} does not fit {recipe.name}: {len(unfit)} keys, {unfit[0]}")
        # One map a joint means the same in a heatmap head and a SimCC head.
        prefixes += ("network.head.final_layer.",)
        state |= {key: value for key, value in fits.items() if key.startswith(prefixes)}
    model.module().load_state_dict(state)


def _read_poses(
    path: Path,
) -> tuple[np.ndarray[Any, np.dtype[np.float32]], np.ndarray[Any, np.dtype[np.float32]]]:
    """Keypoints `(N, K, 3)` and boxes `(N, 4)` of poses with at least five labelled joints."""
    if not path.is_file():
        raise RecipeError(f"the poses {path} are missing")
    with np.load(path) as poses:
        keypoints = poses["keypoints"].astype(np.float32).reshape(-1, JOINTS, 3)
        boxes = poses["bbox_xywh"].astype(np.float32)
    enough = (keypoints[..., 2] > 0).sum(1) >= 5
    return keypoints[enough], boxes[enough]
