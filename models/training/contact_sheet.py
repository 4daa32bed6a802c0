"""docs/images/pusht-contact-sheet.png: held-out rollouts, the simulator above the dream.

    python -m models.training.contact_sheet --bundle models/pusht-small

The episodes are the first ones of the held-out range in which the T moves at least a quarter of the table; the
dream is made by the shipped ONNX graphs from the first frame and the actions alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from models.training import metrics
from models.training.evaluate import dream
from models.training.graph_runner import GraphRunner
from models.training.held_out import HeldOut, held_out_episodes

COLUMNS = (0, 6, 12, 18, 24, 30, 36, 42, 48)
ROWS, LEAST_MOVE = 3, 128.0
ZOOM, TILE, LEFT, TOP, GAP = 2, 192, 92, 40, 4


def moving(data: HeldOut, rows: int) -> list[int]:
    moved = np.linalg.norm(data.states[:, -1, 2:4] - data.states[:, 0, 2:4], axis=-1)
    return [int(i) for i in np.flatnonzero(moved >= LEAST_MOVE)[:rows]]


def enlarge(frame: np.ndarray) -> Image.Image:
    return Image.fromarray(frame).resize((TILE, TILE), Image.Resampling.NEAREST)


def draw_sheet(data: HeldOut, dreams: np.ndarray, names: list[str]) -> Image.Image:
    """data.frames, dreams uint8 (R, 49, 96, 96, 3)."""
    pair = 2 * (TILE + GAP) + 30
    sheet = Image.new("RGB", (LEFT + len(COLUMNS) * (TILE + GAP), TOP + len(dreams) * pair), "white")
    pen = ImageDraw.Draw(sheet)
    for column, frame in enumerate(COLUMNS):
        label = "start frame" if frame == 0 else f"frame {frame}  ({frame / 10:.1f} s)"
        pen.text((LEFT + column * (TILE + GAP) + 4, 8), label, fill="black", font_size=16)
    for row in range(len(dreams)):
        y = TOP + row * pair
        overlap = metrics.t_iou(dreams[row], data.frames[row])
        for line, (name, frames) in enumerate((("simulator", data.frames[row]), ("dream", dreams[row]))):
            pen.text((4, y + line * (TILE + GAP) + TILE // 2 - 8), name, fill="black", font_size=18)
            for column, frame in enumerate(COLUMNS):
                at = (LEFT + column * (TILE + GAP), y + line * (TILE + GAP))
                sheet.paste(enlarge(frames[frame]), at)
                if line:
                    pen.text((at[0] + 6, at[1] + TILE + 1), f"T overlap {overlap[frame]:.2f}", fill="gray", font_size=13)
        pen.text((4, y + 4), names[row], fill="gray", font_size=13)
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("models/pusht-small"))
    parser.add_argument("--out", type=Path, default=Path("docs/images/pusht-contact-sheet.png"))
    args = parser.parse_args()
    data = held_out_episodes(24)
    chosen = moving(data, ROWS)
    data = HeldOut(data.states[chosen], data.actions[chosen], data.frames[chosen])
    runner = GraphRunner(args.bundle)
    frames, _ = dream(runner, data, "", runner.manifest["sampler"]["default_num_steps"], 0.0)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draw_sheet(data, frames, [f"held-out {i}" for i in chosen]).quantize(128).save(args.out, optimize=True)
    print(f"{args.out}: episodes {chosen}, {args.out.stat().st_size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
