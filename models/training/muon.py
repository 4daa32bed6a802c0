"""Muon: momentum whose update is orthogonalised (Jordan et al. 2024), for the matrices of a network.

Everything that is not a hidden matrix (embeddings, biases, gains, in- and output layers) goes to AdamW.
float32 throughout: on a CPU bfloat16 is slower.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: Quintic Newton–Schulz coefficients of the reference implementation (five iterations suffice).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(update: Tensor, iterations: int = 5) -> Tensor:
    a, b, c = COEFFICIENTS
    x = update if update.shape[0] <= update.shape[1] else update.T
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if update.shape[0] <= update.shape[1] else x.T


class Muon(torch.optim.Optimizer):
    """lr is relative to updates of unit RMS times 0.2, so that AdamW's learning rates carry over."""

    def __init__(self, params, lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        assert closure is None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                buffer = state["momentum"].mul_(group["momentum"]).add_(p.grad)
                update = orthogonalise(p.grad.add(buffer, alpha=group["momentum"]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * 0.2 * max(p.shape) ** 0.5)


def split_parameters(model: nn.Module, hidden: tuple[str, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """-> (matrices under the named sub-modules, everything else)."""
    matrices, rest = [], []
    for name, p in model.named_parameters():
        (matrices if p.ndim == 2 and name.startswith(hidden) else rest).append(p)
    return matrices, rest
