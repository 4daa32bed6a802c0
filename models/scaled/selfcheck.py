"""Checks that need no trained weights: python -m models.scaled.selfcheck"""

from __future__ import annotations

import numpy as np
import torch

from models.scaled import data
from models.scaled.autoencoder import CHANNELS, GRID, PATCH, TEMPORAL, Autoencoder, from_patches, to_patches
from models.scaled.evaluate import agent_pixels
from models.scaled.graphs import example_inputs, fuse
from models.scaled.network import CHUNK, FRAMES, AgentPaths, Network, normalised_actions
from models.scaled.rollout import Stream, TeaCache
from models.scaled.train import places_of
from models.training.generate_data import TRAIN_SEEDS, simulate_episode


def awake(network: Network) -> Network:
    """With nothing left at zero, so that no part of it hides."""
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return network.eval().requires_grad_(False)


def check_autoencoder() -> None:
    clip = torch.randint(0, 256, (2, TEMPORAL, 32, 48, 3), dtype=torch.uint8)
    assert (from_patches(to_patches(clip)) - clip.float()).abs().max() < 1e-3 and to_patches(clip).shape == (2, 4, 6, PATCH)
    model = Autoencoder().eval()
    still = clip[:, :1].expand(-1, TEMPORAL, -1, -1, -1)
    assert (model.encode_frame(clip[:, 0]) - model.encode(still)).abs().max() < 1e-4, "a frame alone is a video in which nothing moves"
    white = torch.full((1, TEMPORAL, 16, 16, 3), 255, dtype=torch.uint8)
    assert not model.encode(white).any(), "white is the zero latent"
    assert model.decode(torch.zeros(1, FRAMES, CHANNELS, GRID, GRID)).shape == (1, CHUNK, data.SIZE, data.SIZE, 3)


def check_network() -> None:
    torch.manual_seed(0)
    tensors = example_inputs(2, torch.Generator().manual_seed(0))
    noisy, first, t = tensors["noisy"], tensors["latents"][:, :1], tensors["t"]
    fresh = Network().eval().requires_grad_(False)
    places = fresh.places[None].expand(2, -1, -1, -1)
    rest = (places, tensors["actions"], t, tensors["text_ids"], tensors["text_mask"])
    clean = noisy - t[:, None, None, None, None] * fresh(noisy, first, *rest)
    assert (clean - first).abs().max() < 1e-4, "an untrained network repeats the conditioning frame"
    network = awake(fresh)
    whole, one = network(noisy, first, *rest), network(noisy[:1], first[:1], *(x[:1] for x in rest))
    assert (whole[:1] - one).abs().max() < 1e-3 and (fuse(network)(noisy, first, *rest) - whole).abs().max() < 1e-3
    shallow = network(noisy, first, *rest, depth=2)
    assert (shallow - whole).abs().max() > 1e-3, "every block counts"
    other = network(noisy, first, places, tensors["actions"] + 0.3, *rest[2:])
    prompt = network(noisy, first, places, tensors["actions"], t, tensors["text_ids"].flip(0), tensors["text_mask"].flip(0))
    assert (other - whole).abs().max() > 1e-3 and (prompt - whole).abs().max() > 1e-4, "actions and prompt count"
    corner = torch.tensor([[0, 0], [3, 5]])
    window = places_of(network, corner, 8)
    assert torch.equal(window[1], network.places[3:11, 5:13]) and torch.equal(window[0], network.places[:8, :8])


def check_paths() -> None:
    """The bumps of the first arm stand where the simulator's agent is."""
    states, actions = simulate_episode(TRAIN_SEEDS[5], "default", "push", 40)
    paths, start = AgentPaths(), 20
    wanted = normalised_actions(torch.from_numpy(states[start + 1: start + 1 + CHUNK, :2]))
    chunk = normalised_actions(torch.from_numpy(actions[start: start + CHUNK]))[None]
    for frame in range(6, CHUNK):  # by then the actions before the chunk are forgotten
        narrow = paths_bump(paths, chunk, wanted[frame], frame)
        assert narrow > 0.9, (frame, narrow)


def paths_bump(paths: AgentPaths, chunk: torch.Tensor, place: torch.Tensor, frame: int) -> float:
    """The first arm's narrow bump of a frame, seen from a place: 1 where the arm is."""
    features = paths(chunk, place.reshape(1, 1, 1, 2))[0, frame // TEMPORAL, 0, 0]
    per_place = features.reshape(2 * TEMPORAL, -1)
    return float(per_place[frame % TEMPORAL, 0].detach())


def check_agent_pixels() -> None:
    truth = data.held_out(1, 4)
    seen = agent_pixels(truth.frames[0])
    states, _ = simulate_episode(10_000_000, "default", "push", data.WARM_UP + 4)
    gap = np.abs(seen + 0.5 - states[data.WARM_UP:, :2] * data.SIZE / 512).max()
    assert gap < 1.0, gap


def check_teacache() -> None:
    """Never the first nor the last step; the sum starts again when the body is computed; a negative change counts as none."""
    ones = np.ones((1, 4, 2), np.float32)
    stream = Stream(TeaCache(0.25, (1.0, 0.0)), 6)
    assert [stream.skips(step, ones * 1.1**step) for step in range(6)] == [False, True, True, False, True, False]
    falling = Stream(TeaCache(0.1, (-1.0, 0.0)), 4)
    assert [falling.skips(step, ones * 2.0**step) for step in range(4)] == [False, True, True, False]
    assert not any(Stream(None, 3).skips(step, ones) for step in range(3))


def main() -> None:
    for check in (check_autoencoder, check_network, check_paths, check_agent_pixels, check_teacache):
        check()
        print(f"ok  {check.__name__}", flush=True)


if __name__ == "__main__":
    main()
