"""The video autoencoder: 4 frames × 8 × 8 pixels -> 16 numbers, linearly; a small conv net draws them again.

    python -m models.scaled.autoencoder --workdir RUNS --steps 1500

The encoder is one matrix, begun as the PCA of patches that are not white and trained with the decoder. A frame
alone (the conditioning frame) is encoded as four copies of itself, so "nothing moves" is the same latent in every row.
White is 0 in and 0 out: an empty patch has no latent to learn.

Shapes: a clip is uint8 (…, 4, H, W, 3), its latent float32 (…, CHANNELS, H / 8, W / 8).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.scaled.data import SIZE
from models.training import checkpoint

SPATIAL, TEMPORAL, CHANNELS = 8, 4, 16
GRID = SIZE // SPATIAL
PATCH = TEMPORAL * SPATIAL * SPATIAL * 3
WIDTH, LAYERS = 64, 2
#: Side of a training crop in patches, share of clips that stand still, noise on the latent (share of its deviation).
CROP, STILL_SHARE, LATENT_NOISE = 6, 0.25, 0.03
LR = 2e-3


def to_patches(clip: Tensor) -> Tensor:
    """uint8 (B, 4, H, W, 3) -> float (B, H / 8, W / 8, PATCH), white 0, black 1."""
    b, t, h, w, c = clip.shape
    x = (255.0 - clip.float()) / 255.0
    x = x.reshape(b, t, h // SPATIAL, SPATIAL, w // SPATIAL, SPATIAL, c)
    return x.permute(0, 2, 4, 1, 3, 5, 6).reshape(b, h // SPATIAL, w // SPATIAL, PATCH)


def from_patches(x: Tensor) -> Tensor:
    """float (B, h, w, PATCH) -> float (B, 4, 8 h, 8 w, 3) in levels, not yet rounded."""
    b, h, w, _ = x.shape
    x = x.reshape(b, h, w, TEMPORAL, SPATIAL, SPATIAL, 3).permute(0, 3, 1, 4, 2, 5, 6)
    return 255.0 - 255.0 * x.reshape(b, TEMPORAL, h * SPATIAL, w * SPATIAL, 3)


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode_patch = nn.Linear(PATCH, CHANNELS, bias=False)
        self.decode_patch = nn.Linear(CHANNELS, PATCH, bias=False)
        self.first = nn.Conv2d(CHANNELS, WIDTH, 3, padding=1)
        self.layers = nn.ModuleList([nn.ModuleList([nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)])
                                     for _ in range(LAYERS)])
        self.last = nn.Conv2d(WIDTH, PATCH, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.register_buffer("deviation", torch.ones(CHANNELS))

    def encode(self, clip: Tensor) -> Tensor:
        """uint8 (B, 4, H, W, 3) -> (B, CHANNELS, H / 8, W / 8)."""
        return self.encode_patch(to_patches(clip)).permute(0, 3, 1, 2) / self.deviation[:, None, None]

    def encode_frame(self, frame: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) -> the latent of four copies of it."""
        return self.encode(frame[:, None].expand(-1, TEMPORAL, -1, -1, -1))

    def draw(self, latent: Tensor) -> Tensor:
        """(B, CHANNELS, h, w) -> (B, h, w, PATCH)."""
        z = latent * self.deviation[:, None, None]
        x = F.silu(self.first(z))
        for inner, outer in self.layers:
            x = x + outer(F.silu(inner(x)))
        return self.decode_patch(z.permute(0, 2, 3, 1)) + self.last(F.silu(x)).permute(0, 2, 3, 1)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, K, CHANNELS, h, w) -> uint8 (B, 4 K, H, W, 3)."""
        b, k = latents.shape[:2]
        levels = from_patches(self.draw(latents.flatten(0, 1)))
        return levels.round().clamp(0, 255).to(torch.uint8).reshape(b, k * TEMPORAL, *levels.shape[2:])


class Clips:
    """Crops of four successive frames near what moves."""

    def __init__(self, workdir: Path):
        self.frames = np.load(workdir / "frames.npy", mmap_mode="r")
        self.states = np.load(workdir / "episodes.npz")["states"]

    def draw(self, count: int, rng: np.random.Generator) -> Tensor:
        """uint8 (count, 4, 8 CROP, 8 CROP, 3)."""
        clips = []
        for _ in range(count):
            episode, start = rng.integers(len(self.frames)), rng.integers(self.frames.shape[1] - TEMPORAL)
            state = self.states[episode, start]
            middle = (state[0:2] if rng.random() < 0.5 else state[2:4]) * (SIZE / 512) / SPATIAL
            x, y = (int(np.clip(round(m - CROP / 2 + rng.uniform(-3, 3)), 0, GRID - CROP)) * SPATIAL for m in middle)
            side = CROP * SPATIAL
            times = [start] * TEMPORAL if rng.random() < STILL_SHARE else range(start, start + TEMPORAL)
            clips.append(np.stack([self.frames[episode, t, y: y + side, x: x + side] for t in times]))
        return torch.from_numpy(np.stack(clips))


def begin_as_pca(model: Autoencoder, clips: Clips, rng: np.random.Generator) -> None:
    patches = to_patches(clips.draw(1500, rng)).reshape(-1, PATCH).double()
    patches = patches[patches.abs().amax(1) > 0.02]
    _, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    top = vectors[:, -CHANNELS:].flip(1).float()
    with torch.no_grad():
        model.encode_patch.weight.copy_(top.T)
        model.decode_patch.weight.copy_(top)


@torch.no_grad()
def set_deviation(model: Autoencoder, clips: Clips, rng: np.random.Generator) -> None:
    """Latents of patches that are not white get deviation 1 in every channel."""
    model.deviation.fill_(1.0)
    clip = clips.draw(1000, rng)
    busy = (to_patches(clip).abs().amax(-1) > 0.02)[:, None].expand(-1, CHANNELS, -1, -1)
    latents = model.encode(clip)
    model.deviation.copy_((latents**2 * busy).sum((0, 2, 3)).div(busy.sum((0, 2, 3))).sqrt())


@torch.no_grad()
def reconstruction_psnr(model: Autoencoder, frames: np.ndarray) -> float:
    """Whole clips uint8 (B, 4, H, W, 3) -> mean dB."""
    drawn = model.decode(model.encode(torch.from_numpy(frames))[:, None]).float()
    error = ((drawn - torch.from_numpy(frames).float()) ** 2).mean((-1, -2, -3))
    return float((10 * torch.log10(255.0**2 / error.clamp(min=1e-3))).mean())


def train(workdir: Path, steps: int, batch: int) -> None:
    torch.manual_seed(11)
    clips, model = Clips(workdir), Autoencoder()
    begin_as_pca(model, clips, np.random.default_rng(11))
    optimiser = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, betas=(0.9, 0.98))
    path, progress = workdir / "autoencoder.pt", checkpoint.Progress("autoencoder", workdir / "log.jsonl", steps)
    done, _ = checkpoint.resume(path, model, [optimiser])
    test = np.stack([clips.frames[e, 40:44] for e in range(0, len(clips.frames), max(1, len(clips.frames) // 24))])
    print(f"autoencoder: {sum(p.numel() for p in model.parameters())} parameters; PSNR at the start "
          f"{reconstruction_psnr(model, test):.2f} dB", flush=True)
    for step in range(done, steps):
        rng = np.random.default_rng([11, step])
        clip = clips.draw(batch, rng)
        optimiser.param_groups[0]["lr"] = LR * min(1.0, (step + 1) / 50, 2 * (1 - step / steps))
        latent = model.encode(clip)
        latent = latent + LATENT_NOISE * latent.detach().std((0, 2, 3), keepdim=True) * torch.randn_like(latent)
        error = from_patches(model.draw(latent)) - clip.float()
        loss = (error / 255.0).pow(2).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        progress.add(step, loss=loss.item() * 1e3)
        if (step + 1) % 250 == 0 or step + 1 == steps:
            set_deviation(model, clips, np.random.default_rng(12))
            print(f"autoencoder: PSNR {reconstruction_psnr(model, test):.2f} dB", flush=True)
            checkpoint.save(path, model, step + 1, [optimiser])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("models/scaled/runs"))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args()
    train(args.workdir, args.steps, args.batch)


if __name__ == "__main__":
    main()
