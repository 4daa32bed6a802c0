"""The bundle's example: one held-out start frame with its 48 actions, and the simulator's frames.

    python -m models.training.example --bundle models/pusht-small

`start_frame.png` 96×96 RGB, `actions.npy` float32 (48, 2), `truth.png` the 49 true frames stacked vertically.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from models.training.held_out import HeldOut, held_out_episodes

#: Which held-out episode: one in which the agent walks up to the T and pushes it across the table.
EPISODE = 8


def strip(frames: np.ndarray) -> Image.Image:
    """uint8 (T, H, W, 3) -> one image, frames stacked vertically."""
    return Image.fromarray(np.ascontiguousarray(frames.reshape(-1, *frames.shape[2:])))


def write_example(bundle: Path, data: HeldOut) -> None:
    folder = bundle / "example"
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(data.frames[0, 0]).save(folder / "start_frame.png", optimize=True)
    np.save(folder / "actions.npy", data.actions[0].astype(np.float32))
    strip(data.frames[0]).save(folder / "truth.png", optimize=True)
    moved = np.linalg.norm(data.states[0, -1, 2:4] - data.states[0, 0, 2:4])
    print(f"{folder}: the T moves {moved:.0f} units", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("models/pusht-small"))
    args = parser.parse_args()
    write_example(args.bundle, held_out_episodes(1, first=EPISODE))


if __name__ == "__main__":
    main()
