"""The split ONNX graphs against the whole torch model, fused against unfused, and samples alone against in a batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch

from models.export.parity import compare
from models.scaled.autoencoder import Autoencoder
from models.scaled.graphs import example_inputs
from models.scaled.network import Network
from models.training.graph_runner import GraphRunner

BATCH = 4


def check_parity(network: Network, autoencoder: Autoencoder, bundle: Path, graphs: list[str]) -> None:
    runner = GraphRunner(bundle, graphs)
    tensors = example_inputs(BATCH, torch.Generator().manual_seed(1))
    whole = whole_model(network, autoencoder, tensors)
    arrays = {name: value.numpy() for name, value in tensors.items()}
    split = run_split(runner, arrays)
    for name, wanted in whole.items():
        compare(f"{name}: graphs against whole model", split[name], wanted)
    unfused = runner.run("denoiser_body_unfused", split)["tokens_out"]
    compare("tokens_out: one matrix for query, key and value against three", split["tokens_out"], unfused)
    for sample in range(BATCH):
        alone = run_split(runner, {name: value[sample: sample + 1] for name, value in arrays.items()})
        for name in whole:
            compare(f"{name}: sample {sample} alone against in a batch of {BATCH}", alone[name], split[name][sample: sample + 1],
                    quiet=True)
    print(f"parity: {BATCH} samples alone and together agree; onnxruntime {onnxruntime.__version__}", flush=True)


def run_split(runner: GraphRunner, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every graph of the served path once."""
    tensors = dict(tensors)
    for graph in runner.sessions:
        if graph != "denoiser_body_unfused":
            tensors.update(runner.run(graph, tensors))
    return tensors


@torch.no_grad()
def whole_model(network: Network, autoencoder: Autoencoder, tensors: dict) -> dict[str, np.ndarray]:
    places = network.places[None].expand(BATCH, -1, -1, -1)
    velocity = network(tensors["noisy"], tensors["latents"][:, :1], places, tensors["actions"], tensors["t"],
                       tensors["text_ids"], tensors["text_mask"])
    outputs = {"velocity": velocity, "latent": autoencoder.encode_frame(tensors["frame"]),
               "frames": autoencoder.decode(tensors["block_latents"])}
    return {name: value.numpy() for name, value in outputs.items()}
