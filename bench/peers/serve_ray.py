"""Ray Serve, as docs.ray.io/en/latest/serve/advanced-guides/dyn-req-batch.html has it: `@serve.batch` with `max_batch_size`
and `batch_wait_timeout_s` on an async method that takes a list.

From the performance guide (serve/advanced-guides/performance.html): a core reserved for each replica (`num_cpus`),
OMP_NUM_THREADS set, blocking code off the event loop (here a thread of its own: onnxruntime lets go of the GIL), and
`max_ongoing_requests` above the batch, so that the next batch is there when one ends. The HTTP path is Serve's own proxy.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from bench.peers.pipeline import Rollout, parse_rollout, pipeline_from_env

BATCH, WAIT_S = int(os.environ["PEER_BATCH"]), float(os.environ["PEER_WAIT_S"])
PROCESSES, PORT = int(os.environ["PEER_PROCESSES"]), int(os.environ["PEER_PORT"])

OBJECT_STORE_BYTES = 256 << 20


@serve.deployment(num_replicas=PROCESSES, max_ongoing_requests=2 * BATCH, ray_actor_options={"num_cpus": 1},
                  logging_config={"enable_access_log": False})
class Rollouts:
    def __init__(self) -> None:
        self.pipeline = pipeline_from_env()
        self.thread = ThreadPoolExecutor(1)

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT_S)
    async def videos(self, rollouts: list[Rollout]) -> list[bytes]:
        return await asyncio.get_running_loop().run_in_executor(self.thread, self.pipeline.videos, rollouts)

    async def __call__(self, request: Request) -> Response:
        rollout = parse_rollout(await request.json(), self.pipeline.shapes["action_dim"])
        return Response(await self.videos(rollout), media_type="video/mp4")


def main() -> None:
    # The dashboard would cost the replicas processor time. Requests and videos are far below the object store's usual
    # share of memory, which is more than /dev/shm of many containers.
    ray.init(num_cpus=PROCESSES, include_dashboard=False, configure_logging=False, _temp_dir=os.environ["PEER_DIR"],
             object_store_memory=OBJECT_STORE_BYTES)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(Rollouts.bind(), route_prefix="/predict")
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ended.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
