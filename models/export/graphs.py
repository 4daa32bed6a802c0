"""The bundle's graphs: what docs/model-bundle.md names, cut out of the torch models.

Each class is one graph; `INPUTS`/`OUTPUTS` are the tensors' names. The self-attention's three projections are
fused into one matrix here, but for the base spec's body; the reference pipeline keeps them apart, so parity checks
the fusion too.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from models.training.dynamics import CHUNK, Block, Dynamics
from models.training.geometry import move


class FusedBlock(Block):
    """A block whose query, key and value come from one matrix multiplication."""

    def __init__(self, block: Block):
        super().__init__()
        self.load_state_dict(block.state_dict())
        self.query_key_value = nn.Linear(block.query.in_features, 3 * block.query.out_features)
        with torch.no_grad():
            parts = (self.query, self.key, self.value)
            self.query_key_value.weight.copy_(torch.cat([p.weight for p in parts]))
            self.query_key_value.bias.copy_(torch.cat([p.bias for p in parts]))
        del self.query, self.key, self.value

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.query_key_value(x).chunk(3, -1)
        return q, k, v


def fuse(dynamics: Dynamics) -> Dynamics:
    fused = copy.deepcopy(dynamics)
    fused.blocks = nn.ModuleList([FusedBlock(block) for block in dynamics.blocks])
    return fused.eval()


class Part(nn.Module):
    def __init__(self, dynamics: Dynamics):
        super().__init__()
        self.dynamics = dynamics


class TextEncoderGraph(Part):
    INPUTS, OUTPUTS = ("text_ids", "text_mask"), ("text_kv", "agent_response")

    def forward(self, text_ids: Tensor, text_mask: Tensor):
        return self.dynamics.text(text_ids, text_mask)


class TimestepGraph(Part):
    INPUTS, OUTPUTS = ("t",), ("t_rows",)

    def forward(self, t: Tensor):
        return self.dynamics.time(t)


class HeadGraph(Part):
    """`condition` (B, N, C) and `expected` (B, N, 2) are extras for the body and the tail."""
    INPUTS = ("noisy", "latents", "actions", "position", "t_rows", "agent_response")
    OUTPUTS = ("tokens", "modulated", "condition", "expected")

    def forward(self, noisy: Tensor, latents: Tensor, actions: Tensor, position: Tensor, t_rows: Tensor,
                agent_response: Tensor):
        motions, rows = self.dynamics.arrange(noisy, latents, position, t_rows)
        tokens, condition, expected = self.dynamics.head(motions, latents, actions, rows, agent_response)
        modulated = at_position(self.dynamics.blocks[0].modulated(tokens, condition), position)
        return tokens, modulated, condition, expected


class BodyGraph(Part):
    INPUTS, OUTPUTS = ("tokens", "condition", "text_kv"), ("tokens_out",)

    def forward(self, tokens: Tensor, condition: Tensor, text_kv: Tensor):
        return self.dynamics.body(tokens, condition, text_kv)


class TailGraph(Part):
    INPUTS, OUTPUTS = ("tokens_out", "condition", "expected", "noisy", "t", "position"), ("velocity",)

    def forward(self, tokens_out: Tensor, condition: Tensor, expected: Tensor, noisy: Tensor, t: Tensor, position: Tensor):
        x0 = self.dynamics.tail(*(at_position(x, position) for x in (tokens_out, condition, expected)))
        return (noisy - x0) / t.clamp(min=1e-3)[:, None, None]


class AdvanceGraph(nn.Module):
    INPUTS, OUTPUTS = ("denoised", "latents", "position"), ("block_latents",)

    def forward(self, denoised: Tensor, latents: Tensor, position: Tensor):
        return move(at_position(latents, position), denoised)


def at_position(rows: Tensor, position: Tensor) -> Tensor:
    """rows (B, K, W), position (B,) -> (B, 1, W)."""
    return rows.gather(1, position[:, None, None].expand(-1, 1, rows.shape[-1]))


def example_inputs(batch: int, generator: torch.Generator) -> dict[str, Tensor]:
    """A plausible batch in which every sample stands at another position, time and prompt."""
    from models.training.text import tokenize_all
    r = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    position = torch.randint(0, CHUNK, (batch,), generator=generator)
    angle = torch.cumsum(r(batch, CHUNK + 1, 1) * 0.05, 1) + r(batch, 1, 1) * 2
    walk = torch.cumsum(r(batch, CHUNK + 1, 4) * 0.02, 1) + r(batch, 1, 4) * 0.3
    latents = torch.cat([walk, torch.cos(angle), torch.sin(angle)], -1)
    latents = latents * (torch.arange(CHUNK + 1)[None, :, None] <= position[:, None, None])
    prompts = ["", "slow arm", None, "default"]
    ids, mask = tokenize_all([prompts[i % 4] for i in range(batch)])
    return {"noisy": r(batch, 1, 5), "latents": latents, "actions": r(batch, CHUNK, 2) * 0.4, "position": position,
            "t": torch.rand(batch, generator=generator) * 0.95 + 0.05, "text_ids": ids, "text_mask": mask,
            "denoised": r(batch, 1, 5), "block_latents": latents[:, :1],
            "frame": torch.randint(0, 256, (batch, 96, 96, 3), generator=generator, dtype=torch.uint8)}
