"""What benchmarks/gpu.py checks, measures and prints."""

import json
import signal
import time

import pytest
import torch
from torch.utils._pytree import tree_leaves

from benchmarks import gpu
from models import cuda_graphs
from models.complexity import complexity

NAME = "simcc-small"


@pytest.fixture
def work(tmp_path):
    """A measuring with an hour's time, for a report on this CPU."""
    end = time.monotonic() + 3600
    work = gpu.Measuring(torch.device("cpu"), gpu.QUICK, end, tmp_path / "out")
    limits = {"bf16": 1e12, "fp16": 1e12, "bytes": 1e12}
    work.report |= {"hardware": {"device": "cpu"}, "limits": limits}
    return work


def test_the_one_command_measures_everything(tmp_path, capsys):
    out = tmp_path / "out"
    assert gpu.main([NAME, "--device", "cpu", "--quick", "--out", str(out)]) == 0
    report = json.loads((out / "gpu.json").read_text())
    assert report["hardware"]["device"] == "cpu"
    assert [row["type"] for row in report["checks"]] == ["fp32", "bf16", "fp16"]
    assert all(row["right"] for row in report["checks"])
    # Rounding is felt: it was computed in half precision.
    assert all(row["raw"]["eager"] > 0 for row in report["checks"][1:])
    assert [row["batch"] for row in report["speeds"]] == list(gpu.QUICK.batches)
    assert all(row["people"] > 0 for row in report["speeds"])
    assert report["decoding"][0]["network"] == NAME
    assert "aten::" in report["parts"][0]["operation"]
    assert report["pipeline"][0]["people"] == 5
    assert report["pipeline"][0]["milliseconds"]["pose"] > 0
    assert report["host"]["images_decoded_a_second_and_core"] > 0
    assert (out / "gpu.md").read_text() == gpu.markdown(report)
    printed = capsys.readouterr().out
    assert "these figures mean nothing" in printed
    assert f"| {NAME} | bf16 eager | 1 | " in printed


def test_graphs_are_checked_and_measured_where_there_are_any(work, monkeypatch):
    # In place of a GPU: a capture that computes, and no compiler.
    monkeypatch.setattr(gpu.Measuring, "captures", True)
    monkeypatch.setattr(
        cuda_graphs,
        "_Capture",
        lambda device: lambda compute, batch: (lambda: None, compute(batch)),
    )
    monkeypatch.setattr(torch, "compile", lambda network, dynamic: network)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2**20)
    gpu.check(work, NAME)
    gpu.measure(work, NAME)
    gpu.measure_decoding(work, NAME)
    gpu.measure_compiled(work, NAME)
    assert all({"eager", "graphs"} <= row["pixels"].keys() for row in work.report["checks"])
    ways = ["bf16 eager", "bf16 graphs", "fp16 graphs"]
    assert [(row["way"], row["batch"]) for row in work.report["speeds"]] == [
        *((way, batch) for way in ways for batch in gpu.QUICK.batches),
        ("bf16 compiled, graphs", 2),
    ]
    prepared = [row["type"] for row in work.report["captures"]]
    assert prepared == ["bf16", "fp16", "bf16 compiled"]
    assert "bf16 compiled, graphs" in gpu.markdown(work.report)


def test_other_answers_than_the_cpus_fail(work, monkeypatch):
    monkeypatch.setattr(gpu, "TYPES", {"bf16": torch.bfloat16})
    monkeypatch.setattr(gpu, "RAW", {"bf16": 0.0})
    assert not gpu.check(work, NAME)
    assert not any(row["right"] for row in work.report["checks"])


def test_random_weights_are_judged_in_float32_alone(work):
    assert gpu.check(work, "mobilenetv2-simcc")
    judged = {row["type"]: row.get("right") for row in work.report["checks"]}
    assert judged == {"fp32": True, "bf16": None, "fp16": None}


def test_what_time_was_too_short_for_is_named(work):
    work.end = time.monotonic()
    model = gpu.reference(NAME)
    gpu.measure_decoding(work, NAME)
    gpu._measure_way(work, model, gpu.Cost.of(model), NAME, "bf16 eager", gpu.estimator(model))
    missing = [row["what"] for row in work.report["left_out"]]
    assert missing == [f"decoding of {NAME}"] + [
        f"{NAME}, bf16 eager, batches of {batch}" for batch in gpu.QUICK.batches
    ]
    assert "| no time was left |" in gpu.markdown(work.report)


def test_a_network_moves_its_weights_and_its_products(work):
    model = gpu.reference(NAME)
    cost = gpu.Cost.of(model)
    # In half precision: two bytes for each parameter of a convolution or linear layer.
    layers = torch.nn.Conv2d | torch.nn.Linear
    weights = [layer for layer in model.network.modules() if isinstance(layer, layers)]
    parameters = sum(p.numel() for layer in weights for p in layer.parameters())
    assert cost.fixed_bytes == 2 * parameters
    width, height = model.input_size
    assert cost.crop_bytes > 2 * 3 * width * height
    assert cost.macs == complexity(model.card).macs


def test_random_networks_stay_in_the_range_of_fp16():
    model = gpu.reference("mobilenetv2-simcc")
    largest = []
    for layer in model.network.modules():
        layer.register_forward_hook(
            lambda layer, inputs, output: largest.extend(
                float(part.abs().max()) for part in tree_leaves(output)
            )
        )
    with torch.inference_mode():
        model.network(gpu.people_of(model))
    assert 0.1 < max(largest) < 1000


def test_the_quickest_way_stands_beside_its_mark():
    rows = [
        {"network": "rtmpose-m", "way": "bf16 eager", "batch": 64, "people": 9_000.0},
        {"network": "rtmpose-m", "way": "bf16 graphs", "batch": 128, "people": 18_000.0},
        {"network": NAME, "way": "bf16 graphs", "batch": 8, "people": 5.0},
    ]
    report = {"hardware": {"device": "cpu"}, "speeds": rows}
    text = gpu.markdown(report)
    assert "| rtmpose-m | bf16 graphs | 128 | 18000 | - | - | 15000 | 1.20 |" in text
    assert f"| {NAME} | bf16 graphs | 8 | 5 | - | - | - | - |" in text


def test_without_a_gpu_the_command_says_what_is_there(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main(["--out", str(tmp_path)])
    assert "no CUDA device is there; --device cpu is" in capsys.readouterr().err


def test_a_compiler_is_stopped_in_time():
    with pytest.raises(TimeoutError, match="no time"), gpu._at_most(0.01):
        signal.pause()
    with gpu._at_most(60):
        pass
