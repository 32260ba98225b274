"""What benchmarks/networks.py measures and prints."""

from benchmarks import networks


def test_a_network_is_loaded_elsewhere_and_timed_here() -> None:
    model, path = networks.build("simcc-small")
    loaded = networks.load("simcc-small", model, path)
    # At least its weights in float32.
    assert loaded["megabytes"] > 4e-6 * sum(p.numel() for p in model.network.parameters())
    assert loaded["seconds"] > 0
    times = networks.forward({"simcc-small": model}, runs=1)
    assert all(milliseconds > 0 for milliseconds in times["simcc-small"])
    row = networks.table({"simcc-small": model}, {"simcc-small": loaded}, times).splitlines()[-1]
    assert row.startswith("| simcc-small | 5.22 | 0.40 | ")


def test_reference_figures_stand_in_brackets() -> None:
    model, _ = networks.build("res50-simcc-upfree@equal")
    name = "res50-simcc-upfree@equal"
    loaded = {"seconds": 1.0, "megabytes": 200.0}
    table = networks.table({name: model}, {name: loaded}, {name: [80.04, 500.0]})
    assert table.endswith(
        f"| {name} | 25.69 (25.7) | 4.07 (4.07) | 1.00 | 200 | 80.0 (79.8) | 500.0 (503.9) |"
    )
