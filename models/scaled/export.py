"""Write the scaled bundle: the graphs as ONNX (opset 18, weights inside) and model.json, with parity checks.

    python -m models.scaled.export --workdir RUNS --bundle bench/bundles/dreamdojo-scaled [--precision mixed]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from models.export.export import EXAMPLE_BATCH, export_graph
from models.export.precision import PRECISIONS, check_seed, make_mixed
from models.scaled.autoencoder import Autoencoder
from models.scaled.graphs import example_inputs, graphs_of
from models.scaled.manifest import write_manifest
from models.scaled.network import Network
from models.scaled.parity import check_parity
from models.training.checkpoint import load_model

BUNDLE = Path("bench/bundles/dreamdojo-scaled")


def export(network: Network, autoencoder: Autoencoder, bundle: Path, commit: str, precision: str) -> None:
    bundle.mkdir(parents=True, exist_ok=True)
    tensors = example_inputs(EXAMPLE_BATCH, torch.Generator().manual_seed(0))
    graphs = graphs_of(network, autoencoder)
    for name, module in graphs.items():
        outputs = export_graph(module, tensors, bundle / f"{name}.onnx")
        tensors.update(zip(module.OUTPUTS, outputs, strict=True))
        print(f"{name}: {(bundle / f'{name}.onnx').stat().st_size} bytes", flush=True)
    check_parity(network, autoencoder, bundle, list(graphs))
    if precision == "mixed":
        make_mixed(bundle, list(graphs), example_inputs(EXAMPLE_BATCH, check_seed()))
    write_manifest(bundle, list(graphs), sum(p.numel() for p in network.parameters()), commit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("models/scaled/runs"))
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--commit", default="", help="the commit whose code made the weights")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="mixed: for accelerators (precision.py)")
    args = parser.parse_args()
    export(load_model(args.workdir / "network.pt", Network()), load_model(args.workdir / "autoencoder.pt", Autoencoder()),
           args.bundle, args.commit, args.precision)


if __name__ == "__main__":
    main()
