"""posemux on a Ray cluster of several nodes, all of them on this machine, while things go wrong.

    python -m benchmarks.cluster scaling killed overload autoscaling update --out runs/cluster

Every node is a network namespace with an address of its own behind a bridge, which takes root and
iproute2; kill -9 of all that is in one is what a power cut is to the others. Every answer is
compared with what the plain service answers. What runs is the real command, `posemux serve`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

import aiohttp
import numpy as np
import psutil
import yaml
from prometheus_client.parser import text_string_to_metric_families

from app.bench.photos import crowd
from app.bench.report import hardware, versions

ROOT = Path(__file__).parents[1]
#: What is removed is gone only a while later: no two runs share names.
BRIDGE = f"pose{os.getpid() % 10_000}"
NET = f"10.{os.getpid() % 256}.77"
HEAD = f"{NET}.2"
PORT = 8000
#: Nodes that compute, with one CPU each.
NODES = ("a", "b", "c")
PEOPLE = (1, 2, 3, 5)
#: What a keypoint may be off, in pixels, where its image was in another batch.
NEAR = 2.0
_PATIENCE = 120.0
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT),
    "RAY_USAGE_STATS_ENABLED": "0",
    # The namespaces are reached from this machine only.
    "RAY_AUTH_MODE": "disabled",
    "OMP_NUM_THREADS": "1",
    "POSE_COMPUTE_THREADS": "1",
    "POSE_DEVICE": "cpu",
    "POSE_MODELS": "simcc-small,dark-small",
    "POSE_LOG_LEVEL": "warning",
}


# ---------------------------------------------------------------------------------------- the nodes


class Node:
    """A network namespace, and what runs in it: a context manager.

    Args:
        name: a short one.
        number: the last part of its address.
    """

    def __init__(self, name: str, number: int) -> None:
        self.name = f"{BRIDGE}-{name}"
        self.address = f"{NET}.{number}"

    def __enter__(self) -> Node:
        inside = f"{self.name}i"
        ip("netns", "add", self.name)
        ip("link", "add", self.name, "type", "veth", "peer", "name", inside)
        ip("link", "set", self.name, "master", BRIDGE, "up")
        ip("link", "set", inside, "netns", self.name)
        for what in (
            ("addr", "add", f"{self.address}/24", "dev", inside),
            ("link", "set", inside, "up"),
            ("link", "set", "lo", "up"),
        ):
            ip("-n", self.name, *what)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        ip("link", "del", self.name)
        ip("netns", "del", self.name)

    def start(
        self, *command: str, log: Path, variables: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Run something in it."""
        with log.open("ab") as out:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, *command],
                env=ENVIRONMENT | dict(variables or {}),
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
            )

    @property
    def processes(self) -> list[psutil.Process]:
        """All that runs in it."""
        found = []
        for pid in ip("netns", "pids", self.name).split():
            with suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(int(pid)))
        return found

    def kill(self) -> None:
        """Kill -9 all of it at once."""
        for process in self.processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        # What was started here is no zombie afterwards.
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass

    @property
    def bytes(self) -> tuple[int, int]:
        """What came in and what went out so far."""
        statistics = Path(f"/sys/class/net/{self.name}/statistics")
        # Seen from outside.
        sent, received = (int((statistics / f"{way}_bytes").read_text()) for way in ("tx", "rx"))
        return sent, received


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, text=True, stdout=subprocess.PIPE).stdout


