"""Who moves the agent in the data.

`push` (the main policy): walk round the T to a random side, then push through it at 8–24 units a step along
a slightly curved line, with some wandering and pausing between. `hop` (a tenth of the training episodes
only): a target that jumps and is held, as a mouse click would be. Both are generators that take the current
state and give the next action, in the environment's units.
"""

from __future__ import annotations

import math
from collections.abc import Generator

import numpy as np

LOW, HIGH = 12.0, 500.0
#: Distance from the T's centre at which walking round it touches nothing (the T reaches 77 + agent 15).
CLEARANCE = 108.0
PUSH_SPEED = (8.0, 24.0)

State = np.ndarray
Actions = Generator[tuple[float, float], State, None]


def clip(value: float) -> float:
    return min(max(value, LOW), HIGH)


def push(rng: np.random.Generator, state: State) -> Actions:
    """`state` (5,): the episode's first state. Yields actions for ever."""
    x, y = float(state[0]), float(state[1])
    while True:
        kind = rng.random()
        if kind < 0.10:
            state, x, y = yield from walk_line(rng, state, x, y, rng.uniform(LOW, HIGH), rng.uniform(LOW, HIGH), 20)
        elif kind < 0.14:
            for _ in range(int(rng.integers(1, 5))):
                state = yield x, y
        else:
            state, x, y = yield from push_once(rng, state, x, y)


def push_once(rng: np.random.Generator, state: State, x: float, y: float):
    for _ in range(8):  # a side of the T that leaves room for the run-up
        heading = rng.uniform(-math.pi, math.pi)
        reach, bearing = 45.0 * math.sqrt(rng.random()), rng.uniform(-math.pi, math.pi)
        aim_x, aim_y = reach * math.cos(bearing), reach * math.sin(bearing)
        runup = rng.uniform(105.0, 135.0)
        start_x, start_y = aim_x - runup * math.cos(heading), aim_y - runup * math.sin(heading)
        if LOW < state[2] + start_x < HIGH and LOW < state[3] + start_y < HIGH:
            break
    state, x, y = yield from walk_round(rng, state, x, y, start_x, start_y)
    speed, turn = rng.uniform(*PUSH_SPEED), rng.normal(0.0, 0.02)
    heading = math.atan2(state[3] + aim_y - y, state[2] + aim_x - x)
    for _ in range(int(rng.uniform(120.0, 340.0) / speed)):
        heading += turn + rng.normal(0.0, 0.03)
        next_x, next_y = clip(x + speed * math.cos(heading)), clip(y + speed * math.sin(heading))
        if (next_x, next_y) == (x, y):
            break
        x, y = next_x, next_y
        state = yield x, y
    return state, x, y


def walk_round(rng: np.random.Generator, state: State, x: float, y: float, goal_x: float, goal_y: float):
    """Walk to T + (goal_x, goal_y), round the T rather than through it."""
    speed = rng.uniform(14.0, 30.0)
    for _ in range(40):
        rx, ry = x - state[2], y - state[3]
        gap = math.hypot(goal_x - rx, goal_y - ry)
        if gap < speed:
            x, y = clip(state[2] + goal_x), clip(state[3] + goal_y)
            state = yield x, y
            break
        away = math.hypot(rx, ry) + 1e-6
        dx, dy = (goal_x - rx) / gap, (goal_y - ry) / gap
        nearest = min(max(-(rx * dx + ry * dy), 0.0), gap)
        if math.hypot(rx + nearest * dx, ry + nearest * dy) < CLEARANCE - 12.0:
            side = 1.0 if rx * goal_y - ry * goal_x > 0 else -1.0
            out = max(-1.0, min(1.0, (CLEARANCE - away) / 25.0))
            dx, dy = -side * ry / away + out * rx / away, side * rx / away + out * ry / away
            norm = math.hypot(dx, dy) + 1e-6
            dx, dy = dx / norm, dy / norm
        x, y = clip(x + speed * dx), clip(y + speed * dy)
        state = yield x, y
    return state, x, y


def walk_line(rng: np.random.Generator, state: State, x: float, y: float, to_x: float, to_y: float, most: int):
    """Straight on, through the T if it stands there."""
    speed = rng.uniform(*PUSH_SPEED)
    for _ in range(most):
        gap = math.hypot(to_x - x, to_y - y)
        if gap < speed:
            break
        x, y = clip(x + speed * (to_x - x) / gap), clip(y + speed * (to_y - y) / gap)
        state = yield x, y
    return state, x, y


def hop(rng: np.random.Generator, state: State) -> Actions:
    """A target that jumps (often to the T) and is held for a few steps."""
    while True:
        if rng.random() < 0.5:
            x, y = state[2] + rng.normal(0.0, 60.0), state[3] + rng.normal(0.0, 60.0)
        else:
            x, y = state[0] + rng.normal(0.0, 90.0), state[1] + rng.normal(0.0, 90.0)
        x, y = min(max(x, 0.0), 512.0), min(max(y, 0.0), 512.0)
        for _ in range(int(rng.integers(1, 9))):
            state = yield x, y


POLICIES = {"push": push, "hop": hop}
