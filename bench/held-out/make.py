"""Rollouts that no training and no evaluation has seen, for the quality gate and the benches.

    PYTHONPATH=. python bench/held-out/make.py          # in an environment with models/training/requirements.txt

Beside this file, for each episode `<seed>.npy` (actions, float32 (48, 2)) and `<seed>-96.png`, `<seed>-128.png` (the same
start frame at the sizes of the two bundles), and `held-out.json` with seeds and prompts. Policy, start distribution and
warm-up are those of models/training/held_out.py; the seeds are from a range of their own.

Every fourth episode has the slow arm's physics, and its prompt. Taken are the first seeds whose T is pushed by
MOVED_MIN or more within the first PUSHED_WITHIN actions: a rollout without contact is easy for every spec, and the larger
bundle dreams only the first chunk or two. Nothing else is chosen or left out.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from models.training.generate_data import HELD_OUT_SEEDS, PHYSICS, TRAIN_SEEDS, assert_disjoint, simulate_episode
from models.training.held_out import ACTIONS, WARM_UP
from models.training.simulate import Renderer

HERE = Path(__file__).parent
SEEDS = range(20_000_000, 20_001_000)
EPISODES, SLOW_ARM_EVERY = 12, 4
SIZES = (96, 128)
#: Units of the environment; the T is some 150 wide.
MOVED_MIN, PUSHED_WITHIN = 20.0, 12


def physics_of(index: int) -> str:
    """Of the episode at this place: the second of every four is slow, so that a short run has one too."""
    return PHYSICS[1] if index % SLOW_ARM_EVERY == 1 else PHYSICS[0]


def moved(states: np.ndarray) -> float:
    """How far the T's centre of gravity goes within the first actions."""
    return float(np.linalg.norm(states[PUSHED_WITHIN, 2:4] - states[0, 2:4]))


def main() -> None:
    assert_disjoint(TRAIN_SEEDS, SEEDS)
    assert_disjoint(HELD_OUT_SEEDS, SEEDS)
    renderers, seeds, episodes = {size: Renderer(size) for size in SIZES}, iter(SEEDS), []
    for old in (*HERE.glob("*.npy"), *HERE.glob("*.png")):
        old.unlink()
    for index in range(EPISODES):
        physics = physics_of(index)
        for seed in seeds:
            states, actions = (part[WARM_UP:] for part in simulate_episode(seed, physics, "push", WARM_UP + ACTIONS))
            if moved(states) >= MOVED_MIN:
                break
        else:
            raise SystemExit(f"only {index} of {EPISODES} episodes with contact in {len(SEEDS)} seeds")
        np.save(HERE / f"{seed}.npy", actions.astype(np.float32))
        for size, renderer in renderers.items():
            Image.fromarray(renderer.render(states[0])).save(HERE / f"{seed}-{size}.png", optimize=True)
        episodes.append({"seed": seed, "prompt": "" if physics == "default" else physics, "t_moved": round(moved(states), 1)})
        print(f"{index + 1}/{EPISODES}: seed {seed}, {physics}, the T moves {moved(states):.0f} units", flush=True)
    write_manifest({"script": "PYTHONPATH=. python bench/held-out/make.py", "seeds_from": SEEDS.start, "actions": ACTIONS,
                    "action_dim": 2, "sizes": SIZES, "episodes": episodes})


def write_manifest(fields: dict) -> None:
    """One line a field and one an episode, as the formatter of the repository has it."""
    episodes = ",\n".join(f"    {{ {json.dumps(episode)[1:-1]} }}" for episode in fields.pop("episodes"))
    heads = "".join(f"  {json.dumps(name)}: {json.dumps(value)},\n" for name, value in fields.items())
    (HERE / "held-out.json").write_text(f'{{\n{heads}  "episodes": [\n{episodes}\n  ]\n}}\n')


if __name__ == "__main__":
    main()
