"""model.json of the scaled bundle. What `teacache.py` and `evaluate.py` find is kept when the same weights are exported again."""

from __future__ import annotations

import json
from pathlib import Path

from models.export.manifest import describe
from models.scaled.autoencoder import CHANNELS, GRID, TEMPORAL
from models.scaled.data import SIZE
from models.scaled.network import CHUNK
from models.scaled.train import SHIFT
from models.training.dynamics import ACTION_OFFSET, ACTION_SCALE
from models.training.text import MAX_TOKENS

DEFAULT_NUM_STEPS = 10
#: What a rollout with every optimisation must reach against the same one without any: between a TeaCache as `teacache.py` fits it
#: and one that skips whatever it may (docs/quality.md has both).
GATE = {"psnr_min": 37.0, "ssim_min": 0.98, "lpips_max": 0.04}
CATALOGUE = {
    "name": "DreamDojo Scaled",
    "provider": "dream-engine",
    "upstream_provider": {"key": "dream-engine", "name": "Dream Engine", "short_name": "Dream", "logo_url": "",
                          "homepage": "", "huggingface_org": ""},
    "category": "robotics",
    "summary": "The layout of DreamDojo-2B scaled down, for measuring the engine. Not for customers.",
    "description": "A video diffusion transformer over 4 x 16 x 16 latent tokens with AdaLN-LoRA, text cross-attention and "
                   "actions grouped by four, trained briefly from scratch on 128x128 PushT video.",
    "intended_use": "Benchmarks, fitting TeaCache and the quality gate. It follows its actions; it is not a good world model.",
    "training_data": "Synthetic episodes of gym-pusht 0.1.8 under scripted pushing policies.",
    "license": "Apache-2.0",
    "links": {},
    "is_flagship": False,
    "is_benchmarked": False,
    "model_size": "",
    "embodiment": "PushT planar pusher",
    "encoder_name": "linear patch video encoder",
    "ckpt_repo": "",
    "base_model": "",
}


def write_manifest(bundle: Path, graphs: list[str], parameters: int, commit: str) -> None:
    path = bundle / "model.json"
    described = {name: describe(bundle / f"{name}.onnx") for name in graphs}
    old = json.loads(path.read_text()) if path.exists() else {}
    same = old.get("graphs") == described
    latent = [CHANNELS, GRID, GRID]
    manifest = {
        "format": 1,
        "slug": bundle.name,
        "catalogue": {**CATALOGUE, "model_size": f"{parameters / 1e6:.1f}M"},
        "shapes": {"height": SIZE, "width": SIZE, "fps": 10, "action_dim": 2, "chunk_size": CHUNK, "block_frames": CHUNK,
                   "latent_shape": latent, "noise_shape": latent, "temporal_compression": TEMPORAL},
        "sampler": {"kind": "euler", "shift": SHIFT, "default_num_steps": DEFAULT_NUM_STEPS, "default_guidance": 0},
        "actions": {"offset": [ACTION_OFFSET] * 2, "scale": [ACTION_SCALE] * 2,
                    "unit": "target position of the agent, [0, 512]"},
        "text": {"tokenizer": "bytes", "max_tokens": MAX_TOKENS, "prompts": ["", "slow arm"]},
        "graphs": described,
        "engine": {
            "max_batch_samples": 8,
            "cold_start_s": 4,
            "optimisations": {"guidance_shortcut": True, "timestep_lut": True, "text_cache": True, "fused_qkv": True,
                              "teacache": old["engine"]["optimisations"]["teacache"] if same else None},
        },
        "gate": GATE,
        "training": {
            "summary": "Linear video encoder with a conv decoder and a rectified-flow transformer, trained from scratch on "
                       "simulated episodes on two CPU cores.",
            "command": "bash models/scaled/build.sh",
            "commit": commit or old.get("training", {}).get("commit", ""),
            "seeds": "training episodes 0 … 999999, held-out episodes 10000000 … 10000999",
        },
        "quality": old.get("quality", {}) if same else {},
    }
    write(path, manifest)
    total = sum(graph["bytes"] for graph in described.values())
    print(f"{path}: {len(graphs)} graphs, {total / 1e6:.1f} MB", flush=True)


def write(path: Path, manifest: dict) -> None:
    path.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
