"""LitServe, as lightning.ai/docs/litserve/features/batching has it: `max_batch_size` and `batch_timeout` of LitAPI, the
list that `decode_request` made goes to `predict`, `encode_response` answers each (here a Response, for a file).

`workers_per_device` is the number of inference processes ("start with 1–4", LitServer's own documentation): one a core.
The HTTP path is LitServe's own (FastAPI on uvicorn, JSON in). `timeout=False`: nothing is given up in an overload, as
nothing is elsewhere.
"""

from __future__ import annotations

import os

import litserve
from fastapi import Response

from bench.peers.pipeline import Rollout, parse_rollout, pipeline_from_env


class RolloutApi(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.pipeline = pipeline_from_env()

    def decode_request(self, request: dict) -> Rollout:
        return parse_rollout(request, self.pipeline.shapes["action_dim"])

    def batch(self, inputs: list[Rollout]) -> list[Rollout]:
        return inputs

    def predict(self, rollouts: list[Rollout] | Rollout) -> list[bytes] | bytes:
        # With max_batch_size 1, LitServe hands over the request itself.
        if isinstance(rollouts, Rollout):
            return self.pipeline.videos([rollouts])[0]
        return self.pipeline.videos(rollouts)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        return output

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type="video/mp4")


if __name__ == "__main__":
    api = RolloutApi(max_batch_size=int(os.environ["PEER_BATCH"]), batch_timeout=float(os.environ["PEER_WAIT_S"]))
    server = litserve.LitServer(api, accelerator="cpu", devices=1, workers_per_device=int(os.environ["PEER_PROCESSES"]),
                                timeout=False)
    server.run(host="127.0.0.1", port=int(os.environ["PEER_PORT"]), log_level="warning", generate_client_file=False)
