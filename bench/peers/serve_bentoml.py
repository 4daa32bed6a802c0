"""BentoML, as docs.bentoml.com/en/latest/get-started/adaptive-batching.html has it: `@bentoml.api(batchable=True)` with
`max_batch_size` and `max_latency_ms` on a method that takes and gives a list; a client sends a list of one.

`workers` (…/build-with-bentoml/parallelize-requests.html) is the number of processes: one a core. How long a batch waits
is BentoML's own decision, learned from the batches before; `max_latency_ms` is the limit above which it refuses (503), so
it is set so high that nothing is given up in an overload, as nothing is elsewhere. The first batches train the dispatcher,
one request each: the benchmark's warm-up covers them. Videos go back as JSON, because what is batched must be a list.
"""

from __future__ import annotations

import base64
import os

import bentoml
from pydantic import BaseModel

from bench.peers.pipeline import parse_rollout, pipeline_from_env

BATCH, PROCESSES = int(os.environ["PEER_BATCH"]), int(os.environ["PEER_PROCESSES"])
TIMEOUT_S = 3_600
# BentoML asks for more than one request in a batch; without batching, `threads` (1 by default) serves one after the other.
BATCHING = {"batchable": True, "max_batch_size": BATCH, "max_latency_ms": TIMEOUT_S * 1_000} if BATCH > 1 else {}


class Body(BaseModel):
    frame: str
    actions: str
    seed: int
    num_steps: int
    guidance: float
    prompt: str


@bentoml.service(workers=PROCESSES, traffic={"timeout": TIMEOUT_S}, logging={"access": {"enabled": False}},
                 http={"host": "127.0.0.1"})
class Rollouts:
    def __init__(self) -> None:
        self.pipeline = pipeline_from_env()

    @bentoml.api(route="/predict", **BATCHING)
    def predict(self, rollouts: list[Body]) -> list[str]:
        parsed = [parse_rollout(body.model_dump(), self.pipeline.shapes["action_dim"]) for body in rollouts]
        return [base64.b64encode(video).decode() for video in self.pipeline.videos(parsed)]