class Cluster:
    """A head without CPUs for replicas, and nodes of one CPU each: a context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self.head = Node("head", 2)
        self.nodes = {name: Node(name, 11 + n) for n, name in enumerate(NODES)}
        self.url = f"http://{HEAD}:{PORT}"

    def __enter__(self) -> Cluster:
        with ExitStack() as stack:
            ip("link", "add", BRIDGE, "type", "bridge")
            stack.callback(ip, "link", "del", BRIDGE)
            ip("addr", "add", f"{NET}.1/24", "dev", BRIDGE)
            ip("link", "set", BRIDGE, "up")
            stack.enter_context(self.head)
            # The dashboard is ten processes more, which would only be in the way.
            self.ray(
                self.head,
                *("--head", "--port=6379", "--num-cpus=0", "--include-dashboard=false"),
                f"--temp-dir={self._folder}",
            )
            for node in self.nodes.values():
                stack.enter_context(node)
                self.ray(node, f"--address={HEAD}:6379", "--num-cpus=1")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def ray(self, node: Node, *arguments: str) -> None:
        node.start(
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
            *(f"--node-ip-address={node.address}", "--object-store-memory=100000000"),
            *arguments,
            log=self._folder / f"{node.name}.log",
        )
        log = self._folder / f"{node.name}.log"
        _wait(lambda: "runtime started" in log.read_text(errors="replace"), node.name)

    def serve(self, replicas: str, **variables: str) -> float:
        """`posemux serve --cluster`; returns how long it took, in seconds."""
        begin = time.perf_counter()
        command = [sys.executable, "-m", "app.cli", "serve", "--cluster", f"{HEAD}:6379"]
        command += ["--replicas", replicas, "--host", "0.0.0.0", "--port", str(PORT)]
        log = self._folder / "serve.log"
        if self.head.start(*command, log=log, variables=variables).wait(_PATIENCE):
            raise RuntimeError(log.read_text()[-2000:])
        _wait(lambda: _answers(f"{self.url}/readyz"), "the proxy")
        return time.perf_counter() - begin

    def run(self, file: Path) -> None:
        """`serve run` of a configuration, which goes on until the cluster ends."""
        serve = str(Path(sys.executable).with_name("serve"))
        command = (serve, "run", str(file), "--address", f"{HEAD}:6379")
        self.head.start(*command, log=self._folder / "run.log")
        _wait(lambda: _answers(f"{self.url}/readyz"), "the proxy")

    @property
    def replicas(self) -> dict[int, Node]:
        """The processes of all replicas, and their nodes."""
        return {
            process.pid: node
            for node in self.nodes.values()
            for process in node.processes
            if "ServeReplica" in " ".join(_command(process))
        }

    @property
    def ready(self) -> int:
        """How many replicas take requests."""
        return sum(value == 1 for value in self.metric("pose_ready").values())

    @property
    def cpu_seconds(self) -> Counter[str]:
        """What each kind of process has taken of the processor."""
        spent: Counter[str] = Counter()
        for node in (self.head, *self.nodes.values()):
            for process in node.processes:
                with suppress(psutil.NoSuchProcess):
                    kind = " ".join(_command(process)[:1])
                    known = [k for k in ("Proxy", "Controller", "Replica") if k in kind]
                    times = process.cpu_times()
                    spent[known[0].lower() if known else "other"] += times.user + times.system
        return spent

    def metric(self, name: str) -> dict[str, float]:
        """A metric's sum by replica."""
        with _open(f"{self.url}/metrics") as answer:
            families = text_string_to_metric_families(answer.read().decode())
        found: Counter[str] = Counter()
        for sample in (sample for family in families for sample in family.samples):
            if sample.name == name:
                found[sample.labels["replica"]] += sample.value
        return dict(found)


def _command(process: psutil.Process) -> list[str]:
    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return list(process.cmdline())
    return []


def _open(url: str) -> Any:
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10)


def _answers(url: str) -> bool:
    try:
        with _open(url):
            return True
    except OSError:
        return False


