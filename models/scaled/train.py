"""Train the scaled network on windows of the picture, growing it: few blocks and tokens first, all of them at the end.

    python -m models.scaled.train --workdir RUNS --steps 700 500 400

A block that has not had its turn is the identity (its output matrices are zero), so growing changes nothing at the
moment it happens. Windows keep their absolute positions. A run resumes from its checkpoint; a step's batch is a
function of the step.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.scaled.autoencoder import GRID, SPATIAL, TEMPORAL, Autoencoder
from models.scaled.data import SIZE
from models.scaled.network import BLOCKS, CHUNK, FRAMES, Network, normalised_actions
from models.training import checkpoint
from models.training.muon import Muon, split_parameters
from models.training.text import tokenize_all
from models.training.windows import PROMPTS

#: The flow's shift, in training as in sampling (DreamDojo's).
SHIFT = 5.0
#: Share of windows without a prompt, for guidance; how much oftener a chunk is drawn in which the T moves.
NULL_SHARE, CONTACT_WEIGHT = 0.15, 4.0
#: Noise on the conditioning latent, at most: later chunks begin from a dreamt frame.
FIRST_NOISE = 0.1
#: Below this time a velocity's error counts less, or the few samples near t = 0 would rule the gradient.
CALM_BELOW = 0.3
MUON_LR, ADAM_LR, WARM_UP_STEPS = 5e-3, 1.5e-3, 50
AVERAGE_DECAY, SAVE_EVERY = 0.98, 25


@dataclass(frozen=True)
class Stage:
    depth: int
    window: int
    batch: int


STAGES = (Stage(2, 8, 16), Stage(4, 8, 16), Stage(BLOCKS, 8, 12), Stage(BLOCKS, GRID, 3))


class Windows:
    """Crops of whole chunks, encoded as they are drawn."""

    def __init__(self, workdir: Path, autoencoder: Autoencoder):
        data = np.load(workdir / "episodes.npz")
        self.states, self.actions, self.physics = data["states"], data["actions"], data["physics"]
        self.frames = np.load(workdir / "frames.npy", mmap_mode="r")
        self.autoencoder = autoencoder
        moved = np.linalg.norm(np.diff(self.states[..., 2:4], axis=1), axis=-1) > 0.1
        self.starts = self.actions.shape[1] - CHUNK + 1
        contact = np.stack([moved[:, s: s + CHUNK].sum(1) >= 2 for s in range(self.starts)], 1)
        self.cumulative = np.cumsum(np.where(contact, CONTACT_WEIGHT, 1.0).ravel())
        self.prompts = tokenize_all([None, *PROMPTS[0], *PROMPTS[1]])
        self.prompt_ranges = ((1, 1 + len(PROMPTS[0])), (1 + len(PROMPTS[0]), 1 + len(PROMPTS[0]) + len(PROMPTS[1])))

    def draw(self, count: int, window: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """clean (B, FRAMES, C, h, w), first (B, 1, C, h, w), actions, text_ids, text_mask, corner (B, 2) as (y, x)."""
        clips, actions, prompts, corners = [], [], [], []
        for row in np.searchsorted(self.cumulative, rng.random(count) * self.cumulative[-1]):
            episode, start = divmod(int(row), self.starts)
            y, x = corner = self.corner(self.states[episode, start: start + CHUNK + 1], window, rng)
            side = window * SPATIAL
            clips.append(self.frames[episode, start: start + CHUNK + 1, y * SPATIAL: y * SPATIAL + side, x * SPATIAL: x * SPATIAL + side])
            actions.append(self.actions[episode, start: start + CHUNK])
            prompts.append(0 if rng.random() < NULL_SHARE else int(rng.integers(*self.prompt_ranges[self.physics[episode]])))
            corners.append(corner)
        clip = torch.from_numpy(np.stack(clips))
        with torch.no_grad():
            first = self.autoencoder.encode_frame(clip[:, 0])[:, None]
            clean = self.autoencoder.encode(clip[:, 1:].reshape(count * FRAMES, TEMPORAL, *clip.shape[2:]))
        return {"clean": clean.reshape(count, FRAMES, *clean.shape[1:]), "first": first,
                "actions": normalised_actions(torch.from_numpy(np.stack(actions))), "corner": torch.tensor(corners),
                "text_ids": self.prompts[0][prompts], "text_mask": self.prompts[1][prompts]}

    def corner(self, states: np.ndarray, window: int, rng: np.random.Generator) -> tuple[int, int]:
        """Where a window begins (y, x): near the agent, near the T, or anywhere."""
        kind, state = rng.random(), states[rng.integers(len(states))]
        middle = state[0:2] if kind < 0.5 else state[2:4] if kind < 0.85 else rng.uniform(0, 512, 2)
        x, y = (int(np.clip(round(m * (SIZE / 512) / SPATIAL - window / 2 + rng.uniform(-2.5, 2.5)), 0, GRID - window)) for m in middle)
        return y, x


def places_of(network: Network, corner: Tensor, window: int) -> Tensor:
    """(B, h, w, 2): the windows' absolute positions."""
    steps = torch.arange(window)
    return network.places[(corner[:, 0:1] + steps)[:, :, None], (corner[:, 1:2] + steps)[:, None, :]]


