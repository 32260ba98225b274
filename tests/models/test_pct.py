from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from models import heatmap, pct

from .conftest import SHARED, Golden

TINY = pct.Tokenizer(17, 6, 20, 12, pct.MixerSize(2, 16, 16, 8), pct.MixerSize(1, 8, 16, 8))


def released_tiny(golden: Golden) -> tuple[pct.Tokenizer, dict[str, torch.Tensor]]:
    """A small tokenizer with the fixture's weights, and the fixture's arrays."""
    arrays = {key: torch.tensor(value) for key, value in golden("pct_official").items()}
    TINY.load_state_dict(
        {key[len("tiny/w/") :]: value for key, value in arrays.items() if key.startswith("tiny/w/")}
    )
    return TINY, arrays


def test_tokenizer_losses_and_gradients_agree_with_the_authors(golden: Golden) -> None:
    tokenizer, arrays = released_tiny(golden)
    keypoints, visible = arrays["joints"][..., :2], arrays["joints"][..., 2]
    tokenized = tokenizer(keypoints, visible)
    np.testing.assert_allclose(tokenized.keypoints.detach(), arrays["tiny/recovered"], atol=1e-4)
    np.testing.assert_array_equal(tokenized.tokens.flatten(), arrays["tiny/indices"])
    joint = pct.joint_loss(tokenized.keypoints, keypoints, visible)
    assert joint.item() == pytest.approx(arrays["tiny/joint_loss"].item(), rel=1e-5)
    total = pct.tokenizer_loss(tokenized, keypoints, visible)
    expected = (arrays["tiny/joint_loss"] + arrays["tiny/e_latent_loss_x15"]).item()
    assert total.item() == pytest.approx(expected, rel=1e-5)
    tokenizer.zero_grad()
    total.backward()
    for name in ("start_embed", "token_mlp", "feature_embed", "recover_embed"):
        gradient = tokenizer.get_submodule(name).weight.grad
        expected_gradient = arrays[f"tiny/grad/{name}.weight"]
        scale = expected_gradient.abs().max().item()
        np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5 * scale)


def test_joint_loss_agrees_with_the_authors(golden: Golden) -> None:
    arrays = golden("pct_official")
    predicted, visible = torch.tensor(arrays["s1/pred"]), torch.tensor(arrays["joints"])[..., 2]
    # The fixture's predictions are offsets from the joints that they are measured against.
    value = pct.joint_loss(predicted, torch.zeros_like(predicted), visible)
    assert value.item() == pytest.approx(float(arrays["s1/loss"]), rel=1e-5)


def test_codebook_step_agrees_with_the_authors(golden: Golden) -> None:
    tokenizer, arrays = released_tiny(golden)
    tokenized = tokenizer(arrays["joints"][..., :2], arrays["joints"][..., 2])
    tokenizer.update_codebook(tokenized.features, tokenized.tokens)
    for name in ("codebook", "ema_cluster_size", "ema_w"):
        np.testing.assert_allclose(
            tokenizer.get_buffer(name), arrays[f"tiny/{name}_after"], rtol=1e-5, atol=1e-6
        )


