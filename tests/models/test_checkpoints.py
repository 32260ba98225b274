"""Published layouts fit our networks key for key, and give the authors' numbers.

The weights are made up from the published key names by the procedure of the fixtures' README.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import models
from models import pct
from models.checkpoints import rename
from models.layouts import identify
from models.pose_model import PoseModel
from models.training.loop import card_of

from .conftest import SHARED, Golden
from .recipes_support import read, without_weights

KEYS = SHARED / "reference" / "keys"


@pytest.fixture(scope="module")
def procw() -> ModuleType:
    """The fixtures' own recipe for weights and inputs."""
    path = SHARED / "reference" / "fixtures"
    if not path.is_dir():
        pytest.skip("the golden numbers of ../shared/reference/fixtures are not here")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path))
        import procw

    return procw


def published_shapes(layout: str) -> dict[str, list[int]]:
    path = KEYS / f"{layout}.json"
    if not path.is_file():
        pytest.skip("the published layouts of ../shared/reference/keys are not here")
    return dict(json.loads(path.read_text()))


def contained(layout: str, weights: dict[str, torch.Tensor]) -> Any:
    """Weights in the container that the layout's authors publish them in."""
    if layout.startswith(("mmpose", "pct")):
        meta = {"dataset_meta": {"sigmas": np.full(17, 0.05, np.float32)}, "epoch": 210}
        return {"meta": meta, "state_dict": weights}
    if layout.startswith("simdr"):
        state = {f"module.{key}": value for key, value in weights.items()}
        return {"epoch": 140, "model": "pose_resnet", "state_dict": state, "perf": np.float64(0.7)}
    return weights


def generated(layout: str, procw: ModuleType, folder: Path) -> PoseModel:
    """A pose model loaded from a file with weights made up from a published layout's key names."""
    weights = {
        key: torch.from_numpy(np.asarray(procw.proc(key, shape)))
        for key, shape in published_shapes(layout).items()
    }
    path = folder / f"{layout}.pth"
    zipped = not layout.startswith("mmpose")
    torch.save(contained(layout, weights), path, _use_new_zipfile_serialization=zipped)
    model = models.load(weights=path)
    path.unlink()
    assert model.card.name == layout
    state, wanted = model.module().state_dict(), rename(weights)
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[key], value) for key, value in wanted.items())
    return model


