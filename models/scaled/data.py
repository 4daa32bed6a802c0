"""Episodes of the PushT world as 128 × 128 video, for training and for measuring.

    python -m models.scaled.data --workdir RUNS --episodes 400

`states` float32 (E, STEPS + 1, 5), `actions` float32 (E, STEPS, 2), `physics` uint8 (E,) in `episodes.npz`, as
models/training makes them; `frames.npy` uint8 (E, STEPS + 1, SIZE, SIZE, 3), read as a memory map.
"""

from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.training.generate_data import HELD_OUT_SEEDS, STEPS, generate_episodes, simulate_episode
from models.training.simulate import Renderer

SIZE = 128
#: A held-out rollout begins here in its episode (by then the agent has usually reached the T), as models/training has it.
WARM_UP, ACTIONS = 20, 48


def render_episode(states: np.ndarray) -> np.ndarray:
    return Renderer(SIZE).render_all(states)


def render_all(workdir: Path, workers: int) -> None:
    target = workdir / "frames.npy"
    states = np.load(workdir / "episodes.npz")["states"]
    shape = (*states.shape[:2], SIZE, SIZE, 3)
    if target.exists() and np.load(target, mmap_mode="r").shape == shape:
        print(f"{target} is there")
        return
    partial, begin = target.with_suffix(".partial"), time.time()
    frames = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
    with ProcessPoolExecutor(workers) as pool:
        for episode, rendered in enumerate(pool.map(render_episode, states)):
            frames[episode] = rendered
            if episode % 20 == 19:
                print(f"frames: {episode + 1}/{len(states)} episodes  {time.time() - begin:.0f} s", flush=True)
    frames.flush()
    os.replace(partial, target)


@dataclass(frozen=True)
class HeldOut:
    actions: np.ndarray  # (E, T, 2) units
    frames: np.ndarray  # (E, T + 1, SIZE, SIZE, 3) uint8


def held_out(count: int, actions: int = ACTIONS, first: int = 0, physics: str = "default") -> HeldOut:
    """Episodes of seeds that training never touches; none is chosen by hand or left out."""
    renderer, moves, frames = Renderer(SIZE), [], []
    for seed in HELD_OUT_SEEDS[first: first + count]:
        states, taken = simulate_episode(seed, physics, "push", WARM_UP + actions)
        frames.append(renderer.render_all(states[WARM_UP:]))
        moves.append(taken[WARM_UP:])
    return HeldOut(np.stack(moves), np.stack(frames))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("models/scaled/runs"))
    parser.add_argument("--episodes", type=int, default=400)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    generate_episodes(args.workdir, args.episodes, args.workers)
    render_all(args.workdir, args.workers)
    print(f"{args.workdir}: {args.episodes} episodes of {STEPS} actions", flush=True)


if __name__ == "__main__":
    main()
