"""The sampler against diffusers' DDIM on each branch, Eq. 21, and starts that depend only on the sample."""

from __future__ import annotations

import collections

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dakd.diffusion import sampler as sampling
from dakd.diffusion.label_reading import LOGITS, READINGS, bit_reading
from dakd.diffusion.sampler import PairSampler, start_noise, to_grey
from dakd.diffusion.schedule import CosineSchedule
from dakd.models.jointnet import SARJointNet

B_FACTOR = 0.528
READINGS_OF_THREE_CHANNELS = {"logits": LOGITS, "l2": READINGS["l2"], "bits": bit_reading(5)}
readings = pytest.mark.parametrize("reading", READINGS_OF_THREE_CHANNELS)


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


def small_joint_net(device="cpu", dtype=torch.float32):
    torch.manual_seed(0)
    net = SARJointNet(3, channels=(16, 32), blocks_per_level=2, attention_levels=(1,), norm_groups=8)
    for parameter in [*net.sar_bridge.parameters(), *net.label_bridge.parameters()]:
        torch.nn.init.normal_(parameter, std=0.05)
    return net.to(device, dtype, memory_format=torch.channels_last).eval()


def assert_tabulated_time_changes_nothing(device, dtype, batch, capture=False):
    settings = dict(b=0.5, device=device, dtype=dtype)
    net = small_joint_net(device, dtype)
    x, y = start_noise(0, range(batch), (16, 16), 3)
    plain = PairSampler(net, CosineSchedule(), 6, **settings)(x, y)
    tabulated = PairSampler(net, CosineSchedule(), 6, **settings, tabulate_time=True, capture=capture)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(tabulated(x, y), plain))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_time_embeddings_of_all_steps_computed_beforehand_change_no_bit(dtype, batch):
    assert_tabulated_time_changes_nothing("cpu", dtype, batch)


class Counter(TorchDispatchMode):
    """How often each op is called."""

    def __init__(self):
        super().__init__()
        self.calls = collections.Counter()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.calls[op._schema.name] += 1
        return op(*args, **kwargs or {})


@pytest.mark.parametrize("eta", [0.0, 1.0])
@readings
def test_the_loop_over_a_whole_net_reads_no_value_on_the_host_and_embeds_no_timestep(eta, reading):
    def count(num_steps, **settings):
        x, y = start_noise(0, range(2), (16, 16), 3)
        sampler = PairSampler(net, CosineSchedule(), num_steps, b=0.5, eta=eta, reading=form, **settings)
        sampler(x, y, sample_ids=torch.tensor([3, 4]))  # whatever is computed once
        with Counter() as counter:
            sampler(x, y, sample_ids=torch.tensor([3, 4]))
        return counter.calls

    net, form = small_joint_net(), READINGS_OF_THREE_CHANNELS[reading]
    plain, tabulated = count(5), count(5, tabulate_time=True)
    for calls in (plain, tabulated):
        assert calls["aten::_local_scalar_dense"] == calls["aten::item"] == 0 and calls["dakd::ddim_step"] == 5
    assert plain["aten::cos"] == 5 * 2 and tabulated["aten::cos"] == 0  # the sinusoids of two branches
    # Products that are spared: the branch's MLP of two layers, and a layer in each of its 12 residual blocks.
    assert plain["aten::addmm"] - tabulated["aten::addmm"] == 5 * 2 * (2 + 12)
    with Counter() as counter:
        torch.ones(1).item()
    assert counter.calls["aten::_local_scalar_dense"] == 1  # the counter would have seen one


# Schedules that no other test has: their tables are kept, and these have no values.
@pytest.mark.parametrize(("solver", "num_timesteps"), [("ddim", 991), ("dpmpp_2m", 992), ("heun", 993)])
def test_a_sampler_is_built_and_runs_on_tensors_without_values(solver, num_timesteps):
    """As the kernels of a GPU visit are compiled beforehand."""
    with FakeTensorMode():
        sampler = PairSampler(toy_net, CosineSchedule(num_timesteps), 3, b=0.5, solver=solver)
        image, logits = sampler(torch.empty(2, 1, 8, 8), torch.empty(2, 3, 8, 8))
    assert image.shape == (2, 1, 8, 8) and logits.shape == (2, 3, 8, 8)


def captured_on_the_cpu(monkeypatch, captures):
    """Stands in for CUDA's graph: a warm-up, then the step itself as what replays it."""

    def capture(advance, rewind, device):
        rewind()
        advance()
        captures.append(device)
        return advance

    monkeypatch.setattr(sampling, "capture_graph", capture)


