"""Ray Serve with `@serve.batch`, as its documentation shows."""

from __future__ import annotations

import os
import sys
from typing import Any

import orjson

# Ray reads these while it is imported. Its agents import a lot, and on two cores miss the few
# seconds that a node gives them to report.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(max_ongoing_requests=100, ray_actor_options={"num_cpus": 1})
class Poses:
    def __init__(self) -> None:
        from benchmarks.servers.parts import Detector, Estimator

        self.detector, self.estimator = Detector(), Estimator()

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.005)
    async def estimate(self, inputs: list[tuple[bytes, str | None]]) -> list[dict[str, Any]]:
        from benchmarks.servers.parts import decode, estimate_batch, given

        photos = [(decode(photo), given(boxes)) for photo, boxes in inputs]
        return estimate_batch(self.detector, self.estimator, photos)

    async def __call__(self, request: Request) -> Response:
        if request.method == "GET":
            return Response("ready")
        body = await self.estimate((await request.body(), request.query_params.get("boxes")))
        return Response(orjson.dumps(body), media_type="application/json")


if __name__ == "__main__":
    # One of its own, whatever other Ray there is on the machine.
    ray.init(
        "local",
        include_dashboard=False,
        object_store_memory=256 * 2**20,
        configure_logging=False,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Poses.bind(), route_prefix="/", blocking=True)
