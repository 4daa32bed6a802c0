"""Training windows of the dynamics model: which ones, how often, and how they are disturbed.

A window is CHUNK + 1 states and CHUNK actions of one episode. Windows in which the T moves are drawn four
times as often as the others, and those where it moves along a wall twice as often again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.training.dynamics import ACTION_OFFSET, ACTION_SCALE, CHUNK
from models.training.geometry import CENTER, corner_wall_distances, latent_from_state, symmetry
from models.training.text import tokenize_all

CONTACT_WEIGHT, WALL_WEIGHT = 4.0, 8.0
#: A T corner this far outside a wall (units) means that the agent squeezed it through: not training material.
OUTSIDE_LIMIT = -12.0
NULL_SHARE = 0.10
#: Noise of the conditioning latent, as the frame encoder's error: position (units), angle (radians).
ENCODER_NOISE = (0.4, 0.005)
#: Every prompt that selects a physics; anything unknown means the default, so training shows random strings too.
PROMPTS = (("", "", "", "default", "Default"), ("slow arm", "slow arm", "Slow arm", "slow arm."))


class Windows:
    def __init__(self, workdir: Path):
        data = np.load(workdir / "episodes.npz")
        self.states, self.actions = torch.from_numpy(data["states"]), torch.from_numpy(data["actions"])
        self.physics = torch.from_numpy(data["physics"]).long()
        self.cumulative = torch.cumsum(self.weights(), 0)
        self.starts = self.states.shape[1] - CHUNK
        rng = np.random.default_rng(3)
        strange = ["".join(chr(int(c)) for c in rng.integers(32, 127, rng.integers(1, 24))) for _ in range(64)]
        self.prompts = tokenize_all([None, *PROMPTS[0] * 8, *strange[:10], *PROMPTS[1], *strange[10:]])
        default = 1 + len(PROMPTS[0]) * 8 + 10
        self.prompt_ranges = ((1, default), (default, default + len(PROMPTS[1])))

    def weights(self) -> Tensor:
        """(E · starts,) float64."""
        moved = (self.states[:, 1:, 2:4] - self.states[:, :-1, 2:4]).norm(dim=-1) > 0.1
        walls = torch.cat([corner_wall_distances(latent_from_state(part)).amin((-1, -2)) for part in self.states.split(2000)])
        touching = moved & (walls[:, 1:] < 8.0)
        inside = walls > OUTSIDE_LIMIT
        moved, touching = (x.unfold(1, CHUNK, 1).sum(-1) >= 2 for x in (moved, touching))
        weight = 1.0 + (CONTACT_WEIGHT - 1.0) * moved.double() + (WALL_WEIGHT - CONTACT_WEIGHT) * touching.double()
        return (weight * inside.unfold(1, CHUNK + 1, 1).all(-1)).flatten()

    def draw(self, count: int) -> dict[str, Tensor]:
        """latents (B, N + 1, 6), actions (B, N, 2) normalised, text_ids, text_mask (B, T)."""
        rows = torch.searchsorted(self.cumulative, torch.rand(count, dtype=torch.float64) * self.cumulative[-1])
        episode, start = rows // self.starts, rows % self.starts
        steps = start[:, None] + torch.arange(CHUNK + 1)
        latents = latent_from_state(self.states[episode[:, None], steps])
        actions = self.actions[episode[:, None], steps[:, :-1]]
        eighths = [symmetry(x, a, k % 4, k >= 4) for k, (x, a) in enumerate(zip(latents.chunk(8), actions.chunk(8), strict=True))]
        latents, actions = torch.cat([x for x, _ in eighths]), torch.cat([a for _, a in eighths])
        low, high = (torch.tensor([r[i] for r in self.prompt_ranges])[self.physics[episode]] for i in (0, 1))
        prompt = low + (torch.rand(count) * (high - low)).long()
        prompt = torch.where(torch.rand(count) < NULL_SHARE, torch.zeros_like(prompt), prompt)
        return {"latents": latents, "actions": (actions - ACTION_OFFSET) / ACTION_SCALE,
                "text_ids": self.prompts[0][prompt], "text_mask": self.prompts[1][prompt]}


def disturb(latents: Tensor, position: Tensor, angle: Tensor) -> Tensor:
    """Gaussian noise of `position` units and `angle` radians, each (B, N + 1, 1)."""
    moved = latents[..., :4] + torch.randn_like(latents[..., :4]) * position / CENTER
    turn = torch.randn_like(latents[..., :1]) * angle
    c, s = latents[..., 4:5], latents[..., 5:6]
    return torch.cat([moved, c * torch.cos(turn) - s * torch.sin(turn), s * torch.cos(turn) + c * torch.sin(turn)], -1)


def encoder_noise(latents: Tensor) -> Tensor:
    """The conditioning frame as the encoder sees it; half of the windows also carry noise on later frames."""
    batch, rows = latents.shape[:2]
    level = torch.zeros(batch, rows, 1)
    level[:, 0] = 1.0
    later = (torch.rand(batch, 1, 1) < 0.5).float() * torch.exp(torch.randn(batch, 1, 1) * 0.7 - 1.0)
    level[:, 1:] = later
    return disturb(latents, level * ENCODER_NOISE[0], level * ENCODER_NOISE[1])
