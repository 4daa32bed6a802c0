"""Write a bundle: the graphs of docs/model-bundle.md as ONNX (opset 18, weights inside) and model.json.

    python -m models.export.export --workdir RUNS --bundle models/pusht-small [--precision mixed]

Fails if a graph differs from the whole torch model, if the fused projections differ from the separate ones, or
if a sample's result depends on the batch it is in (`parity.py`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from models.export.graphs import (AdvanceGraph, BodyGraph, HeadGraph, TailGraph, TextEncoderGraph, TimestepGraph,
                                  example_inputs, fuse)
from models.export.manifest import write_manifest
from models.export.parity import check_parity
from models.export.precision import PRECISIONS, check_seed, make_mixed
from models.training import reference

OPSET = 18
#: Two samples: the exporter takes an axis of size one for a constant.
EXAMPLE_BATCH = 2


class Named(nn.Module):
    """A module with the names of its tensors."""

    def __init__(self, module: nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...]):
        super().__init__()
        self.module, self.INPUTS, self.OUTPUTS = module, inputs, outputs

    def forward(self, *tensors: Tensor):
        return self.module(*tensors)


def graphs_of(model: reference.Model) -> dict[str, nn.Module]:
    """In the order of use."""
    fused = fuse(model.dynamics)
    return {
        "text_encoder": TextEncoderGraph(fused),
        "frame_encoder": Named(model.frame_encoder, ("frame",), ("latent",)),
        "timestep": TimestepGraph(fused),
        "denoiser_head": HeadGraph(fused),
        "denoiser_body": BodyGraph(fused),
        "denoiser_body_unfused": BodyGraph(model.dynamics.eval()),
        "denoiser_tail": TailGraph(fused),
        "advance": AdvanceGraph(),
        "decoder": Named(model.decoder, ("block_latents",), ("frames",)),
    }


def export_graph(module: nn.Module, tensors: dict[str, Tensor], file: Path) -> tuple[Tensor, ...]:
    """Export one graph and return its outputs for `tensors`."""
    module.eval()
    arguments = tuple(tensors[name] for name in module.INPUTS)
    with torch.no_grad():
        outputs = module(*arguments)
    batch = torch.export.Dim("batch", min=1, max=1024)
    shapes = tuple({0: batch} for _ in arguments)
    shapes = (shapes,) if isinstance(module, Named) else shapes
    program = torch.onnx.export(module, arguments, dynamo=True, opset_version=OPSET, input_names=list(module.INPUTS),
                                output_names=list(module.OUTPUTS), dynamic_shapes=shapes, external_data=False,
                                optimize=True, verbose=False)
    proto = onnx.shape_inference.infer_shapes(program.model_proto)
    strip(proto)
    onnx.checker.check_model(proto)
    onnx.save_model(proto, str(file), save_as_external_data=False)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def strip(proto: onnx.ModelProto) -> None:
    """Drop what describes the exporting machine (stack traces, paths) rather than the graph."""
    proto.doc_string = ""
    del proto.metadata_props[:]
    del proto.graph.metadata_props[:]
    proto.graph.doc_string = ""
    for node in proto.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in [*proto.graph.value_info, *proto.graph.input, *proto.graph.output]:
        del value.metadata_props[:]
    del proto.graph.value_info[:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("models/training/runs"))
    parser.add_argument("--bundle", type=Path, default=Path("models/pusht-small"))
    parser.add_argument("--commit", default="", help="the commit whose code made the weights")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="mixed: for accelerators (precision.py)")
    args = parser.parse_args()
    model = reference.load(args.workdir)
    args.bundle.mkdir(parents=True, exist_ok=True)
    tensors = example_inputs(EXAMPLE_BATCH, torch.Generator().manual_seed(0))
    graphs = graphs_of(model)
    for name, module in graphs.items():
        outputs = export_graph(module, tensors, args.bundle / f"{name}.onnx")
        tensors.update(zip(module.OUTPUTS, outputs, strict=True))
        print(f"{name}: {(args.bundle / f'{name}.onnx').stat().st_size} bytes", flush=True)
    check_parity(model, args.bundle, list(graphs))
    if args.precision == "mixed":
        make_mixed(args.bundle, list(graphs), example_inputs(EXAMPLE_BATCH, check_seed()))
    write_manifest(args.bundle, list(graphs), sum(p.numel() for p in model.dynamics.parameters()), args.commit)


if __name__ == "__main__":
    main()
