"""All randomness of the project's own code, as pure functions of (seed, stream, position): never of rank or worker.

Two generators serve two places. On the host, `numpy_rng` gives numpy's Philox4x64: crops, flips, mosaics, orders, start
noise and simulation. On the device, Philox4x32-10 (Salmon et al. 2011) in integer arithmetic gives timesteps and noise
that any backend can draw again bit for bit, because a number depends only on its key and counter:

    key     = (seed mod 2^32, seed >> 32)
    counter = (block, step, position mod 2^32, position >> 32 | stream << 28)

Block i holds elements 4i .. 4i+3 of a sample's flattened, contiguous (C, H, W). `step` is the sampling step, the
timestep or 0; positions are below 2^60 and device streams below 16.
"""

from __future__ import annotations

import hashlib
import math
import random
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

_MASK32 = 0xFFFFFFFF
_ROUND_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
# A device stream has the upper four bits of a 32-bit word of the counter.
_MAX_DEVICE_STREAM = 15
_MAX_IDS = 3


class Stream(IntEnum):
    """What a random number is for. The ids are part of every result: append, never renumber."""

    TIMESTEP = 0
    IMAGE_NOISE = 1
    LABEL_NOISE = 2
    START_IMAGE = 3
    START_LABEL = 4
    CROP = 5
    FLIP = 6
    MOSAIC = 7
    ORDER = 8
    DROP_PATH = 9
    DDIM_IMAGE = 10
    DDIM_LABEL = 11
    SIMULATE = 12
    MIX = 13
    RESAMPLE = 14
    LABELLED = 15


def numpy_rng(seed: int, *ids: int, stream: Stream) -> np.random.Generator:
    """A host generator keyed by (seed, stream, ids): the same numbers on any host.

    seed: 0 <= seed < 2^64.  ids: up to three non-negative integers, such as (epoch,) or (sample position, tile).
    Raises ValueError for more ids or ids out of range.
    """
    if len(ids) > _MAX_IDS:
        raise ValueError(f"numpy_rng got {len(ids)} ids; expected at most {_MAX_IDS}; combine some of them")
    for word in (seed, *ids):
        if not 0 <= int(word) < 2**64:
            raise ValueError(f"numpy_rng got seed {seed} and ids {ids}; expected integers from 0 to 2^64 - 1")
    # The number of ids is part of the key, so that (5,) and (5, 0) differ; word 0 of the counter runs while drawing.
    key = np.array([seed, int(stream) | len(ids) << 32], dtype=np.uint64)
    counter = np.array([0, *ids, *[0] * (_MAX_IDS - len(ids))], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def key_number(seed: int, key: str) -> int:
    """64 random bits for a sample's key: the same wherever the sample lies, and whatever others lie beside it."""
    return int.from_bytes(hashlib.sha256(f"{seed} {key}".encode(errors="surrogateescape")).digest()[:8], "big")


def seed_everything(seed: int) -> None:
    """Seeds Python, numpy and torch: for weight initialisation, a randomness that has no position."""
    random.seed(seed)
    # The older interface of numpy takes 32 bits.
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seeds them for one step of a training: what has no position (a foreign net's dropout) needs no saved state."""
    seed_everything(int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1))


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four int64 tensors holding 32-bit words, from four broadcastable ones and two 32-bit key words.

    Equal to Random123's philox4x32 and to tl.philox bit for bit.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # An int64 product wraps, but its 64 bits are those of the unsigned one; the masks undo the sign.
        p0, p1 = c0 * _ROUND_MULTIPLIERS[0], c2 * _ROUND_MULTIPLIERS[1]
        high0, high1 = (p0 >> 32) & _MASK32, (p1 >> 32) & _MASK32
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, p1 & _MASK32, high0 ^ c3 ^ k1, p0 & _MASK32
        k0, k1 = (k0 + _KEY_INCREMENTS[0]) & _MASK32, (k1 + _KEY_INCREMENTS[1]) & _MASK32
    return c0, c1, c2, c3


def philox_uniform(numel: int, seed: int, sample_ids: Tensor, step: int | Tensor, stream: Stream) -> Tensor:
    """(B, numel) float64 in (0, 1], multiples of 2^-24, so that every floating dtype but the halves holds them exactly.

    sample_ids: (B,) int64 positions; the result lies on their device.  step: an int, or a tensor of 1 or B elements.
    """
    words = torch.stack(_draw(-(-numel // 4), seed, sample_ids, step, stream), dim=-1)
    return _to_unit(words).flatten(1)[:, :numel]


def philox_normal(
    numel: int, seed: int, sample_ids: Tensor, step: int | Tensor, stream: Stream, dtype: torch.dtype = torch.float32
) -> Tensor:
    """(B, numel) standard normal numbers: Box-Muller on the word pairs (0, 1) and (2, 3) of each block.

    sample_ids: (B,) int64 positions; the result lies on their device.  step: an int, or a tensor of 1 or B elements.
    The integers behind the result are the same for all backends; the normals agree to rounding of `dtype`.
    """
    words = _draw(-(-numel // 4), seed, sample_ids, step, stream)
    normals = []
    for first, second in ((words[0], words[1]), (words[2], words[3])):
        radius, angle = torch.sqrt(-2 * torch.log(_to_unit(first))), _to_unit(second) * (2 * math.pi)
        normals += [radius * torch.cos(angle), radius * torch.sin(angle)]
    return torch.stack(normals, dim=-1).flatten(1)[:, :numel].to(dtype)


def philox_timesteps(seed: int, positions: Tensor, num_timesteps: int) -> Tensor:
    """(B,) int64 timesteps, uniform over 0 .. num_timesteps - 1, from (B,) int64 global sample positions."""
    words = _draw(1, seed, positions, 0, Stream.TIMESTEP)[0][:, 0]
    # The high word of a 64-bit product: uniform to within T / 2^32, and the same integers on every backend.
    return (words * num_timesteps) >> 32


def _draw(num_blocks: int, seed: int, sample_ids: Tensor, step: int | Tensor, stream: Stream) -> tuple[Tensor, ...]:
    """The four words of each block, (B, num_blocks) int64 each, for the counter described at the top of this file."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}; expected an integer from 0 to 2^64 - 1")
    if not 0 <= stream <= _MAX_DEVICE_STREAM:
        raise ValueError(f"stream is {int(stream)}; device streams run from 0 to {_MAX_DEVICE_STREAM}; use numpy_rng")
    ids = sample_ids.to(torch.int64).unsqueeze(1)
    block = torch.arange(num_blocks, dtype=torch.int64, device=ids.device).unsqueeze(0)
    if isinstance(step, Tensor):
        step = step.to(torch.int64).reshape(-1, 1) & _MASK32
    else:
        step = torch.full_like(ids, step & _MASK32)
    return philox4x32((block, step, ids & _MASK32, (ids >> 32) | (int(stream) << 28)), (seed & _MASK32, seed >> 32))


def _to_unit(words: Tensor) -> Tensor:
    """32-bit words to (0, 1]: the upper 24 bits, plus one, so that a logarithm is finite and fp32 is exact."""
    return ((words >> 8) + 1).to(torch.float64) * 2.0**-24
