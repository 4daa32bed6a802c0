"""Frame -> latent: find the pose coarsely, then look again at the agent and the T in their own frames.

    python -m models.training.frame_encoder --workdir RUNS

First look: a small conv net gives heatmaps of the agent and of three points on the T's axis (its left and right
ends look alike, so they are no use as keypoints); a closed-form fit turns the points into a pose. Second look:
a crop of the frame, sampled in the frame of the pose found, shows the T always upright and the agent always in
the middle, so that a tiny net can read off what is left of the error.

The heatmaps have a cross-entropy loss of their own: without it the soft-argmax does not learn.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.training import checkpoint
from models.training.geometry import CENTER, latent_from_state, out_of_frame, state_from_latent

GRID = 24
CELL = 512.0 / GRID
#: Points of the T in its own frame, units; heatmap 0 is the agent's.
KEYPOINTS = ((0.0, -30.0), (0.0, 20.0), (0.0, 65.0))
#: The crops: side in samples, units between samples, centre in the T's (agent's) frame.
BLOCK_CROP, AGENT_CROP = (32, 5.2, (0.0, 15.0)), (12, 5.2, (0.0, 0.0))
#: What an output of one of the second look means: units and radians.
STEP_UNITS, STEP_RADIANS = 5.0, 0.05


def crop_points(side: int, spacing: float, centre: tuple[float, float]) -> Tensor:
    """(side², 2) points, units, of a crop's own frame."""
    line = (torch.arange(side) - (side - 1) / 2) * spacing
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(-1, 2) + torch.tensor(centre)


class FrameEncoder(nn.Module):
    def __init__(self, width: int = 24):
        super().__init__()
        self.convs = nn.ModuleList([
            nn.Conv2d(3, 16, 5, stride=2, padding=2),
            nn.Conv2d(16, width, 3, stride=2, padding=1),
            nn.Conv2d(width, width, 3, padding=1),
            nn.Conv2d(width, width, 3, padding=2, dilation=2),
            nn.Conv2d(width, width, 3, padding=4, dilation=4),
            nn.Conv2d(width, width, 3, padding=1),
        ])
        self.heat = nn.Conv2d(width, 1 + len(KEYPOINTS), 1)
        self.see_block = nn.Sequential(nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.ReLU(),
                                       nn.Conv2d(12, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
                                       nn.Linear(16 * 64, 48), nn.ReLU(), nn.Linear(48, 3))
        self.see_agent = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(),
                                       nn.Linear(8 * 144, 32), nn.ReLU(), nn.Linear(32, 2))
        centre = (torch.arange(GRID) + 0.5) * CELL
        self.register_buffer("grid", torch.stack(torch.meshgrid(centre, centre, indexing="xy"), -1).reshape(-1, 2))
        self.register_buffer("model_points", torch.tensor(KEYPOINTS))
        self.register_buffer("block_crop", crop_points(*BLOCK_CROP))
        self.register_buffer("agent_crop", crop_points(*AGENT_CROP))

    def heatmaps(self, x: Tensor) -> Tensor:
        """x float (B, 3, 96, 96), −1 … 1 -> logits (B, 4, GRID²)."""
        for index, conv in enumerate(self.convs):
            y = F.relu(conv(x))
            x = x + y if index >= 2 else y
        return self.heat(x).flatten(2) * 4.0

    def keypoints(self, logits: Tensor) -> Tensor:
        """-> (B, 4, 2) units."""
        return torch.softmax(logits, -1) @ self.grid

    def pose(self, points: Tensor) -> Tensor:
        """Keypoints (B, 4, 2) -> latent (B, 6): least-squares rotation and translation of the T (Procrustes)."""
        model = self.model_points - self.model_points.mean(0)
        middle = points[:, 1:].mean(1, keepdim=True)
        seen = points[:, 1:] - middle
        dot = (model[:, 0] * seen[..., 0] + model[:, 1] * seen[..., 1]).sum(1, keepdim=True)
        cross = (model[:, 0] * seen[..., 1] - model[:, 1] * seen[..., 0]).sum(1, keepdim=True)
        norm = torch.sqrt(dot * dot + cross * cross + 1e-6)
        c, s = dot / norm, cross / norm
        mx, my = self.model_points.mean(0)
        x = middle[:, 0, 0:1] - (c * mx - s * my)
        y = middle[:, 0, 1:2] - (s * mx + c * my)
        return torch.cat([(points[:, 0] - CENTER) / CENTER, (x - CENTER) / CENTER, (y - CENTER) / CENTER, c, s], -1)

    def look_again(self, x: Tensor, latent: Tensor) -> Tensor:
        """A better latent (B, 6) from the frame x (B, 3, 96, 96) and a coarse one (B, 6)."""
        agent_at, block_at = latent[:, None, 0:2] * CENTER, latent[:, None, 2:4] * CENTER
        block = self.crop(x, block_at + out_of_frame(self.block_crop[None], latent[:, None]), BLOCK_CROP[0])
        agent = self.crop(x, agent_at + self.agent_crop[None], AGENT_CROP[0])
        shift, move_agent = self.see_block(block), self.see_agent(agent) * STEP_UNITS / CENTER
        move_block = out_of_frame(shift[:, :2], latent) * STEP_UNITS / CENTER
        turn = shift[:, 2:] * STEP_RADIANS
        c, s = latent[:, 4:5], latent[:, 5:6]
        dc, ds = torch.cos(turn), torch.sin(turn)
        return torch.cat([latent[:, 0:2] + move_agent, latent[:, 2:4] + move_block, c * dc - s * ds, s * dc + c * ds], -1)

    def crop(self, x: Tensor, at: Tensor, side: int) -> Tensor:
        """Sample x at points (B, side², 2), units from the table's centre -> (B, 3, side, side)."""
        grid = ((at + 0.5) / CENTER).reshape(-1, side, side, 2)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)

    def forward(self, frame: Tensor) -> Tensor:
        """frame uint8 (B, 96, 96, 3) -> latent (B, 6)."""
        x = frame.to(torch.float32).permute(0, 3, 1, 2) / 127.5 - 1.0
        coarse = self.pose(self.keypoints(self.heatmaps(x)))
        return self.look_again(x, self.look_again(x, coarse))


