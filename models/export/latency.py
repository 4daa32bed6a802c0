"""Milliseconds a call of every graph, one CPU thread, at a few batch sizes.

    python -m models.export.latency --bundle models/pusht-small
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from models.export.graphs import example_inputs
from models.training.graph_runner import GraphRunner

WARM_UP_CALLS, CALLS = 5, 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("models/pusht-small"))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8])
    args = parser.parse_args()
    runner = GraphRunner(args.bundle)
    print("median (fastest) ms a call, one thread; batch", *args.batches)
    tensors = {batch: {k: v.numpy() for k, v in example_inputs(batch, torch.Generator().manual_seed(0)).items()}
               for batch in args.batches}
    for graph in runner.sessions:
        cells = []
        for batch in args.batches:
            tensors[batch].update(runner.run(graph, tensors[batch]))
            times = []
            for call in range(WARM_UP_CALLS + CALLS):
                begin = time.perf_counter()
                runner.run(graph, tensors[batch])
                if call >= WARM_UP_CALLS:
                    times.append(1e3 * (time.perf_counter() - begin))
            cells.append(f"{np.median(times):8.2f} ({min(times):.2f})")
        print(f"  {graph:14s}", *cells, flush=True)


if __name__ == "__main__":
    main()
