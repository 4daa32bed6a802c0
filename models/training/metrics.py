"""How close a dream is to the simulator: pixels, the T's silhouette, and poses."""

from __future__ import annotations

import numpy as np

#: A pixel counts as changed when any channel differs by more than this from the first frame.
CHANGED_LEVEL = 16
#: gym-pusht's colours: the T (LightSlateGray's lighter fill and outline), white, the goal, the agent.
T_COLOURS = ((144.0, 160.0, 178.0), (119.0, 136.0, 153.0))
OTHER_COLOURS = ((255.0, 255.0, 255.0), (144.0, 238.0, 144.0), (65.0, 105.0, 225.0), (90.0, 130.0, 250.0), (225.0, 225.0, 225.0))


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """uint8 (…, H, W, 3) -> dB (…,)."""
    error = ((a.astype(np.float32) - b.astype(np.float32)) ** 2).mean((-1, -2, -3))
    return 10 * np.log10(255.0**2 / np.maximum(error, 1e-3))


def changed_psnr(dream: np.ndarray, truth: np.ndarray, first: np.ndarray) -> np.ndarray:
    """PSNR over the pixels that differ from the first frame in the truth or in the dream (nan where none does)."""
    moved = lambda x: (np.abs(x.astype(np.int16) - first.astype(np.int16)).max(-1) > CHANGED_LEVEL)  # noqa: E731
    mask = moved(truth) | moved(dream)
    error = ((dream.astype(np.float32) - truth.astype(np.float32)) ** 2).mean(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (error * mask).sum((-1, -2)) / mask.sum((-1, -2))
    return 10 * np.log10(255.0**2 / np.maximum(mean, 1e-3))


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity of the luma, 8×8 uniform windows: uint8 (…, H, W, 3) -> (…,)."""
    luma = np.array([0.299, 0.587, 0.114], np.float32)
    x, y = a.astype(np.float32) @ luma, b.astype(np.float32) @ luma
    mx, my = box_mean(x), box_mean(y)
    vx, vy, cov = box_mean(x * x) - mx * mx, box_mean(y * y) - my * my, box_mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return ((2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))).mean((-1, -2))


def box_mean(x: np.ndarray, side: int = 8) -> np.ndarray:
    total = np.pad(x.astype(np.float64).cumsum(-1).cumsum(-2), [(0, 0)] * (x.ndim - 2) + [(1, 0), (1, 0)])
    return (total[..., side:, side:] - total[..., :-side, side:] - total[..., side:, :-side]
            + total[..., :-side, :-side]) / side**2


def t_mask(frames: np.ndarray) -> np.ndarray:
    """Pixels whose nearest colour is the T's: uint8 (…, H, W, 3) -> bool (…, H, W)."""
    pixels = frames.astype(np.float32)
    distance = lambda colours: np.min([((pixels - c) ** 2).sum(-1) for c in np.array(colours, np.float32)], axis=0)  # noqa: E731
    return distance(T_COLOURS) < distance(OTHER_COLOURS)


def t_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Overlap of the T's silhouettes in two frames (…,)."""
    x, y = t_mask(a), t_mask(b)
    return (x & y).sum((-1, -2)) / np.maximum((x | y).sum((-1, -2)), 1)


def pose_errors(states: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """States (…, 5) in units -> errors of the agent and the T in pixels of a 96-pixel frame, and degrees."""
    px = 96.0 / 512.0
    turn = states[..., 4] - truth[..., 4]
    return {"agent_px": np.linalg.norm(states[..., :2] - truth[..., :2], axis=-1) * px,
            "t_px": np.linalg.norm(states[..., 2:4] - truth[..., 2:4], axis=-1) * px,
            "t_deg": np.degrees(np.abs(np.arctan2(np.sin(turn), np.cos(turn))))}
