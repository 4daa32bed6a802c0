"""model.json of the PushT bundle. `quality` is filled by evaluate.py and kept when a bundle is exported again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from models.training import reference
from models.training.dynamics import ACTION_OFFSET, ACTION_SCALE, CHUNK
from models.training.text import MAX_TOKENS

CATALOGUE = {
    "name": "PushT Small",
    "provider": "dream-engine",
    "upstream_provider": {"key": "dream-engine", "name": "Dream Engine", "short_name": "Dream", "logo_url": "",
                          "homepage": "", "huggingface_org": ""},
    "category": "robotics",
    "summary": "A small action-conditioned world model of the PushT task, trained from scratch on two CPU cores.",
    "description": "Given one 96x96 frame of PushT and a list of target positions for the agent, it generates what "
                   "the camera would see: the blue agent moves as told and pushes the grey T. The prompt \"slow arm\" "
                   "selects a softer controller.",
    "intended_use": "Demonstrating and testing a world-model engine end to end on a machine without an accelerator. "
                    "Not a substitute for the simulator: the T's angle drifts over long rollouts.",
    "training_data": "Synthetic episodes of gym-pusht 0.1.8 under scripted pushing policies; see CARD.md.",
    "license": "Apache-2.0",
    "links": {},
    "is_flagship": True,
    "is_benchmarked": False,
    "model_size": "",
    "embodiment": "PushT planar pusher",
    "encoder_name": "keypoint pose encoder",
    "ckpt_repo": "",
    "base_model": "",
}


def write_manifest(bundle: Path, graphs: list[str], parameters: int, commit: str) -> None:
    path = bundle / "model.json"
    old = json.loads(path.read_text()) if path.exists() else {}
    manifest = {
        "format": 1,
        "slug": bundle.name,
        "catalogue": {**CATALOGUE, "model_size": f"{parameters / 1e6:.1f}M"},
        "shapes": {"height": 96, "width": 96, "fps": 10, "action_dim": 2, "chunk_size": CHUNK, "block_frames": 1,
                   "latent_shape": [6], "noise_shape": [reference.NOISE_WIDTH], "temporal_compression": 1},
        "sampler": {"kind": "euler", "shift": reference.SHIFT, "default_num_steps": reference.DEFAULT_NUM_STEPS,
                    "default_guidance": 0},
        "actions": {"offset": [ACTION_OFFSET] * 2, "scale": [ACTION_SCALE] * 2,
                    "unit": "target position of the agent, [0, 512]"},
        "text": {"tokenizer": "bytes", "max_tokens": MAX_TOKENS, "prompts": ["", "slow arm"]},
        "graphs": {name: describe(bundle / f"{name}.onnx") for name in graphs},
        # No TeaCache: of two steps the first and the last are always computed.
        "engine": {"max_batch_samples": 8, "cold_start_s": 2,
                   "optimisations": {"guidance_shortcut": True, "timestep_lut": True, "text_cache": True,
                                     "fused_qkv": True, "teacache": None}},
        "training": {
            "summary": "Keypoint frame encoder, sprite decoder and a causal rectified-flow transformer over per-frame "
                       "motions, trained from scratch on simulated episodes on two CPU cores.",
            "command": "bash models/training/reproduce.sh",
            "commit": commit or old.get("training", {}).get("commit", ""),
            "seeds": "training episodes 0 … 999999, held-out episodes 10000000 … 10000999",
        },
        **({"gate": old["gate"]} if "gate" in old else {}),
        "quality": old.get("quality", {}),
    }
    path.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    total = sum(graph["bytes"] for graph in manifest["graphs"].values())
    print(f"{path}: {len(graphs)} graphs, {total / 1e6:.1f} MB", flush=True)


def describe(file: Path) -> dict:
    data = file.read_bytes()
    return {"file": file.name, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
