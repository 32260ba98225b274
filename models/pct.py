"""PCT: a pose as a handful of discrete tokens.

Tokenizer, classifier, both stages' losses and decoding of Geng et al., "Human Pose as Compositional
Tokens" (CVPR 2023), as released at github.com/Gengzigang/PCT; module names are those of its
checkpoints. Image-guided tokenizers load, encode and decode; training is without guidance, as its
`woimgguide` variant.

Stage I learns to write a pose as M entries of a codebook of V vectors and to read it back. Stage II
freezes that tokenizer and learns to predict the M entries from a picture.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

#: The knee of the smooth L1 loss, in pixels: in effect the loss is L1.
_KNEE = 0.05
#: The weight of the commitment term (the paper's beta).
_COMMITMENT = 15.0
#: How often a pose is decoded with its tokens' features moved, to see which joints move.
_DRAWS = 8
#: Pixels by which a joint moves then whose factor is a half.
_HALF_SURE = 4.0
#: By how many entries of the codebook a token is replaced, to see which joints it moves.
_REPLACEMENTS = 8


# ------------------------------------------------------------------------------------ MLP-mixer


class _FeedForward(nn.Module):
    """Linear, GELU, linear; the released code's indices 0 and 3 have dropouts of 0 between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.ff = nn.ModuleDict({"0": nn.Linear(width, hidden), "3": nn.Linear(hidden, width)})

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.ff["3"](functional.gelu(self.ff["0"](x))))


