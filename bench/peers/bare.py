"""The ceiling: the same batches without any server, as fast as one process can; prints JSON.

    python -m bench.peers.bare --body request.json --batch 8 --seconds 10 --processes 1 [--mp4]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from dataclasses import replace
from pathlib import Path

from bench.peers.pipeline import Rollout, parse_rollout, pipeline_from_env


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--body", type=Path, required=True, help="JSON list of request bodies")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--mp4", action="store_true")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(options.processes)
    with context.Pool(options.processes, initializer=set_barrier, initargs=(together,)) as pool:
        rates = pool.map(work, [options] * options.processes, chunksize=1)
    print(json.dumps({"rollouts_per_s": sum(rates)}))


def set_barrier(barrier) -> None:
    global together
    together = barrier


def work(options: argparse.Namespace) -> float:
    """Rollouts a second of this process: whole batches over the time they took."""
    pipeline = pipeline_from_env()
    bodies = json.loads(options.body.read_text())
    templates = [parse_rollout(body, pipeline.shapes["action_dim"]) for body in bodies]

    def run(first_seed: int) -> None:
        batch: list[Rollout] = [replace(templates[(first_seed + i) % len(templates)], seed=first_seed + i)
                                for i in range(options.batch)]
        if options.mp4:
            pipeline.videos(batch)
        else:
            pipeline.dream(batch, lambda index, frames: None)

    run(0)  # warm
    together.wait()
    started, done = time.perf_counter(), 0
    while done == 0 or time.perf_counter() - started < options.seconds:
        run(done + 1)
        done += options.batch
    return done / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
