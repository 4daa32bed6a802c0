"""The pipeline of docs/model-bundle.md in Python, for servers that batch whole requests: start frame + actions → mp4.

One call takes a batch of rollouts and runs it to completion, which is what dynamic batching gives a model. It has what
an engineer who knows the bundle would do without changing the result: no unconditional pass without guidance, the
timestep's rows computed once per schedule, a prompt's tensors once per prompt, rows that are finished leave the batch,
and ffmpeg is fed while the frames come.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from bench.peers.video import Encoding
from models.training.philox import normals

BEGIN, NULL, FIRST_BYTE = 1, 2, 3
#: Graphs that need nothing but the prompt, in order; the second is optional.
TEXT_GRAPHS = ("text_encoder", "text_kv")
STEP_GRAPHS = ("denoiser_head", "denoiser_body", "denoiser_tail")
#: Prompts whose tensors are kept; a benchmark has a handful.
TEXTS_MAX = 64

Tensors = dict[str, np.ndarray]
OnFrames = Callable[[int, np.ndarray], None]


@dataclass(frozen=True)
class Rollout:
    frame: np.ndarray  # uint8 (H, W, 3)
    actions: np.ndarray  # float32 (T, A) in the environment's units
    seed: int
    num_steps: int
    guidance: float
    prompt: str


def parse_rollout(body: dict, action_dim: int) -> Rollout:
    """From the JSON that every peer takes: frame (PNG) and actions (float32) in base64."""
    frame = np.asarray(Image.open(io.BytesIO(base64.b64decode(body["frame"]))).convert("RGB"))
    actions = np.frombuffer(base64.b64decode(body["actions"]), "<f4").reshape(-1, action_dim)
    return Rollout(frame, actions, int(body["seed"]), int(body["num_steps"]), float(body["guidance"]), body["prompt"])


class Pipeline:
    def __init__(self, bundle: Path, threads: int = 1):
        self.manifest = json.loads((bundle / "model.json").read_text())
        self.shapes = self.manifest["shapes"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        self.sessions = {name: onnxruntime.InferenceSession(str(bundle / graph["file"]), options,
                                                            providers=["CPUExecutionProvider"])
                         for name, graph in self.manifest["graphs"].items() if not name.endswith("_unfused")}
        self.inputs = {name: [i.name for i in session.get_inputs()] for name, session in self.sessions.items()}
        self.outputs = {name: [o.name for o in session.get_outputs()] for name, session in self.sessions.items()}
        self.texts: dict[str | None, Tensors] = {}
        self.rows_of_t: dict[float, Tensors] = {}

    def run(self, graph: str, tensors: Tensors) -> Tensors:
        values = self.sessions[graph].run(None, {name: tensors[name] for name in self.inputs[graph]})
        return dict(zip(self.outputs[graph], values, strict=True))

    def videos(self, rollouts: list[Rollout]) -> list[bytes]:
        """One mp4 for each."""
        encodings = [Encoding(self.shapes, frames=len(rollout.actions) + 1) for rollout in rollouts]
        try:
            self.dream(rollouts, lambda index, frames: encodings[index].write(frames))
            return [encoding.finish() for encoding in encodings]
        finally:
            for encoding in encodings:
                encoding.close()

    def dream(self, rollouts: list[Rollout], on_frames: OnFrames) -> None:
        """`on_frames(index, uint8 (frames, H, W, 3))`, the start frame first."""
        # One schedule is one run; requests that ask for another make a batch of their own.
        def schedule_of(index: int) -> tuple[int, float]:
            return rollouts[index].num_steps, rollouts[index].guidance

        for (num_steps, guidance), indices in groupby(sorted(range(len(rollouts)), key=schedule_of), schedule_of):
            self.dream_batch(rollouts, list(indices), num_steps, guidance, on_frames)

    def dream_batch(self, rollouts: list[Rollout], live: list[int], num_steps: int, guidance: float,
                    on_frames: OnFrames) -> None:
        chunk_size, spec = self.shapes["chunk_size"], self.manifest["actions"]
        offset, scale = np.float32(spec["offset"]), np.float32(spec["scale"])
        last = {}
        for index in live:
            if len(rollouts[index].actions) % chunk_size:
                raise ValueError(f"expected a multiple of {chunk_size} actions, got {len(rollouts[index].actions)}")
            last[index] = rollouts[index].frame
            on_frames(index, rollouts[index].frame[None])
        chunk = 0
        while live:
            actions = np.stack([rollouts[i].actions[chunk * chunk_size:(chunk + 1) * chunk_size] for i in live])
            texts = [self.text_rows([rollouts[i].prompt for i in live])]
            if guidance:
                texts.append(self.text_rows([None] * len(live)))
            seeds = [rollouts[i].seed for i in live]
            frames = self.dream_chunk(np.stack([last[i] for i in live]), (actions - offset) / scale, seeds, chunk, texts,
                                      num_steps, guidance, lambda row, part: on_frames(live[row], part))
            chunk += 1
            last = dict(zip(live, frames, strict=True))
            live = [i for i in live if len(rollouts[i].actions) > chunk * chunk_size]

    def dream_chunk(self, conditioning: np.ndarray, actions: np.ndarray, seeds: list[int], chunk: int,
                    texts: list[Tensors], num_steps: int, guidance: float, on_frames: OnFrames) -> np.ndarray:
        """Returns each row's last frame (B, H, W, 3)."""
        compression = self.shapes["temporal_compression"]
        length, block = (self.shapes[name] // compression for name in ("chunk_size", "block_frames"))
        noise = np.stack([normals(seed, chunk, (length, *self.shapes["noise_shape"])) for seed in seeds])
        tensors: Tensors = {"latents": np.zeros((len(seeds), length + 1, *self.shapes["latent_shape"]), np.float32),
                            "actions": actions}
        tensors["latents"][:, 0] = self.run("frame_encoder", {"frame": conditioning})["latent"]
        frames = conditioning[:, None]
        for position in range(0, length, block):
            tensors["position"] = np.full(len(seeds), position, np.int64)
            tensors["denoised"] = self.denoise(noise[:, position:position + block], tensors, texts, num_steps, guidance)
            tensors["block_latents"] = tensors["denoised"]
            if "advance" in self.sessions:
                tensors.update(self.run("advance", tensors))
            tensors["latents"][:, position + 1:position + 1 + block] = tensors["block_latents"]
            frames = self.run("decoder", tensors)["frames"]
            for row, part in enumerate(frames):
                on_frames(row, part)
        return frames[:, -1]

    def denoise(self, x: np.ndarray, tensors: Tensors, texts: list[Tensors], num_steps: int, guidance: float) -> np.ndarray:
        times = schedule(num_steps, self.manifest["sampler"]["shift"])
        for now, after in zip(times[:-1], times[1:], strict=True):
            rows = {name: np.repeat(value, len(x), 0) for name, value in self.timestep(float(now)).items()}
            t = np.full(len(x), now, np.float32)
            velocities = [self.velocity({**tensors, **rows, **text, "noisy": x, "t": t}) for text in texts]
            velocity = velocities[0]
            if guidance:
                velocity = velocity + np.float32(guidance) * (velocity - velocities[1])
            x = x + np.float32(after - now) * velocity
        return x

    def velocity(self, tensors: Tensors) -> np.ndarray:
        for graph in STEP_GRAPHS:
            tensors.update(self.run(graph, tensors))
        return tensors["velocity"]

    def timestep(self, t: float) -> Tensors:
        if t not in self.rows_of_t:
            self.rows_of_t[t] = self.run("timestep", {"t": np.array([t], np.float32)})
        return self.rows_of_t[t]

    def text_rows(self, prompts: list[str | None]) -> Tensors:
        texts = [self.text(prompt) for prompt in prompts]
        return {name: np.concatenate([text[name] for text in texts]) for name in texts[0]}

    def text(self, prompt: str | None) -> Tensors:
        if prompt not in self.texts:
            tensors = tokenize(prompt, self.manifest["text"]["max_tokens"])
            for graph in TEXT_GRAPHS:
                if graph in self.sessions:
                    tensors.update(self.run(graph, tensors))
            while len(self.texts) >= TEXTS_MAX:
                self.texts.pop(next(iter(self.texts)))
            self.texts[prompt] = {name: value for name, value in tensors.items() if name not in ("text_ids", "text_mask")}
        return self.texts[prompt]


def schedule(num_steps: int, shift: float) -> np.ndarray:
    """t_0 = 1 … t_n = 0, float32 (num_steps + 1,)."""
    u = 1.0 - np.arange(num_steps + 1) / num_steps
    return (shift * u / (1.0 + (shift - 1.0) * u)).astype(np.float32)


def tokenize(prompt: str | None, max_tokens: int) -> Tensors:
    """prompt (None: the null sequence) -> text_ids int64 (1, max_tokens), text_mask float32 (1, max_tokens)."""
    tokens = [NULL] if prompt is None else [BEGIN, *(b + FIRST_BYTE for b in prompt.encode()[: max_tokens - 1])]
    ids, mask = np.zeros((1, max_tokens), np.int64), np.zeros((1, max_tokens), np.float32)
    ids[0, : len(tokens)], mask[0, : len(tokens)] = tokens, 1.0
    return {"text_ids": ids, "text_mask": mask}


def pipeline_from_env() -> Pipeline:
    """As bench/peers/systems.ts starts every process: the bundle's folder in PEER_BUNDLE, ORT's threads in PEER_THREADS."""
    return Pipeline(Path(os.environ["PEER_BUNDLE"]), int(os.environ["PEER_THREADS"]))
