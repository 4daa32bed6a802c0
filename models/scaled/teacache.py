"""Fit the bundle's TeaCache: how the change of the body's residual follows from the change of its modulated input.

    python -m models.scaled.teacache --bundle bench/bundles/dreamdojo-scaled

Real rollouts of held-out start frames without skipping give pairs (relL1 of the modulated input, relL1 of the residual
tokens_out − tokens) of successive steps; a polynomial of degree 4 fits them. Then the same rollouts are run with
skipping at each of THRESHOLDS: what share of the bodies is left out, and how near the video stays. The highest
threshold whose worst video stays over PSNR_WANTED goes into model.json. `teacache.json` keeps pairs, fit and table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from models.scaled import data
from models.scaled.export import BUNDLE
from models.scaled.manifest import write
from models.scaled.rollout import Forward, Result, TeaCache, relative_l1, rollout
from models.training import metrics
from models.training.graph_runner import GraphRunner
from models.training.reference import Request

STEPS = (10, 20, 35)
DEGREE = 4
#: How far past the pairs the polynomial must behave, by how many points, with what share of the pairs' weight.
REACH, HOLD_POINTS, HOLD_WEIGHT = 2.0, 40, 0.05
#: Accumulated relative change of the residual at which the body is computed again.
THRESHOLDS = (0.06, 0.1, 0.15, 0.25, 0.4)
#: dB against the same video without skipping, for the worst of the rollouts: far over what 8-bit rounding or an mp4 costs.
PSNR_WANTED = 40.0
#: Held-out episodes from here on, so that neither the evaluation's nor the golden ones are used.
FIRST_EPISODE = 700


class Pairs:
    """Collects the changes from step to step of one rollout's blocks."""

    def __init__(self) -> None:
        self.x, self.y, self.last = [], [], None

    def add(self, forward: Forward) -> None:
        residual = forward.tokens_out - forward.tokens
        if self.last is not None and forward.step > 0:
            self.x.append(relative_l1(forward.modulated, self.last[0]))
            self.y.append(relative_l1(residual, self.last[1]))
        self.last = forward.modulated, residual


def plain_rollouts(runner: GraphRunner, episodes: data.HeldOut, steps: int) -> tuple[list[Result], Pairs]:
    pairs, results = Pairs(), []
    for episode in range(len(episodes.frames)):
        results.append(rollout(runner, episodes.frames[episode, 0], episodes.actions[episode], Request(seed=episode, num_steps=steps),
                               on_forward=pairs.add))
    return results, pairs


def fit(x: np.ndarray, y: np.ndarray) -> tuple[list[float], dict[str, float]]:
    """-> coefficients, highest power first, and how well they do.

    Between 0 and REACH times the largest change seen, a few points on the proportional line hold the polynomial: one that
    dives below 0 where no pair lies would skip for ever there.
    """
    held = np.linspace(0.0, REACH * x.max(), HOLD_POINTS)
    weight = np.sqrt(HOLD_WEIGHT * len(x) / HOLD_POINTS)
    coefficients = np.polyfit(np.concatenate([x, held]), np.concatenate([y, held * (y.sum() / x.sum())]), DEGREE,
                              w=np.concatenate([np.ones(len(x)), np.full(HOLD_POINTS, weight)]))
    error = np.polyval(coefficients, x) - y
    grid = np.polyval(coefficients, np.linspace(0.5 * x.min(), REACH * x.max(), 200))
    assert grid.min() > 0, "the polynomial is not positive where changes may lie"
    return [float(c) for c in coefficients], {
        "pairs": len(x), "rms_error": float(np.sqrt((error**2).mean())), "r2": float(1 - (error**2).sum() / ((y - y.mean()) ** 2).sum()),
        "x_min": float(x.min()), "x_max": float(x.max()), "y_min": float(y.min()), "y_max": float(y.max()),
        "polynomial_min": float(grid.min()), "polynomial_max": float(grid.max())}


def try_threshold(runner: GraphRunner, episodes: data.HeldOut, steps: int, plain: list[Result], cache: TeaCache) -> dict:
    skipped = computed = 0
    psnr, ssim = [], []
    for episode, wanted in enumerate(plain):
        got = rollout(runner, episodes.frames[episode, 0], episodes.actions[episode], Request(seed=episode, num_steps=steps), cache)
        skipped, computed = skipped + got.skipped, computed + got.computed
        psnr.append(float(metrics.psnr(got.frames[1:], wanted.frames[1:]).mean()))
        ssim.append(float(metrics.ssim(got.frames[1:], wanted.frames[1:]).mean()))
    return {"num_steps": steps, "threshold": cache.threshold, "skipped_share": skipped / (skipped + computed),
            "psnr_mean": float(np.mean(psnr)), "psnr_worst": min(psnr), "ssim_worst": min(ssim)}


def choose(rows: list[dict]) -> float:
    """The highest threshold at which no number of steps has a video under PSNR_WANTED; the lowest there is, failing that."""
    good = [t for t in THRESHOLDS if all(row["psnr_worst"] >= PSNR_WANTED for row in rows if row["threshold"] <= t)]
    return max(good, default=THRESHOLDS[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--episodes", type=int, default=3)
    parser.add_argument("--actions", type=int, default=12)
    args = parser.parse_args()
    runner = GraphRunner(args.bundle)
    episodes = data.held_out(args.episodes, args.actions, FIRST_EPISODE)
    plain, x, y = {}, [], []
    for steps in STEPS:
        plain[steps], pairs = plain_rollouts(runner, episodes, steps)
        print(f"teacache: {steps} steps: modulated input changes by {min(pairs.x):.4f} … {max(pairs.x):.4f}, residual by "
              f"{min(pairs.y):.4f} … {max(pairs.y):.4f}", flush=True)
        x, y = x + pairs.x, y + pairs.y
    coefficients, quality = fit(np.array(x), np.array(y))
    print("teacache: polynomial", coefficients, quality, flush=True)
    rows = []
    for steps in STEPS:
        for threshold in THRESHOLDS:
            row = try_threshold(runner, episodes, steps, plain[steps], TeaCache(threshold, tuple(coefficients)))
            rows.append(row)
            print(f"teacache: {steps:2d} steps, threshold {threshold:.2f}: {row['skipped_share']:5.1%} skipped, PSNR "
                  f"{row['psnr_mean']:.1f} dB (worst {row['psnr_worst']:.1f}), SSIM {row['ssim_worst']:.4f}", flush=True)
    threshold = choose(rows)
    print(f"teacache: threshold {threshold}", flush=True)
    report = {"script": "python -m models.scaled.teacache", "episodes": args.episodes, "actions": args.actions, "steps": STEPS,
              "coefficients": coefficients, "fit": quality, "threshold": threshold, "psnr_wanted": PSNR_WANTED, "table": rows,
              "pairs": [[round(a, 6), round(b, 6)] for a, b in zip(x, y, strict=True)]}
    (args.bundle / "teacache.json").write_text(json.dumps(report, indent=1) + "\n")
    manifest = json.loads((args.bundle / "model.json").read_text())
    manifest["engine"]["optimisations"]["teacache"] = {"threshold": threshold, "coefficients": coefficients}
    write(args.bundle / "model.json", manifest)


if __name__ == "__main__":
    main()
