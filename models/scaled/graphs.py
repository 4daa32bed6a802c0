"""The bundle's graphs, cut out of the torch network: what docs/model-bundle.md names, with `text_kv` and both bodies.

Each class is one graph; `INPUTS` and `OUTPUTS` are the tensors' names. Batch axes are dynamic, everything else is fixed.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from models.scaled.autoencoder import CHANNELS, GRID, Autoencoder
from models.scaled.data import SIZE
from models.scaled.network import CHUNK, FRAMES, WIDTH, Block, Network
from models.training.text import tokenize_all


class FusedBlock(Block):
    """A block whose query, key and value come from one matrix multiplication."""

    def __init__(self, block: Block):
        super().__init__()
        self.load_state_dict(block.state_dict())
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        with torch.no_grad():
            self.query_key_value.weight.copy_(torch.cat([self.query.weight, self.key.weight, self.value.weight]))
        del self.query, self.key, self.value

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.query_key_value(x).chunk(3, -1)
        return q, k, v


def fuse(network: Network) -> Network:
    fused = copy.deepcopy(network)
    fused.blocks = nn.ModuleList([FusedBlock(block) for block in network.blocks])
    return fused.eval()


class Part(nn.Module):
    def __init__(self, network: Network):
        super().__init__()
        self.network = network


class TextEncoderGraph(Part):
    INPUTS, OUTPUTS = ("text_ids", "text_mask"), ("text_embeddings",)

    def forward(self, text_ids: Tensor, text_mask: Tensor):
        return self.network.text(text_ids, text_mask)


class TextKeysValuesGraph(Part):
    INPUTS, OUTPUTS = ("text_embeddings",), ("text_kv",)

    def forward(self, text_embeddings: Tensor):
        return self.network.text_kv(text_embeddings)


class FrameEncoderGraph(nn.Module):
    INPUTS, OUTPUTS = ("frame",), ("latent",)

    def __init__(self, autoencoder: Autoencoder):
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, frame: Tensor):
        return self.autoencoder.encode_frame(frame)


class TimestepGraph(Part):
    INPUTS, OUTPUTS = ("t",), ("t_rows",)

    def forward(self, t: Tensor):
        return self.network.time(t)


class HeadGraph(Part):
    """`condition` (B, K, W) and `shared` (B, K, 3 W) are extras: each latent frame's AdaLN inputs, time and actions."""
    INPUTS = ("noisy", "latents", "actions", "t_rows")
    OUTPUTS = ("tokens", "modulated", "condition", "shared")

    def forward(self, noisy: Tensor, latents: Tensor, actions: Tensor, t_rows: Tensor):
        condition, shared = self.network.conditions(t_rows, actions)
        tokens = self.network.tokens(noisy, latents[:, :1], self.network.places[None], actions)
        return tokens, self.network.blocks[0].modulated(tokens, condition, shared), condition, shared


class BodyGraph(Part):
    INPUTS, OUTPUTS = ("tokens", "condition", "shared", "text_kv"), ("tokens_out",)

    def forward(self, tokens: Tensor, condition: Tensor, shared: Tensor, text_kv: Tensor):
        return self.network.body(tokens, condition, shared, text_kv)


class TailGraph(Part):
    INPUTS, OUTPUTS = ("tokens_out", "condition", "shared", "noisy", "latents", "t"), ("velocity",)

    def forward(self, tokens_out: Tensor, condition: Tensor, shared: Tensor, noisy: Tensor, latents: Tensor, t: Tensor):
        return self.network.tail(tokens_out, condition, shared, noisy, latents[:, :1], t)


class DecoderGraph(nn.Module):
    INPUTS, OUTPUTS = ("block_latents",), ("frames",)

    def __init__(self, autoencoder: Autoencoder):
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, block_latents: Tensor):
        return self.autoencoder.decode(block_latents)


def graphs_of(network: Network, autoencoder: Autoencoder) -> dict[str, nn.Module]:
    """In the order of use."""
    fused = fuse(network)
    return {
        "text_encoder": TextEncoderGraph(network),
        "text_kv": TextKeysValuesGraph(network),
        "frame_encoder": FrameEncoderGraph(autoencoder),
        "timestep": TimestepGraph(network),
        "denoiser_head": HeadGraph(network),
        "denoiser_body": BodyGraph(fused),
        "denoiser_body_unfused": BodyGraph(network),
        "denoiser_tail": TailGraph(network),
        "decoder": DecoderGraph(autoencoder),
    }


def example_inputs(batch: int, generator: torch.Generator) -> dict[str, Tensor]:
    """A plausible batch in which every sample has another time, prompt and picture."""
    r = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    latents = torch.cat([r(batch, 1, CHANNELS, GRID, GRID), torch.zeros(batch, FRAMES, CHANNELS, GRID, GRID)], 1)
    prompts = ["", "slow arm", None, "default"]
    ids, mask = tokenize_all([prompts[i % 4] for i in range(batch)])
    return {"noisy": r(batch, FRAMES, CHANNELS, GRID, GRID), "latents": latents, "actions": r(batch, CHUNK, 2) * 0.4,
            "t": torch.rand(batch, generator=generator) * 0.9 + 0.1, "text_ids": ids, "text_mask": mask,
            "block_latents": r(batch, FRAMES, CHANNELS, GRID, GRID) * 0.5,
            "frame": torch.randint(0, 256, (batch, SIZE, SIZE, 3), generator=generator, dtype=torch.uint8)}
