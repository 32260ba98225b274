from __future__ import annotations

import copy
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, distributed, nn

import models
from models.checkpoints import read_tensors
from models.network import Architecture
from models.training import engine, loop
from models.training.drawing import people_grid
from models.training.engine import TrainingError
from models.training.precision import mixed_precision
from models.training.recipes import RecipeError, Stage, TokenizerRecipe
from tests.models.training_support import PCT, RECIPE, write_mpii


def weights_of(runs: Path) -> dict[str, Tensor]:
    return read_tensors(runs / "tiny" / "tiny.safetensors")


def alike(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) for key in first
    )


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of a training that nobody interrupted: two stages of three steps each."""
    runs = tmp_path_factory.mktemp("runs")
    loop.train_pose(RECIPE, data, runs, "cpu")
    return runs


# ----------------------------------------------------------------------------------------- resuming


def before_step(epoch: int, step: int) -> Callable[[pytest.MonkeyPatch], None]:
    def install(patch: pytest.MonkeyPatch) -> None:
        seed = engine._step_seed

        def killed(*numbers: int) -> int:
            if numbers[1:3] == (epoch, step):
                raise KeyboardInterrupt
            return seed(*numbers)

        patch.setattr(engine, "_step_seed", killed)

    return install


def on_call(
    module: Any, name: str, count: int, half_done: Callable[..., None] = lambda *_: None
) -> Callable[[pytest.MonkeyPatch], None]:
    def install(patch: pytest.MonkeyPatch) -> None:
        function, calls = getattr(module, name), []

        def killed(*arguments: Any) -> Any:
            calls.append(arguments)
            if len(calls) == count:
                half_done(*arguments)
                raise KeyboardInterrupt
            return function(*arguments)

        patch.setattr(module, name, killed)

    return install


EVERY_STEP, EVERY_EPOCH = -1.0, 300.0


@pytest.mark.parametrize(
    ("seconds", "kill"),
    [
        pytest.param(EVERY_STEP, before_step(0, 2), id="in the first epoch"),
        pytest.param(EVERY_STEP, before_step(1, 1), id="between two stages"),
        pytest.param(EVERY_STEP, before_step(1, 3), id="in the last epoch"),
        pytest.param(EVERY_EPOCH, before_step(1, 3), id="in the last epoch, back to its start"),
        pytest.param(
            EVERY_STEP,
            on_call(torch, "save", 5, lambda _, file: file.write(b"torn")),
            id="writing a checkpoint",
        ),
        pytest.param(
            EVERY_EPOCH, on_call(engine._Board, "write", 2), id="between checkpoint and curve"
        ),
        pytest.param(EVERY_STEP, on_call(loop, "validate", 1), id="in the validation"),
        pytest.param(EVERY_EPOCH, on_call(loop, "_finish", 1), id="at the end"),
    ],
)
def test_a_killed_training_goes_on_with_the_same_result(
    seconds: float,
    kill: Callable[[pytest.MonkeyPatch], None],
    data: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "CHECKPOINT_SECONDS", seconds)
    with monkeypatch.context() as patched:
        kill(patched)
        with pytest.raises(KeyboardInterrupt):
            loop.train_pose(RECIPE, data, tmp_path, "cpu")
    loop.train_pose(RECIPE, data, tmp_path, "cpu")
    assert alike(weights_of(tmp_path), weights_of(whole))
    assert curve_of(tmp_path) == curve_of(whole)


def curve_of(runs: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (runs / "tiny" / "curve.jsonl").read_text().splitlines()]


SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
from models.training import engine, loop
from tests.models.training_support import RECIPE

engine.CHECKPOINT_SECONDS = -1.0
save, calls = torch.save, []

def killed(state, file):
    calls.append(file)
    if len(calls) == 5:
        file.write(b"torn")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    save(state, file)

torch.save = killed
loop.train_pose(RECIPE, Path(sys.argv[1]), Path(sys.argv[2]), "cpu")
"""


def test_a_process_killed_while_it_writes_goes_on(data: Path, whole: Path, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", SCRIPT, str(data), str(tmp_path)]
    # Sums over another number of threads differ, and ultralytics, once imported, tells children 1.
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = subprocess.run(command, cwd=root, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "tiny" / "checkpoint.part").read_bytes() == b"torn"
    loop.train_pose(RECIPE, data, tmp_path, "cpu")
    assert alike(weights_of(tmp_path), weights_of(whole))


def test_workers_change_nothing(data: Path, whole: Path, tmp_path: Path) -> None:
    loop.train_pose(RECIPE, data, tmp_path, "cpu", workers=2)
    assert alike(weights_of(tmp_path), weights_of(whole))


def test_a_tokenizer_goes_on_within_an_epoch(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = TokenizerRecipe("tiny", PCT, "poses.npz", "dots", epochs=2, batch=256)
    monkeypatch.setattr(engine, "CHECKPOINT_SECONDS", -1.0)
    loop.train_tokenizer(recipe, data, tmp_path / "whole", "cpu")
    with monkeypatch.context() as patched:
        before_step(1, 2)(patched)
        with pytest.raises(KeyboardInterrupt):
            loop.train_tokenizer(recipe, data, tmp_path / "killed", "cpu")
    loop.train_tokenizer(recipe, data, tmp_path / "killed", "cpu")
    assert alike(weights_of(tmp_path / "killed"), weights_of(tmp_path / "whole"))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None], ids=["empty", "other", "cut"])
