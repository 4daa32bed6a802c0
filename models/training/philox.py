"""Counter-based noise: Philox4x32-10 (Salmon et al., SC'11) and Box–Muller, as docs/model-bundle.md says.

The integers are specified bit by bit; the normals are computed in float64 and rounded once to float32.
"""

from __future__ import annotations

import numpy as np

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
WORD = np.uint64(0xFFFFFFFF)


def philox4x32(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """counter uint32 (K, 4), key two 32-bit words -> uint32 (K, 4)."""
    c0, c1, c2, c3 = (counter[:, i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    for _ in range(ROUNDS):
        p0, p1 = np.uint64(MULTIPLIERS[0]) * c0, np.uint64(MULTIPLIERS[1]) * c2
        c0, c1, c2, c3 = (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0), p1 & WORD, (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1), p0 & WORD
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], 1).astype(np.uint32)


def key_of(seed: int) -> tuple[int, int]:
    """Any integer seed, modulo 2⁶⁴ (two's complement) -> (low word, high word)."""
    seed %= 1 << 64
    return seed & 0xFFFFFFFF, seed >> 32


def words(seed: int, chunk: int, groups: int) -> np.ndarray:
    """uint32 (groups, 4) for counters (i, 0, chunk, 0)."""
    counter = np.zeros((groups, 4), np.uint32)
    counter[:, 0], counter[:, 2] = np.arange(groups), chunk
    return philox4x32(counter, key_of(seed))


def normals(seed: int, chunk: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normals float32 of `shape`, row-major: the noise of one chunk."""
    count = int(np.prod(shape))
    r = words(seed, chunk, -(-count // 4)).astype(np.float64)
    u1, u2 = (r[:, 0::2] + 1.0) * 2.0**-32, r[:, 1::2] * 2.0**-32
    radius, angle = np.sqrt(-2.0 * np.log(u1)), 2.0 * np.pi * u2
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)
    return pairs.reshape(-1)[:count].astype(np.float32).reshape(shape)
