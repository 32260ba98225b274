"""COCO average precision of keypoints and boxes, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any, Literal

#: COCO's ten keypoint figures, in the order in which pycocotools returns them.
KEYPOINT_FIGURES = ("AP", "AP50", "AP75", "AP_M", "AP_L", "AR", "AR50", "AR75", "AR_M", "AR_L")

#: COCO's first six box figures.
BOX_FIGURES = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L")


def coco_figures(
    annotations: Path,
    results: list[dict[str, Any]],
    kind: Literal["keypoints", "bbox"] = "keypoints",
) -> dict[str, float]:
    """COCO's figures of a results list.

    Args:
        annotations: the ground truth in COCO layout.
        results: COCO results: `image_id`, `category_id`, `score` and `keypoints` or `bbox`.
        kind: what is compared.

    Returns:
        Each figure by its name, in [0, 1]; all 0 where there are no results.

    Raises:
        ModuleNotFoundError: pycocotools, of the extra `eval`, is not installed.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    names = KEYPOINT_FIGURES if kind == "keypoints" else BOX_FIGURES
    if not results:
        return dict.fromkeys(names, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(value) for name, value in zip(names, evaluation.stats, strict=False)}
