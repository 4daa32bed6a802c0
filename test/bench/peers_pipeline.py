"""The peers' pipeline against the golden rollouts, each in a batch with rollouts of other seeds, lengths and steps.

    python test/bench/peers_pipeline.py    (from the repository's root)
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path.cwd()))
from bench.peers.pipeline import Pipeline, Rollout

GOLDEN = Path("test/golden")


def read_rgb(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB"))


def main() -> None:
    manifest = json.loads((GOLDEN / "manifest.json").read_text())
    pipeline = Pipeline(Path("models") / manifest["bundle"])
    height, chunk = pipeline.shapes["height"], pipeline.shapes["chunk_size"]
    for case in manifest["rollouts"]:
        folder = GOLDEN / case["name"]
        rollout = Rollout(read_rgb(folder / "start_frame.png"), np.load(folder / "actions.npy").astype(np.float32),
                          int(case["seed"]), case["num_steps"], case["guidance"], case["prompt"])
        batch = [replace(rollout, seed=1, actions=rollout.actions[:chunk]), rollout,
                 replace(rollout, seed=2, num_steps=case["num_steps"] + 1, actions=rollout.actions[:2 * chunk])]
        frames: list[list[np.ndarray]] = [[] for _ in batch]
        pipeline.dream(batch, lambda index, part: frames[index].append(part.copy()))
        got = np.concatenate(frames[1])
        want = read_rgb(folder / "frames.png").reshape(-1, height, *got.shape[2:])
        print(json.dumps({"name": case["name"], "frames": [sum(map(len, parts)) for parts in frames],
                          "levels": int(np.abs(got.astype(int) - want.astype(int)).max())}))


main()
