"""Rollouts through the exported graphs, with or without TeaCache: what an engine does, one sample at a time.

A chunk is denoised as a whole; the next one begins from the 8-bit pixels of its last frame (docs/model-bundle.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from models.training.graph_runner import GraphRunner
from models.training.philox import normals
from models.training.reference import Request, schedule


@dataclass(frozen=True)
class TeaCache:
    threshold: float
    coefficients: tuple[float, ...]  # highest power first


@dataclass
class Forward:
    """One denoising step, as `on_forward` sees it."""
    step: int
    modulated: np.ndarray
    tokens: np.ndarray
    tokens_out: np.ndarray


@dataclass
class Stream:
    """TeaCache's memory of one sample and one stream (conditional or not), through one block of frames."""
    cache: TeaCache | None
    steps: int
    last: np.ndarray | None = None
    residual: np.ndarray | None = None
    change: float = 0.0
    skipped: int = 0
    computed: int = 0

    def skips(self, step: int, modulated: np.ndarray) -> bool:
        """Whether the body may be left out at this step; keeps what the next step compares with."""
        before, self.last = self.last, modulated
        if self.cache is None or before is None or step == self.steps - 1:
            self.change = 0.0
            return False
        self.change += max(0.0, float(np.polyval(self.cache.coefficients, relative_l1(modulated, before))))
        if self.change < self.cache.threshold:
            return True
        self.change = 0.0
        return False


@dataclass
class Result:
    frames: np.ndarray  # uint8 (T + 1, H, W, 3)
    skipped: int
    computed: int
    velocities: list[np.ndarray] = field(default_factory=list)


def relative_l1(now: np.ndarray, before: np.ndarray) -> float:
    return float(np.abs(now - before).mean() / np.abs(before).mean())


def rollout(runner: GraphRunner, start_frame: np.ndarray, actions: np.ndarray, request: Request, cache: TeaCache | None = None,
            body: str = "denoiser_body", on_forward: Callable[[Forward], None] | None = None) -> Result:
    """start_frame uint8 (H, W, 3), actions float32 (T, A) in units, T a multiple of the chunk."""
    shapes, spec = runner.manifest["shapes"], runner.manifest["actions"]
    chunk_size, rows = shapes["chunk_size"], shapes["chunk_size"] // shapes["temporal_compression"]
    scaled = (actions.astype(np.float32) - np.float32(spec["offset"])) / np.float32(spec["scale"])
    prompts = [request.prompt, None] if request.guidance else [request.prompt]
    texts = [{**text, **runner.run("text_kv", text)} for text in (runner.text(prompt, 1) for prompt in prompts)]
    times = schedule(request.num_steps, runner.manifest["sampler"]["shift"])
    result = Result(start_frame[None], 0, 0)
    for chunk in range(len(actions) // chunk_size):
        latents = np.zeros((1, rows + 1, *shapes["latent_shape"]), np.float32)
        latents[:, 0] = runner.run("frame_encoder", {"frame": result.frames[-1:]})["latent"]
        x = normals(request.seed, chunk, (1, rows, *shapes["noise_shape"]))
        tensors = {"latents": latents, "actions": scaled[None, chunk * chunk_size:(chunk + 1) * chunk_size]}
        streams = [Stream(cache, request.num_steps) for _ in texts]
        for step, (now, after) in enumerate(zip(times[:-1], times[1:], strict=True)):
            velocities = []
            for stream, text in zip(streams, texts, strict=True):
                at = {**tensors, **text, "noisy": x, "t": np.full(1, now, np.float32)}
                velocities.append(forward(runner, at, stream, step, body, on_forward))
            velocity = velocities[0]
            if request.guidance:
                velocity = velocity + np.float32(request.guidance) * (velocity - velocities[1])
            result.velocities.append(velocity)
            x = x + np.float32(after - now) * velocity
        result.frames = np.concatenate([result.frames, runner.run("decoder", {"block_latents": x})["frames"][0]])
        result.skipped += sum(stream.skipped for stream in streams)
        result.computed += sum(stream.computed for stream in streams)
    return result


def forward(runner: GraphRunner, tensors: dict[str, np.ndarray], stream: Stream, step: int, body: str,
            on_forward: Callable[[Forward], None] | None) -> np.ndarray:
    """-> velocity; the body is run, or its last residual added again."""
    for graph in ("timestep", "denoiser_head"):
        tensors.update(runner.run(graph, tensors))
    if stream.skips(step, tensors["modulated"]):
        tensors["tokens_out"] = tensors["tokens"] + stream.residual
        stream.skipped += 1
    else:
        tensors.update(runner.run(body, tensors))
        stream.residual = tensors["tokens_out"] - tensors["tokens"]
        stream.computed += 1
    if on_forward is not None:
        on_forward(Forward(step, tensors["modulated"], tensors["tokens"], tensors["tokens_out"]))
    return runner.run("denoiser_tail", tensors)["velocity"]
