"""Runs a bundle's ONNX graphs by name on one CPU thread, and a whole batch of rollouts through them.

This is what the evaluation uses: the figures are those of the shipped files.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime

from models.training.philox import normals
from models.training.reference import Request, schedule
from models.training.text import tokenize


class GraphRunner:
    def __init__(self, bundle: Path, graphs: list[str] | None = None, threads: int = 1):
        if graphs is None:
            self.manifest = json.loads((bundle / "model.json").read_text())
            graphs = list(self.manifest["graphs"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self.sessions = {name: onnxruntime.InferenceSession(str(bundle / f"{name}.onnx"), options,
                                                            providers=["CPUExecutionProvider"]) for name in graphs}
        self.inputs = {name: [i.name for i in s.get_inputs()] for name, s in self.sessions.items()}
        self.outputs = {name: [o.name for o in s.get_outputs()] for name, s in self.sessions.items()}

    def run(self, graph: str, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = self.sessions[graph].run(None, {name: tensors[name] for name in self.inputs[graph]})
        return dict(zip(self.outputs[graph], values, strict=True))

    def run_all(self, tensors: dict[str, np.ndarray], extra: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every graph once, in order; `extra` stands in for what a sampler would compute between them."""
        tensors = {**tensors, **extra}
        for graph in self.sessions:
            tensors.update(self.run(graph, tensors))
        return tensors

    def text(self, prompt: str | None, batch: int) -> dict[str, np.ndarray]:
        ids, mask = tokenize(prompt)
        row = self.run("text_encoder", {"text_ids": ids[None], "text_mask": mask[None]})
        return {name: np.repeat(value, batch, 0) for name, value in row.items()}

    def rollout(self, start_frames: np.ndarray, actions: np.ndarray, requests: list[Request],
                on_latents=None) -> np.ndarray:
        """start_frames uint8 (B, H, W, 3), actions (B, T, A) in units -> uint8 (B, T + 1, H, W, 3).

        All requests share num_steps, guidance and prompt; each has its own seed.
        """
        shapes, spec = self.manifest["shapes"], self.manifest["actions"]
        batch, chunk_size, first = len(requests), shapes["chunk_size"], requests[0]
        assert all((r.prompt, r.num_steps, r.guidance) == (first.prompt, first.num_steps, first.guidance) for r in requests)
        scaled = (actions.astype(np.float32) - np.float32(spec["offset"])) / np.float32(spec["scale"])
        texts = [self.text(first.prompt, batch)] + ([self.text(None, batch)] if first.guidance else [])
        times = schedule(first.num_steps, self.manifest["sampler"]["shift"])
        frames = [start_frames]
        for chunk in range(actions.shape[1] // chunk_size):
            noise = np.stack([normals(r.seed, chunk, (chunk_size, *shapes["noise_shape"])) for r in requests])
            tensors = {"latents": np.zeros((batch, chunk_size + 1, *shapes["latent_shape"]), np.float32),
                       "actions": scaled[:, chunk * chunk_size:(chunk + 1) * chunk_size]}
            tensors["latents"][:, 0] = self.run("frame_encoder", {"frame": frames[-1]})["latent"]
            for position in range(chunk_size):
                tensors["position"] = np.full(batch, position, np.int64)
                tensors["denoised"] = self.denoise(noise[:, position:position + 1], tensors, texts, times, first.guidance)
                tensors.update(self.run("advance", tensors))
                tensors["latents"][:, position + 1] = tensors["block_latents"][:, 0]
                frames.append(self.run("decoder", tensors)["frames"][:, 0])
                if on_latents is not None:
                    on_latents(tensors["block_latents"][:, 0])
        return np.stack(frames, 1)

    def denoise(self, x: np.ndarray, tensors: dict, texts: list[dict], times: np.ndarray, guidance: float) -> np.ndarray:
        for now, after in zip(times[:-1], times[1:], strict=True):
            velocities = [self.velocity({**tensors, **text, "noisy": x, "t": np.full(len(x), now, np.float32)}) for text in texts]
            velocity = velocities[0]
            if guidance:
                velocity = velocity + np.float32(guidance) * (velocity - velocities[1])
            x = x + np.float32(after - now) * velocity
        return x

    def velocity(self, tensors: dict[str, np.ndarray]) -> np.ndarray:
        for graph in ("timestep", "denoiser_head", "denoiser_body", "denoiser_tail"):
            tensors.update(self.run(graph, tensors))
        return tensors["velocity"]
