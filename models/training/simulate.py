"""The PushT world: gym-pusht's physics stepped directly, and its own renderer.

Units are the environment's: positions in [0, 512], angles in radians, one step = 0.1 s.
`PushTEnv.step` also computes the coverage of the goal with shapely, which is most of its time and which a
world model does not need; `Simulator.step` runs the same ten physics substeps without it
(`selfcheck.py` compares the two).

The T's pose is the world position of its centre of gravity, (0, 45) in the body's frame, and its angle.
The agent is a *kinematic* body: nothing pushes it back, so its path depends on the actions alone.
"""

from __future__ import annotations

import math
import os

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

import numpy as np
from gym_pusht.envs.pusht import PushTEnv

FRAME_SIZE = 96
SUBSTEPS = 10
DT_S = 0.01
K_V = 20.0
#: The agent's spring constant for each kind of physics that a prompt can select.
K_P = {"default": 100.0, "slow arm": 30.0}
#: y of the centre of gravity in the T's body frame (x is 0).
COG_Y = 45.0


def create_env(frame_size: int = FRAME_SIZE) -> PushTEnv:
    env = PushTEnv(obs_type="pixels", render_mode="rgb_array", observation_width=frame_size,
                   observation_height=frame_size)
    env._setup()
    return env


def place(env: PushTEnv, state: np.ndarray) -> None:
    """Put agent and T at `state` = (agent x, agent y, T x, T y, angle)."""
    ax, ay, x, y, angle = (float(v) for v in state)
    env.agent.position = ax, ay
    env.agent.velocity = 0.0, 0.0
    env.block.angle = angle
    env.block.position = x + math.sin(angle) * COG_Y, y - math.cos(angle) * COG_Y
    env.block.velocity = 0.0, 0.0
    env.block.angular_velocity = 0.0
    env.space.reindex_shapes_for_body(env.agent)
    env.space.reindex_shapes_for_body(env.block)


class Simulator:
    """One world. `reset`, then `step(action)`; `state()` is float64 (5,)."""

    def __init__(self, physics: str = "default"):
        self.env = create_env()
        self.k_p = K_P[physics]

    def reset(self, state: np.ndarray) -> np.ndarray:
        self.env._setup()
        place(self.env, state)
        self.env.space.step(DT_S)
        return self.state()

    def step(self, action: tuple[float, float]) -> np.ndarray:
        """`action`: target position of the agent, held for 0.1 s under the PD controller."""
        agent, space, k_p = self.env.agent, self.env.space, self.k_p
        (px, py), (vx, vy) = agent.position, agent.velocity
        tx, ty = float(action[0]), float(action[1])
        for _ in range(SUBSTEPS):
            vx += (k_p * (tx - px) - K_V * vx) * DT_S
            vy += (k_p * (ty - py) - K_V * vy) * DT_S
            agent.velocity = vx, vy
            space.step(DT_S)
            px, py = px + vx * DT_S, py + vy * DT_S
        return self.state()

    def state(self) -> np.ndarray:
        block = self.env.block
        (ax, ay), (x, y) = self.env.agent.position, block.local_to_world(block.center_of_gravity)
        return np.array([ax, ay, x, y, block.angle])


class Renderer:
    """States to frames, by gym-pusht's own drawing: uint8 RGB (frame_size, frame_size, 3)."""

    def __init__(self, frame_size: int = FRAME_SIZE) -> None:
        self.env = create_env(frame_size)

    def render(self, state: np.ndarray) -> np.ndarray:
        place(self.env, state)
        return np.ascontiguousarray(self.env._render())

    def render_all(self, states: np.ndarray) -> np.ndarray:
        return np.stack([self.render(state) for state in states])
