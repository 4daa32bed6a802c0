"""Byte-level tokenizer and the small prompt encoder.

Token = byte + 3; 0 pads, 1 begins a prompt, 2 is the null sequence of the unconditional stream.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

MAX_TOKENS = 32
PAD, BEGIN, NULL, FIRST_BYTE = 0, 1, 2, 3
VOCABULARY = 256 + FIRST_BYTE
#: How many summary rows of a prompt the denoiser attends to, and their width.
PROMPT_ROWS, PROMPT_WIDTH = 4, 64


def tokenize(prompt: str | None) -> tuple[np.ndarray, np.ndarray]:
    """prompt (None: the null sequence) -> ids int64 (MAX_TOKENS,), mask float32 (MAX_TOKENS,)."""
    tokens = [NULL] if prompt is None else [BEGIN, *(b + FIRST_BYTE for b in prompt.encode()[: MAX_TOKENS - 1])]
    ids, mask = np.zeros(MAX_TOKENS, np.int64), np.zeros(MAX_TOKENS, np.float32)
    ids[: len(tokens)], mask[: len(tokens)] = tokens, 1.0
    return ids, mask


def tokenize_all(prompts: list[str | None]) -> tuple[Tensor, Tensor]:
    ids, mask = zip(*(tokenize(p) for p in prompts), strict=True)
    return torch.from_numpy(np.stack(ids)), torch.from_numpy(np.stack(mask))


class TextEncoder(nn.Module):
    """Learned queries pool the prompt's bytes into PROMPT_ROWS rows.

    Outputs the cross-attention keys and values of every block, and the coefficients of the agent's linear
    response (see `dynamics.py`).
    """

    def __init__(self, blocks: int, inner: int):
        super().__init__()
        self.blocks, self.inner = blocks, inner
        self.embed = nn.Embedding(VOCABULARY, PROMPT_WIDTH)
        self.place = nn.Parameter(torch.randn(MAX_TOKENS, PROMPT_WIDTH) * 0.3)
        self.mix = nn.Linear(PROMPT_WIDTH * 3, PROMPT_WIDTH)
        self.key = nn.Linear(PROMPT_WIDTH, PROMPT_WIDTH)
        self.queries = nn.Parameter(torch.randn(PROMPT_ROWS, PROMPT_WIDTH))
        self.out = nn.Sequential(nn.Linear(PROMPT_WIDTH, 128), nn.GELU(), nn.Linear(128, PROMPT_WIDTH))
        self.key_value = nn.Linear(PROMPT_WIDTH, blocks * 2 * inner)
        self.response = nn.Linear(PROMPT_ROWS * PROMPT_WIDTH, 4)
        nn.init.zeros_(self.response.weight)
        with torch.no_grad():
            self.response.bias.copy_(torch.tensor([0.5, 0.5, 0.0, 0.0]))

    def forward(self, text_ids: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
        """ids (B, T), mask (B, T) -> text_kv (B, blocks, 2, PROMPT_ROWS, inner), agent_response (B, 4)."""
        x = (self.embed(text_ids) + self.place) * text_mask[..., None]
        before, after = torch.zeros_like(x[:, :1]), torch.zeros_like(x[:, :1])
        neighbours = torch.cat([torch.cat([before, x[:, :-1]], 1), x, torch.cat([x[:, 1:], after], 1)], -1)
        x = x + torch.nn.functional.gelu(self.mix(neighbours))
        score = self.queries @ self.key(x).transpose(1, 2) / PROMPT_WIDTH**0.5
        weight = torch.softmax(score + (text_mask[:, None] - 1.0) * 1e4, -1)
        rows = weight @ x
        rows = rows + self.out(rows)
        kv = self.key_value(rows).reshape(-1, PROMPT_ROWS, self.blocks, 2, self.inner).permute(0, 2, 3, 1, 4)
        return kv, self.response(rows.flatten(1))