def test_a_damaged_checkpoint_is_one_clear_error(
    content: bytes | None, data: Path, whole: Path, tmp_path: Path
) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "recipe.json").write_text((whole / "tiny" / "recipe.json").read_text())
    written = (whole / "tiny" / "checkpoint.pt").read_bytes()
    cut = written[: len(written) // 2] if content is None else content
    (tmp_path / "tiny" / "checkpoint.pt").write_bytes(cut)
    with pytest.raises(
        TrainingError, match=r"^[^\n]*checkpoint.pt is damaged[^\n]*remove it[^\n]*$"
    ):
        loop.train_pose(RECIPE, data, tmp_path, "cpu")


def test_a_loss_that_is_not_finite_stops_the_training(data: Path, tmp_path: Path) -> None:
    steep = replace(RECIPE, stages=(Stage(3, 1e20),))
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) in epoch"):
        loop.train_pose(steep, data, tmp_path, "cpu")
    assert not (tmp_path / "tiny" / "tiny.safetensors").exists()


# --------------------------------------------------------------------------------------- the steps


def test_the_result_is_the_average_of_the_weights(data: Path, whole: Path, tmp_path: Path) -> None:
    def kept(runs: Path) -> tuple[Tensor, Tensor]:
        saved = torch.load(runs / "tiny" / "checkpoint.pt", weights_only=True)
        key = "network.head.mlp_head_x.weight"
        return saved["module"][key], saved["averaged"][f"module.{key}"]

    learnt, averaged = kept(whole)
    assert not torch.equal(learnt, averaged)
    saved = weights_of(whole)["network.head.mlp_head_x.weight"]
    assert torch.equal(saved, averaged.half())
    loop.train_pose(replace(RECIPE, ema=0.0), data, tmp_path, "cpu")
    assert torch.equal(*kept(tmp_path))


def test_gradients_are_clipped(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "GRADIENT_NORM", 0.0)
    loop.train_pose(replace(RECIPE, weight_decay=0.0), data, tmp_path, "cpu")
    saved = torch.load(tmp_path / "tiny" / "checkpoint.pt", weights_only=True)["module"]
    torch.manual_seed(RECIPE.seed)
    fresh = models.PoseModel.fresh(loop.card_of("tiny", RECIPE.architecture)).module()
    assert all(torch.equal(saved[name], value) for name, value in fresh.named_parameters())


def test_networks_run_in_mixed_precision_and_losses_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Linear(64, 8)
    crops = torch.rand(4, 64)
    monkeypatch.setattr(loop, "mixed_precision", lambda kind: torch.autocast(kind, torch.bfloat16))
    raw = loop.forward(network, crops)
    assert raw.dtype == torch.float32
    assert torch.equal(raw, raw.bfloat16().float())
    assert not torch.equal(raw, network(crops))


# ---------------------------------------------------------------------------------- several devices

#: Without batch norm, whose statistics are each process's own.
WITHOUT_BATCH_NORM = replace(
    RECIPE,
    architecture=Architecture("simcc", "test_convnext", (64, 64), 0, {"feature_stride": 8}),
)


@pytest.mark.skipif(not distributed.is_gloo_available(), reason="PyTorch was built without gloo")
@pytest.mark.skipif(
    mixed_precision("cpu")._enabled,
    reason="this CPU trains in bfloat16: sums in another order differ there by as much as a step",
)
def test_two_processes_learn_what_one_does(data: Path, tmp_path: Path) -> None:
    loop.train_pose(WITHOUT_BATCH_NORM, data, tmp_path / "one", "cpu")
    loop.train_pose(WITHOUT_BATCH_NORM, data, tmp_path / "two", "cpu", devices=2)
    one, two = (
        torch.load(tmp_path / runs / "tiny" / "checkpoint.pt", weights_only=True)["module"]
        for runs in ("one", "two")
    )
    # A step moves a weight by about 1e-3; sums in another order differ by about 1e-7.
    torch.testing.assert_close(two, one, atol=1e-5, rtol=0)
    for first, second in zip(curve_of(tmp_path / "one"), curve_of(tmp_path / "two"), strict=True):
        assert first == pytest.approx(second, rel=1e-4)


def test_a_device_that_fails_is_one_clear_error() -> None:
    with pytest.raises(TrainingError, match=r"^device 0: ValueError: invalid literal.*'many'$"):
        engine.launch(int, 1, "many")


