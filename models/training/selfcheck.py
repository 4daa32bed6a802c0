"""Checks that need no trained weights: python -m models.training.selfcheck

Philox known answers, the physics against gym-pusht's own step, geometry's inverses and symmetries, seeds.
"""

from __future__ import annotations

import numpy as np
import torch

from models.training import philox
from models.training.dynamics import CHUNK, create_dynamics
from models.training.generate_data import HELD_OUT_SEEDS, TRAIN_SEEDS, assert_disjoint, first_state, simulate_episode
from models.training.geometry import latent_from_state, motion_between, move, state_from_latent, symmetry
from models.training.simulate import Renderer, Simulator, create_env, place
from models.training.text import tokenize

#: Random123's kat_vectors for philox4x32-10: counter, key, output.
KNOWN_ANSWERS = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
)


def check_philox() -> None:
    for counter, key, wanted in KNOWN_ANSWERS:
        got = philox.philox4x32(np.array([counter], np.uint32), key)[0]
        assert tuple(int(v) for v in got) == wanted, (counter, key, got)
    assert philox.key_of(-1) == (0xFFFFFFFF, 0xFFFFFFFF) and philox.key_of(2**64 + 5) == (5, 0)
    z = philox.normals(1, 0, (100_000,))
    assert abs(z.mean()) < 0.02 and abs(z.std() - 1) < 0.02 and z.dtype == np.float32
    assert np.array_equal(philox.normals(7, 2, (12, 5)).reshape(-1)[:7], philox.normals(7, 2, (7,)))


def check_physics() -> None:
    """Ten substeps without the coverage reward are gym-pusht's own step."""
    rng = np.random.default_rng(0)
    state = np.array([200.0, 200.0, 260.0, 290.0, 0.7])
    simulator, env = Simulator(), create_env()
    simulator.reset(state)
    place(env, state)
    env.space.step(env.dt)
    for _ in range(40):
        action = rng.uniform(150, 350, 2)
        ours = simulator.step((action[0], action[1]))
        env.step(action)
        theirs = env.block.local_to_world(env.block.center_of_gravity)
        gap = np.abs(ours - [*env.agent.position, *theirs, env.block.angle]).max()
        assert gap < 1e-6, gap
    a, b = (simulate_episode(TRAIN_SEEDS[0], "default", "push", 20) for _ in range(2))
    assert np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1]), "an episode is a function of its seed"
    assert_disjoint(TRAIN_SEEDS, HELD_OUT_SEEDS)


def check_geometry() -> None:
    torch.manual_seed(0)
    state = torch.cat([torch.rand(64, 4) * 400 + 50, torch.rand(64, 1) * 6 - 3], -1)
    latent = latent_from_state(state)
    assert (state_from_latent(latent) - state).abs().max() < 1e-3
    after = latent_from_state(state + torch.randn(64, 5) * torch.tensor([9.0, 9.0, 5.0, 5.0, 0.2]))
    assert (move(latent, motion_between(latent, after)) - after).abs().max() < 1e-5
    pair, actions = torch.stack([latent, after], 1), torch.rand(64, 1, 2) * 512
    for turn in range(4):
        turned, _ = symmetry(pair, actions, turn, False)
        motion = motion_between(turned[:, 0], turned[:, 1])[:, 2:]
        assert (motion - motion_between(latent, after)[:, 2:]).abs().max() < 1e-3, "a turn keeps motions in the T's frame"
    check_mirrored_world()
    image = Renderer().render(first_state(np.random.default_rng(1)))
    assert image.shape == (96, 96, 3) and image.dtype == np.uint8


def check_mirrored_world() -> None:
    """The simulator agrees that the eight symmetries are symmetries: same episode, transformed, same motion."""
    states, actions = simulate_episode(TRAIN_SEEDS[3], "default", "push", 40)
    latents, wanted = latent_from_state(torch.from_numpy(states))[None], torch.from_numpy(actions)[None]
    for turn, mirror in ((1, False), (0, True), (3, True)):
        latents_2, actions_2 = symmetry(latents, wanted, turn, mirror)
        simulator = Simulator()
        simulator.reset(state_from_latent(latents_2[0, 0]).double().numpy())
        seen = np.stack([simulator.step((float(a[0]), float(a[1]))) for a in actions_2[0]])
        gap = np.abs(seen[:, :4] - state_from_latent(latents_2[0, 1:]).numpy()[:, :4])
        assert gap[:20].max() < 1.0, (turn, mirror, gap.max(0))


def check_model() -> None:
    ids, mask = tokenize("slow arm")
    assert ids[:9].tolist() == [1, *(b + 3 for b in b"slow arm")] and mask.sum() == 9
    assert tokenize("")[0][:2].tolist() == [1, 0] and tokenize(None)[0][:2].tolist() == [2, 0]
    torch.manual_seed(0)
    model = create_dynamics().eval()
    ids, mask = (torch.from_numpy(x)[None] for x in tokenize(""))
    latents, actions = torch.randn(1, CHUNK + 1, 6), torch.randn(1, CHUNK, 2)
    kv, response = model.text(ids, mask)
    for position in (0, 5, 11):
        noisy, at, t = torch.randn(1, 1, 5), torch.tensor([position]), torch.tensor([0.6])
        cut = latents.clone()
        cut[:, position + 1:] = 0.0
        other = actions.clone()
        other[:, position + 1:] = 9.0
        a, _ = model.velocity(noisy, cut, actions, at, t, kv, response)
        b, _ = model.velocity(noisy, cut, other, at, t, kv, response)
        c, _ = model.velocity(noisy, latents, actions, at, t, kv, response)
        assert torch.isfinite(a).all() and torch.equal(a, b) and torch.equal(a, c), "later frames must not matter"


def main() -> None:
    for check in (check_philox, check_physics, check_geometry, check_model):
        check()
        print(f"ok  {check.__name__}", flush=True)


if __name__ == "__main__":
    main()
