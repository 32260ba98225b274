import os
from pathlib import Path

import pytest

from app.cpus import available, weight_bits


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def tree(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A `/proc` and a `/sys` that say so."""
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("1600000 100000", 8),
        ("", 8),
    ],
)
def test_a_container_of_version_2_has_its_quota(tmp_path, limit, expected):
    files = {"sys/fs/cgroup/cpu.max": f"{limit}\n"}
    assert available(tree(tmp_path, "0::/\n", files)) == expected


def test_the_tightest_of_all_groups_above_counts(tmp_path):
    slices = "sys/fs/cgroup/a.slice"
    files = {
        f"{slices}/cpu.max": "300000 100000\n",
        f"{slices}/b.service/cpu.max": "max 100000\n",
        f"{slices}/other.service/cpu.max": "100000 100000\n",
    }
    assert available(tree(tmp_path, "0::/a.slice/b.service\n", files)) == 3


@pytest.mark.parametrize(("quota", "expected"), [("-1", 8), ("150000", 1), ("400000", 4)])
@pytest.mark.parametrize("group", ["", "docker/0123"], ids=["own top", "seen from outside"])
def test_version_1_has_two_files(tmp_path, group, quota, expected):
    top = f"sys/fs/cgroup/cpu,cpuacct/{group}"
    files = {f"{top}/cpu.cfs_quota_us": f"{quota}\n", f"{top}/cpu.cfs_period_us": "100000\n"}
    groups = "12:memory:/x\n4:cpu,cpuacct:/docker/0123\n1:name=systemd:/y\n0::/z\n"
    assert available(tree(tmp_path, groups, files)) == expected


def test_without_control_groups_affinity_counts(tmp_path, monkeypatch):
    assert available(tmp_path) == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert available(tmp_path) == 2


def test_this_machine_has_cpus():
    assert available() >= 1


@pytest.mark.parametrize(
    ("flags", "bits"), [("avx2 avx512_vnni", 8), ("avx2 avx_vnni", 8), ("avx2 fma", 7), ("avx", 0)]
)
def test_the_kernel_knows_the_instructions(tmp_path, flags, bits):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {flags} sse4_2\n")
    assert weight_bits(tmp_path) == bits
    assert weight_bits(tmp_path / "nowhere") == 0
