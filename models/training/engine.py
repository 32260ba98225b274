"""The engine under every training: steps, averaged weights, checkpoints, curves and pictures.

A training lives in a folder outside of git. `checkpoint.pt` is written after every epoch and every
few minutes in between; from it a killed training goes on with the result that it would have had,
because a step's randomness comes from the seed, the epoch and the step alone. `curve.jsonl` has a
line for every epoch, `tensorboard/` the same as curves, `pictures/` targets and predictions.

One process drives one device. Hugging Face's accelerate joins several of them: gradients are
averaged by PyTorch's DistributedDataParallel, and the first process writes everything.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from uuid import uuid4

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from models.training.recipes import Optimizer, Stage

if TYPE_CHECKING:
    from accelerate import Accelerator

#: Steps over which each stage's learning rate rises to its peak.
WARM_UP_STEPS = 100
#: The share of its peak at which a stage's learning rate ends.
FINAL_SHARE = 0.02
#: The largest gradient norm of a step.
GRADIENT_NORM = 5.0
#: Seconds after which a checkpoint is written within an epoch.
CHECKPOINT_SECONDS = 300.0
#: Steps between two readings of the loss, each of which waits for the device.
_READ_EVERY = 20

T = TypeVar("T")


class TrainingError(ValueError):
    """A training that cannot go on: the message says why and what helps."""


class Training(Protocol):
    """What the engine trains."""

    #: Everything that is learnt, averaged and kept in checkpoints.
    module: nn.Module

    def prepare(self, stage: Stage) -> list[nn.Parameter]:
        """Get ready for a stage; returns the parameters that learn in it."""

    def steps(self, stage: Stage) -> int:
        """How many steps an epoch of the stage has."""

    def batches(self, stage: Stage, epochs: range, first: int) -> Iterator[Any]:
        """The batches of some epochs, without those of the first epoch's first steps."""

    def loss(self, batch: Any, stage: Stage) -> Tensor:
        """The loss of a batch."""

    def measure(self, averaged: nn.Module, stage: Stage) -> dict[str, float]:
        """The figures of averaged weights."""

    def picture(self, averaged: nn.Module, stage: Stage) -> npt.NDArray[np.uint8] | None:
        """RGB `(H, W, 3)` of what averaged weights predict, where that can be drawn."""


@dataclass
class Progress:
    """How far a training has come.

    Args:
        epochs: those that are over.
        step: steps of the epoch that is not.
        total: the sum of their losses.
        curve: a line for every epoch that is over.
    """

    epochs: int = 0
    step: int = 0
    total: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)


def fit(
    training: Training,
    folder: Path,
    stages: tuple[Stage, ...],
    accelerator: Accelerator,
    *,
    seed: int,
    ema: float,
    optimizer_name: Optimizer = "adamw",
    weight_decay: float,
    validate_every: int,
) -> nn.Module:
    """Run all stages from wherever the folder's checkpoint left off; returns averaged weights.

    Args:
        training: what is trained.
        folder: where its checkpoint, curve and pictures are.
        stages: one after the other.
        accelerator: the device, and the other processes.
        seed: of everything random.
        ema: how much of the averaged weights survives a step.
        optimizer_name: `adamw` or `adam`.
        weight_decay: the optimizer's.
        validate_every: epochs between two validations.

    Raises:
        TrainingError: the checkpoint is damaged, or the loss is not finite.
        ModuleNotFoundError: tensorboard, of the extra `train`, is not installed.
    """
    run = _Run(training, folder, accelerator, seed, ema, validate_every)
    first = 0
    run.clock.add(sum(stage.epochs * training.steps(stage) for stage in stages))
    end = sum(stage.epochs for stage in stages)
    for stage in stages:
        if run.progress.epochs < first + stage.epochs:
            run.stage(stage, first, end, optimizer_name, weight_decay)
        else:
            run.clock.add(-stage.epochs * training.steps(stage))
        first += stage.epochs
    if run.board is not None:
        run.board.close()
    return run.averaged.module


