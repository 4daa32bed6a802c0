"""Episodes for training and evaluation: states and actions (npz), and rendered frames for the autoencoder.

    python -m models.training.generate_data --workdir RUNS --episodes 20000 --frames 24000

`states` float32 (E, STEPS + 1, 5): agent x, y, T x, y (centre of gravity), angle; environment units.
`actions` float32 (E, STEPS, 2). `physics` uint8 (E,): index into PHYSICS. Training and held-out episodes come
from disjoint seed ranges, asserted here and by `evaluate.py`.
"""

from __future__ import annotations

import argparse
import math
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from models.training.policies import POLICIES
from models.training.simulate import Renderer, Simulator

STEPS = 100
PHYSICS = ("default", "slow arm")
TRAIN_SEEDS = range(0, 1_000_000)
HELD_OUT_SEEDS = range(10_000_000, 10_001_000)
SHARD_EPISODES = 250


def assert_disjoint(train: range, held_out: range) -> None:
    assert train.stop <= held_out.start or held_out.stop <= train.start, "training and held-out seeds overlap"


def first_state(rng: np.random.Generator) -> np.ndarray:
    """T anywhere it fits (a quarter of the time near a wall), agent anywhere clear of it."""
    margin = 60.0 if rng.random() < 0.25 else 110.0
    x, y, angle = rng.uniform(margin, 512 - margin), rng.uniform(margin, 512 - margin), rng.uniform(-math.pi, math.pi)
    while True:
        agent = rng.uniform(20.0, 492.0, size=2)
        if math.hypot(agent[0] - x, agent[1] - y) > 100.0:
            return np.array([agent[0], agent[1], x, y, angle])


def simulate_episode(seed: int, physics: str, policy: str, steps: int = STEPS) -> tuple[np.ndarray, np.ndarray]:
    """-> states (steps + 1, 5), actions (steps, 2); a function of its arguments alone."""
    rng = np.random.default_rng(seed)
    simulator = Simulator(physics)
    state = simulator.reset(first_state(rng))
    states, actions = [state], []
    chooser = POLICIES[policy](rng, state)
    action = next(chooser)
    for _ in range(steps):
        action = (float(np.float32(action[0])), float(np.float32(action[1])))
        actions.append(action)
        state = simulator.step(action)
        states.append(state)
        action = chooser.send(state)
    return np.asarray(states, np.float32), np.asarray(actions, np.float32)


def training_kind(seed: int) -> tuple[str, str]:
    """Physics and policy of a training episode, from its seed: 30 % slow arm, 10 % hops."""
    draw = np.random.default_rng([seed, 1]).random(2)
    return PHYSICS[1] if draw[0] < 0.3 else PHYSICS[0], "hop" if draw[1] < 0.1 else "push"


def simulate_shard(seeds: range) -> dict[str, np.ndarray]:
    states, actions, physics = [], [], []
    for seed in seeds:
        assert seed in TRAIN_SEEDS
        kind, policy = training_kind(seed)
        s, a = simulate_episode(seed, kind, policy)
        states.append(s), actions.append(a), physics.append(PHYSICS.index(kind))
    return {"states": np.stack(states), "actions": np.stack(actions), "physics": np.asarray(physics, np.uint8)}


def generate_episodes(workdir: Path, episodes: int, workers: int) -> None:
    target = workdir / "episodes.npz"
    if target.exists() and len(np.load(target)["physics"]) >= episodes:
        print(f"{target} is there")
        return
    shards = [range(i, min(i + SHARD_EPISODES, episodes)) for i in range(0, episodes, SHARD_EPISODES)]
    begin, parts = time.time(), []
    with ProcessPoolExecutor(workers) as pool:
        for done, part in enumerate(pool.map(simulate_shard, shards), 1):
            parts.append(part)
            print(f"episodes: shard {done}/{len(shards)}  {time.time() - begin:.0f} s", flush=True)
    merged = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    np.savez(target, **merged)


def render_shard(states: np.ndarray) -> np.ndarray:
    return Renderer().render_all(states)


def generate_frames(workdir: Path, frames: int, workers: int) -> None:
    """Frames of states drawn evenly from the training episodes: images uint8 (K, 96, 96, 3), states (K, 5)."""
    target = workdir / "frames.npz"
    if target.exists() and len(np.load(target)["states"]) >= frames:
        print(f"{target} is there")
        return
    states = np.load(workdir / "episodes.npz")["states"].reshape(-1, 5)
    chosen = states[np.random.default_rng(7).choice(len(states), frames, replace=False)]
    begin = time.time()
    with ProcessPoolExecutor(workers) as pool:
        images = np.concatenate(list(pool.map(render_shard, np.array_split(chosen, workers * 4))))
    np.savez(target, states=chosen, images=images)
    print(f"frames: {frames} in {time.time() - begin:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("models/training/runs"))
    parser.add_argument("--episodes", type=int, default=20_000)
    parser.add_argument("--frames", type=int, default=24_000)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    assert_disjoint(TRAIN_SEEDS, HELD_OUT_SEEDS)
    args.workdir.mkdir(parents=True, exist_ok=True)
    generate_episodes(args.workdir, args.episodes, args.workers)
    generate_frames(args.workdir, args.frames, args.workers)


if __name__ == "__main__":
    main()
