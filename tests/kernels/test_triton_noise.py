"""Noise inside Triton kernels: the definition's integers bit for bit, and its normal numbers to a few roundings."""

from __future__ import annotations

import pytest
import torch

from dakd.runtime.seeding import Stream, _draw, philox_normal, philox_timesteps

triton = pytest.importorskip("triton")
tl = triton.language

from dakd.kernels import triton_noise, triton_runtime  # noqa: E402 (needs triton)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []
NUM_ELEMENTS = 1 << 15
SEEDS = [0, 3, 2**31, 2**63 + 5, 2**64 - 1]


@triton.jit
def _draw_all(words_ptr, by_block_ptr, by_element_ptr, t_ptr, ids_ptr, steps_ptr, T, low, high,
              STREAM: tl.constexpr, TIMESTEP: tl.constexpr, SIZE: tl.constexpr):  # fmt: skip
    position, step = tl.load(ids_ptr), tl.load(steps_ptr)
    block = tl.arange(0, SIZE // 4)
    words = triton_noise.draw_words(block, step, position, STREAM, low, high)
    for i in tl.static_range(4):
        tl.store(words_ptr + 4 * block + i, words[i].to(tl.int64))
    element = tl.arange(0, SIZE)
    tl.store(by_block_ptr + element, triton_noise.normals_by_block(block, step, position, STREAM, low, high))
    tl.store(by_element_ptr + element, triton_noise.normals_by_element(element, step, position, STREAM, low, high))
    tl.store(t_ptr, triton_noise.draw_timestep(position, T, TIMESTEP, low, high))


@pytest.mark.skipif(triton_runtime.why_not(DEVICE) is not None, reason="Triton cannot run here")
@pytest.mark.parametrize(("position", "step"), [(0, 0), (2**31, 999), (2**60 - 1, 2**32 - 1)])
@pytest.mark.parametrize("seed", SEEDS)
def test_kernels_draw_the_noise_of_the_definition(seed, position, step):
    words = torch.empty(NUM_ELEMENTS, dtype=torch.int64, device=DEVICE)
    by_block, by_element = (torch.empty(NUM_ELEMENTS, device=DEVICE) for _ in range(2))
    t = torch.empty(1, dtype=torch.int64, device=DEVICE)
    ids, steps = torch.tensor([position], device=DEVICE), torch.tensor([step], device=DEVICE)
    arguments = (words, by_block, by_element, t, ids, steps, 1000, *triton_noise.seed_words(seed))
    constants = dict(STREAM=int(Stream.DDIM_LABEL), TIMESTEP=int(Stream.TIMESTEP), SIZE=NUM_ELEMENTS)
    # Many warps, so that a thread holds few of the numbers: it compiles in a tenth of the time.
    triton_runtime.launch(_draw_all, (1,), *arguments, num_warps=32, **constants)
    drawn = torch.stack(_draw(NUM_ELEMENTS // 4, seed, ids, step, Stream.DDIM_LABEL), dim=-1)
    assert torch.equal(words, drawn.flatten())
    assert torch.equal(t, philox_timesteps(seed, ids, 1000))
    exact = philox_normal(NUM_ELEMENTS, seed, ids, step, Stream.DDIM_LABEL, torch.float64)[0]
    # Four roundings of fp32, relative to the number, or to 0.1 where cosine or sine vanish.
    allowed = 4 * torch.finfo(torch.float32).eps * exact.abs().clamp(min=0.1)
    assert torch.all((by_block - exact).abs() <= allowed)
    assert torch.equal(by_block, by_element)


def test_a_seed_and_its_int64_twin_have_the_same_words():
    for seed in SEEDS:
        low, high = triton_noise.seed_words(seed)
        assert -(2**31) <= low < 2**31 and -(2**31) <= high < 2**31
        assert (low & 0xFFFFFFFF) | (high & 0xFFFFFFFF) << 32 == seed
        assert triton_noise.seed_words(seed - 2**64 if seed >= 2**63 else seed) == (low, high)
