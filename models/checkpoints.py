"""Weights files: every container that weights come in, and their key names in terms of ours.

posemux writes safetensors. Published checkpoints are PyTorch's files, zip archives or the older
plain pickles: a bare state dict (HRNet, SimpleBaselines, DARK, SimDR/SimCC), one under `state_dict`
with notes beside it (mmpose 0.x and 1.x, PCT, training checkpoints), or under `model` (SimMIM).
Reading one never runs what is in it.

The names of HRNet, SimpleBaselines, SimDR/SimCC (leeyegy/SimCC), their mmpose 0.x and 1.x versions
(`backbone.`, `head.` or `keypoint_head.`), RTMPose, PCT, ViTPose and TokenPose are told apart by
their prefixes alone, so that one list of rules serves them all. Values are taken over as they are,
except for a ViT's positions and TokenPose's queries: see `_positions` and `_queries`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

#: Where a checkpoint keeps its weights, the best ones first; one without these is weights itself.
_INSIDE = ("best_state_dict", "state_dict", "model")

#: What is left out: PCT's second, identical backbone, which only its training reads; tables that
#: are computed from the window size; what mmpose normalises pictures with; ViTPose's class token,
#: which no block sees, and the heads of the other sets that some of it was trained on.
_LEFT_OUT = re.compile(
    r"(module\.)?(extra_backbone|data_preprocessor|associate_keypoint_heads)\."
    r"|(module\.)?backbone\.cls_token$"
    r"|.*\.relative_(coords_table|position_index)$"
)

#: How many batches a batch norm has seen: nothing reads it, and PyTorch before 0.4.1 had none.
_COUNTER = ".num_batches_tracked"


def _mobilenet_block(found: re.Match[str]) -> str:
    """A convolution or batch norm of one of mmpose's MobileNetV2 blocks by timm's names."""
    stage, block, place, kind = found.groups()
    # The first stage's block does not expand: it begins with the depthwise convolution.
    convolutions = ("dw", "pw") if stage == "1" else ("pw", "dw", "pwl")
    part = f"conv_{convolutions[int(place)]}" if kind == "conv" else f"bn{int(place) + 1}"
    return f".blocks.{int(stage) - 1}.{block}.{part}."


#: Patterns and what they become: a key follows every rule that matches, in this order.
_RULES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^module\.", ""),
    (r"^keypoint_head\.tokenizer\.", "representation.tokenizer."),
    (r"^(keypoint_)?head\.(deconv_head\.)?", "network.head."),
    (r"^(final_layer|mlp_head_[xy])\.", r"network.head.\1."),
    (r"^(network\.head\.)?deconv_layers\.", "network.deconvolution."),
    (r"^backbone\.", "network.backbone."),
    (r"^(?!network\.|representation\.)", "network.backbone."),
    (r"\.rpe_mlp\.", ".cpb_mlp."),
    (r"^network\.backbone\.norm3\.", "network.backbone.norm."),
    # PCT merges patches at the end of a stage, timm at the next one's start.
    (
        r"(?<=^network\.backbone\.layers\.)\d+(?=\.downsample\.)",
        lambda stage: str(int(stage[0]) + 1),
    ),
    # mmpose's MobileNetV2 in timm's names.
    (r"(?<=^network\.backbone)\.conv1\.conv\.", ".conv_stem."),
    (r"(?<=^network\.backbone)\.conv2\.conv\.", ".conv_head."),
    (r"(?<=^network\.backbone)\.conv(\d)\.bn\.", r".bn\1."),
    (r"(?<=^network\.backbone)\.layer(\d)\.(\d)\.conv\.(\d)\.(conv|bn)\.", _mobilenet_block),
    # ViTPose: its authors' names are timm's but for the last norm; then mmpose's, without a rule
    # for `layers` alone, which are a Swin's stages too.
    (r"(?<=^network\.backbone\.)(last_norm|ln1)\.", "norm."),
    (r"(?<=^network\.backbone\.)patch_embed\.projection\.", "patch_embed.proj."),
    (r"(?<=^network\.backbone\.)layers\.(\d+)\.(?=attn\.|ffn\.|ln)", r"blocks.\1."),
    (r"(?<=^network\.backbone\.)(blocks\.\d+\.)ln([12])\.", r"\1norm\2."),
    (r"(?<=^network\.backbone\.)(blocks\.\d+\.)ffn\.layers\.0\.0\.", r"\1mlp.fc1."),
    (r"(?<=^network\.backbone\.)(blocks\.\d+\.)ffn\.layers\.1\.", r"\1mlp.fc2."),
    # TokenPose-S, whose whole network is called `features`.
    (r"^network\.backbone\.features\.mlp_head\.", "network.head.mlp_head."),
    (r"^network\.backbone\.features\.keypoint_token$", "network.tokens.joint_tokens"),
    (r"^network\.backbone\.features\.pos_embedding$", "network.tokens.positions"),
    (r"^network\.backbone\.features\.patch_to_embedding\.", "network.tokens.embed."),
    (r"^network\.backbone\.features\.transformer\.layers\.", "network.tokens.blocks."),
    (r"^network\.backbone\.features\.", "network.backbone."),
    *(
        (rf"(?<=^network\.tokens\.blocks\.)(\d+)\.{theirs}\.", rf"\1.{ours}.")
        for theirs, ours in (
            (r"0\.fn\.norm", "norm1"),
            (r"0\.fn\.fn\.to_qkv", "attn.qkv"),
            (r"0\.fn\.fn\.to_out\.0", "attn.proj"),
            (r"1\.fn\.norm", "norm2"),
            (r"1\.fn\.fn\.net\.0", "mlp.fc1"),
            (r"1\.fn\.fn\.net\.3", "mlp.fc2"),
        )
    ),
    # mmpose's CSPNeXt in timm's names; HRNet's stages have branches and fuse layers.
    (r"(?<=^network\.backbone)\.stem\.(?=\d\.)", ".model.stem."),
    (
        r"(?<=^network\.backbone)\.stage(\d)\.(?=\d\.(?!branches\.|fuse_layers\.))",
        lambda found: f".model.stages.{int(found[1]) - 1}.",
    ),
)


class WeightsError(ValueError):
    """Weights that cannot be used: the message names the file and what is wrong with it."""


# --------------------------------------------------------------------------------------- reading


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a weights file, under the keys of `PoseModel.module()`.

    Raises:
        WeightsError: see `read_checkpoint`.
    """
    return rename(read_checkpoint(path))


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """All tensors of a weights file, under its own keys.

    Of a training's checkpoint the best weights, where it keeps them apart from the last ones.

    Args:
        path: safetensors, or what `torch.save` writes, told apart by their first bytes.

    Raises:
        WeightsError: the file is missing or damaged, is neither, has no weights in it, or holds
            anything else than plain data, which is not executed.
    """
    start = _start(path)
    if start[8:] == b"{" or path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{path} cannot be read as safetensors: {error}") from error
    if not start.startswith((_ZIP, b"\x80")):
        raise WeightsError(f"{path} cannot be read: it is neither safetensors nor PyTorch's")
    try:
        with torch.serialization.safe_globals(_PLAIN_DATA):
            loaded = torch.load(
                path, map_location="cpu", weights_only=True, mmap=start.startswith(_ZIP)
            )
    # A damaged pickle stumbles anywhere, over any exception.
    except Exception as error:
        raise WeightsError(f"{path} cannot be read as a PyTorch checkpoint: {_why(error)}") from (
            error
        )
    return _weights(loaded, path)


