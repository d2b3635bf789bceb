"""Randomness is a function of (seed, stream, position), equal to the published generator and well distributed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from dakd.runtime.seeding import (
    Stream,
    numpy_rng,
    philox4x32,
    philox_normal,
    philox_timesteps,
    philox_uniform,
    seed_everything,
    seed_step,
)


# Known answers of Random123's kat_vectors, philox4x32 with 10 rounds.
@pytest.mark.parametrize(
    ("counter", "key", "wanted"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(counter, key, wanted):
    words = philox4x32(tuple(torch.tensor([word]) for word in counter), key)
    assert tuple(int(word) for word in words) == wanted


def test_counter_layout_is_block_step_position_and_stream():
    position = (3 << 32) + 7
    normal = philox_normal(8, (5 << 32) + 2, torch.tensor([position]), 9, Stream.DDIM_LABEL, torch.float64)
    counter = (torch.tensor([1]), torch.tensor([9]), torch.tensor([7]), torch.tensor([3 | 11 << 28]))
    words = [int(word) for word in philox4x32(counter, (2, 5))]
    uniform = [((word >> 8) + 1) / 2**24 for word in words]
    radius, angle = np.sqrt(-2 * np.log(uniform[2])), 2 * np.pi * uniform[3]
    assert np.allclose(normal[0, 6:].numpy(), [radius * np.cos(angle), radius * np.sin(angle)], rtol=1e-12)


def test_normals_are_standard_normal_and_streams_are_independent():
    image = philox_normal(20_001, 1, torch.arange(5), 0, Stream.IMAGE_NOISE, torch.float64)
    label = philox_normal(20_001, 1, torch.arange(5), 0, Stream.LABEL_NOISE, torch.float64)
    assert image.shape == (5, 20_001)
    assert stats.kstest(image.flatten().numpy(), "norm").pvalue > 1e-3
    for other in (label, image.roll(1, 0), image.roll(1, 1)):
        assert abs(np.corrcoef(image.flatten().numpy(), other.flatten().numpy())[0, 1]) < 0.015


def test_a_sample_has_the_same_noise_in_any_batch():
    both = philox_normal(10, 3, torch.tensor([4, 9]), torch.tensor([1, 2]), Stream.IMAGE_NOISE)
    alone = philox_normal(10, 3, torch.tensor([9]), 2, Stream.IMAGE_NOISE)
    assert torch.equal(both[1:], alone)
    assert philox_normal(10, 3, torch.tensor([], dtype=torch.int64), 2, Stream.IMAGE_NOISE).shape == (0, 10)


def test_noise_changes_with_seed_step_and_position():
    base = philox_normal(16, 3, torch.tensor([4]), 1, Stream.IMAGE_NOISE)
    for seed, position, step in ((4, 4, 1), (3 + 2**40, 4, 1), (3, 4 + 2**40, 1), (3, 5, 1), (3, 4, 2)):
        assert not torch.equal(base, philox_normal(16, seed, torch.tensor([position]), step, Stream.IMAGE_NOISE))


def test_uniform_numbers_are_exact_in_fp32_and_never_zero():
    uniform = philox_uniform(4001, 0, torch.arange(3), 0, Stream.DROP_PATH)
    assert torch.equal(uniform.float().double(), uniform)
    assert uniform.min() > 0 and uniform.max() <= 1
    assert stats.kstest(uniform.flatten().numpy(), "uniform").pvalue > 1e-3


def test_timesteps_are_uniform_and_within_range():
    timesteps = philox_timesteps(7, torch.arange(20_000), 10)
    assert timesteps.dtype == torch.int64
    counts = torch.bincount(timesteps, minlength=10)
    assert counts.numel() == 10
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_numpy_rng_depends_on_seed_stream_and_every_id():
    draws = [
        numpy_rng(*args, stream=stream).random()
        for args, stream in (
            ((1, 2), Stream.CROP),
            ((1, 2), Stream.FLIP),
            ((1, 3), Stream.CROP),
            ((2, 2), Stream.CROP),
            ((1, 2, 0), Stream.CROP),
            ((1,), Stream.CROP),
        )
    ]
    assert len(set(draws)) == len(draws)
    assert numpy_rng(1, 2, stream=Stream.CROP).random() == draws[0]


def test_numpy_rng_gives_the_numbers_that_earlier_runs_were_made_with():
    assert numpy_rng(42, 7, stream=Stream.START_IMAGE).integers(0, 2**32, 3).tolist() == [
        2101125290,
        3648592128,
        945176313,
    ]


@pytest.mark.parametrize("args", [(-1,), (0, -1), (0, 1, 2, 3, 4)])
def test_numpy_rng_refuses_what_it_cannot_key(args):
    with pytest.raises(ValueError, match="expected"):
        numpy_rng(*args, stream=Stream.CROP)


def test_device_noise_refuses_a_negative_seed():
    with pytest.raises(ValueError, match="seed is -1"):
        philox_timesteps(-1, torch.arange(2), 10)


def test_seed_everything_repeats_initialisation():
    weights = []
    for _ in range(2):
        seed_everything(3)
        weights.append((torch.nn.Linear(3, 3).weight.clone(), np.random.rand()))
    assert torch.equal(weights[0][0], weights[1][0]) and weights[0][1] == weights[1][1]


def test_every_step_of_every_rank_has_a_seed_of_its_own():
    drawn = []
    for place in ((3, 1, 0), (3, 2, 0), (3, 1, 1), (4, 1, 0), (3, 1, 0)):
        seed_step(*place)
        drawn.append(torch.rand(1).item())
    assert drawn[4] == drawn[0] and len(set(drawn[:4])) == 4
