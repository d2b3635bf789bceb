"""Device noise inside Triton kernels: the numbers of `runtime.seeding`, drawn where they are needed and never stored.

    key     = (seed mod 2^32, seed >> 32)
    counter = (block, step, position mod 2^32, position >> 32 | stream << 28)

Block i holds elements 4i .. 4i+3 of a sample's flattened, contiguous (C, H, W). Word w is the uniform number
m 2^-24 with m = (w >> 8) + 1; Box-Muller makes normal numbers of the word pairs (0, 1) and (2, 3).

The integers equal those of the definition bit for bit. Both halves of Box-Muller are polynomials, each after a
reduction that is exact because m is a whole number: -2 ln u with u = 2^e (1 + x) and 1 + x in [sqrt(1/2), sqrt(2)),
cosine and sine with 2 pi u = pi q / 2 + 2 pi f and |f| <= 1/8. So they are good to a few roundings of fp32, also near
u = 1, where the hardware's logarithm is not.
"""

from __future__ import annotations

import triton
import triton.language as tl


def seed_words(seed: int) -> tuple[int, int]:
    """The key: the low and the high half of a 64-bit seed (or of its int64 twin), each as a signed 32-bit integer."""
    low, high = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    return low - ((low & 1 << 31) << 1), high - ((high & 1 << 31) << 1)


@triton.jit
def draw_words(block, step, position, stream: tl.constexpr, key_low, key_high):
    """The four uint32 words of each block.  block: integers of any shape.  step, position: int64 scalars."""
    step_word = (step & 0xFFFFFFFF).to(tl.uint32)
    position_low = (position & 0xFFFFFFFF).to(tl.uint32)
    position_high = ((position >> 32) | (stream << 28)).to(tl.uint32)
    key_low, key_high = key_low.to(tl.uint32), key_high.to(tl.uint32)
    return tl.philox_impl(block.to(tl.uint32), step_word, position_low, position_high, key_low, key_high)


@triton.jit
def draw_timestep(position, num_timesteps, stream: tl.constexpr, key_low, key_high):
    """An int64 timestep of 0 .. num_timesteps - 1 from an int64 scalar position."""
    no_step = tl.full((), 0, tl.int64)
    word, _, _, _ = draw_words(no_step, no_step, position, stream, key_low, key_high)
    return (word.to(tl.int64) * num_timesteps) >> 32


@triton.jit
def normals_of_pixels(
    channel: tl.constexpr,
    first_pixel,
    num_pixels,
    step,
    position,
    stream: tl.constexpr,
    key_low,
    key_high,
    BLOCK: tl.constexpr,
    BY_BLOCK: tl.constexpr,
):
    """(BLOCK,) normal fp32 numbers of one channel of a sample, from `first_pixel` on.

    BY_BLOCK: num_pixels is a multiple of 4, so that a block of four elements never spans two channels.
    first_pixel and BLOCK are multiples of 4 then.
    """
    if BY_BLOCK:
        block = channel * (num_pixels // 4) + first_pixel // 4 + tl.arange(0, BLOCK // 4)
        return normals_by_block(block, step, position, stream, key_low, key_high)
    else:
        element = channel * tl.cast(num_pixels, tl.int64) + first_pixel + tl.arange(0, BLOCK)
        return normals_by_element(element, step, position, stream, key_low, key_high)


@triton.jit
def normal_pair(first, second):
    """Box-Muller: two independent standard normal fp32 numbers from each pair of uint32 words."""
    radius = tl.sqrt(_minus_two_log((first >> 8).to(tl.int32) + 1))
    cosine, sine = _cos_sin((second >> 8).to(tl.int32) + 1)
    return radius * cosine, radius * sine


@triton.jit
def normals_by_block(block, step, position, stream: tl.constexpr, key_low, key_high):
    """(4 N,) normal fp32 numbers of the (N,) blocks, in the order of the elements."""
    w0, w1, w2, w3 = draw_words(block, step, position, stream, key_low, key_high)
    n0, n1 = normal_pair(w0, w1)
    n2, n3 = normal_pair(w2, w3)
    return tl.interleave(tl.interleave(n0, n2), tl.interleave(n1, n3))


@triton.jit
def normals_by_element(element, step, position, stream: tl.constexpr, key_low, key_high):
    """Normal fp32 numbers of any elements; each draws its whole block, four times the work of `normals_by_block`."""
    w0, w1, w2, w3 = draw_words(element >> 2, step, position, stream, key_low, key_high)
    is_second_pair = (element & 2) != 0
    even, odd = normal_pair(tl.where(is_second_pair, w2, w0), tl.where(is_second_pair, w3, w1))
    return tl.where((element & 1) != 0, odd, even)


@triton.jit
def _minus_two_log(m):
    """-2 ln(m 2^-24) for int32 m in 1 .. 2^24."""
    bits = (m.to(tl.float32) * 5.9604644775390625e-08).to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    x = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    tail = 0.152689487 * x - 0.255231351
    tail = tail * x + 0.26320374
    tail = tail * x - 0.284035176
    tail = tail * x + 0.332467139
    tail = tail * x - 0.400024533
    tail = tail * x + 0.500016391
    tail = tail * x - 0.666666627
    return exponent.to(tl.float32) * -1.38629436 + x * (x * (x * tail + 1.0) - 2.0)


@triton.jit
def _cos_sin(m):
    """cos and sin of 2 pi m 2^-24 for int32 m in 1 .. 2^24."""
    quarter = (m + (1 << 21)) >> 22
    f = (m - (quarter << 22)).to(tl.float32) * 5.9604644775390625e-08
    z = f * f
    cosine = (((59.2204056 * z - 85.4428558) * z + 64.9393158) * z - 19.7392082) * z + 1.0
    sine = (((-75.4020691 * z + 81.5925522) * z - 41.3416634) * z + 6.28318548) * f
    is_odd = (quarter & 1) != 0
    turned_cosine, turned_sine = tl.where(is_odd, sine, cosine), tl.where(is_odd, cosine, sine)
    # The cosine is negative in the quarters 1 and 2, the sine in 2 and 3.
    cosine = (turned_cosine.to(tl.int32, bitcast=True) ^ (((quarter + 1) & 2) << 30)).to(tl.float32, bitcast=True)
    sine = (turned_sine.to(tl.int32, bitcast=True) ^ ((quarter & 2) << 30)).to(tl.float32, bitcast=True)
    return cosine, sine
