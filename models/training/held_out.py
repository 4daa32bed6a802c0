"""The held-out episodes: which they are, and their frames.

Same policy (`push`, 8–24 units a step) and start distribution as training's main policy, seeds from a range
that training never touches. A rollout starts at step WARM_UP of its episode (by then the agent has usually
reached the T) and is 48 actions long. No episode is chosen by hand or left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.training.generate_data import HELD_OUT_SEEDS, TRAIN_SEEDS, assert_disjoint, simulate_episode
from models.training.simulate import Renderer

WARM_UP, ACTIONS = 20, 48


@dataclass(frozen=True)
class HeldOut:
    states: np.ndarray  # (E, 49, 5) units
    actions: np.ndarray  # (E, 48, 2) units
    frames: np.ndarray  # (E, 49, 96, 96, 3) uint8


def held_out_episodes(count: int, physics: str = "default", policy: str = "push", first: int = 0) -> HeldOut:
    assert_disjoint(TRAIN_SEEDS, HELD_OUT_SEEDS)
    renderer, states, actions, frames = Renderer(), [], [], []
    for seed in HELD_OUT_SEEDS[first: first + count]:
        s, a = simulate_episode(seed, physics, policy, WARM_UP + ACTIONS)
        states.append(s[WARM_UP:]), actions.append(a[WARM_UP:])
        frames.append(renderer.render_all(s[WARM_UP:]))
    return HeldOut(np.stack(states), np.stack(actions), np.stack(frames))
