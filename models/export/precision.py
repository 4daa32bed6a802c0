"""Mixed precision for accelerators: matrix products and convolutions in half precision, with their weights, and
everything between them in float32: normalisations, softmax, the residual stream, the sampler's side of every graph.

Inputs and outputs stay float32, so a mixed bundle takes the place of another one. Graphs that run once a schedule or a
prompt stay as they are: they cost nothing and everything depends on them.

The converters of onnxruntime.transformers and onnxconverter-common are not used: they make every edge half precision
and cast around the operators that must not be, so that also what goes from one float32 operator to the next is rounded.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from models.training.graph_runner import GraphRunner

PRECISIONS = ("float32", "mixed")
HALF_OPERATORS = ("MatMul", "Gemm", "Conv")
#: Not in half precision: what the timestep table and the text cache hold, and what the chunk's latents come from.
FULL_GRAPHS = ("text_encoder", "text_kv", "timestep", "frame_encoder", "advance")
HALF_MAX = float(np.finfo(np.float16).max)
#: Root mean square of the difference, as a share of the float32 output's, in one graph given the same inputs; 8-bit
#: pixels by their PSNR in decibels. Half precision has 11 bits: one product is off by 5e-4 or less.
TOLERANCE, PSNR_MIN = 2e-3, 55.0


def to_mixed(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with its products in half precision."""
    mixed = onnx.ModelProto()
    mixed.CopyFrom(proto)
    graph = mixed.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    halves: dict[str, str] = {}

    def half_of(name: str) -> str:
        """The name of the tensor in half precision; made where it is first wanted."""
        if name not in halves:
            halves[name] = f"{name}_half"
            if name in weights:
                values = np.clip(numpy_helper.to_array(weights[name]), -HALF_MAX, HALF_MAX).astype(np.float16)
                graph.initializer.append(numpy_helper.from_array(values, halves[name]))
            else:
                nodes.append(helper.make_node("Cast", [name], [halves[name]], to=TensorProto.FLOAT16))
        return halves[name]

    for node in graph.node:
        if node.op_type in HALF_OPERATORS:
            (output,) = node.output
            node.input[:] = [half_of(name) if name else name for name in node.input]
            node.output[:] = [f"{output}_product"]
            nodes += [node, helper.make_node("Cast", list(node.output), [output], to=TensorProto.FLOAT)]
        else:
            nodes.append(node)

    del graph.node[:]
    graph.node.extend(nodes)
    wanted = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in wanted]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    onnx.checker.check_model(mixed, full_check=True)
    return mixed


def make_mixed(bundle: Path, graphs: list[str], tensors: dict[str, torch.Tensor]) -> None:
    """Write a bundle's graphs anew in mixed precision and hold each against what it was, on `tensors`.

    Every graph is given what the float32 graphs before it gave.
    """
    chosen = [name for name in graphs if name not in FULL_GRAPHS]
    before = GraphRunner(bundle, graphs)
    wanted: dict[str, dict[str, np.ndarray]] = {}
    arrays = {name: value.numpy() for name, value in tensors.items()}
    for name in graphs:
        wanted[name] = before.run(name, arrays)
        arrays.update({key: value for key, value in wanted[name].items() if key not in arrays})
    for name in chosen:
        file = bundle / f"{name}.onnx"
        onnx.save_model(to_mixed(onnx.load(file)), str(file), save_as_external_data=False)
    after = GraphRunner(bundle, chosen)
    for name in chosen:
        for key, got in after.run(name, arrays).items():
            compare(f"{name}: {key}", got, wanted[name][key])


def check_seed() -> torch.Generator:
    """Other inputs than those that the graphs were traced on."""
    return torch.Generator().manual_seed(2)


def compare(what: str, got: np.ndarray, wanted: np.ndarray) -> None:
    assert got.shape == wanted.shape and got.dtype == wanted.dtype, (what, got.shape, wanted.shape, got.dtype)
    difference = rms(got.astype(np.float64) - wanted)
    if got.dtype == np.uint8:
        psnr = 20 * np.log10(255 / max(difference, 1e-9))
        print(f"mixed precision: {what}: {psnr:.1f} dB", flush=True)
        assert psnr >= PSNR_MIN, f"{what}: {psnr} dB < {PSNR_MIN}"
    else:
        share = difference / max(rms(wanted), 1e-9)
        print(f"mixed precision: {what}: {share:.2e}", flush=True)
        assert share <= TOLERANCE, f"{what}: {share} > {TOLERANCE}"


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
