"""Resumable training runs: one file a part, written atomically, with its weights, optimisers and step."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import torch
from torch import nn


def save(path: Path, model: nn.Module, step: int, optimisers: list, extra: dict | None = None) -> None:
    partial = path.with_suffix(".partial")
    torch.save({"model": model.state_dict(), "step": step, "optimisers": [o.state_dict() for o in optimisers],
                "rng": torch.get_rng_state(), "extra": extra or {}}, partial)
    os.replace(partial, path)


def resume(path: Path, model: nn.Module, optimisers: list) -> tuple[int, dict]:
    """-> (steps already done, extra); (0, {}) where there is no checkpoint."""
    if not path.exists():
        return 0, {}
    saved = torch.load(path, weights_only=False)
    model.load_state_dict(saved["model"])
    for optimiser, state in zip(optimisers, saved["optimisers"], strict=True):
        optimiser.load_state_dict(state)
    torch.set_rng_state(saved["rng"])
    print(f"resumed {path.name} at step {saved['step']}", flush=True)
    return saved["step"], saved["extra"]


def load_model(path: Path, model: nn.Module) -> nn.Module:
    """Weights for use: the averaged ones where the run kept them."""
    saved = torch.load(path, weights_only=False)
    model.load_state_dict(saved["extra"].get("average", saved["model"]))
    return model.eval()


class Progress:
    """Prints and logs (JSON lines) a running mean of named figures every `every` steps."""

    def __init__(self, name: str, log: Path, steps: int, every: int = 50):
        self.name, self.log, self.steps, self.every = name, log, steps, every
        self.begin, self.sums, self.count = time.time(), {}, 0

    def add(self, step: int, **figures: float) -> None:
        self.count += 1
        for key, value in figures.items():
            self.sums[key] = self.sums.get(key, 0.0) + float(value)
        if (step + 1) % self.every:
            return
        means = {key: value / self.count for key, value in self.sums.items()}
        elapsed = time.time() - self.begin
        print(f"{self.name} {step + 1}/{self.steps} {elapsed:.0f} s  "
              + "  ".join(f"{key} {value:.5g}" for key, value in means.items()), flush=True)
        with self.log.open("a") as file:
            file.write(json.dumps({"part": self.name, "step": step + 1, "seconds": round(elapsed, 1), **means}) + "\n")
        self.sums, self.count = {}, 0
