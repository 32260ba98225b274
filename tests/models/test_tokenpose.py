"""TokenPose-S's layout as its authors write it fits our network, which computes what theirs does.

No layout of TokenPose is in ../shared/reference. Names, shapes and the order of computation are
written down here a second time, from `TokenPose_S_base` of leeyegy/TokenPose.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import models
from models.checkpoints import rename
from models.layouts import identify
from models.pose_model import PoseModel
from models.training.loop import card_of

from .recipes_support import random_weights, read

#: Height and width of a patch: `PATCH_SIZE` of tokenpose_s_v*_256_192_*.yaml, there width first.
PATCHES = {"v1": (4, 3), "v2": (2, 2)}
WIDTH, HEADS, JOINTS = 192, 8, 17

Shapes = dict[str, tuple[int, ...]]


def layout(version: str, blocks: int = 12) -> Shapes:
    """A published file's keys and shapes, of a network for 256x192."""
    height, width = PATCHES[version]
    shapes: Shapes = {
        "keypoint_token": (1, JOINTS, WIDTH),
        "pos_embedding": (1, 64 // height * 48 // width, WIDTH),
        "patch_to_embedding.weight": (WIDTH, height * width * 256),
        "patch_to_embedding.bias": (WIDTH,),
        "mlp_head.1.weight": (384, WIDTH),
        "mlp_head.1.bias": (384,),
        "mlp_head.3.weight": (3072, 384),
        "mlp_head.3.bias": (3072,),
    }
    convolutions = {"conv1": (64, 3, 3), "conv2": (64, 64, 3)}
    for index in range(4):
        inputs = 256 if index else 64
        convolutions |= {
            f"layer1.{index}.conv1": (64, inputs, 1),
            f"layer1.{index}.conv2": (64, 64, 3),
            f"layer1.{index}.conv3": (256, 64, 1),
        }
    convolutions["layer1.0.downsample.0"] = (256, 64, 1)
    norms = {"mlp_head.0": WIDTH, "mlp_head.2": 384}
    for name, (outputs, inputs, kernel) in convolutions.items():
        shapes[f"{name}.weight"] = (outputs, inputs, kernel, kernel)
        norm = name.replace("conv", "bn").replace("downsample.0", "downsample.1")
        norms[norm] = outputs
        shapes |= {f"{norm}.running_{kind}": (outputs,) for kind in ("mean", "var")}
        shapes[f"{norm}.num_batches_tracked"] = ()
    for block in (f"transformer.layers.{index}." for index in range(blocks)):
        norms |= {f"{block}{part}.fn.norm": WIDTH for part in "01"}
        shapes |= {
            f"{block}0.fn.fn.to_qkv.weight": (3 * WIDTH, WIDTH),
            f"{block}0.fn.fn.to_out.0.weight": (WIDTH, WIDTH),
            f"{block}0.fn.fn.to_out.0.bias": (WIDTH,),
            f"{block}1.fn.fn.net.0.weight": (3 * WIDTH, WIDTH),
            f"{block}1.fn.fn.net.0.bias": (3 * WIDTH,),
            f"{block}1.fn.fn.net.3.weight": (WIDTH, 3 * WIDTH),
            f"{block}1.fn.fn.net.3.bias": (WIDTH,),
        }
    for norm, width in norms.items():
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    return {f"features.{key}": shape for key, shape in shapes.items()}


def heatmaps(weights: dict[str, Tensor], version: str, crop: Tensor) -> Tensor:
    """The forward pass, from the authors' code."""
    weights = {key.removeprefix("features."): value for key, value in weights.items()}

    def convolved(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = weights[f"{name}.weight"]
        x = functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        norm = name.replace("conv", "bn").replace("downsample.0", "downsample.1")
        parts = (weights[f"{norm}.{part}"] for part in ("running_mean", "running_var"))
        return functional.batch_norm(
            x, *parts, weight=weights[f"{norm}.weight"], bias=weights[f"{norm}.bias"]
        )

    def linear(x: Tensor, name: str) -> Tensor:
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def normalised(x: Tensor, name: str) -> Tensor:
        weight = weights[f"{name}.weight"]
        return functional.layer_norm(x, weight.shape, weight, weights[f"{name}.bias"])

    x = convolved(convolved(crop, "conv1", 2).relu(), "conv2", 2).relu()
    for index in range(4):
        name = f"layer1.{index}"
        kept = x if index else convolved(x, f"{name}.downsample.0")
        x = convolved(convolved(x, f"{name}.conv1").relu(), f"{name}.conv2").relu()
        x = (convolved(x, f"{name}.conv3") + kept).relu()
    height, width = PATCHES[version]
    patches = torch.stack(
        [
            x[:, :, top : top + height, left : left + width].permute(0, 2, 3, 1).flatten(1)
            for top in range(0, 64, height)
            for left in range(0, 48, width)
        ],
        1,
    )
    positions = weights["pos_embedding"]
    patches = linear(patches, "patch_to_embedding")
    tokens = torch.cat((weights["keypoint_token"].expand(len(crop), -1, -1), patches), 1)
    index = 0
    while f"transformer.layers.{index}.0.fn.norm.weight" in weights:
        block = f"transformer.layers.{index}."
        tokens = torch.cat((tokens[:, :JOINTS], tokens[:, JOINTS:] + positions), 1)
        mixed = normalised(tokens, block + "0.fn.norm") @ weights[block + "0.fn.fn.to_qkv.weight"].T
        queries, keys, values = (
            part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in mixed.chunk(3, -1)
        )
        # By the whole width, not by a head's.
        attention = (queries @ keys.transpose(2, 3) * WIDTH**-0.5).softmax(-1)
        seen = (attention @ values).transpose(1, 2).flatten(2)
        tokens = tokens + linear(seen, block + "0.fn.fn.to_out.0")
        hidden = linear(normalised(tokens, block + "1.fn.norm"), block + "1.fn.fn.net.0")
        tokens = tokens + linear(functional.gelu(hidden), block + "1.fn.fn.net.3")
        index += 1
    joints = linear(normalised(tokens[:, :JOINTS], "mlp_head.0"), "mlp_head.1")
    return linear(normalised(joints, "mlp_head.2"), "mlp_head.3").unflatten(2, (64, 48))


@pytest.mark.parametrize("version", PATCHES)
def test_the_layout_is_identified(version: str) -> None:
    shapes = layout(version)
    file = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    found = identify(file, {})
    assert (found.name, found.differences) == (f"tokenpose-s-{version}-heatmap", "")


@pytest.mark.parametrize("version", PATCHES)
def test_the_network_computes_what_the_authors_does(version: str) -> None:
    """With two blocks: twelve are the same again."""
    architecture = read(f"tokenpose-s-{version}-heatmap").architecture
    assert architecture.tokens is not None
    architecture = replace(architecture, tokens=replace(architecture.tokens, blocks=2))
    weights = random_weights(layout(version, blocks=2))
    model = PoseModel.fresh(card_of("tokenpose", architecture))
    model.fill(rename(weights), Path("tokenpose")).eval()
    crop = torch.randn(1, 3, 256, 192)
    with torch.inference_mode():
        found, expected = model.network(crop), heatmaps(weights, version, crop)
    assert found.shape == (1, 17, 64, 48)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.std()))


def test_learnt_positions_are_refused(tmp_path: Path) -> None:
    """`POS_EMBEDDING_TYPE: learnable` has one for each joint too; no published network has."""
    shapes = {**layout("v1"), "features.pos_embedding": (1, 256 + JOINTS, WIDTH)}
    weights = {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}
    torch.save(weights, tmp_path / "learnt.pth")
    with pytest.raises(
        models.WeightsError,
        match=r"nearest is tokenpose-s-v1-heatmap, which differs in 1 keys, "
        r"network\.tokens\.positions: \(1, 273, 192\) in the file, \(1, 256, 192\) wanted$",
    ):
        models.load(weights=tmp_path / "learnt.pth")
