"""Latent -> frame: a learned background, two learned RGBA sprites laid over it, and a small conv to finish.

    python -m models.training.decoder --workdir RUNS

The T's sprite is sampled in the T's frame and the agent's about the agent, so that any pose is drawn crisply.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.training import checkpoint
from models.training.geometry import CENTER, latent_from_state

SIZE = 96
UNITS_PER_PIXEL = 512.0 / SIZE
#: Half the side of what each sprite covers, units, and its side in texels.
SPRITES = {"block": (96.0, 72), "agent": (32.0, 32)}
#: The T reaches from −45 to 75 in y of its own frame: the middle of its sprite.
BLOCK_MIDDLE_Y = 15.0


class Decoder(nn.Module):
    def __init__(self, width: int = 12):
        super().__init__()
        self.background = nn.Parameter(torch.full((1, 3, SIZE, SIZE), 3.0))
        self.block = nn.Parameter(self.blank("block"))
        self.agent = nn.Parameter(self.blank("agent"))
        self.finish_1 = nn.Conv2d(8, width, 3, padding=1)
        self.finish_2 = nn.Conv2d(width, 3, 3, padding=1)
        nn.init.zeros_(self.finish_2.weight)
        nn.init.zeros_(self.finish_2.bias)
        # Pixel i of 96 shows unit (i + 0.5) · 512/96 − 0.5: cv2.resize's half-pixel centres.
        self.register_buffer("pixels", (torch.arange(SIZE) + 0.5) * UNITS_PER_PIXEL - 0.5)

    @staticmethod
    def blank(name: str) -> Tensor:
        side = SPRITES[name][1]
        sprite = torch.zeros(1, 4, side, side)
        sprite[:, 3] = -2.0
        return sprite

    def lay_block(self, latent: Tensor) -> Tensor:
        """The T's sprite in its place: latent (B, 6) -> RGBA (B, 4, 96, 96) in [0, 1].

        One sprite serves the whole batch: the batch's rows are stacked into the height of one big grid.
        """
        half, _ = SPRITES["block"]
        c, s = latent[:, 4, None, None], latent[:, 5, None, None]
        dx = self.pixels[None, None, :] - (latent[:, 2, None, None] * CENTER + CENTER)  # (B, 1, 96)
        dy = self.pixels[None, :, None] - (latent[:, 3, None, None] * CENTER + CENTER)  # (B, 96, 1)
        x, y = (c * dx + s * dy) / half, (c * dy - s * dx - BLOCK_MIDDLE_Y) / half  # (B, 96, 96)
        inside = (torch.maximum(x.abs(), y.abs()) < 1.0).to(x.dtype)
        grid = torch.stack([x, y], -1).reshape(1, -1, SIZE, 2)
        seen = F.grid_sample(torch.sigmoid(self.block), grid, mode="bilinear", padding_mode="border", align_corners=False)
        seen = seen.reshape(4, -1, SIZE, SIZE).transpose(0, 1)
        return torch.cat([seen[:, :3], seen[:, 3:] * inside[:, None]], 1)

    def lay_agent(self, latent: Tensor) -> Tensor:
        """The agent's sprite: it never turns, so bilinear sampling is one matrix for rows and one for columns."""
        columns, rows = self.hats(latent[:, 0:1]), self.hats(latent[:, 1:2])
        return rows[:, None] @ torch.sigmoid(self.agent) @ columns[:, None].transpose(-1, -2)

    def hats(self, place: Tensor) -> Tensor:
        """Bilinear weights of the sprite's texels for the pixels of one axis: place (B, 1) -> (B, 96, texels)."""
        half, side = SPRITES["agent"]
        at = self.pixels - (place * CENTER + CENTER)
        texel = ((at / half + 1.0) * (side / 2) - 0.5).clamp(0.0, side - 1.0)
        weight = F.relu(1.0 - (texel[..., None] - torch.arange(side, dtype=at.dtype)).abs())
        return weight * (at.abs() < half).to(at.dtype)[..., None]

    def draw(self, latent: Tensor) -> Tensor:
        """latent (B, 6) -> pixels float (B, 3, 96, 96), 0 … 255, neither rounded nor clamped."""
        block, agent = self.lay_block(latent), self.lay_agent(latent)
        picture = torch.sigmoid(self.background)
        picture = picture + block[:, 3:] * (block[:, :3] - picture)
        picture = picture + agent[:, 3:] * (agent[:, :3] - picture)
        layers = torch.cat([picture, block[:, 3:], agent[:, 3:], self.background.expand(latent.shape[0], -1, -1, -1)], 1)
        return (picture + self.finish_2(F.relu(self.finish_1(layers)))) * 255.0

    def forward(self, block_latents: Tensor) -> Tensor:
        """block_latents (B, F, 6) -> frames uint8 (B, F, 96, 96, 3)."""
        pixels = self.draw(block_latents.flatten(0, 1)).permute(0, 2, 3, 1)
        pixels = torch.round(pixels).clamp(0.0, 255.0).to(torch.uint8)
        return pixels.reshape(-1, block_latents.shape[1], SIZE, SIZE, 3)


def psnr(pixels: Tensor, images: Tensor) -> float:
    error = ((pixels.round().clamp(0, 255) - images) ** 2).mean((1, 2, 3))
    return (10 * torch.log10(255.0**2 / error)).mean().item()


def train(workdir: Path, steps: int, batch: int = 32, validation: int = 500) -> None:
    torch.manual_seed(2)
    data = np.load(workdir / "frames.npz")
    images, states = torch.from_numpy(data["images"]), torch.from_numpy(data["states"])
    model = Decoder()
    sprites = [model.background, model.block, model.agent]
    convs = [*model.finish_1.parameters(), *model.finish_2.parameters()]
    optimiser = torch.optim.Adam([{"params": sprites, "peak": 0.05}, {"params": convs, "peak": 4e-3}], betas=(0.9, 0.99))
    with torch.no_grad():
        mean = images[validation:validation + 2000].float().mean(0).permute(2, 0, 1)[None] / 255.0
        model.background.copy_(torch.logit(mean.clamp(0.01, 0.995)))
    path = workdir / "decoder.pt"
    done, _ = checkpoint.resume(path, model, [optimiser])
    progress = checkpoint.Progress("decoder", workdir / "log.jsonl", steps, 100)
    for step in range(done, steps):
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * min(1.0, (step + 1) / 50, 1.2 * (1 - step / steps))
        rows = torch.randint(validation, len(images), (batch,))
        target = images[rows].float().permute(0, 3, 1, 2)
        pixels = model.draw(latent_from_state(states[rows]))
        error = (pixels - target) / 255.0
        loss = (error**2).mean() * 10 + error.abs().mean() * 0.1
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        progress.add(step, loss=loss.item(), psnr=psnr(pixels.detach(), target))
        if (step + 1) % 500 == 0 or step + 1 == steps:
            checkpoint.save(path, model, step + 1, [optimiser])
    with torch.no_grad():
        pixels = model.eval().draw(latent_from_state(states[:validation]))
    print("decoder, unseen frames: PSNR", psnr(pixels, images[:validation].float().permute(0, 3, 1, 2)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("models/training/runs"))
    parser.add_argument("--steps", type=int, default=5000)
    args = parser.parse_args()
    train(args.workdir, args.steps)


if __name__ == "__main__":
    main()
