"""The Markdown that benchmarks/peers.py makes of what it measured."""

from typing import Any

from benchmarks.peers import CROWDS, markdown


def entry(run: int, peer: str, ours: float, theirs: float) -> dict[str, Any]:
    crowds = {people: 10.0 + 2 * people for people in CROWDS}
    mine = {"people_per_second": ours, "images_per_second": 1.0, "p50_ms": 20.0}
    other = {"people_per_second": theirs, "images_per_second": 1.0, "p50_ms": 30.0}
    grown = {} if peer == "yolo-pose" else crowds
    return {
        **{"run": run, "peer": peer},
        "posemux": mine | {"crowds_ms": crowds},
        "turn": other | {"crowds_ms": grown},
    }


def test_ratios_are_of_the_same_run_and_medians_over_the_runs() -> None:
    # The machine doubles its speed in the second run: the ratios do not see it.
    measured = [
        *(entry(0, "loop", 100, 40), entry(0, "yolo-pose", 110, 100)),
        *(entry(1, "loop", 200, 80), entry(1, "yolo-pose", 210, 200)),
        *(entry(2, "loop", 100, 50), entry(2, "yolo-pose", 100, 100)),
    ]
    told = markdown(measured, "A machine.", {"ray": "it broke"}).splitlines()
    assert told[0] == "A machine."
    assert told[-1] == "Not measured: ray, since it broke."
    [ours] = [line for line in told if line.startswith("| posemux | 105.0")]
    assert ours == "| posemux | 105.0 | 20.0 | 1.00 | 1.00 |"
    [loop] = [line for line in told if "one person at a time | 50.0" in line]
    assert loop.endswith("| 50.0 | 30.0 | 2.50 (2.00 to 2.50) | 1.50 (1.50 to 1.50) |")
    growth = [
        line
        for line in told
        if line.endswith("| 12.0 | 20.0 | 50.0 | 210.0 | 2.00 | 2.00 | 2.00 |")
    ]
    assert len(growth) == 2  # posemux and the loop; YOLO-pose takes no boxes
