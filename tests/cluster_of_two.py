"""Two replicas of posemux on Ray Serve, with a pipeline that reads its answers off the pixels.

    python -m tests.cluster_of_two PORT FOLDER

says `ready` when they are, and ends with its standard input.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import ray
from ray import serve

from app import cluster
from app.settings import Settings
from tests.app.api_support import FakePipeline

TRACED = find_spec("opentelemetry.exporter") is not None


def main(port: int, folder: Path) -> None:
    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80 * 2**20,
        _temp_dir=str(folder),
        log_to_driver=False,
    )
    serve.start("EveryNode", {"host": "127.0.0.1", "port": port})
    # Where nobody collects them spans are lost, and the log names their trace all the same.
    settings = Settings(log_format="json", max_queue=16, traces=TRACED)
    two = cluster.bind(settings, cluster.Replicas(2, 2), build=lambda *_: FakePipeline())
    serve.run(two, name=cluster.NAME)
    print("ready", flush=True)
    sys.stdin.read()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