#: Published layouts and the recipes whose networks they fit.
LAYOUTS = {
    "hrnet_official__coco_w32_256x192": "hrnet-w32-heatmap",
    "hrnet_official__coco_w32_384x288": "hrnet-w32-heatmap@384x288",
    "hrnet_official__mpii_w32_256x256": "hrnet-w32-heatmap@mpii",
    "hrnet_official__coco_w48_256x192": "hrnet-w48-heatmap",
    "hrnet_official__coco_w48_384x288": "hrnet-w48-heatmap@384x288",
    "hrnet_official__coco_res50_256x192": "simba-res50-heatmap",
    "hrnet_official__coco_res101_256x192": "simba-res101-heatmap",
    "hrnet_official__coco_res152_256x192": "simba-res152-heatmap",
    "mmpose__td-hm_hrnet-w32_256x192": "hrnet-w32-heatmap",
    "mmpose__td-hm_hrnet-w32_384x288": "hrnet-w32-heatmap@384x288",
    "mmpose__td-hm_hrnet-w32_dark_256x192": "hrnet-w32-heatmap",
    "mmpose__td-hm_hrnet-w32_udp_256x192": "hrnet-w32-heatmap",
    "mmpose__td-hm_hrnet-w48_256x192": "hrnet-w48-heatmap",
    "mmpose__td-hm_hrnet-w48_dark_256x192": "hrnet-w48-heatmap",
    "mmpose__td-hm_res50_256x192": "simba-res50-heatmap",
    "mmpose__td-hm_res101_256x192": "simba-res101-heatmap",
    "mmpose__td-hm_res152_256x192": "simba-res152-heatmap",
    "mmpose__simcc_mobilenetv2_wo-deconv_256x192": "mobilenetv2-simcc",
    "mmpose__simcc_res50_256x192": "simba-res50-simcc",
    "mmpose__simcc_res50_384x288": "simba-res50-simcc@384x288",
    "simdr_official__coco_nmt_w32_64x64": "hrnet-w32-simcc@equal@64x64",
    "simdr_official__coco_nmt_w32_128x128_split2": "hrnet-w32-simcc@equal@128x128",
    "simdr_official__coco_nmt_w32_256x192": "hrnet-w32-simcc@equal",
    "simdr_official__mpii_norm_w32_256x256_ls2e1": "hrnet-w32-simcc@mpii",
    "simdr_official__sa_mpii_w32_256x256_split2_sigma6": "hrnet-w32-simcc@mpii",
    "simdr_official__coco_nmt_w48_64x64": "hrnet-w48-simcc@equal@64x64",
    "simdr_official__coco_nmt_w48_128x128": "hrnet-w48-simcc@equal@128x128",
    "simdr_official__coco_nmt_w48_256x192": "hrnet-w48-simcc@equal",
    "simdr_official__sa_coco_w48_256x192_split2_sigma4": "hrnet-w48-simcc",
    "simdr_official__sa_coco_w48_384x288_split1_5_sigma4": "hrnet-w48-simcc@384x288@k1.5",
    "simdr_official__coco_nmt_res50_256x192_deconv3_split2": "simba-res50-simcc@equal",
    "simdr_official__coco_nmt_res50_384x288_deconv3": "simba-res50-simcc@equal@384x288",
    "simdr_official__sa_coco_res50_384x288_deconv3_split2_sigma6": "simba-res50-simcc@384x288",
    "simdr_official__coco_nmt_res101_256x192_split_2_ls4e1_deconv3": (
        "simba-res101-simcc@equal@ls0.4"
    ),
    "simdr_official__coco_norm_nmt_res101_384x288_split_2_ls1e1_deconv3": (
        "simba-res101-simcc@equal@384x288"
    ),
    "simdr_official__coco_norm_nmt_res152_384x288": "simba-res152-simcc@equal@384x288",
    "simdr_official__upfree_coco_nmt_res50_64x64_split_3_cpj32": "res50-simcc-upfree@64x64",
    "simdr_official__upfree_coco_nmt_res50_128x128_split_3_cpj32": "res50-simcc-upfree@128x128",
    "simdr_official__upfree_coco_nmt_res50_256x192_split_2_cpj28": "res50-simcc-upfree",
    "pct_official__hmp_base": "swin-base-heatmap",
    "pct_official__hmp_large": "swin-large-heatmap",
    "pct_official__hmp_huge": "swin-huge-heatmap",
    "pct_official__pct_base_woimgguide_classifier": "pct-swin-base",
    "pct_official__pct_base_classifier": "pct-swin-base@guided",
    "pct_official__pct_large_classifier": "pct-swin-large@guided",
    "pct_official__pct_huge_classifier": "pct-swin-huge@guided",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_published_layout_fits_key_for_key(layout: str) -> None:
    state = without_weights(LAYOUTS[layout]).module().state_dict()
    ours = {key: list(value.shape) for key, value in state.items()}
    published: dict[str, Any] = dict(published_shapes(layout))
    assert rename(published) == ours


#: Published layouts that no network of ours has yet.
NOT_YET = {
    "mmpose__rtmpose-t_256x192",
    "mmpose__rtmpose-s_256x192",
    "mmpose__rtmpose-m_256x192",
    "mmpose__rtmpose-m_384x288",
    "mmpose__rtmpose-l_256x192",
    "mmpose__rtmpose-l_384x288",
    "pct_official__pct_base_tokenizer",
    "pct_official__pct_base_woimgguide_tokenizer",
    "pct_official__pct_large_tokenizer",
    "pct_official__pct_huge_tokenizer",
}


def without_numbers(layout: str) -> dict[str, torch.Tensor]:
    shapes = published_shapes(layout)
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def test_every_published_layout_is_covered_or_known_not_to_be() -> None:
    if not KEYS.is_dir():
        pytest.skip("the published layouts of ../shared/reference/keys are not here")
    there = {path.stem for path in KEYS.glob("[!_]*.json")}
    assert there == LAYOUTS.keys() | NOT_YET
    fitting = {name for name in NOT_YET if not identify(without_numbers(name), {}).differences}
    assert not fitting, "these are covered now: they belong into LAYOUTS"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_published_layout_is_identified(layout: str) -> None:
    found = identify(without_numbers(layout), {})
    assert found.differences == ""
    ours, theirs = without_weights(LAYOUTS[layout]).card.architecture, found.architecture
    assert (theirs.backbone, theirs.representation) == (ours.backbone, ours.representation)
    assert theirs.joints == ours.joints
    if ours.representation == "simcc":
        # The head tells the size and k, and mmpose's names how it was trained.
        assert theirs.input_size == ours.input_size
        assert theirs.options["k"] == ours.options["k"]
        assert (theirs.options["smoothing"] == "gaussian") == (
            layout.startswith("mmpose") or "split1_5" in layout
        )
    else:
        assert theirs.options.get("method", "dark") == "dark"


def test_a_name_settles_what_the_keys_leave_open(tmp_path: Path) -> None:
    shapes = published_shapes("mmpose__td-hm_res50_256x192")
    path = tmp_path / "res50.pth"
    torch.save({key: torch.zeros(shape) for key, shape in shapes.items()}, path)
    assert models.load(weights=path).input_size == (192, 256)
    named = models.load("simba-res50-heatmap@384x288@dark", path)
    assert named.input_size == (288, 384)
    assert named.card.scores == "raw"
    with pytest.raises(models.UnknownModelError, match="simba-res9"):
        models.load("simba-res9", path)
    with pytest.raises(
        models.WeightsError,
        match=r"^[^\n]*does not fit res50: \d+ keys, network[^\n]*: nothing in the file, [^\n]*; "
        r"the nearest known layout is simba-res50-heatmap@dark$",
    ):
        models.load("simba-res101-heatmap", path)


@pytest.mark.parametrize(
    ("layout", "name", "bgr", "rule"),
    [
        ("hrnet_official__coco_res50_256x192", None, True, "hrnet"),
        ("hrnet_official__coco_res50_256x192", "simba-res50-heatmap@384x288", True, "hrnet"),
        ("hrnet_official__coco_res50_256x192", "mmpose-res50-256x192", False, "mmpose"),
        ("mmpose__td-hm_res50_256x192", None, False, "mmpose-dark"),
        ("mmpose__td-hm_res50_256x192", "official-res50-256x192", True, "hrnet"),
        ("hrnet_official__coco_w32_256x192", "hrnet-w32-heatmap@darkpose", False, "darkpose"),
        ("mmpose__td-hm_hrnet-w32_udp_256x192", "hrnet-w32-heatmap@udp", False, "mmpose-udp"),
        ("pct_official__hmp_base", None, False, "mmpose-0.x-dark"),
    ],
)
def test_a_file_is_fed_as_its_authors_feed_it(
    layout: str, name: str | None, bgr: bool, rule: str, tmp_path: Path
) -> None:
    """Its card says how, or else the names of its keys whose code wrote it."""
    path = tmp_path / "file.pth"
    # Stored as one number each.
    weights = {
        key: torch.zeros(()).expand(shape) for key, shape in published_shapes(layout).items()
    }
    torch.save(contained(layout, weights), path)
    model = models.load(name, path)
    assert model.bgr == bgr
    assert model.card.profile.reference == rule


def test_a_partial_file_names_what_is_missing_and_the_nearest(tmp_path: Path) -> None:
    shapes = published_shapes("hrnet_official__coco_res50_256x192")
    weights = {key: torch.zeros(shape) for key, shape in shapes.items()}
    del weights["final_layer.bias"]
    weights["final_layer.weight"] = torch.zeros(14, 256, 1, 1)
    torch.save(weights, tmp_path / "part.pth")
    with pytest.raises(
        models.WeightsError,
        match=r"^[^\n]*nearest is simba-res50-heatmap@dark, which differs in 2 keys, "
        r"network\.head\.final_layer\.bias: nothing in the file, \(17,\) wanted; "
        r"network\.head\.final_layer\.weight: \(14, 256, 1, 1\) in the file, "
        r"\(17, 256, 1, 1\) wanted$",
    ):
        models.load(weights=tmp_path / "part.pth")


@pytest.mark.parametrize(
    ("fixture", "name", "layout"),
    [
        ("nets_hrnet_official", "hrnet_w32_256x192", "hrnet_official__coco_w32_256x192"),
        ("nets_hrnet_official", "simba_res50_256x192", "hrnet_official__coco_res50_256x192"),
        ("nets_simcc_official", "simdr_w32_256x192", "simdr_official__coco_nmt_w32_256x192"),
        (
            "nets_simcc_official",
            "simdr_res50_upfree_256x192",
            "simdr_official__upfree_coco_nmt_res50_256x192_split_2_cpj28",
        ),
        (
            "nets_simcc_official",
            "sa_simdr_w48_384x288",
            "simdr_official__sa_coco_w48_384x288_split1_5_sigma4",
        ),
        ("nets_mmpose", "simcc_res50_256x192", "mmpose__simcc_res50_256x192"),
        (
            "nets_mmpose",
            "simcc_mobilenetv2_256x192",
            "mmpose__simcc_mobilenetv2_wo-deconv_256x192",
        ),
    ],
)
def test_networks_agree_with_the_authors(
    golden: Golden, procw: ModuleType, tmp_path: Path, fixture: str, name: str, layout: str
) -> None:
    arrays = golden(fixture)
    model = generated(layout, procw, tmp_path)
    width, height = model.input_size
    crop = torch.from_numpy(procw.inp(123, (1, 3, height, width)))
    with torch.inference_mode():
        raw = model.network(crop)
    if isinstance(raw, tuple):
        assert_close(raw[0], arrays[f"{name}/x"])
        assert_close(raw[1], arrays[f"{name}/y"])
    else:
        assert_close(raw[:, ::4], arrays[f"{name}/heatmap"])


def test_swin_features_agree_with_the_authors(golden: Golden, procw: ModuleType) -> None:
    """The backbone alone: its keys carry no prefix there."""
    layout = {
        key.removeprefix("backbone."): shape
        for key, shape in published_shapes("pct_official__hmp_base").items()
        if key.startswith("backbone.") and not key.endswith(procw.SKIP)
    }
    weights = {key: torch.from_numpy(procw.proc(key, shape)) for key, shape in layout.items()}
    model = PoseModel.fresh(card_of("swin", read("swin-base-heatmap").architecture)).eval()
    model.network.load_state_dict(
        {key.removeprefix("network."): value for key, value in rename(weights).items()},
        strict=False,
    )
    with torch.inference_mode():
        [features] = model.network.backbone(torch.from_numpy(procw.inp(33, (1, 3, 256, 256))))
    assert_close(features[:, ::4], golden("pct_official")["swinb/feat"])


def test_the_papers_classifier_agrees_with_the_authors(golden: Golden, procw: ModuleType) -> None:
    """PCT's head and the soft decoding of its logits; image guidance does not enter into either."""
    arrays = golden("pct_official")
    representation = pct.PCT((256, 256), **options("pct-swin-base"))
    head = representation.head(1024, 17)
    procw.fill(head)
    # There the tokenizer is a part of the head, and its keys say so.
    shapes = representation.state_dict()
    representation.load_state_dict(
        {key: torch.from_numpy(procw.proc(key, value.shape)) for key, value in shapes.items()}
    )
    head.eval(), representation.eval()
    with torch.inference_mode():
        logits = head(torch.from_numpy(procw.inp(21, (2, 1024, 8, 8))))
        decoded = pct.decode(logits, representation.tokenizer)
    assert_close(logits[..., :64], arrays["head/logits_first64"])
    assert_close(logits.amax(-1, keepdim=True), arrays["head/encoding_scores"])
    np.testing.assert_allclose(decoded[..., :2], arrays["head/joints"][..., :2], atol=1e-3)


def options(recipe: str) -> dict[str, Any]:
    table = read(recipe).architecture.options
    return {
        name: pct.MixerSize(**value) if isinstance(value, dict) else value
        for name, value in table.items()
    }


def assert_close(found: torch.Tensor, expected: np.ndarray[Any, Any]) -> None:
    """Within 1e-4 of the expected values' spread, which is the fixtures' tolerance."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * float(np.std(expected)))
