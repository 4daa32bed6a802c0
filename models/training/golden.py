"""Golden tensors: what any engine of this bundle must reproduce, made by the reference pipeline.

    python -m models.training.golden --workdir RUNS --bundle models/pusht-small --out test/golden

`philox.json` is exact on the integers. Rollouts are compared within the tolerances of `manifest.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from models.training import philox, reference
from models.training.example import strip
from models.training.held_out import held_out_episodes
from models.training.reference import Request, Traces

SEEDS = (0, 1, 42, 2**31, 2**32, 2**53 + 1, 2**63 - 1, -1, -42, -(2**63), 2**64 + 5)
CHUNKS = (0, 1, 3)
ROLLOUTS = {
    "default": (0, "default", Request(seed=42)),
    "slow-arm-guided": (1, "slow arm", Request(seed=-7, prompt="slow arm", guidance=1.5)),
    "six-steps": (2, "default", Request(seed=2**53 + 1, prompt="default", num_steps=6)),
    "one-step": (5, "default", Request(seed=123456789, num_steps=1)),
}
#: Held-out episodes from here on, so that golden start frames are not those of the evaluation.
FIRST_EPISODE = 500
TOLERANCE = {
    "first_chunk_tensor_abs": 1e-3,
    "tokens_out_rel": 1e-5,
    "frame_mean_abs_levels": 0.5,
    "note": "Philox integers are exact; normals within 1 float32 ulp (libm differences). Latents and velocities of the "
            "first chunk within first_chunk_tensor_abs; tokens_out within tokens_out_rel of its largest magnitude. Later "
            "chunks start from 8-bit pixels, where one level of rounding moves the latent by about 1e-3, so compare "
            "frames: the mean absolute difference of a frame, in 8-bit levels, stays under frame_mean_abs_levels.",
}


def write_philox(out: Path) -> None:
    cases = []
    for seed in SEEDS:
        for chunk in CHUNKS:
            integers, values = philox.words(seed, chunk, 4), philox.normals(seed, chunk, (reference.CHUNK, 5))
            cases.append({"seed": str(seed), "key": list(philox.key_of(seed)), "chunk": chunk,
                          "words": integers.reshape(-1).tolist(), "shape": [reference.CHUNK, 5],
                          "normals": [float(v) for v in values.reshape(-1)[:18]],
                          "normals_last": float(values.reshape(-1)[-1])})
    (out / "philox.json").write_text(json.dumps({
        "about": "words: the first 4 counter groups (16 uint32). normals: the first 18 float32 of the chunk's noise, as "
                 "float64 literals. Seeds are decimal strings: some do not fit a double.",
        "known_answer": {"key": [0, 0], "counter": [0, 0, 0, 0],
                         "words": philox.philox4x32(np.zeros((1, 4), np.uint32), (0, 0))[0].tolist()},
        "cases": cases}, indent=1) + "\n")


def write_rollout(out: Path, name: str, model: reference.Model) -> dict:
    episode, physics, request = ROLLOUTS[name]
    data = held_out_episodes(1, physics, "push", FIRST_EPISODE + episode)
    traces = Traces()
    frames = reference.rollout(model, data.frames[0, 0], data.actions[0], request, traces)
    folder = out / name
    folder.mkdir(exist_ok=True)
    Image.fromarray(data.frames[0, 0]).save(folder / "start_frame.png", optimize=True)
    np.save(folder / "actions.npy", data.actions[0].astype(np.float32))
    strip(frames).save(folder / "frames.png", optimize=True)
    forwards = request.num_steps
    arrays = {
        "latent": np.stack(traces.latents),  # (chunks, 6): each chunk's conditioning latent
        "noise": np.stack(traces.noise),  # (chunks, 12, 5)
        "velocities": np.stack(traces.velocities[: 12 * forwards]).reshape(12, forwards, 5),  # first chunk
        "tokens_out": traces.tokens_out[0],  # (12, W); only row 0 is defined at position 0
        "block_latents": np.stack(traces.block_latents),  # (48, 6)
    }
    arrays["tokens_out"] = arrays["tokens_out"][:1]
    for key, value in arrays.items():
        np.save(folder / f"{key}.npy", value.astype(np.float32))
    return {"name": name, "seed": str(request.seed), "prompt": request.prompt, "num_steps": request.num_steps,
            "guidance": request.guidance, "actions": 48, "fps": 10,
            "frames": "frames.png: the 49 frames (start frame first) stacked vertically, RGB",
            "tensors": {"latent": "(4 chunks, 6) conditioning latent of each chunk", "noise": "(4, 12, 5)",
                        "velocities": "(12 frames, num_steps, 5) of the first chunk, after guidance",
                        "tokens_out": "(1, width): row 0 of the very first forward (position 0, conditional stream)",
                        "block_latents": "(48, 6) the latent of each generated frame"}}


def write_manifest(out: Path, rollouts: list[dict], bundle: Path) -> None:
    files = {}
    for file in sorted(p for p in out.rglob("*") if p.is_file() and p.name != "manifest.json"):
        data = file.read_bytes()
        files[str(file.relative_to(out))] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    model = json.loads((bundle / "model.json").read_text())
    (out / "manifest.json").write_text(json.dumps({
        "script": "python -m models.training.golden", "made_by": "models/training/reference.py (whole torch model)",
        "bundle": model["slug"], "bundle_graphs": {k: v["sha256"] for k, v in model["graphs"].items()},
        "tolerance": TOLERANCE, "rollouts": rollouts, "files": files}, indent=1) + "\n")
    print(f"{out}: {len(files)} files, {sum(f['bytes'] for f in files.values()) / 1e6:.2f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("models/training/runs"))
    parser.add_argument("--bundle", type=Path, default=Path("models/pusht-small"))
    parser.add_argument("--out", type=Path, default=Path("test/golden"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    model = reference.load(args.workdir)
    write_philox(args.out)
    write_manifest(args.out, [write_rollout(args.out, name, model) for name in ROLLOUTS], args.bundle)


if __name__ == "__main__":
    main()
