"""The scaled network: DreamDojo's layout with 8 blocks of width 256 over 4 × 16 × 16 tokens.

A chunk is one conditioning latent frame (row 0) and FRAMES latent frames to denoise. Every token sees every token
(rotary positions in time, height and width). Each latent frame has its own condition: the timestep's embedding plus the
embedding of the four actions that lead to it, zero for the conditioning frame; it enters by AdaLN-LoRA, as a low-rank
map per block beside one shared full-rank term. The prompt enters by cross-attention. Beside that, each token is told how
far it lies from where a linear arm would be: on this little training, the agent is then found at once (`AgentPaths`).

The network predicts what changes: clean latent = conditioning latent + output. `velocity = (noisy − clean) / t` is the
flow's velocity, so an untrained network repeats the first frame.

Shapes: B batch, K = FRAMES + 1 latent frames, h × w a window of the GRID × GRID patches (training sees windows),
T = K · h · w tokens, W width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.scaled.autoencoder import CHANNELS, GRID, TEMPORAL
from models.training.dynamics import ACTION_OFFSET, ACTION_SCALE
from models.training.text import MAX_TOKENS, VOCABULARY

CHUNK = 12
FRAMES = CHUNK // TEMPORAL
WIDTH, BLOCKS, HEADS, LORA = 256, 8, 8, 48
HEAD = WIDTH // HEADS
TEXT_WIDTH = 128
#: Rotary pairs of a head for time, height, width.
ROTARY = (2, 7, 7)
#: Frequencies of absolute positions (of patches and of actions alike): half turns over the picture.
PLACE_FREQUENCIES = (1.0, 2.0, 4.0, 8.0, 16.0)
T_FREQUENCIES = 128
#: Radii of the bumps around where the agent should be, in patches; a bump and its slope in x and y, 4 frames, 2 arms.
PATH_RADII = (0.5, 1.5, 4.0)
PATH_FEATURES = 2 * TEMPORAL * 3 * len(PATH_RADII)
#: The flow's velocity is not divided by less than this; the last step of every schedule of up to 35 steps is far above.
T_FLOOR = 0.02


def fourier(x: Tensor) -> Tensor:
    """x (…, n), −1 … 1 -> (…, 2 n · len(PLACE_FREQUENCIES))."""
    angle = (x[..., None] * x.new_tensor(PLACE_FREQUENCIES) * (math.pi / 2)).flatten(-2)
    return torch.cat([torch.sin(angle), torch.cos(angle)], -1)


def normalise(x: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), eps=1e-6)


def rotary_table() -> Tensor:
    """(K, GRID, GRID, HEAD / 2) angles."""
    parts = []
    for axis, (pairs, length) in enumerate(zip(ROTARY, (FRAMES + 1, GRID, GRID), strict=True)):
        frequencies = torch.pi / 2 * (1 / GRID) ** (torch.arange(pairs) / max(pairs - 1, 1))
        angle = torch.arange(length)[:, None] * frequencies
        view = [1, 1, 1, pairs]
        view[axis] = length
        parts.append(angle.reshape(view).expand(FRAMES + 1, GRID, GRID, pairs))
    return torch.cat(parts, -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, T, HEADS, HEAD), cos and sin (B or 1, T, 1, HEAD / 2)."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class TextEncoder(nn.Module):
    """Bytes to embeddings: ids, mask (B, MAX_TOKENS) -> (B, MAX_TOKENS, TEXT_WIDTH), zero where padded."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, TEXT_WIDTH)
        self.place = nn.Parameter(torch.randn(MAX_TOKENS, TEXT_WIDTH) * 0.3)
        self.mix = nn.ModuleList([nn.Conv1d(TEXT_WIDTH, TEXT_WIDTH, 3, padding=1) for _ in range(2)])
        self.pool = nn.Linear(TEXT_WIDTH, TEXT_WIDTH)

    def forward(self, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        mask = text_mask[..., None]
        x = (self.embed(text_ids) + self.place) * mask
        for layer in self.mix:
            x = (x + F.silu(layer(x.transpose(1, 2)).transpose(1, 2))) * mask
        mean = x.sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        return normalise(x + self.pool(mean)) * mask


class TextKeysValues(nn.Module):
    """Every block's cross-attention keys and values: (B, MAX_TOKENS, TEXT_WIDTH) -> (B, BLOCKS, 2, MAX_TOKENS, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.ModuleList([nn.Linear(TEXT_WIDTH, 2 * WIDTH, bias=False) for _ in range(BLOCKS)])

    def forward(self, text_embeddings: Tensor) -> Tensor:
        rows = torch.stack([project(text_embeddings) for project in self.project], 1)
        return torch.stack(rows.chunk(2, -1), 2)


class TimestepEmbedding(nn.Module):
    """t (B,) -> (B, 4 W): the embedding (W) and the shared AdaLN term (3 W)."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.embedding, self.shared = nn.Linear(2 * T_FREQUENCIES, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.register_buffer("frequencies", torch.exp(torch.linspace(0, math.log(200.0), T_FREQUENCIES)))

    def forward(self, t: Tensor) -> Tensor:
        angle = t[..., None] * self.frequencies
        x = F.silu(self.hidden(torch.cat([torch.sin(angle), torch.cos(angle)], -1)))
        return torch.cat([self.embedding(x), self.shared(x)], -1)


class ActionEmbedding(nn.Module):
    """Actions (B, CHUNK, 2), normalised, in groups of TEMPORAL -> (B, K, 4 W), zero for the conditioning frame.

    A group also sees the action just before it, because the agent still follows it; the first group sees its own first.
    """

    def __init__(self) -> None:
        super().__init__()
        inner = 4 * WIDTH
        features = (TEMPORAL + 1) * (4 * len(PLACE_FREQUENCIES) + 2)
        self.hidden, self.embedding, self.shared = nn.Linear(features, inner), nn.Linear(inner, WIDTH), nn.Linear(inner, 3 * WIDTH)
        self.direct = nn.Linear(features, 4 * WIDTH, bias=False)
        nn.init.normal_(self.direct.weight, std=0.02)

    def forward(self, actions: Tensor) -> Tensor:
        groups = actions.reshape(-1, FRAMES, TEMPORAL, 2)
        before = torch.cat([groups[:, :1, :1], groups[:, :-1, -1:]], 1)
        places = torch.cat([before, groups], 2)
        x = torch.cat([places, fourier(places)], -1).flatten(2)
        y = F.silu(self.hidden(x))
        rows = torch.cat([self.embedding(y), self.shared(y)], -1) + self.direct(x)
        return F.pad(rows, (0, 0, 1, 0))


class AgentPaths(nn.Module):
    """Where an arm that answers linearly would be, seen from a token: bumps around each frame's place.

    Two arms, begun at gym-pusht's response (fitted: .296, .320, .192, … of the last actions) and at a slow one; learned.
    What the taps leave goes to the first action, because the actions before it are not known.
    """

    def __init__(self) -> None:
        super().__init__()
        later = [0.049, 0.023, 0.011, 0.005, 0.002, 0.002, 0.0, 0.0]
        self.taps = nn.Parameter(torch.tensor([[0.296, 0.320, 0.192, 0.099, *later], [0.14 * 0.85**i for i in range(CHUNK)]]))
        lag = torch.arange(CHUNK)[:, None] - torch.arange(CHUNK)[None, :]
        self.register_buffer("lag", lag.clamp(min=0), persistent=False)
        self.register_buffer("past", (lag >= 0).float())

    def forward(self, actions: Tensor, places: Tensor) -> Tensor:
        """actions (B, CHUNK, 2), places (B or 1, h, w, 2) -> (B, FRAMES, h, w, PATH_FEATURES)."""
        response = self.taps[:, self.lag] * self.past
        rest = 1.0 - response.sum(-1, keepdim=True)
        path = (response[None] @ actions[:, None] + rest[None] * actions[:, None, :1]).reshape(-1, 2, FRAMES, TEMPORAL, 2)
        path = path.permute(0, 2, 1, 3, 4).reshape(-1, FRAMES, 1, 1, 2 * TEMPORAL, 2)
        offset = (places[:, None, :, :, None] - path) * (GRID / 2)
        parts = []
        for radius in PATH_RADII:
            near = offset / radius
            bump = torch.exp(-0.5 * (near * near).sum(-1, keepdim=True))
            parts += [bump, bump * near]
        return torch.cat(parts, -1).flatten(-2)


class AdaLN(nn.Module):
    """AdaLN-LoRA: condition (B, K, W), shared (B, K, 3 W) -> shift, scale, gate, each (B, K, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(WIDTH, LORA, bias=False), nn.Linear(LORA, 3 * WIDTH, bias=False)
        nn.init.normal_(self.up.weight, std=0.02)

    def forward(self, condition: Tensor, shared: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shift, scale, gate = (self.up(self.down(F.silu(condition))) + shared).chunk(3, -1)
        return shift, scale, gate


def over_frames(x: Tensor, rows: Tensor) -> Tensor:
    """rows (B, K, W) -> (B, T, W) for tokens x (B, T, W), frame by frame."""
    return rows[:, :, None].expand(-1, -1, x.shape[1] // rows.shape[1], -1).reshape(-1, x.shape[1], rows.shape[-1])


class Block(nn.Module):
    """Self-attention over all tokens, cross-attention to the prompt, MLP; each under its own AdaLN-LoRA."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.cross_query, self.cross_out = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.attend_by, self.cross_by, self.mlp_by = AdaLN(), AdaLN(), AdaLN()
        for layer in (self.out, self.cross_out, self.down):
            nn.init.zeros_(layer.weight)

    def modulated(self, x: Tensor, condition: Tensor, shared: Tensor) -> Tensor:
        """What the self-attention reads: (B, T, W)."""
        shift, scale, _ = self.attend_by(condition, shared)
        return normalise(x) * (1 + over_frames(x, scale)) + over_frames(x, shift)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The unfused projections; the export's fused body replaces them by one matrix."""
        return self.query(x), self.key(x), self.value(x)

    def forward(self, x: Tensor, condition: Tensor, shared: Tensor, kv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x (B, T, W), kv (B, 2, MAX_TOKENS, W), cos and sin as `rotate` takes them -> (B, T, W)."""
        _, _, gate = self.attend_by(condition, shared)
        q, k, v = (split_heads(y) for y in self.project(self.modulated(x, condition, shared)))
        q, k = (rotate(unit(y), cos, sin) for y in (q, k))
        x = x + over_frames(x, 1 + gate) * self.out(attend(q, k, v))
        shift, scale, gate = self.cross_by(condition, shared)
        q = unit(split_heads(self.cross_query(normalise(x) * (1 + over_frames(x, scale)) + over_frames(x, shift))))
        k, v = unit(split_heads(kv[:, 0])), split_heads(kv[:, 1])
        x = x + over_frames(x, 1 + gate) * self.cross_out(attend(q, k, v))
        shift, scale, gate = self.mlp_by(condition, shared)
        hidden = F.gelu(self.up(normalise(x) * (1 + over_frames(x, scale)) + over_frames(x, shift)), approximate="tanh")
        return x + over_frames(x, 1 + gate) * self.down(hidden)


def split_heads(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1, HEADS, HEAD)


def unit(x: Tensor) -> Tensor:
    """Queries and keys of RMS 1 (DreamDojo's base normalises them too)."""
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, T, HEADS, HEAD) each -> (B, T, W)."""
    y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return y.transpose(1, 2).reshape(y.shape[0], -1, WIDTH)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.text, self.text_kv = TextEncoder(), TextKeysValues()
        self.time, self.action = TimestepEmbedding(), ActionEmbedding()
        self.patch, self.paths = nn.Linear(2 * CHANNELS + 1 + PATH_FEATURES, WIDTH), AgentPaths()
        self.place = nn.Linear(4 * len(PLACE_FREQUENCIES), WIDTH, bias=False)
        self.frame_place = nn.Parameter(torch.randn(FRAMES + 1, WIDTH) * 0.02)
        self.blocks = nn.ModuleList([Block() for _ in range(BLOCKS)])
        self.out_by = AdaLN()
        self.out = nn.Linear(WIDTH, CHANNELS)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        angles = rotary_table()
        self.register_buffer("cos", torch.cos(angles))
        self.register_buffer("sin", torch.sin(angles))
        middle = (torch.arange(GRID) + 0.5) * (2 / GRID) - 1
        grid = torch.stack([middle[None, :].expand(GRID, GRID), middle[:, None].expand(GRID, GRID)], -1)
        self.register_buffer("places", grid)

    def conditions(self, t_rows: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """t_rows (B, 4 W), actions (B, CHUNK, 2) -> condition (B, K, W), shared (B, K, 3 W)."""
        rows = t_rows[:, None] + self.action(actions)
        return rows[..., :WIDTH], rows[..., WIDTH:]

    def tokens(self, noisy: Tensor, first: Tensor, places: Tensor, actions: Tensor) -> Tensor:
        """noisy (B, FRAMES, C, h, w), first (B, 1, C, h, w), places (B or 1, h, w, 2) -> (B, T, W)."""
        batch, _, _, h, w = noisy.shape
        rows = torch.cat([first, noisy], 1)
        mask = F.pad(torch.zeros_like(noisy[:, :, :1]), (0, 0, 0, 0, 0, 0, 1, 0), value=1.0)
        x = torch.cat([rows, first.expand(-1, FRAMES + 1, -1, -1, -1), mask], 2).permute(0, 1, 3, 4, 2)
        paths = F.pad(self.paths(actions, places), (0, 0, 0, 0, 0, 0, 1, 0))
        x = self.patch(torch.cat([x, paths], -1)) + self.place(fourier(places))[:, None] + self.frame_place[:, None, None]
        return x.reshape(batch, (FRAMES + 1) * h * w, WIDTH).float()

    def body(self, tokens: Tensor, condition: Tensor, shared: Tensor, text_kv: Tensor, depth: int = BLOCKS) -> Tensor:
        """Blocks 0 … depth − 1. The rotary tables are those of the window at the origin: only differences count."""
        side = math.isqrt(tokens.shape[1] // (FRAMES + 1))
        cos, sin = (x[:, :side, :side].reshape(1, -1, 1, HEAD // 2) for x in (self.cos, self.sin))
        for index in range(depth):
            tokens = self.blocks[index](tokens, condition, shared, text_kv[:, index], cos, sin)
        return tokens

    def tail(self, tokens: Tensor, condition: Tensor, shared: Tensor, noisy: Tensor, first: Tensor, t: Tensor) -> Tensor:
        """tokens (B, T, W) -> velocity (B, FRAMES, C, h, w)."""
        batch, _, _, h, w = noisy.shape
        x = tokens[:, h * w:]
        shift, scale, _ = self.out_by(condition[:, 1:], shared[:, 1:])
        change = self.out(normalise(x) * (1 + over_frames(x, scale)) + over_frames(x, shift))
        change = change.reshape(batch, FRAMES, h, w, CHANNELS).permute(0, 1, 4, 2, 3)
        return (noisy - first - change) / t.clamp(min=T_FLOOR)[:, None, None, None, None]

    def forward(self, noisy: Tensor, first: Tensor, places: Tensor, actions: Tensor, t: Tensor, text_ids: Tensor,
                text_mask: Tensor, depth: int = BLOCKS) -> Tensor:
        """The velocity of a window; `places` are its positions (−1 … 1), `first` its conditioning latent (B, 1, C, h, w)."""
        text_kv = self.text_kv(self.text(text_ids, text_mask))
        condition, shared = self.conditions(self.time(t), actions)
        tokens = self.body(self.tokens(noisy, first, places, actions), condition, shared, text_kv, depth)
        return self.tail(tokens, condition, shared, noisy, first, t)


def normalised_actions(actions: Tensor) -> Tensor:
    """Units -> about −1 … 1, as the manifest says."""
    return (actions - ACTION_OFFSET) / ACTION_SCALE