def test_synchronised_batch_norm_changes_no_weight_and_no_answer() -> None:
    model = models.PoseModel.fresh(loop.card_of("tiny", RECIPE.architecture)).eval()
    crops = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        x, y = model.network(crops)
        synchronised = loop.convert_sync_batchnorm(copy.deepcopy(model.network))  # type: ignore[no-untyped-call]
        assert synchronised.state_dict().keys() == model.network.state_dict().keys()
        assert any(isinstance(part, nn.SyncBatchNorm) for part in synchronised.modules())
        for found, expected in zip(synchronised(crops), (x, y), strict=True):
            torch.testing.assert_close(found, expected)


def test_a_batch_that_cannot_be_shared_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="a batch of 4 cannot be shared by 3 devices"):
        loop.train_pose(RECIPE, data, tmp_path, "cpu", devices=3)


# ---------------------------------------------------------------------------- what there is to see


def test_every_epoch_has_its_line_curve_and_picture(
    data: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = whole / "tiny"
    assert [line["epoch"] for line in curve_of(whole)] == [1, 2]
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    losses = [(event.step, event.value) for event in events.Scalars("loss")]
    assert losses == [(line["epoch"], pytest.approx(line["loss"])) for line in curve_of(whole)]
    assert events.Scalars("AP50")
    assert len(events.Images("people")) == 2
    pictures = sorted((folder / "pictures").iterdir())
    assert [picture.name for picture in pictures] == ["epoch-001.jpg", "epoch-002.jpg"]
    picture = cv2.imread(str(pictures[0]))
    assert picture is not None
    # Eight people, 64 pixels wide and drawn four times as large.
    assert picture.shape == (256, 8 * 256, 3)


def test_a_training_says_early_how_much_it_will_be(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before_step(0, 1)(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        loop.train_pose(RECIPE, data, tmp_path, "cpu")
    told = capsys.readouterr().out
    assert "12 people, 2 epochs of 3 steps of 4, 6 steps in all, on 1 x cpu" in told


GREEN, RED, YELLOW = (80, 255, 80), (255, 60, 60), (255, 220, 0)


def test_people_are_drawn_with_targets_predictions_and_outputs() -> None:
    crops = torch.zeros(2, 3, 64, 48, dtype=torch.uint8)
    targets = torch.tensor([[[10.0, 20.0], [30.0, 40.0]]] * 2)
    answers = targets + 8
    labelled = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    maps = torch.zeros(2, 2, 16, 12)
    maps[:, :, 5, 3] = 1
    drawn = people_grid(crops, targets, labelled, answers, maps)
    assert drawn.shape == (2 * 256, 2 * 192, 3)
    assert tuple(drawn[80, 40]) == GREEN
    assert tuple(drawn[112, 72]) == RED
    # The first person's second joint is not labelled.
    assert tuple(drawn[160, 120]) == (0, 0, 0)
    assert tuple(drawn[160, 192 + 120]) == GREEN
    below = drawn[256:, :192].astype(int)
    row, column = np.unravel_index((below[..., 0] - below[..., 2]).argmax(), below.shape[:2])
    assert math.hypot(row / 16 - 5.5, column / 16 - 3.5) < 1

    x, y = torch.zeros(2, 2, 96), torch.zeros(2, 2, 128)
    x[..., 24], y[..., 100] = 30, 30
    drawn = people_grid(crops, targets, labelled, answers, (x, y))
    assert drawn.shape == (256, 2 * 192, 3)
    assert tuple(drawn[255, 49]) == YELLOW
    assert tuple(drawn[201, 191]) == YELLOW
    assert tuple(drawn[255, 100]) == (0, 0, 0)

    tokens = people_grid(crops, targets, labelled, answers, torch.zeros(2, 6, 20))
    assert tokens.shape == (256, 2 * 192, 3)


# -------------------------------------------------------------------------------------------- MPII


@pytest.mark.parametrize("architecture", [RECIPE.architecture, PCT], ids=["simcc", "pct"])
def test_mpii_trains_to_sixteen_joints(
    architecture: Architecture, data: Path, tmp_path: Path
) -> None:
    write_mpii(data, tmp_path)
    tokenizer = None
    if architecture is PCT:
        codes = TokenizerRecipe("codes", PCT, "train", "train", epochs=1, batch=8)
        loop.train_tokenizer(codes, tmp_path, tmp_path / "runs", "cpu")
        tokenizer = "codes"
    recipe = replace(
        RECIPE,
        architecture=architecture,
        tokenizer=tokenizer,
        train={"train": 1.0},
        validate="train",
        stages=(Stage(1, 0.001),),
    )
    path = loop.train_pose(recipe, tmp_path, tmp_path / "runs", "cpu")
    model = models.load(weights=path)
    assert model.skeleton.names[9] == "head_top"
    with torch.inference_mode():
        decoded = model.decode(model.network(torch.zeros(2, 3, 64, 64)))
    assert decoded.shape == (2, 16, 3)
    assert model.flip_merge(decoded, decoded).shape == (2, 16, 3)
    [line] = [json.loads(text) for text in (path.parent / "curve.jsonl").read_text().splitlines()]
    assert 0 <= line["PCK@0.1"] <= 1