def true_keypoints(state: Tensor) -> Tensor:
    points = state.new_tensor(KEYPOINTS)
    c, s = torch.cos(state[:, None, 4]), torch.sin(state[:, None, 4])
    x = state[:, None, 2] + c * points[:, 0] - s * points[:, 1]
    y = state[:, None, 3] + s * points[:, 0] + c * points[:, 1]
    return torch.cat([state[:, None, :2], torch.stack([x, y], -1)], 1)


def latent_error(latent: Tensor, wanted: Tensor) -> Tensor:
    """Mean error, where 1 is about a pixel (5 units) or 4 degrees."""
    error = (latent - wanted).abs()
    return error[:, :4].mean() * CENTER / 5.0 + error[:, 4:].mean() * 15.0


def loss_of(model: FrameEncoder, images: Tensor, state: Tensor) -> tuple[Tensor, dict[str, float]]:
    x = images.to(torch.float32).permute(0, 3, 1, 2) / 127.5 - 1.0
    x = x + torch.randn_like(x) * (torch.rand(len(x), 1, 1, 1) * 0.03)
    logits, target, wanted = model.heatmaps(x), true_keypoints(state), latent_from_state(state)
    spread = -((model.grid - target[:, :, None]) ** 2).sum(-1) / (2 * (0.8 * CELL) ** 2)
    cross_entropy = F.cross_entropy(logits.flatten(0, 1), torch.softmax(spread, -1).flatten(0, 1))
    points = model.keypoints(logits)
    coarse = model.pose(points)
    # The second look learns around the truth, from errors like the first look's and like its own.
    size = torch.exp(torch.rand(len(x), 1) * 4.0 - 3.0)
    near = latent_from_state(state + torch.randn_like(state) * size * state.new_tensor([2, 2, 2, 2, 0.02]))
    again = model.look_again(x, near)
    own = model.look_again(x, coarse.detach())
    loss = (0.2 * cross_entropy + (points - target).abs().mean() / CELL + 0.5 * latent_error(coarse, wanted)
            + latent_error(again, wanted) + latent_error(own, wanted))
    return loss, {"loss": loss.item(), "coarse": latent_error(coarse, wanted).item(), **figures(own.detach(), state)}


def figures(latent: Tensor, state: Tensor) -> dict[str, float]:
    seen = state_from_latent(latent)
    turn = torch.atan2(torch.sin(seen[:, 4] - state[:, 4]), torch.cos(seen[:, 4] - state[:, 4]))
    px = 96.0 / 512.0
    return {"agent_px": (seen[:, :2] - state[:, :2]).norm(dim=1).mean().item() * px,
            "T_px": (seen[:, 2:4] - state[:, 2:4]).norm(dim=1).mean().item() * px,
            "T_deg": turn.abs().mean().item() * 57.29578}


def train(workdir: Path, steps: int, batch: int = 64, validation: int = 500) -> None:
    torch.manual_seed(1)
    data = np.load(workdir / "frames.npz")
    images, states = torch.from_numpy(data["images"]), torch.from_numpy(data["states"])
    model = FrameEncoder()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-4)
    path = workdir / "frame_encoder.pt"
    done, _ = checkpoint.resume(path, model, [optimiser])
    progress = checkpoint.Progress("frame_encoder", workdir / "log.jsonl", steps, 100)
    for step in range(done, steps):
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 100, 1.15 * (1 - step / steps))
        rows = torch.randint(validation, len(images), (batch,))
        loss, report = loss_of(model, images[rows], states[rows])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimiser.step()
        progress.add(step, **report)
        if (step + 1) % 500 == 0 or step + 1 == steps:
            checkpoint.save(path, model, step + 1, [optimiser])
    with torch.no_grad():
        latent = model.eval()(images[:validation])
    print("frame_encoder, unseen frames:", figures(latent, states[:validation]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("models/training/runs"))
    parser.add_argument("--steps", type=int, default=2500)
    args = parser.parse_args()
    train(args.workdir, args.steps)


if __name__ == "__main__":
    main()
