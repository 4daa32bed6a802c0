"""The reference pipeline: start frame + actions + seed + prompt -> frames, with the whole torch model.

It does not use the exported graphs, so that comparing an engine with it also proves the export. What it does
is docs/model-bundle.md: Philox noise, Euler over a shifted schedule, guidance as cond + g·(cond − uncond),
blocks of one frame, chunks that start again from the last frame's 8-bit pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.training.checkpoint import load_model
from models.training.decoder import Decoder
from models.training.dynamics import ACTION_OFFSET, ACTION_SCALE, CHUNK, Dynamics, create_dynamics
from models.training.frame_encoder import FrameEncoder
from models.training.geometry import move
from models.training.philox import normals
from models.training.text import tokenize_all

SHIFT = 1.0
DEFAULT_NUM_STEPS = 2
NOISE_WIDTH = 5


@dataclass(frozen=True)
class Request:
    seed: int = 0
    prompt: str = ""
    num_steps: int = DEFAULT_NUM_STEPS
    guidance: float = 0.0


@dataclass
class Model:
    frame_encoder: FrameEncoder
    decoder: Decoder
    dynamics: Dynamics


@dataclass
class Traces:
    """Intermediate tensors of a rollout, for golden files."""
    latents: list[np.ndarray] = field(default_factory=list)  # conditioning latent of each chunk (6,)
    noise: list[np.ndarray] = field(default_factory=list)  # of each chunk (N, 5)
    velocities: list[np.ndarray] = field(default_factory=list)  # of every denoising step (5,)
    tokens_out: list[np.ndarray] = field(default_factory=list)  # of every conditional forward (N, W)
    block_latents: list[np.ndarray] = field(default_factory=list)  # of each frame (6,)


def load(workdir: Path) -> Model:
    return Model(load_model(workdir / "frame_encoder.pt", FrameEncoder()), load_model(workdir / "decoder.pt", Decoder()),
                 load_model(workdir / "dynamics.pt", create_dynamics()))


def schedule(num_steps: int, shift: float = SHIFT) -> np.ndarray:
    """t_0 = 1 … t_n = 0, float32 (num_steps + 1,)."""
    u = 1.0 - np.arange(num_steps + 1) / num_steps
    return (shift * u / (1.0 + (shift - 1.0) * u)).astype(np.float32)


@torch.no_grad()
def rollout(model: Model, start_frame: np.ndarray, actions: np.ndarray, request: Request,
            traces: Traces | None = None) -> np.ndarray:
    """start_frame uint8 (96, 96, 3), actions float32 (T, 2) in units, T a multiple of CHUNK -> uint8 (T + 1, 96, 96, 3)."""
    assert len(actions) % CHUNK == 0
    text = model.dynamics.text(*tokenize_all([request.prompt, None]))
    frames = [start_frame]
    scaled = torch.from_numpy((actions.astype(np.float32) - np.float32(ACTION_OFFSET)) / np.float32(ACTION_SCALE))
    for chunk in range(len(actions) // CHUNK):
        noise = normals(request.seed, chunk, (CHUNK, NOISE_WIDTH))
        latents = torch.zeros(1, CHUNK + 1, 6)
        latents[:, 0] = model.frame_encoder(torch.from_numpy(frames[-1])[None])
        if traces is not None:
            traces.noise.append(noise)
            traces.latents.append(latents[0, 0].numpy().copy())
        part = scaled[None, chunk * CHUNK:(chunk + 1) * CHUNK]
        for position in range(CHUNK):
            denoised = denoise(model.dynamics, torch.from_numpy(noise[position])[None, None], latents, part, position, text,
                               request, traces)
            latents[:, position + 1] = move(latents[:, position], denoised[:, 0])
            frames.append(model.decoder(latents[:, position + 1: position + 2])[0, 0].numpy())
            if traces is not None:
                traces.block_latents.append(latents[0, position + 1].numpy().copy())
    return np.stack(frames)


def denoise(dynamics: Dynamics, x: Tensor, latents: Tensor, actions: Tensor, position: int, text: tuple[Tensor, Tensor],
            request: Request, traces: Traces | None) -> Tensor:
    """Euler from noise x (1, 1, 5) to the clean motion of frame `position` + 1."""
    times, at = schedule(request.num_steps), torch.tensor([position])
    kv, response = text
    for now, after in zip(times[:-1], times[1:], strict=True):
        t = torch.full((1,), float(now))
        velocity, inner = dynamics.velocity(x, latents, actions, at, t, kv[:1], response[:1])
        if request.guidance != 0:
            free, _ = dynamics.velocity(x, latents, actions, at, t, kv[1:], response[1:])
            velocity = velocity + request.guidance * (velocity - free)
        if traces is not None:
            traces.velocities.append(velocity[0, 0].numpy().copy())
            traces.tokens_out.append(inner["tokens_out"][0].numpy().copy())
        x = x + float(after - now) * velocity
    return x
