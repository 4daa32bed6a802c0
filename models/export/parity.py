"""The split, fused ONNX graphs against the whole, unfused torch model; and against themselves in other batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch

from models.export.graphs import example_inputs
from models.training import reference
from models.training.geometry import move
from models.training.graph_runner import GraphRunner

#: Largest difference allowed of float outputs (float32 rounding through four blocks), and of 8-bit pixels.
TOLERANCE, PIXEL_TOLERANCE = 2e-4, 1
#: The body of the base spec: not on the served path.
UNFUSED = "denoiser_body_unfused"


def check_parity(model: reference.Model, bundle: Path, graphs: list[str], batch: int = 8) -> None:
    runner = GraphRunner(bundle, [name for name in graphs if name != UNFUSED])
    tensors = example_inputs(batch, torch.Generator().manual_seed(1))
    whole = whole_model(model, tensors)
    split = runner.run_all({k: v.numpy() for k, v in tensors.items() if k not in ("denoised", "block_latents")},
                           extra={"denoised": tensors["denoised"].numpy()})
    for name, wanted in whole.items():
        compare(f"{name}: graphs against whole model", split[name], wanted)
    unfused = GraphRunner(bundle, [UNFUSED]).run(UNFUSED, split)["tokens_out"]
    compare("tokens_out: one matrix for query, key and value against three", split["tokens_out"], unfused)
    for sample in range(batch):
        alone = runner.run_all({k: v[sample: sample + 1].numpy() for k, v in tensors.items()
                                if k not in ("denoised", "block_latents")},
                               extra={"denoised": tensors["denoised"][sample: sample + 1].numpy()})
        for name in whole:
            compare(f"{name}: sample {sample} alone against in a batch of {batch}", alone[name], split[name][sample: sample + 1],
                    quiet=True)
    print(f"parity: {batch} samples alone and together agree", flush=True)
    print("onnxruntime", onnxruntime.__version__, "opset 18, tolerance", TOLERANCE)


@torch.no_grad()
def whole_model(model: reference.Model, tensors: dict) -> dict[str, np.ndarray]:
    """The same outputs from the torch model that the reference pipeline uses."""
    text_kv, response = model.dynamics.text(tensors["text_ids"], tensors["text_mask"])
    velocity, traces = model.dynamics.velocity(tensors["noisy"], tensors["latents"], tensors["actions"],
                                               tensors["position"], tensors["t"], text_kv, response)
    rows = torch.arange(len(velocity))
    block_latents = move(tensors["latents"][rows, tensors["position"]][:, None], tensors["denoised"])
    outputs = {"text_kv": text_kv, "agent_response": response, "latent": model.frame_encoder(tensors["frame"]),
               "tokens": traces["tokens"], "tokens_out": traces["tokens_out"], "velocity": velocity,
               "block_latents": block_latents, "frames": model.decoder(block_latents)}
    return {name: value.numpy() for name, value in outputs.items()}


def compare(what: str, got: np.ndarray, wanted: np.ndarray, quiet: bool = False) -> None:
    assert got.shape == wanted.shape and got.dtype == wanted.dtype, (what, got.shape, wanted.shape, got.dtype)
    difference = float(np.abs(got.astype(np.float64) - wanted.astype(np.float64)).max())
    if got.dtype == np.uint8:
        limit = PIXEL_TOLERANCE
    else:
        limit = TOLERANCE * max(1.0, float(np.abs(wanted).max()))
    if not quiet:
        print(f"parity: {what}: {difference:.2e}", flush=True)
    assert difference <= limit, f"{what}: {difference} > {limit}"
