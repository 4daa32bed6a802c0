"""Poses, latents and motions, as torch functions that also export to ONNX.

state   (…, 5): agent x, y, T x, y (centre of gravity), angle; environment units and radians
latent  (…, 6): the same as ((agent − 256) / 256, (T − 256) / 256, cos angle, sin angle)
motion  (…, 5): what one action changes: agent Δ in the world's axes, T Δ in the T's own axes, Δangle,
                divided by MOTION_SCALE; this is the variable that the dynamics model denoises
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

CENTER = 256.0
#: Middle between the walls at 5 and 506; the mirror axis of the world.
WALL_LOW, WALL_HIGH = 5.0 + 2.0, 506.0 - 2.0
MIRROR = 255.5
AGENT_RADIUS = 15.0
MOTION_SCALE = (12.0, 12.0, 6.0, 6.0, 0.08)
#: The T as two boxes about its centre of gravity: (x low, y low, x high, y high).
T_BOXES = ((-60.0, -45.0, 60.0, -15.0), (-15.0, -15.0, 15.0, 75.0))
T_CORNERS = ((-60.0, -45.0), (60.0, -45.0), (60.0, -15.0), (-60.0, -15.0), (15.0, 75.0), (-15.0, 75.0))


def latent_from_state(state: Tensor) -> Tensor:
    angle = state[..., 4:5]
    return torch.cat([(state[..., :4] - CENTER) / CENTER, torch.cos(angle), torch.sin(angle)], -1)


def state_from_latent(latent: Tensor) -> Tensor:
    angle = torch.atan2(latent[..., 5:6], latent[..., 4:5])
    return torch.cat([latent[..., :4] * CENTER + CENTER, angle], -1)


def into_frame(vector: Tensor, latent: Tensor) -> Tensor:
    """World vector (…, 2) -> the same in the T's axes."""
    c, s = latent[..., 4:5], latent[..., 5:6]
    x, y = vector[..., 0:1], vector[..., 1:2]
    return torch.cat([c * x + s * y, c * y - s * x], -1)


def out_of_frame(vector: Tensor, latent: Tensor) -> Tensor:
    c, s = latent[..., 4:5], latent[..., 5:6]
    x, y = vector[..., 0:1], vector[..., 1:2]
    return torch.cat([c * x - s * y, s * x + c * y], -1)


def motion_between(before: Tensor, after: Tensor) -> Tensor:
    """latents (…, 6), (…, 6) -> motion (…, 5)."""
    agent = (after[..., 0:2] - before[..., 0:2]) * CENTER
    block = into_frame((after[..., 2:4] - before[..., 2:4]) * CENTER, before)
    c, s = before[..., 4:5], before[..., 5:6]
    c2, s2 = after[..., 4:5], after[..., 5:6]
    # Half-angle form: finite for the all-zero latents of frames not generated yet, and one Atan in ONNX.
    turn = 2.0 * torch.atan((s2 * c - c2 * s) / (1.0 + c2 * c + s2 * s + 1e-6))
    return torch.cat([agent, block, turn], -1) / before.new_tensor(MOTION_SCALE)


def move(latent: Tensor, motion: Tensor) -> Tensor:
    """latent (…, 6) after motion (…, 5); the inverse of `motion_between`."""
    motion = motion * latent.new_tensor(MOTION_SCALE)
    agent = latent[..., 0:2] + motion[..., 0:2] / CENTER
    block = latent[..., 2:4] + out_of_frame(motion[..., 2:4], latent) / CENTER
    c, s = latent[..., 4:5], latent[..., 5:6]
    dc, ds = torch.cos(motion[..., 4:5]), torch.sin(motion[..., 4:5])
    c2, s2 = c * dc - s * ds, s * dc + c * ds
    norm = torch.sqrt(c2 * c2 + s2 * s2 + 1e-12)
    return torch.cat([agent, block, c2 / norm, s2 / norm], -1)


def box_offsets(point: Tensor) -> Tensor:
    """Point in the T's frame (…, 2) -> for each box the vector from its nearest surface point (…, 2 boxes, 2)."""
    rows = []
    for x0, y0, x1, y1 in T_BOXES:
        nearest = torch.stack([point[..., 0].clamp(x0, x1), point[..., 1].clamp(y0, y1)], -1)
        rows.append(point - nearest)
    return torch.stack(rows, -2)


def box_distances(point: Tensor) -> Tensor:
    """Signed distance of a point in the T's frame to each of its boxes (…, 2), negative inside."""
    rows = []
    for x0, y0, x1, y1 in T_BOXES:
        dx = (point[..., 0] - (x0 + x1) / 2).abs() - (x1 - x0) / 2
        dy = (point[..., 1] - (y0 + y1) / 2).abs() - (y1 - y0) / 2
        outside = torch.sqrt(dx.clamp(min=0) ** 2 + dy.clamp(min=0) ** 2 + 1e-6)
        rows.append(outside + torch.maximum(dx, dy).clamp(max=0))
    return torch.stack(rows, -1)


def corner_wall_distances(latent: Tensor) -> Tensor:
    """Distance of each corner of the T to each wall, units (…, 6 corners, 4 walls)."""
    corners = latent.new_tensor(T_CORNERS)
    c, s = latent[..., None, 4], latent[..., None, 5]
    x = latent[..., None, 2] * CENTER + CENTER + c * corners[:, 0] - s * corners[:, 1]
    y = latent[..., None, 3] * CENTER + CENTER + s * corners[:, 0] + c * corners[:, 1]
    return torch.stack([x - WALL_LOW, WALL_HIGH - x, y - WALL_LOW, WALL_HIGH - y], -1)


def symmetry(latents: Tensor, actions: Tensor, turn: int, mirror: bool) -> tuple[Tensor, Tensor]:
    """One of the eight symmetries of the square world (the T is its own mirror image).

    latents (B, N + 1, 6), actions (B, N, 2) in units; `turn` quarter turns after an optional mirror in x.
    """
    shift = (MIRROR - CENTER) / CENTER
    agent, block, axis = latents[..., 0:2] - shift, latents[..., 2:4] - shift, latents[..., 4:6]
    actions = actions - MIRROR
    if mirror:
        flip = latents.new_tensor([-1.0, 1.0])
        # The T's axis of symmetry is its y: R(angle) (u, v) mirrored is R(−angle) (−u, v).
        agent, block, actions, axis = agent * flip, block * flip, actions * flip, axis * latents.new_tensor([1.0, -1.0])
    for _ in range(turn % 4):
        agent, block, actions, axis = (torch.stack([-v[..., 1], v[..., 0]], -1) for v in (agent, block, actions, axis))
    return torch.cat([agent + shift, block + shift, axis], -1), actions + MIRROR


def degrees_between(a: Tensor, b: Tensor) -> Tensor:
    """Angle between two states' Ts (…,), degrees, 0 … 180."""
    difference = a[..., 4] - b[..., 4]
    return torch.atan2(torch.sin(difference), torch.cos(difference)).abs() * (180.0 / math.pi)
