"""Frame -> latent: a small conv net finds six keypoints, a closed-form fit turns five of them into a pose.

    python -m models.training.frame_encoder --workdir RUNS

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
from models.training.geometry import CENTER, latent_from_state, state_from_latent

GRID = 24
CELL = 512.0 / GRID
#: Keypoints of the T in its own frame, units; keypoint 0 of the network is the agent.
KEYPOINTS = ((-50.0, -30.0), (50.0, -30.0), (0.0, -30.0), (0.0, 20.0), (0.0, 65.0))


class FrameEncoder(nn.Module):
    def __init__(self, width: int = 32):
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
        centre = (torch.arange(GRID) + 0.5) * CELL
        self.register_buffer("grid", torch.stack(torch.meshgrid(centre, centre, indexing="xy"), -1).reshape(-1, 2))
        self.register_buffer("model_points", torch.tensor(KEYPOINTS))

    def heatmaps(self, pixels: Tensor) -> Tensor:
        """pixels float (B, 3, 96, 96) in [0, 255] -> logits (B, 6, GRID²)."""
        x = pixels / 127.5 - 1.0
        for index, conv in enumerate(self.convs):
            y = F.relu(conv(x))
            x = x + y if index >= 2 else y
        return self.heat(x).flatten(2) * 4.0

    def keypoints(self, logits: Tensor) -> Tensor:
        """-> (B, 6, 2) units."""
        return torch.softmax(logits, -1) @ self.grid

    def pose(self, points: Tensor) -> Tensor:
        """Keypoints (B, 6, 2) -> latent (B, 6): least-squares rotation and translation of the T (Procrustes)."""
        model = self.model_points - self.model_points.mean(0)
        seen = points[:, 1:]
        middle = seen.mean(1, keepdim=True)
        seen = seen - middle
        dot = (model[:, 0] * seen[..., 0] + model[:, 1] * seen[..., 1]).sum(1, keepdim=True)
        cross = (model[:, 0] * seen[..., 1] - model[:, 1] * seen[..., 0]).sum(1, keepdim=True)
        norm = torch.sqrt(dot * dot + cross * cross + 1e-6)
        c, s = dot / norm, cross / norm
        mx, my = self.model_points.mean(0)
        x = middle[:, 0, 0:1] - (c * mx - s * my)
        y = middle[:, 0, 1:2] - (s * mx + c * my)
        return torch.cat([(points[:, 0] - CENTER) / CENTER, (x - CENTER) / CENTER, (y - CENTER) / CENTER, c, s], -1)

    def forward(self, frame: Tensor) -> Tensor:
        """frame uint8 (B, 96, 96, 3) -> latent (B, 6)."""
        pixels = frame.to(torch.float32).permute(0, 3, 1, 2)
        return self.pose(self.keypoints(self.heatmaps(pixels)))


def true_keypoints(state: Tensor) -> Tensor:
    points = state.new_tensor(KEYPOINTS)
    c, s = torch.cos(state[:, None, 4]), torch.sin(state[:, None, 4])
    x = state[:, None, 2] + c * points[:, 0] - s * points[:, 1]
    y = state[:, None, 3] + s * points[:, 0] + c * points[:, 1]
    return torch.cat([state[:, None, :2], torch.stack([x, y], -1)], 1)


def loss_of(model: FrameEncoder, images: Tensor, state: Tensor) -> tuple[Tensor, dict[str, float]]:
    pixels = images.to(torch.float32).permute(0, 3, 1, 2)
    noisy = pixels[: len(pixels) // 2]
    pixels = torch.cat([noisy + torch.randn_like(noisy) * 4.0, pixels[len(pixels) // 2:]])
    logits, target = model.heatmaps(pixels), true_keypoints(state)
    spread = -((model.grid - target[:, :, None]) ** 2).sum(-1) / (2 * (0.8 * CELL) ** 2)
    cross_entropy = F.cross_entropy(logits.flatten(0, 1), torch.softmax(spread, -1).flatten(0, 1))
    points = model.keypoints(logits)
    latent = model.pose(points)
    wanted = latent_from_state(state)
    error = (latent - wanted).abs()
    loss = (0.2 * cross_entropy + (points - target).abs().mean() / CELL
            + error[:, :4].mean() * CENTER / CELL * 2 + error[:, 4:].mean() * 8)
    return loss, {"loss": loss.item(), **figures(latent.detach(), state)}


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
    parser.add_argument("--steps", type=int, default=4000)
    args = parser.parse_args()
    train(args.workdir, args.steps)


if __name__ == "__main__":
    main()