def test_full_size_tokenizer_agrees_with_the_authors(
    golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = golden("pct_official")
    monkeypatch.syspath_prepend(str(SHARED / "reference" / "fixtures"))
    import procw

    tokenizer = procw.fill(pct.Tokenizer()).eval()
    joints = torch.tensor(arrays["joints"])
    with torch.inference_mode():
        tokenized = tokenizer(joints[..., :2], joints[..., 2])
        decoded = pct.decode(torch.tensor(procw.inp(10, (2, 34, 2048))) * 3, tokenizer)
    np.testing.assert_allclose(tokenized.keypoints, arrays["tok_woimg/recovered"], atol=1e-4)
    np.testing.assert_array_equal(tokenized.tokens.flatten(), arrays["tok_woimg/indices"])
    np.testing.assert_allclose(decoded[..., :2], arrays["dec/joints"], atol=1e-4)


def test_image_guided_tokenizer_agrees_with_the_authors(
    golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = golden("pct_official")
    monkeypatch.syspath_prepend(str(SHARED / "reference" / "fixtures"))
    import procw

    tokenizer = procw.fill(pct.Tokenizer(guidance=1024)).eval()
    joints = torch.tensor(arrays["joints"])
    features = torch.tensor(procw.inp(9, (2, 17, 1024)))
    with torch.inference_mode():
        tokenized = tokenizer(joints[..., :2], joints[..., 2], features)
    np.testing.assert_allclose(tokenized.keypoints, arrays["tok_img/recovered"], atol=1e-4)
    np.testing.assert_array_equal(tokenized.tokens.flatten(), arrays["tok_img/indices"])
    with pytest.raises(ValueError, match="need features at the joints"):
        tokenizer(joints[..., :2], joints[..., 2])
    with pytest.raises(ValueError, match="only they"):
        TINY(joints[..., :2], joints[..., 2], features)


def test_features_are_read_at_the_nearest_place() -> None:
    features = torch.arange(24.0).view(1, 2, 3, 4)
    joints = torch.tensor([[[0.0, 0.0], [15.9, 16.0], [95.0, 40.0], [-70.0, 500.0]]])
    read = pct.features_at(features, joints)
    assert read[..., 0].tolist() == [[0, 4, 7, 8]]
    assert torch.equal(read[..., 1], read[..., 0] + 12)


def test_stage_two_loss_is_entropy_plus_distance() -> None:
    torch.manual_seed(0)
    tokenizer = TINY.eval()
    keypoints, visible = 100 * torch.rand(3, 17, 2), torch.ones(3, 17)
    tokens = tokenizer(keypoints, visible).tokens
    certain = 50.0 * functional.one_hot(tokens, 20)
    recovered = tokenizer.decode(tokenizer.codebook[tokens])
    distance = pct.joint_loss(recovered, keypoints, visible)
    loss = pct.classifier_loss(certain, tokenizer, keypoints, visible)
    torch.testing.assert_close(loss, distance, atol=1e-3, rtol=1e-4)
    wrong = certain.roll(1, -1)
    assert pct.classifier_loss(wrong, tokenizer, keypoints, visible) > loss + 20


def test_hidden_joints_leave_no_trace_in_the_tokens() -> None:
    keypoints, visible = 100 * torch.rand(2, 17, 2), torch.ones(2, 17)
    visible[:, 5] = 0
    moved = keypoints.clone()
    moved[:, 5] += 50
    with torch.inference_mode():
        torch.testing.assert_close(TINY.encode(keypoints, visible), TINY.encode(moved, visible))


def test_dead_entries_are_revived_and_live_ones_kept() -> None:
    tokenizer = pct.Tokenizer(
        17, 6, 20, 12, pct.MixerSize(1, 16, 16, 8), pct.MixerSize(1, 8, 16, 8)
    )
    tokenizer.ema_cluster_size.fill_(5.0)
    tokenizer.ema_cluster_size[7] = 0.0
    before = tokenizer.codebook.clone()
    features = torch.full((2, 6, 12), 3.0)
    assert tokenizer.revive(features, threshold=0.5) == 1
    assert (tokenizer.codebook[7] == 3.0).all()
    kept = torch.arange(20) != 7
    torch.testing.assert_close(tokenizer.codebook[kept], before[kept])


def test_the_unit_changes_what_layers_see_not_what_comes_out() -> None:
    coarse = pct.Tokenizer(
        17, 6, 20, 12, pct.MixerSize(1, 16, 16, 8), pct.MixerSize(1, 8, 16, 8), unit=64
    )
    fine = pct.Tokenizer(17, 6, 20, 12, pct.MixerSize(1, 16, 16, 8), pct.MixerSize(1, 8, 16, 8))
    fine.load_state_dict(coarse.state_dict())
    keypoints, visible = 200 * torch.rand(2, 17, 2), torch.ones(2, 17)
    with torch.inference_mode():
        torch.testing.assert_close(
            coarse(keypoints, visible).keypoints, 64 * fine(keypoints / 64, visible).keypoints
        )


def test_the_released_score_agrees_with_the_authors(golden: Golden) -> None:
    arrays = golden("pct_official")
    top = torch.tensor(arrays["head/encoding_scores"])[:, :, 0]
    logits = torch.full((*top.shape, 2048), -50.0)
    logits[..., 3] = top
    tokenizer = pct.Tokenizer().eval()
    with torch.inference_mode():
        decoded = pct.decode(logits, tokenizer)
    np.testing.assert_allclose(decoded[..., 2:], arrays["head/score_pose"], rtol=1e-5)


def test_certain_tokens_score_one_and_undecided_ones_little() -> None:
    tokens = torch.arange(6)[None]
    with torch.inference_mode():
        certain = pct.decode_with_spread(100.0 * functional.one_hot(tokens, 20), TINY)
        undecided = pct.decode_with_spread(torch.zeros(1, 6, 20), TINY)
    torch.testing.assert_close(certain[..., 2], torch.ones(1, 17))
    # Twenty entries of equal probability, and joints that move besides.
    assert (undecided[..., 2] < 1 / 20).all()


def test_doubt_lowers_the_score_of_the_joints_that_it_moves() -> None:
    torch.manual_seed(0)
    tokenizer = pct.Tokenizer(17, 6, 20, 12, pct.MixerSize(1, 16, 16, 8), pct.MixerSize(0, 8, 8, 8))
    with torch.no_grad():
        # Token 2 is all that joints 9 and 10 are read from, and nothing else reads it.
        tokenizer.decoder_token_mlp.weight[:, 2] = 0
        tokenizer.decoder_token_mlp.weight[9:11] = 0
        tokenizer.decoder_token_mlp.weight[9:11, 2] = 3
    logits = 100.0 * functional.one_hot(torch.arange(6)[None], 20)
    logits[:, 2] = 0
    with torch.inference_mode():
        scores = pct.decode_with_spread(logits, tokenizer)[0, :, 2]
        again = pct.decode_with_spread(logits, tokenizer)[0, :, 2]
    torch.testing.assert_close(scores, again)
    others = torch.cat((scores[:9], scores[11:]))
    torch.testing.assert_close(others, others[:1].expand(15))
    assert scores[9:11].max() < 0.9 * others[0]


def test_a_spread_keeps_the_pose_that_is_decoded() -> None:
    logits = torch.randn(4, 6, 20, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        plain, scored = pct.decode(logits, TINY), pct.decode_with_spread(logits, TINY)
    torch.testing.assert_close(plain[..., :2], scored[..., :2])
    assert ((scored[..., 2] > 0) & (scored[..., 2] <= 1)).all()


def test_a_map_reader_reads_the_tokens_that_the_tokenizer_would_write() -> None:
    reader = pct.MapReader(17, 17, 4, TINY.eval())
    with torch.no_grad():
        reader.final_layer.weight.copy_(torch.eye(17)[..., None, None])
        reader.final_layer.bias.zero_()  # type: ignore[union-attr]
    joints = 40 + 170 * torch.rand(8, 17, 2, generator=torch.Generator().manual_seed(0))
    maps, _ = heatmap.encode(joints, torch.ones(8, 17), (64, 64))
    with torch.inference_mode():
        logits = reader(maps)
        assert logits.shape == (8, 6, 20)
        expected = TINY.quantise(TINY.encode(joints, torch.ones(8, 17)))
        assert (logits.argmax(-1) == expected).float().mean() > 0.95
        # Fainter maps are read alike, but with less certainty.
        faint = reader(0.6 * maps)
        assert (faint.argmax(-1) == logits.argmax(-1)).all()
        faintly, surely = (pct.decode_with_spread(raw, TINY)[..., 2] for raw in (faint, logits))
        assert (faintly <= surely).all()


def test_map_reader_stays_in_full_precision_under_autocast() -> None:
    torch.manual_seed(0)
    reader = pct.MapReader(17, 17, 4, TINY.eval())
    # What reaches it in mixed precision, so that only its own arithmetic can differ.
    features = torch.rand(2, 17, 64, 64).bfloat16()
    with torch.no_grad():
        reader.final_layer.weight.copy_(torch.eye(17)[..., None, None])
        reader.final_layer.bias.zero_()
        full = reader(features.float())
        with torch.autocast("cpu", torch.bfloat16):
            mixed = reader(features)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, full)


def test_a_token_moves_the_joints_that_hang_on_it() -> None:
    """Of a decoder in which joint j hears of token j alone."""
    tokenizer = pct.Tokenizer(
        6, 6, 20, 12, pct.MixerSize(1, 16, 16, 8), pct.MixerSize(0, 8, 16, 8), unit=10.0
    ).requires_grad_(False)
    tokenizer.decoder_token_mlp.weight[:] = torch.eye(6)
    logits = torch.randn(3, 6, 20)
    moves = pct.token_moves(logits, tokenizer)
    assert moves.shape == (3, 6, 6)
    own = torch.eye(6, dtype=torch.bool).expand(3, 6, 6)
    assert moves[own].min() > 0.1
    np.testing.assert_allclose(moves[~own], 0, atol=1e-4)


def test_a_token_moves_as_far_as_when_replaced_by_hand() -> None:
    tokenizer = TINY.requires_grad_(False)
    logits = torch.randn(2, 6, 20)
    features = logits.softmax(-1) @ tokenizer.codebook
    here = tokenizer.decode(features)
    squares = []
    for entry in range(8):
        replaced = features.clone()
        replaced[:, 4] = tokenizer.codebook[entry * 20 // 8]
        squares.append((tokenizer.decode(replaced) - here).square().sum(-1))
    expected = torch.stack(squares).mean(0).sqrt()
    torch.testing.assert_close(pct.token_moves(logits, tokenizer)[:, 4], expected)
