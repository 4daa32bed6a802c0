"""Measure the scaled bundle on held-out episodes, open loop, beside repeating the first frame.

    python -m models.scaled.evaluate --bundle bench/bundles/dreamdojo-scaled --episodes 8

Writes the `quality` field of model.json. Exits 1 where the bundle is no better than repeating the first frame, or does
not follow its actions: it is for benchmarks, but a network of noise would tell nothing about skipping and gates.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from models.scaled import data
from models.scaled.export import BUNDLE
from models.scaled.manifest import write
from models.scaled.rollout import rollout
from models.training import metrics
from models.training.graph_runner import GraphRunner
from models.training.reference import Request

#: A pixel whose blue is so many levels over its red is the agent's: it has 160 (65, 105, 225), the T 34, all else none.
AGENT_BLUE_OVER_RED = 80


def agent_pixels(frames: np.ndarray) -> np.ndarray:
    """Centre of the agent's pixels as (x, y), nan where there are none: uint8 (…, H, W, 3) -> (…, 2)."""
    near = frames[..., 2].astype(np.int16) - frames[..., 0] > AGENT_BLUE_OVER_RED
    total = near.sum((-1, -2))
    ys, xs = np.arange(frames.shape[-3]), np.arange(frames.shape[-2])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([(near * xs).sum((-1, -2)) / total, (near * ys[:, None]).sum((-1, -2)) / total], -1)


def measure(frames: np.ndarray, truth: np.ndarray, first: np.ndarray) -> dict[str, list[float]]:
    """Frames (E, T, H, W, 3), first (E, 1, H, W, 3) -> means over episodes and the frames of each chunk."""
    gap = np.linalg.norm(agent_pixels(frames) - agent_pixels(truth), axis=-1)
    by_frame = {"psnr": metrics.psnr(frames, truth), "psnr_changed": metrics.changed_psnr(frames, truth, first),
                "ssim": metrics.ssim(frames, truth), "t_iou": metrics.t_iou(frames, truth), "agent_px": gap,
                "agent_seen": np.isfinite(gap).astype(float)}
    chunks = frames.shape[1] // 12
    return {name: [round(float(v), 3) for v in np.nanmean(value.reshape(len(value), chunks, 12), (0, 2))]
            for name, value in by_frame.items()}


def misses(model: dict[str, list[float]], repeat: dict[str, list[float]]) -> list[str]:
    """What a bundle fit for its purpose must do in the first chunk."""
    wanted = {
        "PSNR over repeating the first frame": model["psnr"][0] > repeat["psnr"][0] + 1.0,
        "PSNR of the changed pixels over repeating the first frame": model["psnr_changed"][0] > repeat["psnr_changed"][0] + 1.0,
        "the agent is seen in nine frames of ten": model["agent_seen"][0] >= 0.9,
        "the agent is within half its error when it stands still": model["agent_px"][0] < 0.5 * repeat["agent_px"][0],
    }
    return [what for what, reached in wanted.items() if not reached]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument("--actions", type=int, default=24)
    parser.add_argument("--num-steps", type=int)
    args = parser.parse_args()
    runner = GraphRunner(args.bundle)
    steps = args.num_steps or runner.manifest["sampler"]["default_num_steps"]
    held_out = data.held_out(args.episodes, args.actions)
    truth, first = held_out.frames[:, 1:], held_out.frames[:, :1]
    frames = np.stack([rollout(runner, f[0], a, Request(seed=i, num_steps=steps)).frames[1:]
                       for i, (f, a) in enumerate(zip(held_out.frames, held_out.actions, strict=True))])
    decoded = np.stack([through_autoencoder(runner, f) for f in held_out.frames])
    model, repeat = measure(frames, truth, first), measure(np.broadcast_to(first, truth.shape), truth, first)
    ceiling = measure(decoded, truth, first)
    print(f"{args.episodes} held-out episodes, {steps} steps, chunks of 12 frames: model (autoencoder alone; repeat-first-frame)")
    for name in model:
        print(f"  {name:14s}" + "".join(f"{m:9.3f} ({c:.3f}; {r:.3f})" for m, c, r in
                                        zip(model[name], ceiling[name], repeat[name], strict=True)), flush=True)
    sheet = np.concatenate([np.concatenate(list(row[i, 2::3]), 1) for i in range(min(4, len(frames))) for row in (truth, frames)])
    Image.fromarray(sheet).save(args.bundle / "sheet.png")
    manifest = json.loads((args.bundle / "model.json").read_text())
    manifest["quality"] = {"script": "python -m models.scaled.evaluate", "episodes": args.episodes, "num_steps": steps,
                           "model": model, "autoencoder": ceiling, "repeat_first_frame": repeat}
    write(args.bundle / "model.json", manifest)
    missed = misses(model, repeat)
    for line in missed:
        print("MISSED:", line)
    sys.exit(1 if missed else 0)


def through_autoencoder(runner: GraphRunner, frames: np.ndarray) -> np.ndarray:
    """The best a bundle could do: frames (T + 1, …) encoded one by one and drawn again, uint8 (T, …)."""
    latents = np.concatenate([runner.run("frame_encoder", {"frame": frame[None]})["latent"] for frame in frames[1:]])
    drawn = [runner.run("decoder", {"block_latents": np.stack([latents[i: i + 3]])})["frames"][0, ::4] for i in range(0, len(latents), 3)]
    return np.concatenate(drawn)


if __name__ == "__main__":
    main()