def samplers(device, dtype, eta, reading, sigma_data, solver):
    reading = READINGS_OF_THREE_CHANNELS[reading]
    settings = dict(b=0.5, eta=eta, reading=reading, sigma_data=sigma_data, device=device, dtype=dtype, solver=solver)
    made = [PairSampler(toy_net, CosineSchedule(), 7, **settings) for _ in range(2)]
    made[1].capture = True
    return made


def assert_replays_equal_the_loop(device, dtype, eta, reading, sigma_data, solver, captures):
    """Over calls that change ids, seed and batch; `captures` counts how often a step was captured."""
    looped, replayed = samplers(device, dtype, eta, reading, sigma_data, solver)
    for ids, seed, count in (([3, 4], 0, 1), ([8, 9], 0, 1), ([8, 9], 1, 1 if eta == 0 else 2), ([5], 1, None)):
        x, y = (noise.to(device) for noise in start_noise(2, ids, (8, 8), 3))
        keys = dict(sample_ids=torch.tensor(ids, device=device), seed=seed)
        wanted, got = looped(x, y, **keys), replayed(x, y, **keys)
        assert torch.equal(got[0], wanted[0]) and torch.equal(got[1], wanted[1])
        assert count is None or captures is None or len(captures) == count
    kept = [tensor.clone() for tensor in got]
    replayed(x + 1, y + 1, **keys)
    assert torch.equal(got[0], kept[0]) and torch.equal(got[1], kept[1])  # results have memory of their own


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("solver", "eta"), [("ddim", 0.0), ("ddim", 1.0), ("dpmpp_2m", 0.0), ("dpmpp_2m", 1.0), ("heun", 0.0)]
)
@pytest.mark.parametrize("sigma_data", [None, 0.2])
@readings
def test_replayed_steps_equal_the_loop_bitwise(monkeypatch, dtype, eta, reading, sigma_data, solver):
    captures = []
    captured_on_the_cpu(monkeypatch, captures)
    assert_replays_equal_the_loop("cpu", dtype, eta, reading, sigma_data, solver, captures)


def test_a_replay_keeps_nothing_of_estimates_that_were_not_numbers(monkeypatch):
    captured_on_the_cpu(monkeypatch, [])
    looped, replayed = samplers("cpu", torch.float32, 0.0, "logits", None, "dpmpp_2m")
    x, y = start_noise(2, range(2), (8, 8), 3)
    assert bool(replayed(x * float("nan"), y)[0].isnan().all())
    assert torch.equal(replayed(x, y)[0], looped(x, y)[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("sigma_data", [None, 0.2])
@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m"])
@readings
def test_captured_steps_equal_the_loop_bitwise_and_never_synchronise(dtype, eta, reading, sigma_data, solver):
    assert_replays_equal_the_loop("cuda", dtype, eta, reading, sigma_data, solver, None)
    _, replayed = samplers("cuda", dtype, eta, reading, sigma_data, solver)
    x, y = (noise.cuda() for noise in start_noise(2, [1, 2], (8, 8), 3))
    ids = torch.tensor([1, 2], device="cuda")
    replayed(x, y, sample_ids=ids)
    torch.cuda.set_sync_debug_mode("error")
    try:
        replayed(x, y, sample_ids=ids)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tabulated_and_captured_steps_of_a_whole_net_equal_the_loop_and_never_synchronise(dtype):
    for capture in (False, True):
        assert_tabulated_time_changes_nothing("cuda", dtype, 4, capture)
        net = small_joint_net("cuda", dtype)
        settings = dict(b=0.5, device="cuda", dtype=dtype, tabulate_time=True, capture=capture)
        sampler = PairSampler(net, CosineSchedule(), 6, **settings)
        x, y = (noise.cuda() for noise in start_noise(0, range(4), (16, 16), 3))
        sampler(x, y)
        torch.cuda.set_sync_debug_mode("error")
        try:
            sampler(x, y)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_capture_on_a_cpu_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"only CUDA devices can capture a step.*set generate\.capture=false"):
        PairSampler(toy_net, CosineSchedule(), 7, b=0.5, capture=True)


def test_each_sample_has_a_start_of_its_own_that_depends_on_seed_and_index_alone():
    x, y = start_noise(3, range(4), (4, 4), 2)
    assert len({sample.numpy().tobytes() for sample in (*x, *y[:, :1], *y[:, 1:])}) == 12
    for number in (2, 0):
        own = start_noise(3, [number], (4, 4), 2)
        assert torch.equal(own[0][0], x[number]) and torch.equal(own[1][0], y[number])
    assert not torch.equal(start_noise(4, [0], (4, 4), 2)[0][0], x[0])
