"""LitServe with batches of requests, as its documentation shows: images are base64 in JSON."""

from __future__ import annotations

import base64
import sys
from typing import Any

import litserve

from benchmarks.servers.parts import Detector, Estimator, decode, estimate_batch, given


class Poses(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.detector, self.estimator = Detector(), Estimator()

    def decode_request(self, request):  # type: ignore[no-untyped-def]
        # LitServe reads annotations as what the body is to be validated by.
        return decode(base64.b64decode(request["image"])), given(request.get("boxes"))

    def batch(self, inputs: list[Any]) -> list[Any]:
        # Images differ in size: what is batched are the detector's inputs and the crops.
        return inputs

    def predict(self, inputs: list[Any]) -> list[dict[str, Any]]:
        return estimate_batch(self.detector, self.estimator, inputs)

    def unbatch(self, outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return outputs

    def encode_response(self, output):  # type: ignore[no-untyped-def]
        return output


if __name__ == "__main__":
    api = Poses(max_batch_size=8, batch_timeout=0.005, api_path="/pose")
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning"
    )