class _Run:
    """A training under way: what `fit` was given, what has been learnt, and how far it has come."""

    def __init__(
        self,
        training: Training,
        folder: Path,
        accelerator: Accelerator,
        seed: int,
        ema: float,
        validate_every: int,
    ) -> None:
        self.training, self.accelerator = training, accelerator
        self.seed, self.validate_every = seed, validate_every
        average = get_ema_multi_avg_fn(ema)  # type: ignore[no-untyped-call]
        self.averaged = AveragedModel(training.module, multi_avg_fn=average, use_buffers=True)
        self.checkpoint = folder / "checkpoint.pt"
        self.progress, self._saved_optimizer = Progress(), None
        if self.checkpoint.is_file():
            self.progress, self._saved_optimizer = _restore(
                self.checkpoint, training.module, self.averaged
            )
        # The first process measures, draws and writes; the others only learn.
        self.board = _Board(folder, self.progress) if accelerator.is_main_process else None
        self.clock = _Clock()

    def stage(
        self, stage: Stage, first: int, end: int, optimizer_name: Optimizer, weight_decay: float
    ) -> None:
        """All epochs of a stage that are not over.

        Args:
            stage: what is different in it.
            first: epochs of the stages before.
            end: epochs of all stages.
            optimizer_name: `adamw` or `adam`.
            weight_decay: the optimizer's.
        """
        progress, steps = self.progress, self.training.steps(stage)
        parameters = self.training.prepare(stage)
        kind = {"adamw": AdamW, "adam": Adam}[optimizer_name]
        optimizer = kind(parameters, stage.learning_rate, weight_decay=weight_decay)
        if self._saved_optimizer is not None and (progress.epochs > first or progress.step):
            optimizer.load_state_dict(self._saved_optimizer)
        self.clock.add(-(progress.epochs - first) * steps - progress.step)
        epochs = range(progress.epochs, first + stage.epochs)
        batches = self.training.batches(stage, epochs, progress.step)
        for epoch in epochs:
            bar = tqdm(
                islice(batches, steps - progress.step),
                initial=progress.step,
                total=steps,
                desc=f"epoch {epoch + 1}/{end}",
                disable=self.board is None,
            )
            loss = self._epoch(bar, stage, epoch, epoch - first, optimizer, parameters)
            progress.epochs, progress.step, progress.total = epoch + 1, 0, 0.0
            if self.board is not None:
                rate = optimizer.param_groups[0]["lr"]
                line = {"epoch": epoch + 1, "loss": loss, "learning_rate": rate}
                if (epoch + 1) % self.validate_every == 0 or epoch + 1 == end:
                    line |= self.training.measure(self.averaged.module, stage)
                picture = self.training.picture(self.averaged.module, stage)
                self.board.draw(epoch + 1, line, picture)
                progress.curve.append(line)
                self._save(optimizer)
                self.board.write(progress)
                tqdm.write(json.dumps(line))
            self.accelerator.wait_for_everyone()

    def _epoch(
        self,
        bar: tqdm[Any],
        stage: Stage,
        epoch: int,
        of_stage: int,
        optimizer: Adam | AdamW,
        parameters: list[nn.Parameter],
    ) -> float:
        """The steps of an epoch that are left; returns the mean loss of all of them."""
        progress, accelerator = self.progress, self.accelerator
        steps = self.training.steps(stage)
        falls = tuple(milestone * steps for milestone in stage.milestones)
        total = torch.tensor(progress.total, dtype=torch.float64, device=accelerator.device)
        saved_at = time.monotonic()
        for step, batch in enumerate(bar, progress.step + 1):
            torch.manual_seed(_step_seed(self.seed, epoch, step, accelerator.process_index))
            rate = schedule(of_stage * steps + step, steps * stage.epochs, falls)
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rate * rate
            loss = self.training.loss(batch, stage)
            optimizer.zero_grad()
            accelerator.backward(loss)
            nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM)
            optimizer.step()
            self.averaged.update_parameters(self.training.module)
            total += accelerator.reduce(loss.detach().double(), "mean")
            self.clock.tick()
            if step % _READ_EVERY == 0:
                mean = _finite(total.item() / step, epoch, step)
                bar.set_postfix(loss=f"{mean:.5f}", left=self.clock.left(), refresh=False)
            if self.board is not None and time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                progress.step, progress.total = step, _finite(total.item(), epoch, step)
                self._save(optimizer)
                saved_at = time.monotonic()
        return _finite(total.item() / steps, epoch, steps)

    def _save(self, optimizer: Adam | AdamW) -> None:
        """Write a checkpoint; a kill while writing leaves the one before."""
        state = {"module": self.training.module.state_dict()}
        state |= {"averaged": self.averaged.state_dict(), "optimizer": optimizer.state_dict()}
        state |= {"progress": vars(self.progress)}
        written = self.checkpoint.with_suffix(".part")
        with written.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        written.replace(self.checkpoint)


