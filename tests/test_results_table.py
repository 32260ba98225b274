"""The Markdown that benchmarks/results_table.py makes of reports."""

from typing import Any

from benchmarks.results_table import tables


def report(name: str, boxes: str = "gt", **row: Any) -> dict[str, Any]:
    figures = {"AP": 0.1864, "AP_M": -1.0}
    about = {"representation": "dark", "backbone": "resnet50", "input_size": [192, 256]}
    return {
        **{"benchmark": "COCO keypoints", "annotations": "dev.json", "people": 547},
        "settings": {"boxes": boxes, "flip_test": False},
        "models": [{"name": name, **about, **row, "figures": figures}],
    }


def test_models_measured_alike_share_a_table() -> None:
    counted = report("counted", parameters=34_000_000, gmacs=5.43)
    text = tables([report("plain"), report("found", "detector"), counted])
    assert (
        text
        == """\
COCO keypoints, 547 people of dev.json, annotated boxes, flip test off

| method | representation | backbone | input size | params | GMACs | AP | AP_M |
| --- | --- | --- | --- | ---: | ---: | ---: | ---: |
| plain | dark | resnet50 | 256x192 | - | - | 18.6 | - |
| counted | dark | resnet50 | 256x192 | 34.00M | 5.43 | 18.6 | - |

COCO keypoints, 547 people of dev.json, detected boxes, flip test off

| method | representation | backbone | input size | params | GMACs | AP | AP_M |
| --- | --- | --- | --- | ---: | ---: | ---: | ---: |
| found | dark | resnet50 | 256x192 | - | - | 18.6 | - |"""
    )


def test_a_detectors_report_is_a_table_too() -> None:
    text = tables(
        [
            {
                **{"benchmark": "COCO person boxes", "annotations": "dev.json", "people": 9},
                "settings": {"detector_size": 448},
                "models": [{"name": "person-detector", "input_size": 448, "figures": {"AP": 0.5}}],
            }
        ]
    )
    assert text.splitlines()[0] == "COCO person boxes, 9 people of dev.json"
    assert text.splitlines()[-1] == "| person-detector | - | - | 448 | - | - | 50.0 |"
