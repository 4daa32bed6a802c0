"""The dynamics model: what one action changes, as a rectified flow over motions.

One token a frame. Token i stands for the motion that action i causes, and sees
  - the pose before it (latent i): the agent in the T's frame, the T's corners and the walls,
  - the action, relative to the agent, and where the agent will be if it responds linearly,
  - the motion and the action before,
  - its own noisy motion, with flow time t (1 noise … 0 data) in AdaLN beside the action.
Attention is causal over tokens; tokens of frames already generated carry their clean motion with t = 0.
The prompt enters by cross-attention and through the agent's linear response. The network predicts x0, the
clean motion; `velocity = (noisy − x0) / t` is the flow's velocity.

Shapes: B batch, N = CHUNK actions, W width, C condition width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.training.geometry import (AGENT_RADIUS, CENTER, MOTION_SCALE, box_distances, box_offsets,
                                      corner_wall_distances, into_frame, motion_between)
from models.training.text import TextEncoder

CHUNK = 12
ACTION_OFFSET, ACTION_SCALE = 256.0, 256.0
WIDTH, BLOCKS, HEADS, CONDITION, CROSS = 128, 4, 4, 64, 64
FOURIER = (1.0, 2.0, 4.0, 8.0, 16.0)
T_FOURIER = 32


class TimeEmbedding(nn.Module):
    """t (…,) -> rows (…, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(T_FOURIER, CONDITION), nn.SiLU(), nn.Linear(CONDITION, CONDITION))
        self.register_buffer("frequencies", torch.exp(torch.linspace(0, math.log(200.0), T_FOURIER // 2)))

    def forward(self, t: Tensor) -> Tensor:
        angle = t[..., None] * self.frequencies
        return self.mlp(torch.cat([torch.sin(angle), torch.cos(angle)], -1))


class Block(nn.Module):
    """AdaLN transformer block: causal self-attention, cross-attention to the prompt's rows, MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)
        self.cross_query, self.cross_out = nn.Linear(WIDTH, CROSS), nn.Linear(CROSS, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.modulation = nn.Linear(CONDITION, 6 * WIDTH)
        for layer in (self.out, self.cross_out, self.down):
            nn.init.normal_(layer.weight, std=0.02)
        nn.init.normal_(self.modulation.weight, std=0.02)
        nn.init.zeros_(self.modulation.bias)

    def modulated(self, x: Tensor, condition: Tensor) -> Tensor:
        """What the self-attention reads: (B, N, W)."""
        shift, scale = self.modulation(condition)[..., : 2 * WIDTH].chunk(2, -1)
        return normalise(x) * (1 + scale) + shift

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The unfused projections; the export replaces them by one matrix."""
        return self.query(x), self.key(x), self.value(x)

    def forward(self, x: Tensor, condition: Tensor, kv: Tensor, mask: Tensor) -> Tensor:
        """x (B, N, W), condition (B, N, C), kv (B, 2, rows, CROSS), mask (N, N) additive -> (B, N, W)."""
        _, _, gate, shift_2, scale_2, gate_2 = self.modulation(condition).chunk(6, -1)
        q, k, v = (split_heads(y, HEADS) for y in self.project(self.modulated(x, condition)))
        attention = torch.softmax(q @ k.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5 + mask, -1) @ v
        x = x + (1 + gate) * self.out(merge_heads(attention))
        weight = torch.softmax(self.cross_query(normalise(x)) @ kv[:, 0].transpose(-1, -2) * CROSS**-0.5, -1)
        x = x + self.cross_out(weight @ kv[:, 1])
        hidden = F.gelu(self.up(normalise(x) * (1 + scale_2) + shift_2), approximate="tanh")
        return x + (1 + gate_2) * self.down(hidden)


def normalise(x: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), eps=1e-5)


def split_heads(x: Tensor, heads: int) -> Tensor:
    return x.reshape(-1, CHUNK, heads, WIDTH // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(-1, CHUNK, WIDTH)


def fourier(x: Tensor) -> Tensor:
    """x (…, 2), about −1 … 1 -> (…, 4 · len(FOURIER))."""
    angle = (x[..., None] * x.new_tensor(FOURIER) * (math.pi / 2)).flatten(-2)
    return torch.cat([torch.sin(angle), torch.cos(angle)], -1)


def near_block(point: Tensor) -> Tensor:
    """A point in the T's frame (…, 2), units -> how near it is to the T (…, 12)."""
    gap = box_distances(point) - AGENT_RADIUS
    offset = (box_offsets(point) / AGENT_RADIUS).clamp(-2.0, 2.0).flatten(-2)
    return torch.cat([offset, torch.tanh(gap / 4), torch.tanh(gap / 16), (gap / 100).clamp(-1, 2)], -1)


class Dynamics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.text = TextEncoder(BLOCKS, CROSS)
        self.time = TimeEmbedding()
        self.action = nn.Sequential(nn.Linear(6, CONDITION), nn.SiLU(), nn.Linear(CONDITION, CONDITION))
        self.embed_state = nn.Sequential(nn.LazyLinear(2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        self.embed_noisy = nn.Linear(5, WIDTH)
        self.place = nn.Parameter(torch.randn(CHUNK, WIDTH) * 0.02)
        self.blocks = nn.ModuleList([Block() for _ in range(BLOCKS)])
        self.out_modulation = nn.Linear(CONDITION, 2 * WIDTH)
        self.out = nn.Linear(WIDTH, 5)
        nn.init.normal_(self.out.weight, std=0.01)
        nn.init.zeros_(self.out.bias)
        self.register_buffer("mask", torch.full((CHUNK, CHUNK), -1e4).triu(1))

    def past(self, latents: Tensor) -> Tensor:
        """latents (B, N + 1, 6) -> the motions between them (B, N, 5)."""
        return motion_between(latents[:, :-1], latents[:, 1:])

    def features(self, latents: Tensor, actions: Tensor, response: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """latents (B, N + 1, 6), actions (B, N, 2) normalised, response (B, 4).

        -> state features (B, N, ·), action features (B, N, 6), expected agent motion (B, N, 2).
        Feature i uses latents 0 … i and actions 0 … i only.
        """
        pose = latents[:, :-1]
        agent = pose[..., 0:2] * CENTER + CENTER
        pull = actions * ACTION_SCALE + ACTION_OFFSET - agent
        first = torch.zeros_like(pose[:, :1, :1])
        before = torch.cat([torch.zeros_like(latents[:, :1, :5]), self.past(latents)[:, :-1]], 1)
        pull_before = torch.cat([torch.zeros_like(pull[:, :1]), pull[:, :-1]], 1)
        later = torch.cat([first, torch.ones_like(pose[:, 1:, :1])], 1)
        r = response[:, None]
        expected = (later * (r[..., 0:1] * pull + r[..., 1:2] * before[..., :2] * MOTION_SCALE[0] + r[..., 2:3] * pull_before)
                    + (1 - later) * (r[..., 0:1] + r[..., 3:4]) * pull)
        here = into_frame(agent - (pose[..., 2:4] * CENTER + CENTER), pose)
        path = into_frame(expected, pose)
        local_pull = into_frame(pull, pose)
        walls = corner_wall_distances(pose).flatten(-2)
        state = torch.cat([
            pose, here / 128, path / 16, fourier(here / 128), fourier((here + path) / 128),
            near_block(here), near_block(here + 0.5 * path), near_block(here + path),
            before, into_frame(before[..., :2], pose), pull_before / 32, later,
            F.relu(1 - walls / 40), torch.tanh(walls / 6),
        ], -1)
        return state, torch.cat([local_pull / 32, pull / 32, torch.tanh(local_pull / 12)], -1), expected / MOTION_SCALE[0]

    def head(self, noisy: Tensor, latents: Tensor, actions: Tensor, t_rows: Tensor, response: Tensor):
        """noisy (B, N, 5), t_rows (B, N, C) -> tokens (B, N, W), condition (B, N, C), expected (B, N, 2)."""
        state, action, expected = self.features(latents, actions, response)
        condition = F.silu(t_rows + self.action(action))
        tokens = self.embed_state(state) + self.embed_noisy(noisy) + self.place
        return tokens, condition, expected

    def body(self, tokens: Tensor, condition: Tensor, text_kv: Tensor) -> Tensor:
        for index, block in enumerate(self.blocks):
            tokens = block(tokens, condition, text_kv[:, index], self.mask)
        return tokens

    def tail(self, tokens: Tensor, condition: Tensor, expected: Tensor) -> Tensor:
        """-> x0, the clean motion (B, N, 5)."""
        shift, scale = self.out_modulation(condition).chunk(2, -1)
        x0 = self.out(normalise(tokens) * (1 + scale) + shift)
        return torch.cat([x0[..., :2] + expected, x0[..., 2:]], -1)

    def forward(self, noisy: Tensor, latents: Tensor, actions: Tensor, t: Tensor, text_ids: Tensor,
                text_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Every frame at once, each with its own t (B, N) -> (x0 (B, N, 5), expected agent motion (B, N, 2))."""
        text_kv, response = self.text(text_ids, text_mask)
        tokens, condition, expected = self.head(noisy, latents, actions, self.time(t), response)
        return self.tail(self.body(tokens, condition, text_kv), condition, expected), expected

    def velocity(self, noisy: Tensor, latents: Tensor, actions: Tensor, position: Tensor, t: Tensor, text_kv: Tensor,
                 response: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """One frame at sampling time: noisy (B, 1, 5), position int64 (B,), t (B,) -> velocity (B, 1, 5) and traces."""
        context, rows = self.arrange(noisy, latents, position, self.time(t))
        tokens, condition, expected = self.head(context, latents, actions, rows, response)
        tokens_out = self.body(tokens, condition, text_kv)
        x0 = self.tail(tokens_out, condition, expected)
        picked = x0.gather(1, position[:, None, None].expand(-1, 1, 5))
        return (noisy - picked) / t.clamp(min=1e-3)[:, None, None], {"tokens": tokens, "tokens_out": tokens_out}

    def arrange(self, noisy: Tensor, latents: Tensor, position: Tensor, t_rows: Tensor) -> tuple[Tensor, Tensor]:
        """Clean motions with t = 0 before `position`, the noisy one at it, zeros after (masked, never read).

        noisy (B, 1, 5), t_rows (B, C) -> motions (B, N, 5), rows (B, N, C).
        """
        index = torch.arange(CHUNK, device=noisy.device)[None, :, None]
        here = (index == position[:, None, None]).to(noisy.dtype)
        done = (index < position[:, None, None]).to(noisy.dtype)
        clean_rows = self.time(torch.zeros(1, device=noisy.device))
        return self.past(latents) * done + noisy * here, here * t_rows[:, None] + (1 - here) * clean_rows


def create_dynamics() -> Dynamics:
    """The lazy layer's input width is found by one dry run."""
    model = Dynamics()
    zeros = torch.zeros
    model(zeros(1, CHUNK, 5), zeros(1, CHUNK + 1, 6), zeros(1, CHUNK, 2), zeros(1, CHUNK),
          zeros(1, 32, dtype=torch.int64), torch.ones(1, 32))
    return model
