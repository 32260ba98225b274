"""What CPUs there are: how many this process may use, and what they can.

In a container with a quota they are fewer than the host has. PyTorch and OpenVINO count the host's
cores: as many threads in a container that may use one or two of them wait for each other while the
kernel holds them back.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def available(root: Path = Path("/")) -> int:
    """The CPUs that this process may use, by its affinity and its control groups; 1 at least.

    Of a fraction of a CPU nothing is counted: threads that share it would be held back, and the
    threads that decode images need some time too.

    Args:
        root: what `proc` and `sys` are in.
    """
    quotas = [int(quota) for quota in _quotas(root)]
    return max(min([len(os.sched_getaffinity(0)), *quotas]), 1)


def weight_bits(root: Path = Path("/")) -> int:
    """How large weights may be that the CPU multiplies by numbers of eight bits, in bits.

    8 with VNNI, of AVX-512 or AVX. With AVX2 alone 7: sums of two products are cut to sixteen bits
    on the way, which those of larger weights do not fit into. 0 where neither is known of.

    Args:
        root: what `proc` is in.
    """
    words = _read(root / "proc/cpuinfo").split()
    if "avx512_vnni" in words or "avx_vnni" in words:
        return 8
    return 7 if "avx2" in words else 0


def _quotas(root: Path) -> Iterator[float]:
    """The CPU quotas of this process's control group and of all above it, in CPUs.

    A container's own group is mounted as the top, whatever it is called outside: groups that are
    not there are passed over.
    """
    mounted = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        # Documented in cgroups(7): `id:controllers:path`, without controllers in version 2.
        _, controllers, path = line.split(":", 2)
        top = mounted / controllers
        if not controllers:
            # Where both versions are mounted, version 2 lies aside.
            top = mounted / "unified" if (mounted / "unified").is_dir() else mounted
        elif "cpu" not in controllers.split(","):
            continue
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            if controllers:
                quota = _read(folder / "cpu.cfs_quota_us").strip()
                period = _read(folder / "cpu.cfs_period_us").strip()
            else:
                quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
            # Without a limit version 2 says `max` and version 1 says -1.
            if quota.isdecimal() and period.isdecimal():
                yield int(quota) / int(period)
            if folder == top:
                break


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
