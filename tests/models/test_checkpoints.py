"""Published layouts fit our networks key for key, and give the authors' numbers.

The weights are made up from the published key names by the procedure of the fixtures' README.
"""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from models import pct
from models.checkpoints import rename
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


def generated(layout: str, recipe: str, procw: ModuleType) -> PoseModel:
    """A pose model by that recipe, with weights made up from a published layout's key names."""
    weights = {
        key: torch.from_numpy(np.asarray(procw.proc(key, shape)))
        for key, shape in published_shapes(layout).items()
    }
    with torch.device("meta"):
        model = PoseModel.fresh(card_of(layout, read(recipe).architecture))
    model.module().load_state_dict(rename(weights), assign=True)
    return model.eval()


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
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_published_layout_fits_key_for_key(layout: str) -> None:
    state = without_weights(LAYOUTS[layout]).module().state_dict()
    ours = {key: list(value.shape) for key, value in state.items()}
    published: dict[str, Any] = dict(published_shapes(layout))
    assert rename(published) == ours


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
    ],
)
def test_networks_agree_with_the_authors(
    golden: Golden, procw: ModuleType, fixture: str, name: str, layout: str
) -> None:
    arrays = golden(fixture)
    model = generated(layout, LAYOUTS[layout], procw)
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
