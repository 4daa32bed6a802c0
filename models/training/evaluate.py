"""Measure the shipped graphs on held-out episodes, open loop, beside repeating the first frame.

    python -m models.training.evaluate --bundle models/pusht-small --episodes 48

Writes `quality.json` and the `quality` field of model.json; exits 1 where a figure misses its target.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

from models.training import metrics
from models.training.geometry import state_from_latent
from models.training.graph_runner import GraphRunner
from models.training.held_out import ACTIONS, HeldOut, held_out_episodes
from models.training.reference import Request

QUARTERS = ("1-12", "13-24", "25-36", "37-48")
TARGET = {"psnr": (34.0, 30.9, 29.0, 27.2), "t_iou": (0.86, 0.77, 0.67, 0.57)}
BATCH = 8


def dream(runner: GraphRunner, data: HeldOut, prompt: str, num_steps: int, guidance: float) -> tuple[np.ndarray, np.ndarray]:
    """-> frames uint8 (E, 49, 96, 96, 3) and the states inside the model (E, 48, 5)."""
    frames, states = [], []
    for at in range(0, len(data.frames), BATCH):
        part, latents = slice(at, at + BATCH), []
        requests = [Request(seed=i, prompt=prompt, num_steps=num_steps, guidance=guidance)
                    for i in range(at, min(at + BATCH, len(data.frames)))]
        frames.append(runner.rollout(data.frames[part, 0], data.actions[part], requests, latents.append))
        states.append(state_from_latent(torch.from_numpy(np.stack(latents, 1))).numpy())
    return np.concatenate(frames), np.concatenate(states)


def measure(frames: np.ndarray, states: np.ndarray, data: HeldOut) -> dict[str, list[float]]:
    """Means over episodes and the frames of each quarter; poses at the quarter's last frame."""
    truth, first = data.frames[:, 1:], data.frames[:, :1]
    by_frame = {"psnr": metrics.psnr(frames, truth), "psnr_changed": metrics.changed_psnr(frames, truth, first),
                "ssim": metrics.ssim(frames, truth), "t_iou": metrics.t_iou(frames, truth)}
    quarters = lambda x: x.reshape(len(x), 4, ACTIONS // 4)  # noqa: E731
    rows = {name: np.nanmean(quarters(value), (0, 2)) for name, value in by_frame.items()}
    for name, value in metrics.pose_errors(states, data.states[:, 1:]).items():
        rows[name + "_end"] = quarters(value)[:, :, -1].mean(0)
    rows["agent_px"] = quarters(metrics.pose_errors(states, data.states[:, 1:])["agent_px"]).mean((0, 2))
    return {name: [round(float(v), 3) for v in value] for name, value in rows.items()}


def evaluate(bundle: Path, episodes: int, num_steps: int | None, guidance: float, physics: str, policy: str) -> dict:
    runner = GraphRunner(bundle)
    data = held_out_episodes(episodes, physics, policy)
    steps = num_steps or runner.manifest["sampler"]["default_num_steps"]
    frames, states = dream(runner, data, "" if physics == "default" else physics, steps, guidance)
    repeat = measure(np.repeat(data.frames[:, :1], ACTIONS, 1), np.repeat(data.states[:, :1], ACTIONS, 1), data)
    return {"episodes": episodes, "physics": physics, "policy": policy, "num_steps": steps, "guidance": guidance,
            "quarters": list(QUARTERS), "model": measure(frames[:, 1:], states, data), "repeat_first_frame": repeat}


def table(result: dict) -> str:
    lines = [f"{result['episodes']} held-out episodes, {result['physics']}, {result['policy']}, {result['num_steps']} steps, "
             f"guidance {result['guidance']} (repeat-first-frame in brackets)"]
    for name, values in result["model"].items():
        repeat = result["repeat_first_frame"][name]
        lines.append(f"  {name:14s}" + "".join(f"{v:9.3f} ({r:7.3f})" for v, r in zip(values, repeat, strict=True)))
    return "\n".join(lines)


def misses(result: dict) -> list[str]:
    return [f"{name} of frames {QUARTERS[i]}: {result['model'][name][i]} < {wanted}"
            for name, targets in TARGET.items() for i, wanted in enumerate(targets) if result["model"][name][i] < wanted]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("models/pusht-small"))
    parser.add_argument("--episodes", type=int, default=48)
    parser.add_argument("--num-steps", type=int)
    parser.add_argument("--guidance", type=float, default=0.0)
    parser.add_argument("--dry-run", action="store_true", help="print only the main table, write nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    main_result = evaluate(args.bundle, args.episodes, args.num_steps, args.guidance, "default", "push")
    print(table(main_result), flush=True)
    missed = misses(main_result)
    if not args.dry_run:
        others = [evaluate(args.bundle, 24, args.num_steps, args.guidance, *kind)
                  for kind in (("slow arm", "push"), ("default", "hop"))]
        for result in others:
            print(table(result), flush=True)
        quality = {"script": "python -m models.training.evaluate", "held_out": "seeds 10000000 on; see models/training/held_out.py",
                   "target": TARGET, "main": main_result, "others": others}
        (args.bundle / "quality.json").write_text(json.dumps(quality, indent=2) + "\n")
        manifest = json.loads((args.bundle / "model.json").read_text())
        manifest["quality"] = {"script": quality["script"], "episodes": args.episodes, "num_steps": main_result["num_steps"],
                               "quarters": list(QUARTERS), **main_result["model"]}
        (args.bundle / "model.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    for line in missed:
        print("MISSED:", line)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