def draw_times(count: int) -> Tensor:
    """Flow times (B,), stratified, shifted as the sampler's."""
    u = (torch.arange(count) + torch.rand(count)) / count
    return SHIFT * u / (1.0 + (SHIFT - 1.0) * u)


def step_loss(forward, network: Network, batch: dict[str, Tensor], stage: Stage) -> tuple[Tensor, dict[str, float]]:
    clean, size = batch["clean"], len(batch["clean"])
    t = draw_times(size)[:, None, None, None, None]
    noise = torch.randn_like(clean)
    noisy = (1 - t) * clean + t * noise
    first = batch["first"] + torch.rand(size, 1, 1, 1, 1) * FIRST_NOISE * torch.randn_like(batch["first"])
    with torch.autocast("cpu", torch.bfloat16):
        velocity = forward(noisy, first, places_of(network, batch["corner"], stage.window), batch["actions"], t.flatten(),
                           batch["text_ids"], batch["text_mask"], stage.depth)
    loss = ((velocity - (noise - clean)) * (t / CALM_BELOW).clamp(max=1.0)).pow(2).mean()
    with torch.no_grad():
        error = ((noisy - t * velocity) - clean).pow(2).mean((1, 2, 3, 4))
        still = (batch["first"] - clean).pow(2).mean((1, 2, 3, 4))
        early = t.flatten() > 0.9
    return loss, {"loss": loss.item(), "clean_error": error.mean(), "share_of_change_early": error[early].sum() / still[early].sum()}


def stage_of(step: int, steps: list[int]) -> int:
    return int(np.searchsorted(np.cumsum(steps), step, side="right"))


def learning_rate(step: int, steps: list[int]) -> float:
    """A factor: warm-up, then flat, falling over the last 40 % of all steps."""
    total = sum(steps)
    return min(1.0, (step + 1) / WARM_UP_STEPS, max(0.0, (1 - step / total) / 0.4))


def train(workdir: Path, steps: list[int], compiled: bool) -> None:
    torch.manual_seed(13)
    autoencoder = checkpoint.load_model(workdir / "autoencoder.pt", Autoencoder())
    windows, network = Windows(workdir, autoencoder), Network()
    matrices, rest = split_parameters(network, ("blocks.",))
    optimisers = [Muon(matrices, lr=MUON_LR), torch.optim.AdamW(rest, lr=ADAM_LR, weight_decay=0.01, betas=(0.9, 0.98))]
    path, total = workdir / "network.pt", sum(steps)
    done, extra = checkpoint.resume(path, network, optimisers)
    average = extra.get("average") or {k: v.clone() for k, v in network.state_dict().items()}
    forward = torch.compile(network, dynamic=False) if compiled else network
    progress = checkpoint.Progress("network", workdir / "log.jsonl", total, every=25)
    print(f"network: {sum(p.numel() for p in network.parameters())} parameters, {total} steps", flush=True)
    for step in range(done, total):
        stage = STAGES[stage_of(step, steps)]
        if step == done or stage_of(step - 1, steps) != stage_of(step, steps):
            print(f"network: step {step}: {stage}", flush=True)
        for optimiser, peak in zip(optimisers, (MUON_LR, ADAM_LR), strict=True):
            optimiser.param_groups[0]["lr"] = peak * learning_rate(step, steps)
        loss, report = step_loss(forward, network, windows.draw(stage.batch, stage.window, np.random.default_rng([13, step])), stage)
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        decay = min(AVERAGE_DECAY, (step + 1) / (step + 10))
        for key, value in network.state_dict().items():
            average[key].lerp_(value, 1 - decay)
        progress.add(step, **report)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == total:
            checkpoint.save(path, network, step + 1, optimisers, {"average": average})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("models/scaled/runs"))
    parser.add_argument("--steps", type=int, nargs=len(STAGES), default=[100, 50, 250, 30], help="steps of each stage")
    parser.add_argument("--compile", action="store_true", help="worth its start-up on an idle machine")
    args = parser.parse_args()
    train(args.workdir, args.steps, args.compile)


if __name__ == "__main__":
    main()