def _wait(until: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        with suppress(OSError):
            if until():
                return
        time.sleep(0.2)
    raise TimeoutError(f"waited for {what}")


@contextmanager
def plain(cluster: Cluster) -> Iterator[str]:
    """The plain service on a node's address: its URL."""
    node = cluster.nodes["a"]
    url = f"http://{node.address}:9000"
    command = (sys.executable, "-m", "app.cli", "serve", "--host", node.address, "--port", "9000")
    process = node.start(*command, log=cluster._folder / "plain.log")
    try:
        _wait(lambda: _answers(f"{url}/readyz"), "the plain service")
        yield url
    finally:
        process.terminate()
        process.wait(_PATIENCE)


# ----------------------------------------------------------------------------------------- the load


#: What happens while a load lasts, by the second.
Events = Mapping[float, Callable[[], object]]


class Answer(NamedTuple):
    sent: float
    """In seconds since the load began."""
    seconds: float
    status: str
    """The HTTP status, `connection`, or `wrong` where it is not what the plain service says."""
    people: int
    representation: str
    problem: bool
    """Whether an error is a problem of ours, with Retry-After."""


@dataclass
class Photo:
    body: bytes
    expected: Any = None

    def is_right(self, found: Sequence[Mapping[str, Any]]) -> bool:
        if self.expected is None:
            self.expected = _keypoints(found)
            return True
        own = _keypoints(found)
        return own.shape == self.expected.shape and bool(
            (np.linalg.norm(own - self.expected, axis=-1) < NEAR).all()
        )


def _keypoints(found: Sequence[Mapping[str, Any]]) -> Any:
    return np.array([person["keypoints"] for person in found]).reshape(len(found), -1, 3)[..., :2]


class Load:
    """Photos sent for a while, and all answers."""

    def __init__(self, url: str, photos: Sequence[Photo], query: str = "model=simcc-small") -> None:
        self._url = f"{url}/pose?{query}"
        self._photos = photos
        self.answers: list[Answer] = []

    def closed(
        self,
        clients: int,
        seconds: float,
        events: Mapping[float, Callable[[], object]] | None = None,
    ) -> Load:
        """So many clients who wait for their answers; what happens when, in a thread each."""
        asyncio.run(self._run(clients, None, seconds, events or {}))
        return self

    def open(self, rate: float, seconds: float) -> Load:
        """So many requests a second, whatever is answered."""
        asyncio.run(self._run(0, rate, seconds, {}))
        return self

    async def _run(
        self,
        clients: int,
        rate: float | None,
        seconds: float,
        events: Events,
    ) -> None:
        photos = cycle(self._photos)
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
            begin = time.perf_counter()

            async def happen(moment: float, event: Callable[[], object]) -> None:
                await asyncio.sleep(moment)
                await asyncio.to_thread(event)

            async def client() -> None:
                while time.perf_counter() - begin < seconds:
                    answer = await self._send(http, next(photos), begin)
                    if answer.status != "200":
                        await asyncio.sleep(0.05)

            async def stranger(moment: float) -> None:
                await asyncio.sleep(begin + moment - time.perf_counter())
                await self._send(http, next(photos), begin)

            happening = [asyncio.ensure_future(happen(*event)) for event in events.items()]
            if rate is None:
                await asyncio.gather(*(client() for _ in range(clients)))
            else:
                await asyncio.gather(*(stranger(n / rate) for n in range(int(rate * seconds))))
            await asyncio.gather(*happening)
            self.seconds = time.perf_counter() - begin

    async def _send(self, http: aiohttp.ClientSession, photo: Photo, begin: float) -> Answer:
        sent = time.perf_counter() - begin
        people, representation, ours = 0, "", False
        try:
            headers = {"Content-Type": "image/jpeg"}
            async with http.post(self._url, data=photo.body, headers=headers) as response:
                body, status = await response.read(), str(response.status)
            ours = response.content_type == "application/problem+json"
            ours = ours and "Retry-After" in response.headers
            if status == "200":
                found = json.loads(body)
                people, representation = len(found["predictions"]), found["representation"]
                if not photo.is_right(found["predictions"]):
                    status = "wrong"
        except (aiohttp.ClientError, TimeoutError):
            status = "connection"
        spent = time.perf_counter() - begin - sent
        answer = Answer(sent, spent, status, people, representation, ours)
        self.answers.append(answer)
        return answer

    @property
    def statuses(self) -> dict[str, int]:
        return dict(Counter(answer.status for answer in self.answers))

    @property
    def good(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.status == "200"]

    def people_per_second(self, begin: float = 0.0, end: float | None = None) -> float:
        end = self.seconds if end is None else end
        inside = (a.people for a in self.good if begin <= a.sent + a.seconds < end)
        return sum(inside) / (end - begin)

    def milliseconds(self, percent: float, status: str = "200") -> float | None:
        taken = [answer.seconds for answer in self.answers if answer.status == status]
        return round(1000 * float(np.percentile(taken, percent)), 1) if taken else None

    def recovery(self, moment: float, window: float = 2.0) -> float | None:
        """Seconds from a moment until 90 % of the throughput before it is there again."""
        before = self.people_per_second(moment - 8, moment)
        for end in np.arange(moment + window, self.seconds, 0.5):
            if self.people_per_second(end - window, end) >= 0.9 * before:
                return float(end - moment)
        return None


def photos() -> list[Photo]:
    return [Photo(crowd(people)[0]) for people in PEOPLE]


# -------------------------------------------------------------------------------- what is measured

#: What a part has measured, as it goes along.
Rows = Iterator[dict[str, Any]]


def scaling(cluster: Cluster, seconds: float) -> Rows:
    """People a second by the plain service, by one replica, and by two."""
    sent = photos()
    for what in ("plain", "1", "2"):
        if what == "plain":
            with plain(cluster) as url:
                Load(url, sent).closed(1, 2)
                load = Load(url, sent).closed(8, seconds)
                alone = Load(url, sent).closed(1, seconds / 2)
                row = {"service": "posemux serve", "clients": 8, **_described(load)}
                yield {**row, "p50_alone_ms": alone.milliseconds(50)}
        else:
            cluster.serve(what)
            clients = 8 * int(what)
            Load(cluster.url, sent).closed(clients, 3)
            spent = cluster.cpu_seconds
            load = Load(cluster.url, sent).closed(clients, seconds)
            spent = cluster.cpu_seconds - spent
            each = {k: round(1000 * s / len(load.good), 2) for k, s in spent.items()}
            row = {"service": f"{what} replicas", "clients": clients, **_described(load)}
            alone = Load(cluster.url, sent).closed(1, seconds / 2)
            yield row | {"cpu_ms_per_image": each, "p50_alone_ms": alone.milliseconds(50)}


def killed(cluster: Cluster, seconds: float) -> Rows:
    """kill -9 of a replica, and of a node, under load."""
    sent = photos()
    with plain(cluster) as url:
        Load(url, sent).closed(1, 2)
    for what in ("replica", "node"):
        cluster.serve("2")
        _wait(lambda: cluster.ready == 2, "two replicas")
        pid, node = next(iter(cluster.replicas.items()))

        def strike(pid: int = pid, node: Node = node, what: str = what) -> None:
            if what == "replica":
                os.kill(pid, signal.SIGKILL)
            else:
                node.kill()

        Load(cluster.url, sent).closed(16, 4)
        moment = 10.0
        load = Load(cluster.url, sent).closed(16, moment + seconds, {moment: strike})
        failed = [a for a in load.answers if a.status != "200"]
        row = {"killed": what, "before": round(load.people_per_second(2, moment), 1)}
        row |= {"lowest": round(min(_windows(load, moment)), 1), **_described(load)}
        row |= {"recovered_after_s": load.recovery(moment)}
        row |= {
            "failed_not_in_flight": sum(a.sent > moment + 0.5 for a in failed),
            "last_failure_after_s": max((a.sent + a.seconds - moment for a in failed), default=0),
        }
        row["replicas"] = cluster.ready
        yield row


def _windows(load: Load, moment: float) -> Iterator[float]:
    for end in np.arange(moment + 1, load.seconds - 1, 0.5):
        yield load.people_per_second(end - 1, end)


def overload(cluster: Cluster, seconds: float) -> Rows:
    """Far more than two replicas can do, from strangers who do not wait."""
    sent = photos()
    cluster.serve("2")
    busy = Load(cluster.url, sent).closed(16, 6)
    able = len(busy.good) / busy.seconds
    yield {"load": "closed, 16 clients", **_described(busy)}
    for times in (3, 6):
        depths: list[float] = []
        load = Load(cluster.url, sent)
        load.open(times * able, seconds)
        depths.append(sum(cluster.metric("pose_in_flight").values()))
        refused = [a for a in load.answers if a.status == "503"]
        row = {"load": f"{times} times as much", "sent_per_second": round(times * able, 1)}
        row |= _described(load)
        row |= {
            "p99_ms": load.milliseconds(99),
            "refused_p50_ms": load.milliseconds(50, "503"),
            "refused_p99_ms": load.milliseconds(99, "503"),
            "refused_by_posemux": sum(a.problem for a in refused),
            "in_flight_after": depths[-1],
        }
        yield row


def autoscaling(cluster: Cluster, seconds: float) -> Rows:
    """From one replica to three and back, by the file for `serve deploy` with shorter delays."""
    config = yaml.safe_load((ROOT / "docker/ray-serve.yaml").read_text())
    [application] = config["applications"]
    application["runtime_env"] = {
        "env_vars": {k: v for k, v in ENVIRONMENT.items() if k.startswith("POSE_")}
    }
    [deployment] = application["deployments"]
    deployment["autoscaling_config"] |= {
        **{"min_replicas": 1, "max_replicas": 3, "upscale_delay_s": 3, "downscale_delay_s": 10},
        **{"target_ongoing_requests": 8, "look_back_period_s": 4, "metrics_interval_s": 1},
    }
    config["http_options"] = {"host": "0.0.0.0", "port": PORT}
    file = cluster._folder / "serve.yaml"
    file.write_text(yaml.safe_dump(config))
    cluster.run(file)
    counts: list[tuple[float, int]] = []
    begin = time.perf_counter()

    def watch(until: float) -> None:
        while time.perf_counter() - begin < until:
            counts.append((round(time.perf_counter() - begin, 1), cluster.ready))
            time.sleep(1)

    load = Load(cluster.url, photos()).closed(32, seconds, {0.0: lambda: watch(seconds)})
    loaded = time.perf_counter() - begin
    while time.perf_counter() - begin < loaded + 90 and counts[-1][1] > 1:
        watch(time.perf_counter() - begin + 1)
    changes = [
        {"after_s": at, "replicas": count}
        for (_, before), (at, count) in zip([(0, 0), *counts], counts, strict=False)
        if count != before
    ]
    yield {"load_ends_after_s": round(loaded, 1), "changes": changes, **_described(load)}


def update(cluster: Cluster, seconds: float) -> Rows:
    """Another model in place of the one that is there, under load."""
    cluster.serve("2", POSE_REPRESENTATION="simcc")
    asked = Load(cluster.url, [Photo(photo.body, None) for photo in photos()], "")
    for photo in asked._photos:
        photo.is_right = lambda _: True  # type: ignore[method-assign]  # it changes: that is it
    asked.closed(8, 3)
    asked.answers.clear()
    took: list[float] = []

    def change() -> None:
        took.append(cluster.serve("2", POSE_REPRESENTATION="dark"))

    asked.closed(8, seconds, {5.0: change})
    new = [a.sent for a in asked.good if a.representation == "dark"]
    old = [a.sent for a in asked.good if a.representation == "simcc"]
    row = {"update_took_s": round(took[0], 1), **_described(asked)}
    row |= {
        "first_new_after_s": round(min(new) - 5, 1) if new else None,
        "last_old_after_s": round(max(old) - 5, 1),
        "slowest_ms": asked.milliseconds(100),
    }
    yield row


def traffic(cluster: Cluster, seconds: float) -> Rows:
    """Bytes that an image costs on the network, to the proxy and on to another node."""
    cluster.serve("1")
    [node] = cluster.replicas.values()
    for people in PEOPLE:
        photo = Photo(crowd(people)[0])
        Load(cluster.url, [photo]).closed(4, 2)
        before, proxied = node.bytes, cluster.head.bytes
        load = Load(cluster.url, [photo]).closed(4, seconds)
        into, out = (b - a for a, b in zip(before, node.bytes, strict=True))
        arrived = cluster.head.bytes[0] - proxied[0]
        count = len(load.good)
        yield {
            **{"people": people, "jpeg_bytes": len(photo.body), **_described(load)},
            **{"replica_in": into // count, "replica_out": out // count},
            "head_in": arrived // count,
        }


def offline(cluster: Cluster, seconds: float) -> Rows:
    """`posemux predict --cluster` on a folder; a worker is killed, and then the command."""
    folder = cluster._folder / "photos"
    folder.mkdir()
    for number in range(int(40 * seconds)):
        people = PEOPLE[number % len(PEOPLE)]
        (folder / f"{number:05}-{people}.jpg").write_bytes(crowd(people)[0])
    total = len(list(folder.iterdir()))
    out = cluster._folder / "out"
    command = [sys.executable, "-m", "app.cli", "predict", str(folder), "--format", "coco"]
    command += ["--out", str(out), "--cluster", f"{HEAD}:6379", "--model", "simcc-small"]
    for victim in ("a worker", "the command", None):
        begin = time.perf_counter()
        log = cluster._folder / "predict.log"
        process = cluster.head.start(*command, log=log)
        at = lines = _lines(out)
        while process.poll() is None:
            time.sleep(0.2)
            if victim is not None and _lines(out) >= lines + total // 4:
                at = _lines(out)
                if victim == "the command":
                    process.kill()
                else:
                    workers = [
                        found
                        for node in cluster.nodes.values()
                        for found in node.processes
                        if "MapWorker" in " ".join(_command(found))
                    ]
                    workers[0].kill()
                    _wait(lambda: _lines(out) > total // 2, "half of the pictures")
                    process.kill()
                process.wait()
        row = {"killed": victim, "exit": process.returncode, "answered_before": lines}
        row |= {"when_killed": at if victim else None, "answered": _lines(out)}
        yield {**row, "seconds": round(time.perf_counter() - begin, 1)}
    names = Counter(json.loads(line)["name"] for line in _journal(out))
    results = json.loads(next(out.glob("*.json")).read_text())
    yield {
        **{"pictures": total, "in_journal": len(names), "lines": sum(names.values())},
        "results": len(results) if isinstance(results, list) else len(results["annotations"]),
        "people": sum(PEOPLE[n % len(PEOPLE)] for n in range(total)),
    }


def _journal(out: Path) -> list[str]:
    journal = out / "journal.jsonl"
    return journal.read_text().splitlines()[1:] if journal.exists() else []


def _lines(out: Path) -> int:
    return len(_journal(out))


def _described(load: Load) -> dict[str, Any]:
    return {
        "people_per_second": round(load.people_per_second(), 1),
        "images_per_second": round(len(load.good) / load.seconds, 1),
        "p50_ms": load.milliseconds(50),
        "answers": load.statuses,
    }


PARTS = {
    each.__name__: each
    for each in (scaling, killed, overload, autoscaling, update, traffic, offline)
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--seconds", type=float, default=20.0, help="each load's (20)")
    parser.add_argument("--out", type=Path, default=Path("runs/cluster"))
    options = parser.parse_args()
    # Told to stop, it removes the namespaces all the same.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if os.geteuid():
        parser.error("network namespaces take root")
    options.out.mkdir(parents=True, exist_ok=True)
    # Short: the paths of Ray's sockets may have 107 characters.
    with Cluster(Path(mkdtemp(prefix="pr"))) as cluster:
        for part in options.parts:
            print(f"## {part}", flush=True)
            rows = []
            for row in PARTS[part](cluster, options.seconds):
                print(json.dumps(row), flush=True)
                rows.append(row)
                told = {"hardware": hardware(), "versions": versions(), "rows": rows}
                (options.out / f"{part}.json").write_text(json.dumps(told, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