class MixerLayer(nn.Module):
    """One MLP-mixer layer: mixes the tokens, then the channels, and adds both to its input.

    The second residual is taken from the input and the token branch, as in the released code.

    Args:
        width: channels of a token.
        channel_hidden: hidden width of the channel mixer.
        tokens: number of tokens.
        token_hidden: hidden width of the token mixer.
    """

    def __init__(self, width: int, channel_hidden: int, tokens: int, token_hidden: int) -> None:
        super().__init__()
        self.layernorm1 = nn.LayerNorm(width)
        self.MLP_token = _FeedForward(tokens, token_hidden)
        self.layernorm2 = nn.LayerNorm(width)
        self.MLP_channel = _FeedForward(width, channel_hidden)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, tokens, width)` to the same shape."""
        mixed = self.MLP_token(self.layernorm1(x).transpose(-2, -1)).transpose(-2, -1)
        return cast(Tensor, x + mixed + self.MLP_channel(self.layernorm2(x + mixed)))


# ------------------------------------------------------------------------------ stage I: tokenizer


@dataclass(frozen=True)
class MixerSize:
    """Size of one stack of mixer layers."""

    blocks: int
    width: int
    channel_hidden: int
    token_hidden: int


class Tokenized(NamedTuple):
    """A pose after its way through the tokenizer."""

    #: `(N, K, 2)` in input pixels, decoded from the nearest codebook entries.
    keypoints: Tensor
    #: `(N, M)` which codebook entries they were.
    tokens: Tensor
    #: `(N, M, D)` the encoder's output before it was quantised.
    features: Tensor
    #: `(N, M, D)` the codebook's entries.
    quantised: Tensor


class Tokenizer(nn.Module):
    """Compositional encoder, shared codebook and decoder (PCT, section 3.1).

    Args:
        joints: K, joints of a pose.
        tokens: M, entries of a tokenised pose.
        entries: V, size of the codebook.
        dimension: D, length of a codebook entry.
        encoder: the encoder's mixer layers.
        decoder: the decoder's mixer layers.
        decay: how much of the moving averages survives a training step.
        unit: pixels for each unit of the coordinates that the layers see. The released tokenizers
            work on raw pixels; with coordinates of order 1 a short training gets much further.
        guidance: channels of the features that an image-guided encoder reads at the joints, to
            which half of its width goes; 0 for none. The decoder does not need them.
    """

    codebook: Tensor
    ema_cluster_size: Tensor
    ema_w: Tensor

    def __init__(
        self,
        joints: int = 17,
        tokens: int = 34,
        entries: int = 2048,
        dimension: int = 512,
        encoder: MixerSize = MixerSize(4, 512, 512, 64),
        decoder: MixerSize = MixerSize(1, 32, 64, 64),
        decay: float = 0.9,
        unit: float = 1.0,
        guidance: int = 0,
    ) -> None:
        super().__init__()
        self.decay = decay
        self.unit = unit
        self.invisible_token = nn.Parameter(torch.empty(1, 1, encoder.width).normal_(0, 0.02))
        guided = encoder.width // 2 if guidance else 0
        self.start_embed = nn.Linear(2, encoder.width - guided)
        self.start_img_embed = nn.Linear(guidance, guided) if guidance else None
        self.encoder = _mixers(encoder, joints)
        self.encoder_layer_norm = nn.LayerNorm(encoder.width)
        self.token_mlp = nn.Linear(joints, tokens)
        self.feature_embed = nn.Linear(encoder.width, dimension)

        self.register_buffer("codebook", torch.randn(entries, dimension))
        self.register_buffer("ema_cluster_size", torch.zeros(entries))
        self.register_buffer("ema_w", self.codebook.clone())

        self.decoder_token_mlp = nn.Linear(tokens, joints)
        self.decoder_start = nn.Linear(dimension, decoder.width)
        self.decoder = _mixers(decoder, joints)
        self.decoder_layer_norm = nn.LayerNorm(decoder.width)
        self.recover_embed = nn.Linear(decoder.width, 2)

    def encode(self, keypoints: Tensor, visible: Tensor, features: Tensor | None = None) -> Tensor:
        """Poses to unquantised token features.

        Args:
            keypoints: `(N, K, 2)` in input pixels.
            visible: `(N, K)`; joints that are not are replaced by one learnt vector.
            features: `(N, K, C)` the backbone's at the joints, for an image-guided encoder alone;
                see `features_at`.

        Returns:
            `(N, M, D)`.

        Raises:
            ValueError: the encoder is image-guided and there are no features, or the reverse.
        """
        x = self.start_embed(keypoints / self.unit)
        if self.start_img_embed is not None and features is not None:
            x = torch.cat((x, self.start_img_embed(features)), -1)
        elif self.start_img_embed is not None or features is not None:
            raise ValueError("image-guided tokenizers, and only they, need features at the joints")
        x = torch.where(visible[..., None] > 0, x, self.invisible_token)
        for layer in self.encoder:
            x = layer(x)
        x = self.token_mlp(self.encoder_layer_norm(x).transpose(-2, -1)).transpose(-2, -1)
        return cast(Tensor, self.feature_embed(x))

    def quantise(self, features: Tensor) -> Tensor:
        """The nearest codebook entry of each token feature: `(N, M, D) -> (N, M)`."""
        distance = (
            features.square().sum(-1, keepdim=True)
            + self.codebook.square().sum(1)
            - 2 * features @ self.codebook.T
        )
        return distance.argmin(-1)

    def decode(self, features: Tensor) -> Tensor:
        """Token features, quantised or mixed, to poses: `(N, M, D) -> (N, K, 2)` in pixels."""
        # Tokens and channels are mixed by a linear layer each, which commute but for their biases.
        # The released code mixes tokens first; channels first leaves a sixteenth of them to mix.
        channels, tokens = self.decoder_start, self.decoder_token_mlp
        x = functional.linear(functional.linear(features, channels.weight).mT, tokens.weight).mT
        return self._recover(x + (tokens.bias[:, None] * channels.weight.sum(1) + channels.bias))

    def decode_replaced(self, features: Tensor, entries: Tensor) -> Tensor:
        """Token features to poses, each token alone replaced by each of some entries in turn.

        Args:
            features: `(N, M, D)`, quantised or mixed.
            entries: `(R, D)`.

        Returns:
            `(N, M, R, K, 2)` in pixels.
        """
        # The decoder starts linearly: a replacement adds what differs to what its layers see.
        channels, tokens = self.decoder_start, self.decoder_token_mlp
        start = channels(tokens(features.mT).mT)[:, None, None]
        change = functional.linear(entries - features[:, :, None], channels.weight)
        added = tokens.weight.mT[:, None, :, None] * change[..., None, :]
        return self._recover((start + added).flatten(0, 2)).view(*added.shape[:4], 2)

    def _recover(self, x: Tensor) -> Tensor:
        """What the decoder's layers see, `(N, K, width)`, to poses."""
        for layer in self.decoder:
            x = layer(x)
        return cast(Tensor, self.recover_embed(self.decoder_layer_norm(x)) * self.unit)

    def forward(
        self, keypoints: Tensor, visible: Tensor, features: Tensor | None = None
    ) -> Tokenized:
        """Encode, quantise with a straight-through gradient, and decode; see Tokenized."""
        encoded = self.encode(keypoints, visible, features)
        tokens = self.quantise(encoded)
        quantised = self.codebook[tokens]
        passed = encoded + (quantised - encoded).detach()
        return Tokenized(self.decode(passed), tokens, encoded, quantised)

    @torch.no_grad()
    def update_codebook(self, features: Tensor, tokens: Tensor) -> None:
        """One step of the codebook's exponential moving averages (van den Oord et al. 2017, A.1).

        Args:
            features: `(N, M, D)` the encoder's output.
            tokens: `(N, M)` the entries that it was quantised to.
        """
        flat = tokens.flatten()
        chosen = flat.bincount(minlength=len(self.codebook)).to(features.dtype)
        summed = torch.zeros_like(self.ema_w).index_add_(0, flat, features.flatten(0, 1))
        counts = self.decay * self.ema_cluster_size + (1 - self.decay) * chosen
        total = counts.sum()
        # Laplace smoothing keeps entries that nobody chose from dividing by zero.
        counts = (counts + 1e-5) / (total + len(counts) * 1e-5) * total
        sums = self.decay * self.ema_w + (1 - self.decay) * summed
        self.ema_cluster_size.copy_(counts)
        self.ema_w.copy_(sums)
        self.codebook.copy_(sums / counts[:, None])

    @torch.no_grad()
    def revive(self, features: Tensor, threshold: float) -> int:
        """Move codebook entries that are hardly used onto encoder outputs drawn at random.

        The released code has no such step; with it a small codebook is used in full.

        Args:
            features: `(N, M, D)` recent encoder outputs.
            threshold: an entry whose moving count is below it counts as dead.

        Returns:
            How many entries were moved.
        """
        dead = (self.ema_cluster_size < threshold).nonzero()[:, 0]
        flat = features.flatten(0, 1)
        chosen = flat[torch.randint(len(flat), (len(dead),), device=flat.device)]
        self.codebook[dead] = chosen
        self.ema_cluster_size[dead] = 1.0
        self.ema_w[dead] = chosen
        return len(dead)


def _mixers(size: MixerSize, tokens: int) -> nn.ModuleList:
    return nn.ModuleList(
        MixerLayer(size.width, size.channel_hidden, tokens, size.token_hidden)
        for _ in range(size.blocks)
    )


def features_at(features: Tensor, keypoints: Tensor, stride: int = 32) -> Tensor:
    """What an image-guided encoder reads of a picture: the nearest feature of each joint.

    Args:
        features: `(N, C, h, w)` the backbone's.
        keypoints: `(N, K, 2)` in input pixels; those out of the crop read the feature at its edge.
        stride: input pixels for each feature.

    Returns:
        `(N, K, C)`.
    """
    height, width = features.shape[-2:]
    x, y = (keypoints / stride + 0.5).long().unbind(-1)
    persons = torch.arange(len(features), device=features.device)[:, None]
    return features[persons, :, y.clamp(0, height - 1), x.clamp(0, width - 1)]


def tokenizer_loss(tokenized: Tokenized, keypoints: Tensor, visible: Tensor) -> Tensor:
    """Stage I: reconstruction plus commitment to the codebook (PCT, equation 3).

    Args:
        tokenized: what the tokenizer made of the keypoints.
        keypoints: `(N, K, 2)` in input pixels.
        visible: `(N, K)`; joints that are not labelled do not count.
    """
    commitment = functional.mse_loss(tokenized.features, tokenized.quantised.detach())
    return joint_loss(tokenized.keypoints, keypoints, visible) + _COMMITMENT * commitment


def joint_loss(predicted: Tensor, keypoints: Tensor, visible: Tensor) -> Tensor:
    """Smooth L1 in pixels, 0 for joints that are not labelled, mean over everything."""
    distance = functional.smooth_l1_loss(predicted, keypoints, reduction="none", beta=_KNEE)
    return (distance * (visible[..., None] > 0)).mean()


# ----------------------------------------------------------------------------- stage II: classifier


class _BasicBlock(nn.Module):
    """The residual block of ResNet-18 without stride."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(x + self.bn2(self.conv2(y)))


class _LinearBlock(nn.Module):
    """Linear, layer norm, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.ff = nn.Sequential(nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.ff(x))


class PCTHead(nn.Module):
    """Features to logits over the codebook for each token (PCT, section 3.2).

    Args:
        channels: channels of the features.
        feature_size: width and height of the features.
        tokens: M.
        entries: V.
        modulation_channels: channels of the convolutions that modulate the features.
        modulation_blocks: residual blocks after the first of them.
        mixer: the classifier's mixer layers.
    """

    def __init__(
        self,
        channels: int,
        feature_size: tuple[int, int],
        tokens: int,
        entries: int,
        modulation_channels: int,
        modulation_blocks: int,
        mixer: MixerSize,
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.conv_trans = nn.Sequential(
            nn.Conv2d(channels, modulation_channels, 1, bias=False),
            nn.BatchNorm2d(modulation_channels),
            nn.ReLU(),
        )
        blocks = (_BasicBlock(modulation_channels) for _ in range(modulation_blocks))
        self.conv_head = nn.Sequential(nn.Sequential(*blocks))
        positions = feature_size[0] * feature_size[1]
        self.mixer_trans = _LinearBlock(positions * modulation_channels, tokens * mixer.width)
        self.mixer_head = _mixers(mixer, tokens)
        self.mixer_norm_layer = _LinearBlock(mixer.width, mixer.width)
        self.cls_pred_layer = nn.Linear(mixer.width, entries)

    def forward(self, features: Tensor) -> Tensor:
        """`(N, C, h, w)` to logits `(N, M, V)`."""
        x = self.conv_head(self.conv_trans(features))
        # Position-major, as released: all channels of the first position come first.
        positions = x.flatten(2).transpose(-2, -1)
        x = self.mixer_trans(positions.flatten(1)).unflatten(1, (self.tokens, -1))
        for layer in self.mixer_head:
            x = layer(x)
        return cast(Tensor, self.cls_pred_layer(self.mixer_norm_layer(x)))


class MapReader(nn.Module):
    """Features to logits over the codebook by way of joint maps and the tokenizer's own encoder.

    Not in the paper, whose classifier needs a large backbone and hundreds of epochs. A map for each
    joint, which may come from a trained heatmap head, is brought down to its centre of mass; the
    encoder says which token features such a pose has; an entry's logit falls with its squared
    distance to them, so that the likeliest entry is the one that quantisation would choose. So it
    reads tokens before it has learned any. How high the maps are sharpens or softens all logits of
    a pose, which is what its scores tell. Everything is differentiable, and stage II's losses train
    the maps and what is below them; the encoder stays frozen.

    Args:
        channels: channels of the features.
        joints: K.
        stride: input pixels for each feature.
        tokenizer: trained in stage I; referred to, not owned, so that no weights are kept twice.
    """

    #: Joints whose map is nowhere higher count as invisible, as in stage I.
    _VISIBLE = 0.1

    def __init__(self, channels: int, joints: int, stride: int, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.stride = stride
        self.final_layer = nn.Conv2d(channels, joints, 1)
        self.logit_scale = nn.Parameter(torch.tensor(3.0))
        self._tokenizer = (tokenizer,)

    def forward(self, features: Tensor) -> Tensor:
        """`(N, C, h, w)` to logits `(N, M, V)`, these in float32."""
        maps = self.final_layer(features).float()
        # A centre of mass in bfloat16 would be off by pixels, and the nearest entry another one.
        kind = maps.device.type
        # The meta device, on which costs are counted, knows no autocast to switch off.
        known = torch.amp.is_autocast_available(kind)
        with torch.autocast(kind, enabled=False) if known else nullcontext():
            return self._read(maps)

    def _read(self, maps: Tensor) -> Tensor:
        peaks = maps.amax((-2, -1))
        # A high power, so that the peak outweighs the rest of a map: with squares, which other
        # people's joints pull away, AP on coco-dev is 0.03 lower.
        mass = (maps.clamp_min(0) / peaks.clamp_min(1e-6)[..., None, None]) ** 8
        columns, rows = mass.sum(-2), mass.sum(-1)
        total = rows.sum(-1).clamp_min(1e-6)
        x = columns @ torch.arange(columns.shape[-1], dtype=mass.dtype, device=mass.device) / total
        y = rows @ torch.arange(rows.shape[-1], dtype=mass.dtype, device=mass.device) / total
        [tokenizer] = self._tokenizer
        positions = torch.stack((x, y), -1) * self.stride
        features = tokenizer.encode(positions, peaks > self._VISIBLE)
        nearness = 2 * features @ tokenizer.codebook.T - tokenizer.codebook.square().sum(1)
        certainty = peaks.clamp(0, 1).mean(-1).square()
        return self.logit_scale.float() * certainty[:, None, None] * nearness


def classifier_loss(
    logits: Tensor,
    tokenizer: Tokenizer,
    keypoints: Tensor,
    visible: Tensor,
    features: Tensor | None = None,
) -> Tensor:
    """Stage II: cross entropy of the tokens plus the distance of the decoded joints (equation 5).

    Args:
        logits: `(N, M, V)`.
        tokenizer: trained in stage I and frozen.
        keypoints: `(N, K, 2)` in input pixels.
        visible: `(N, K)`; joints that are not labelled are hidden from the encoder and do not count
            in the distance.
        features: `(N, K, C)` the backbone's at the joints, for an image-guided tokenizer alone.
    """
    with torch.no_grad():
        tokens = tokenizer.quantise(tokenizer.encode(keypoints, visible, features))
    predicted = tokenizer.decode(logits.softmax(-1) @ tokenizer.codebook)
    entropy = functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    return entropy + joint_loss(predicted, keypoints, visible)


# ---------------------------------------------------------------------------------------- decode


def decode(logits: Tensor, tokenizer: Tokenizer) -> Tensor:
    """Poses from token logits: a soft mixture of codebook entries, decoded (equation 4).

    Args:
        logits: `(N, M, V)`.
        tokenizer: the tokenizer that the classifier was trained with.

    Returns:
        `(N, K, 3)`: x and y in input pixels, and the released score: one for the whole pose, the
        mean over its tokens of the largest logit, which has no bounds.
    """
    keypoints = tokenizer.decode(logits.softmax(-1) @ tokenizer.codebook)
    scores = logits.amax(-1).mean(-1)[:, None, None].expand(-1, keypoints.shape[1], 1)
    return torch.cat((keypoints, scores), -1)


def decode_with_spread(logits: Tensor, tokenizer: Tokenizer) -> Tensor:
    """Poses from token logits, and how sure the tokens are of each joint.

    Not in the paper, whose score does not tell joints apart. The entries that a token hesitates
    between differ, in each channel, by a standard deviation. How far a joint moves when all
    channels are moved by theirs, up or down by chance, tells how much of that doubt is about this
    joint: a Monte Carlo estimate of the pose's spread, which needs no derivatives. How sure the
    tokens are on the whole tells better which of two poses is right: a score has both factors.

    Args:
        logits: `(N, M, V)`.
        tokenizer: the tokenizer that the classifier was trained with.

    Returns:
        `(N, K, 3)`: x and y in input pixels as in `decode`, and a score in [0, 1]: the mean over
        the tokens of the likeliest entry's probability, times a factor that is 1 where the joint
        does not move and a half where it moves by 4 pixels.
    """
    probabilities, codebook = logits.softmax(-1), tokenizer.codebook
    features = probabilities @ codebook
    deviation = (probabilities @ codebook.square() - features.square()).clamp_min(0).sqrt()
    signs = _signs(features.shape[1:], features.device).to(features)
    moved = torch.addcmul(features[:, None], deviation[:, None], signs)
    poses = tokenizer.decode(moved.flatten(0, 1))
    poses = poses.view(-1, 1 + _DRAWS, *poses.shape[1:])
    keypoints, others = poses[:, 0], poses[:, 1:]
    spread = (others - keypoints[:, None]).square().sum(-1).mean(1).sqrt()
    scores = probabilities.amax(-1).mean(-1)[:, None] / (1 + spread / _HALF_SURE)
    return torch.cat((keypoints, scores[..., None]), -1)


def token_moves(logits: Tensor, tokenizer: Tokenizer) -> Tensor:
    """How far each token, replaced alone, moves each joint.

    In the paper each token characterises a sub-structure of several interdependent joints (its
    abstract). Which ones shows when that token alone takes other entries: several here, evenly
    spread over the codebook.

    Args:
        logits: `(N, M, V)`.
        tokenizer: the tokenizer that the classifier was trained with.

    Returns:
        `(N, M, K)`: the root mean square over the replacements, in input pixels.
    """
    codebook = tokenizer.codebook
    features = logits.softmax(-1) @ codebook
    chosen = torch.arange(_REPLACEMENTS, device=codebook.device) * len(codebook) // _REPLACEMENTS
    poses = tokenizer.decode_replaced(features, codebook[chosen])
    pose = tokenizer.decode(features)[:, None, None]
    return (poses - pose).square().sum(-1).mean(2).sqrt()


@lru_cache
@torch.inference_mode(False)  # or nothing that is kept could be used in training
def _signs(shape: torch.Size, device: torch.device) -> Tensor:
    """`(1 + _DRAWS, M, D)`: 0, by which nothing moves, and then 1 and -1.

    They are always the same, so that a picture's answer is too.
    """
    # The one generator whose numbers numpy has promised never to change.
    signs = np.random.RandomState(0).randint(0, 2, (_DRAWS, *shape)) * 2 - 1
    signs = np.concatenate((np.zeros_like(signs[:1]), signs))
    return torch.from_numpy(signs).to(device, torch.float32)


# ------------------------------------------------------------------------------ in a pose network


class PCT(nn.Module):
    """The PCT representation of one pose network; it holds the tokenizer, which decoding needs.

    Args:
        input_size: width and height of the network's input.
        tokens: M.
        entries: V.
        dimension: D.
        encoder: the tokenizer's encoder.
        decoder: the tokenizer's decoder.
        modulation_channels: channels of the classifier's convolutions.
        modulation_blocks: their residual blocks.
        mixer: the classifier's mixer layers.
        unit: the tokenizer's pixels for each unit.
        joints: K.
        feature_stride: input pixels for each feature that the head reads: 32 for the paper's
            classifier, which reads the backbone's last; finer for a MapReader in its place.
        guidance: channels of the features that the tokenizer's encoder reads; 0 for none.
    """

    def __init__(
        self,
        input_size: tuple[int, int],
        tokens: int,
        entries: int,
        dimension: int,
        encoder: MixerSize,
        decoder: MixerSize,
        modulation_channels: int,
        modulation_blocks: int,
        mixer: MixerSize,
        unit: float = 1.0,
        joints: int = 17,
        feature_stride: int = 32,
        guidance: int = 0,
    ) -> None:
        super().__init__()
        self.feature_stride = feature_stride
        self.input_size = input_size
        self.modulation = (modulation_channels, modulation_blocks)
        self.mixer = mixer
        self.tokens = tokens
        self.entries = entries
        self.tokenizer = Tokenizer(
            joints, tokens, entries, dimension, encoder, decoder, unit=unit, guidance=guidance
        )

    def head(self, channels: int, joints: int) -> PCTHead | MapReader:
        """A fresh head for features of that many channels."""
        if self.feature_stride < 32:
            return MapReader(channels, joints, self.feature_stride, self.tokenizer)
        width, height = (size // self.feature_stride for size in self.input_size)
        return PCTHead(
            channels, (width, height), self.tokens, self.entries, *self.modulation, self.mixer
        )

    def loss(self, raw: Tensor, keypoints: Tensor, labelled: Tensor) -> Tensor:
        """Stage II's training loss of token logits for keypoints in input pixels."""
        return classifier_loss(raw, self.tokenizer, keypoints, labelled)

    def decode(self, raw: Tensor) -> Tensor:
        """`(N, K, 3)` in input pixels; see `decode_with_spread`."""
        return decode_with_spread(raw, self.tokenizer)

    def explain(self, raw: Tensor) -> dict[str, Tensor]:
        """The tokens of each pose.

        Returns:
            `tokens` `(N, M)`, the likeliest entry of each, `probabilities` `(N, M)`, that entry's,
            and `moves` `(N, M, K)`, see `token_moves`.
        """
        probabilities, tokens = raw.softmax(-1).max(-1)
        moves = token_moves(raw, self.tokenizer)
        return {"tokens": tokens, "probabilities": probabilities, "moves": moves}