def schedule(step: int, steps: int, falls: tuple[int, ...] = ()) -> float:
    """The learning rate of a step as a share of the stage's peak, after a linear warm-up.

    Without falls a cosine; else it stays, and falls to a tenth after each of those steps.
    """
    warm_up = min(WARM_UP_STEPS, steps // 5)
    if step < warm_up:
        return step / warm_up
    if falls:
        return float(0.1 ** sum(step > fall for fall in falls))
    progress = (step - warm_up) / max(1, steps - warm_up)
    return FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * progress))


def _step_seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _finite(loss: float, epoch: int, step: int) -> float:
    if not math.isfinite(loss):
        raise TrainingError(
            f"the loss is {loss} in epoch {epoch + 1}, step {step}: try a lower learning rate"
        )
    return loss


class _Clock:
    """How long the steps that are left will take, at the pace of those since the start."""

    def __init__(self) -> None:
        self._left, self._done, self._start = 0, 0, time.monotonic()

    def add(self, steps: int) -> None:
        self._left += steps

    def tick(self) -> None:
        self._left -= 1
        self._done += 1

    def left(self) -> str:
        seconds = self._left * (time.monotonic() - self._start) / self._done
        return str(timedelta(seconds=round(seconds)))


# -------------------------------------------------------------------------------------- the folder


def _restore(
    path: Path, module: nn.Module, averaged: AveragedModel
) -> tuple[Progress, dict[str, Any]]:
    """Fill in the weights of a checkpoint; returns what else it holds."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        module.load_state_dict(saved["module"])
        averaged.load_state_dict(saved["averaged"])
        return Progress(**saved["progress"]), saved["optimizer"]
    # What damaged bytes raise depends on where the damage is, so nothing narrower will do.
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise TrainingError(
            f"{path} is damaged or of another version ({type(error).__name__}: {reason[:100]}): "
            "remove it to begin this training anew"
        ) from error


class _Board:
    """What there is to see of a training: `curve.jsonl`, `tensorboard/` and `pictures/`."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        self.write(progress)
        # What an interrupted training drew after its last checkpoint is drawn again.
        self._curves = SummaryWriter(folder / "tensorboard", purge_step=progress.epochs + 1)

    def draw(
        self, epoch: int, line: dict[str, float], picture: npt.NDArray[np.uint8] | None
    ) -> None:
        for name in line.keys() - {"epoch"}:
            self._curves.add_scalar(name, line[name], epoch)
        if picture is not None:
            self._curves.add_image("people", picture, epoch, dataformats="HWC")
            path = self._folder / "pictures" / f"epoch-{epoch:03}.jpg"
            path.parent.mkdir(exist_ok=True)
            _, encoded = cv2.imencode(".jpg", picture[..., ::-1])
            path.write_bytes(encoded.tobytes())
        self._curves.flush()

    def write(self, progress: Progress) -> None:
        """The whole curve anew, so that an epoch that was interrupted late is not in it twice."""
        lines = "".join(json.dumps(line) + "\n" for line in progress.curve)
        (self._folder / "curve.jsonl").write_text(lines)

    def close(self) -> None:
        self._curves.close()


# --------------------------------------------------------------------------------- several devices


def accelerator_of(device: str) -> Accelerator:
    """This process's device, and its connection to the other processes of `launch`.

    Raises:
        ModuleNotFoundError: accelerate, of the extra `train`, is not installed.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

    return Accelerator(
        cpu=device == "cpu",
        # See models.training.precision for it.
        mixed_precision="no",
        kwargs_handlers=[
            # A backbone may have layers whose features no head reads.
            DistributedDataParallelKwargs(find_unused_parameters=True),
            # The other processes wait while the first one validates.
            InitProcessGroupKwargs(timeout=timedelta(hours=2)),
        ],
    )


def launch(function: Callable[..., T], devices: int, *arguments: Any) -> T:
    """Call a function in a process for each device; returns what the first process returns.

    Args:
        function: at the top level of a module, as a spawned process finds it by its name.
        devices: how many processes.
        arguments: the function's.

    Raises:
        TrainingError: one of the processes has failed; the others are stopped.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="spawn",
    )
    try:
        results: dict[int, T] = elastic_launch(config, _recorded)(function, *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        # What the process recorded: a message with its traceback, or a signal's name alone.
        told = failure.message
        reason = str(told["message"] if isinstance(told, dict) else told).splitlines()[0]
        raise TrainingError(f"device {rank}: {reason}") from error
    return results[0]


def _recorded(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function so that its error reaches the process that launched it."""
    from torch.distributed.elastic.multiprocessing.errors import record

    return record(function)(*arguments)
