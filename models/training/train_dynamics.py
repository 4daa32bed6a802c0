"""Train the dynamics model.

    python -m models.training.train_dynamics --workdir RUNS --steps 2000

Each window teaches all of its frames at once: every token has a flow time of its own (1: noise, 0: already
known, or between). From half of the way on (`--second-half`), most batches first roll the model a few steps from each
true pose without gradients and then learn to go on from where it got ("pushforward"), which is what keeps the
T's angle from drifting.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from models.training import checkpoint
from models.training.dynamics import CHUNK, create_dynamics
from models.training.geometry import motion_between, move
from models.training.muon import Muon, split_parameters
from models.training.windows import Windows, encoder_noise

#: Loss weight of (agent x, y, T x, y, angle) and the error at which the loss turns from square to linear.
LOSS_WEIGHT, LOSS_KNEE = (0.5, 0.5, 1.0, 1.0, 1.0), 0.05
AVERAGE_DECAY = 0.998
MUON_LR, ADAM_LR = 8e-3, 2e-3


def pseudo_huber(error: Tensor) -> Tensor:
    return LOSS_KNEE * (torch.sqrt(1.0 + (error / LOSS_KNEE) ** 2) - 1.0)


def draw_times(batch: int) -> Tensor:
    """(B, N): 45 % pure noise, 25 % known (no loss), 30 % between."""
    kind, t = torch.rand(batch, CHUNK), torch.rand(batch, CHUNK)
    return torch.where(kind < 0.45, torch.ones_like(t), torch.where(kind < 0.70, torch.zeros_like(t), t))


@torch.no_grad()
def roll(forward, batch: dict[str, Tensor], latents: Tensor, depth: int) -> Tensor:
    """Latents (B, N + 1, 6) whose row i the model reached itself from the true row i − depth."""
    size = len(latents)
    for _ in range(depth):
        noise, ones = torch.randn(size, CHUNK, 5), torch.ones(size, CHUNK)
        x0, _ = forward(noise, latents, batch["actions"], ones, batch["text_ids"], batch["text_mask"])
        latents = torch.cat([latents[:, :1], move(latents[:, :-1], x0)], 1)
    return latents


def step_loss(forward, batch: dict[str, Tensor], depth: int) -> tuple[Tensor, dict[str, float]]:
    clean = batch["latents"]
    latents = roll(forward, batch, encoder_noise(clean), depth)
    target = motion_between(latents[:, :-1], clean[:, 1:])
    t = draw_times(len(clean))
    noisy = (1 - t[..., None]) * target + t[..., None] * torch.randn_like(target)
    x0, expected = forward(noisy, latents, batch["actions"], t, batch["text_ids"], batch["text_mask"])
    loss_at = (pseudo_huber(x0 - target) * x0.new_tensor(LOSS_WEIGHT)).sum(-1)
    taught = (t > 0).float()
    loss = (loss_at * taught).sum() / taught.sum() + 0.1 * pseudo_huber(expected - target[..., :2]).mean()
    with torch.no_grad():
        pure = (t == 1).float()[..., None]
        error = ((x0 - target).abs() * pure).sum((0, 1)) / pure.sum()
    return loss, {"loss": loss.item(), "agent_u": error[:2].mean() * 12, "T_u": error[2:4].mean() * 6,
                  "T_deg": error[4] * 0.08 * 57.3}


def train(workdir: Path, steps: int, batch_size: int, second_half: float, compiled: bool) -> None:
    torch.manual_seed(3)
    windows, model = Windows(workdir), create_dynamics()
    matrices, rest = split_parameters(model, ("blocks.",))
    optimisers = [Muon(matrices, lr=MUON_LR), torch.optim.AdamW(rest, lr=ADAM_LR, weight_decay=0.01, betas=(0.9, 0.98))]
    path = workdir / "dynamics.pt"
    done, extra = checkpoint.resume(path, model, optimisers)
    average = extra.get("average") or {k: v.clone() for k, v in model.state_dict().items()}
    forward = torch.compile(model, dynamic=False) if compiled else model
    progress = checkpoint.Progress("dynamics", workdir / "log.jsonl", steps)
    print(f"dynamics: {sum(p.numel() for p in model.parameters())} parameters, {len(windows.cumulative)} windows", flush=True)
    for step in range(done, steps):
        for optimiser, peak in zip(optimisers, (MUON_LR, ADAM_LR), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = peak * min(1.0, (step + 1) / 100, (1 - step / steps) / (1 - second_half))
        depth = int(torch.randint(0, 3, ())) if step >= second_half * steps else 0
        loss, report = step_loss(forward, windows.draw(batch_size), depth)
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        decay = min(AVERAGE_DECAY, (step + 1) / (step + 10))
        for key, value in model.state_dict().items():
            average[key].lerp_(value, 1 - decay)
        progress.add(step, **report)
        if (step + 1) % 250 == 0 or step + 1 == steps:
            checkpoint.save(path, model, step + 1, optimisers, {"average": average})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("models/training/runs"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--second-half", type=float, default=0.5, help="share of the steps after which pushforward begins and the learning rate falls to 0")
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    train(args.workdir, args.steps, args.batch, args.second_half, not args.no_compile)


if __name__ == "__main__":
    main()