#: What posemux writes into its weights files beside the weights, as JSON.
_METADATA = ("architecture", "card")


def read_metadata(path: Path) -> dict[str, Any]:
    """What a weights file written by posemux says of its weights; empty for all others.

    `card` is the table of a card in a converted file, `architecture` that of one in all others.

    Raises:
        WeightsError: the file is missing or damaged, or of something else such as a detector.
    """
    if _start(path)[8:] != b"{":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = cast("dict[str, str]", file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors: {error}") from error
    try:
        return {key: json.loads(metadata[key]) for key in _METADATA if key in metadata}
    except ValueError as error:
        raise WeightsError(f"{path} is no pose model's: its notes are not JSON, {error}") from error


#: How a zip archive begins, which PyTorch writes since 1.6.
_ZIP = b"PK\x03\x04"


def _start(path: Path) -> bytes:
    """The first nine bytes of a file, which tell what it is."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    if not start:
        raise WeightsError(f"{path} cannot be read: it is empty")
    return start


def _latin1(text: str, _: str) -> bytes:
    """The bytes of an array, which pickles of protocol 2 write as text."""
    return text.encode("latin1")


#: What mmpose's notes need besides tensors: NumPy's arrays and scalars of plain numbers and text,
#: by their names in NumPy 1 and 2. None of them runs code that a file brings along.
_PLAIN_DATA: list[Any] = [
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in "?bhilqBHILQefdUS"},
    *(
        (function, f"numpy.{package}.multiarray.{name}")
        for function, name in (
            (np.empty(0).__reduce__()[0], "_reconstruct"),
            (np.float64(0).__reduce__()[0], "scalar"),
        )
        for package in ("core", "_core")
    ),
    (_latin1, "_codecs.encode"),
]


def _why(error: Exception) -> str:
    """What is wrong with a pickle, in one line, without PyTorch's advice to execute it."""
    text = str(error)
    if refused := re.search(r"GLOBAL (\S+) (was not an allowed global|whose module)", text):
        return f"it calls {refused[1]}, and only weights and plain data are accepted"
    _, told, reason = text.rpartition("WeightsUnpickler error:")
    if (not told and text.startswith("Weights only load failed")) or not reason.strip():
        reason = type(error).__name__
    return f"damaged, or no checkpoint ({reason.strip().splitlines()[0].partition('. ')[0]})"


def _weights(loaded: Any, path: Path) -> dict[str, Tensor]:
    """The weights among what a checkpoint holds."""
    if isinstance(loaded, Mapping):
        inside = (loaded[key] for key in _INSIDE if isinstance(loaded.get(key), Mapping))
        loaded = next(inside, loaded)
    if not isinstance(loaded, Mapping) or not loaded:
        raise WeightsError(f"{path} holds no weights but a {type(loaded).__name__}")
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, Tensor) or not _is_plain(value):
            raise WeightsError(
                f"{path} holds no weights under {', '.join(_INSIDE)}, and {key!r} is no tensor "
                "of real numbers"
            )
    return dict(loaded)


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has its numbers with it, one by one."""
    real = not tensor.is_quantized and not tensor.is_complex()
    return real and tensor.layout == torch.strided and not tensor.is_meta


# ------------------------------------------------------------------------------------------ fitting


def rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors under the keys of `PoseModel.module()`; ours stay as they are.

    Raises:
        WeightsError: two keys become the same.
    """
    if all(key.startswith(("network.", "representation.")) for key in tensors):
        return dict(tensors)
    # Only ViTPose's authors call the last norm so.
    added = any(key.endswith("backbone.last_norm.weight") for key in tensors)
    renamed: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if _LEFT_OUT.match(key):
            continue
        ours = _renamed(key)
        if ours in renamed:
            raise WeightsError(f"two keys of the checkpoint, the second {key}, become {ours}")
        if ours == "network.backbone.pos_embed":
            value = _positions(value, added)
        elif key.endswith(".fn.fn.to_qkv.weight"):
            value = _queries(value)
        renamed[ours] = value
    return renamed


