"""The sampler against diffusers' DDIM on each branch, Eq. 21, and starts that depend on the sample alone."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dakd.diffusion.sampler import PairSampler, start_noise, to_grey
from dakd.diffusion.schedule import CosineSchedule

B_FACTOR = 0.528


def toy_net(x_t, y_t, t):
    """A denoiser whose image estimate leaves [-1, 1] and whose labels depend on both states."""
    scale = 1.5 + t.float().view(-1, 1, 1, 1) / 1000
    return scale * torch.tanh(x_t) + 0.2 * y_t.mean(1, keepdim=True), 3 * y_t + x_t


def diffusers_loop(x, y, num_steps):
    from diffusers import DDIMScheduler

    def scheduler():
        made = DDIMScheduler(
            beta_schedule="squaredcos_cap_v2",
            prediction_type="sample",
            clip_sample=True,
            set_alpha_to_one=True,
            timestep_spacing="leading",
        )
        made.set_timesteps(num_steps)
        return made

    for_x, for_y, seen = scheduler(), scheduler(), 0.0
    for t in for_x.timesteps:
        x_hat, logits = toy_net(x, y, t.expand(len(x)))
        seen = max(seen, float(x_hat.abs().max()))
        y_hat = B_FACTOR * (2 * logits.softmax(1) - 1)
        x = for_x.step(x_hat, t, x, use_clipped_model_output=True).prev_sample
        y = for_y.step(y_hat, t, y, use_clipped_model_output=True).prev_sample
    return x, logits, seen


def test_sampler_equals_diffusers_on_both_branches_where_estimates_are_clipped():
    x, y = start_noise(3, range(2), (8, 8), 5)
    wanted_x, wanted_logits, largest = diffusers_loop(x, y, 50)
    assert largest > 1.2  # the clamp was at work
    image, logits = PairSampler(toy_net, CosineSchedule(), 50, b=B_FACTOR)(x, y)
    torch.testing.assert_close(image, wanted_x, rtol=0, atol=2e-4)
    torch.testing.assert_close(logits, wanted_logits, rtol=0, atol=2e-3)


def test_last_image_is_the_clamped_estimate():
    def constant(x_t, y_t, t):
        return torch.full_like(x_t, 1.7), y_t

    x, y = start_noise(0, range(1), (4, 4), 2)
    image, _ = PairSampler(constant, CosineSchedule(), 5, b=0.5)(x, y)
    assert torch.equal(image, torch.ones_like(image))


def test_noise_of_a_sample_does_not_depend_on_its_batch():
    x, y = start_noise(7, range(10, 14), (6, 5), 3)
    alone_x, alone_y = start_noise(7, [12], (6, 5), 3)
    assert torch.equal(x[2:3], alone_x) and torch.equal(y[2:3], alone_y)
    other_x, _ = start_noise(8, [12], (6, 5), 3)
    assert not torch.equal(alone_x, other_x)
    assert abs(float(y.mean())) < 0.2 and 0.8 < float(y.std()) < 1.2


def test_stochastic_sampling_is_keyed_by_the_sample():
    def sample(ids):
        x, y = start_noise(0, ids, (8, 8), 2)
        sampler = PairSampler(toy_net, CosineSchedule(), 10, b=0.5, eta=1.0)
        return sampler(x, y, sample_ids=torch.tensor(ids), seed=5)[0]

    together, alone = sample([4, 9]), sample([9])
    torch.testing.assert_close(together[1:], alone)
    x, y = start_noise(0, [9], (8, 8), 2)
    deterministic, _ = PairSampler(toy_net, CosineSchedule(), 10, b=0.5)(x, y)
    assert not torch.allclose(alone, deterministic, atol=0.05)


def test_grey_values_round_and_saturate():
    grey = to_grey(torch.tensor([-1.5, -1.0, 0.0, 1.0, 2.0]))
    assert grey.tolist() == [0, 0, 128, 255, 255]


def test_a_step_costs_one_op_beside_the_networks_their_timestep_and_the_counter():
    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            names.append(op._schema.name)
            return op(*args, **kwargs or {})

    def silent(x_t, y_t, t):
        names.append("networks")
        return x_t, y_t

    names: list[str] = []
    x, y = start_noise(0, range(2), (4, 4), 3)
    sampler = PairSampler(silent, CosineSchedule(), 4, b=0.5, eta=1.0, dtype=torch.bfloat16)
    with Recorder():
        sampler(x, y, sample_ids=torch.tensor([3, 4]))
    steps = names[names.index("aten::index") :]
    # Nothing reads a value on the host (aten::_local_scalar_dense), which would synchronise.
    assert steps == 4 * ["aten::index", "aten::expand", "networks", "dakd::ddim_step", "aten::add_"]