def _renamed(key: str) -> str:
    for pattern, replacement in _RULES:
        key = re.sub(pattern, replacement, key)
    return key


def _positions(embedding: Tensor, added: bool) -> Tensor:
    """A ViT's positions `(1, P, C)` of the patches alone.

    The published `(1, P + 1, C)` begin with a class token's, although ViTPose has no class token.
    An odd number tells that it is there: P is even at every published size.

    Args:
        embedding: as in the file.
        added: whether the class token's is added to all, as ViTPose's authors do (`ViT` of
            github.com/ViTAE-Transformer/ViTPose), or not read, as in mmpose
            (`VisionTransformer` of mmpretrain, `with_cls_token=False`).
    """
    if embedding.ndim != 3 or embedding.shape[1] % 2 == 0:
        return embedding
    patches = embedding[:, 1:]
    return patches + embedding[:, :1] if added else patches


def _queries(weight: Tensor) -> Tensor:
    """TokenPose-S's weights `(3 * C, C)` of queries, keys and values for attention as in its paper.

    Its code divides by the root of the whole width, the paper by that of a head's, an eighth of it
    (`Attention` of github.com/leeyegy/TokenPose, `scale_with_head`): the queries make up for it.
    """
    if weight.ndim != 2:
        return weight
    queries, others = weight.tensor_split([len(weight) // 3])
    return torch.cat((queries * 8**-0.5, others))


def with_counters(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with exactly the wanted batch counters, which alone may be missing or too many.

    Args:
        tensors: of a file.
        wanted: a network's, whose counters stand in for missing ones.
    """
    counters = {key: value for key, value in wanted.items() if key.endswith(_COUNTER)}
    surplus = {key for key in tensors if key.endswith(_COUNTER)} - counters.keys()
    return {**counters, **{key: value for key, value in tensors.items() if key not in surplus}}


def differing(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """The keys that only one of both has, or that have another shape, in order."""
    return sorted(
        key
        for key in wanted.keys() | tensors.keys()
        if key not in tensors or key not in wanted or tensors[key].shape != wanted[key].shape
    )


def differences(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """How many keys of a file do not fit and what is wrong with the first; empty if all do."""
    keys = differing(tensors, wanted)
    shown = (
        f"{key}: {_shape(tensors.get(key))} in the file, {_shape(wanted.get(key))} wanted"
        for key in keys[:3]
    )
    return f"{len(keys)} keys, {'; '.join(shown)}" if keys else ""


def _shape(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else str(tuple(tensor.shape))
