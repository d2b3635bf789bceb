"""joint_noising: both modalities follow the forward process, and the noise belongs to the sample."""

from __future__ import annotations

import cuda_on_cpu
import pytest
import torch
from torch_threads import torch_threads
from variants import variants

from dakd.kernels import backend as backends
from dakd.kernels import extension, triton_runtime
from dakd.kernels.joint_noising import cuda, joint_noising, ops
from dakd.runtime.seeding import Stream, philox_normal, philox_timesteps
from dakd.testing import numerics, plain
from dakd.testing.inputs import operands, sliced

VARIANTS = variants("joint_noising")
# Small enough for Triton's interpreter; its blocks of noise span channels and its last program is not full.
ODD = dict(batch=2, num_classes=5, height=7, width=9)


def check(inputs: dict, dtype: torch.dtype, backend: str) -> None:
    """Both outputs within the error budget, and t exactly that of plain torch."""
    exact = plain.joint_noising(**inputs | dict(tables=inputs["tables"].double(), out_dtype=torch.float64))
    eager = plain.joint_noising(**inputs, out_dtype=dtype)
    with numerics.poisoned_memory():
        got = joint_noising(**inputs, out_dtype=dtype, backend=backend)
    assert torch.equal(got[2], exact[2])
    for name, index in (("x_t", 0), ("y_t", 1)):
        assert got[index].dtype == dtype and got[index].is_contiguous()
        numerics.assert_within_budget(name, got[index], exact[index], eager[index])


@pytest.mark.parametrize(("backend", "device"), VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", ["tiny", "one", ODD, "empty"], ids=["tiny", "one", "odd", "empty"])
def test_matches_plain_torch(shape, dtype, backend, device):
    check(operands("joint_noising", shape, device=device), dtype, backend)


@pytest.mark.parametrize(("backend", "device"), variants("joint_noising", without=("triton",)))
@pytest.mark.parametrize("shape", ["odd", dict(batch=1, num_classes=2, height=100, width=97)], ids=["odd", "wide"])
def test_matches_plain_torch_on_many_pixels(shape, backend, device):
    check(operands("joint_noising", shape, device=device), torch.bfloat16, backend)


@pytest.mark.skipif(extension.missing() is not None, reason=str(extension.missing()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_every_instruction_set_matches_plain_torch(isa, dtype):
    if not extension.has_cpu_isa(isa):
        pytest.skip(f"this processor has no {isa}")
    # More than a chunk of pixels, the last not full; blocks of noise span channels.
    inputs = operands("joint_noising", dict(batch=2, num_classes=3, height=31, width=35))
    with extension.using_cpu_isa(isa):
        check(inputs, dtype, "cpu")


@pytest.mark.skipif(extension.missing() is not None, reason=str(extension.missing()))
def test_the_number_of_threads_does_not_change_a_bit():
    inputs, found = operands("joint_noising", dict(batch=3, num_classes=5, height=61, width=67)), []
    for num_threads in (1, 3):
        with torch_threads(num_threads), numerics.poisoned_memory():
            found.append(joint_noising(**inputs, out_dtype=torch.float32, backend="cpu"))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.fixture(scope="session")
def cuda_kernel(tmp_path_factory):
    """torch with the CUDA kernel in the place of the compiled library."""
    if not cuda_on_cpu.is_possible():
        pytest.skip("no C++ compiler")
    operations = {"joint_noising_forward": "joint_noising_forward_cuda"}
    cuda_on_cpu.load("joint_noising/joint_noising.cu", operations, tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def on_cpu(cuda_kernel, monkeypatch):
    """Lets backend "cuda" run its kernel on the CPU."""
    monkeypatch.setattr(backends, "load", lambda *choice: cuda)
    kernel = torch.ops.dakd_on_cpu.joint_noising_forward
    monkeypatch.setattr(torch.ops.dakd_C, "joint_noising_forward", kernel, raising=False)


def shifted(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, contiguous, from the second element of a larger tensor on."""
    larger = tensor.new_zeros(tensor.numel() + 1)
    return larger[1:].view(tensor.shape).copy_(tensor)


LAYOUTS = {
    "contiguous": lambda tensor: tensor,
    "shifted": shifted,
    "sliced": sliced,
    "pixels apart": lambda tensor: tensor.repeat_interleave(2, -1)[..., ::2],
    "rows apart": lambda tensor: torch.nn.functional.pad(tensor, (0, 4))[..., :-4],
    "transposed": lambda tensor: tensor.mT.contiguous().mT,
}
# Pixels that fours divide and do not, and ones that fill more than a block.
CUDA_SIZES = [(1, 1), (7, 9), (3, 43), (4, 6), (31, 36)]


@pytest.mark.parametrize("label_dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize(("height", "width"), CUDA_SIZES)
def test_cuda_kernel_matches_plain_torch_in_any_layout(height, width, label_dtype, on_cpu):
    inputs = operands("joint_noising", dict(batch=2, num_classes=3, height=height, width=width))
    inputs["label"] = inputs["label"].to(label_dtype)
    check(inputs, torch.float32, "cuda")
    wanted = joint_noising(**inputs, backend="cuda")
    for layout in LAYOUTS.values():
        change = dict(image=layout(inputs["image"]), label=layout(inputs["label"]))
        with numerics.poisoned_memory():
            got = joint_noising(**inputs | change, backend="cuda")
        assert all(torch.equal(*pair) for pair in zip(got, wanted, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_sample_has_its_own_timestep_in_the_cuda_kernel(dtype, on_cpu):
    inputs = operands("joint_noising", dict(batch=5, num_classes=2, height=4, width=6))
    check(inputs, dtype, "cuda")
    drawn = joint_noising(**inputs, backend="cuda")
    assert len(set(drawn[2].tolist())) == 5
    given = joint_noising(**inputs, t=drawn[2], backend="cuda")
    without_label = joint_noising(**inputs | dict(label=None), backend="cuda")
    assert all(torch.equal(*pair) for pair in zip(given, drawn, strict=True))
    assert torch.equal(without_label[0], drawn[0]) and without_label[1] is None


@pytest.mark.parametrize(("backend", "device"), VARIANTS)
@pytest.mark.parametrize("num_classes", [1, 2, 4, 8, 11])
def test_matches_plain_torch_for_any_number_of_classes(num_classes, backend, device):
    sizes = dict(batch=2, num_classes=num_classes, height=6, width=10)
    check(operands("joint_noising", sizes, device=device), torch.float32, backend)


def test_float64_is_noised_in_float64():
    check(operands("joint_noising", "odd", dtype=torch.float64), torch.float64, "auto")


@pytest.mark.parametrize(("backend", "device"), VARIANTS)
def test_tables_of_any_dtype_and_layout_serve(backend, device):
    inputs = operands("joint_noising", "tiny", device=device)
    for tables in (inputs["tables"].double(), inputs["tables"].T.contiguous().T, sliced(inputs["tables"])):
        check(inputs | dict(tables=tables), torch.float32, backend)


@pytest.mark.parametrize(("backend", "device"), VARIANTS)
@pytest.mark.parametrize("label_dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize("layout", ["sliced", "transposed"])
def test_any_layout_of_the_operands_gives_the_same_numbers(layout, label_dtype, backend, device):
    inputs = operands("joint_noising", dict(batch=3, num_classes=3, height=4, width=6), device=device)
    wanted = joint_noising(**inputs, backend=backend)
    lay_out = sliced if layout == "sliced" else lambda tensor: tensor.mT.contiguous().mT
    change = dict(image=lay_out(inputs["image"]), label=lay_out(inputs["label"].to(label_dtype)))
    change["positions"] = sliced(inputs["positions"])
    with numerics.poisoned_memory():
        got = joint_noising(**inputs | change, backend=backend)
    for tensor, like in zip(got, wanted, strict=True):
        assert torch.equal(tensor, like)


@pytest.mark.parametrize(("backend", "device"), VARIANTS)
@pytest.mark.parametrize("seed", [3, 2**31, 2**63 + 5, 2**64 - 1])
def test_timesteps_and_noise_are_those_of_the_definition(seed, backend, device):
    # With a = 0 and s = 1 the outputs are the noise itself.
    inputs = operands("joint_noising", dict(batch=3, num_classes=2, height=12, width=16), device=device)
    positions = torch.tensor([0, 2**31, 2**60 - 1], device=device)
    inputs |= dict(positions=positions, seed=seed, tables=torch.tensor([[0.0, 1.0]] * 1000, device=device))
    *noise, t = joint_noising(**inputs, backend=backend)
    assert torch.equal(t, philox_timesteps(seed, positions, 1000))
    for got, stream in zip(noise, (Stream.IMAGE_NOISE, Stream.LABEL_NOISE), strict=True):
        exact = philox_normal(got[0].numel(), seed, positions, t, stream, torch.float64)
        # Four roundings of fp32, relative to the number, or to 0.1 where cosine or sine vanish.
        allowed = 4 * torch.finfo(torch.float32).eps * exact.abs().clamp(min=0.1)
        assert torch.all((got.flatten(1) - exact).abs() <= allowed)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_signal_and_noise_have_the_moments_of_the_process(backend):
    # At one t, over many samples: mean a x_0 (or a b y_0), standard deviation s.
    batch, t = 4000, 600
    inputs = operands("joint_noising", dict(batch=batch, num_classes=2, height=2, width=2)) | dict(backend=backend)
    inputs |= dict(image=torch.full((batch, 1, 2, 2), 200, dtype=torch.uint8), label=torch.ones(batch, 2, 2).byte())
    x_t, y_t, _ = joint_noising(**inputs, t=torch.full((batch,), t))
    a, s = inputs["tables"][t].tolist()
    wanted = torch.tensor([a * (200 / 127.5 - 1), -a * inputs["b"], a * inputs["b"]])
    both = torch.cat([x_t, y_t], dim=1)
    assert (both.mean((0, 2, 3)) - wanted).abs().max() < 4 * s / (4 * batch) ** 0.5
    assert (both.std((0, 2, 3)) - s).abs().max() < 4 * s / (8 * batch) ** 0.5
    noise = (both - wanted[:, None, None]).permute(1, 2, 3, 0).flatten(0, 2)
    assert (torch.corrcoef(noise) - torch.eye(12)).abs().max() < 5 / batch**0.5


@pytest.mark.parametrize(("backend", "device"), VARIANTS)
def test_a_sample_is_noised_alike_in_any_batch(backend, device):
    inputs = operands("joint_noising", "tiny", device=device) | dict(backend=backend)
    alone = {name: inputs[name][1:] for name in ("image", "label", "positions")}
    for whole, part in zip(joint_noising(**inputs), joint_noising(**inputs | alone), strict=True):
        assert torch.equal(whole[1:], part)


@pytest.mark.parametrize(("backend", "device"), VARIANTS)
@pytest.mark.parametrize("ignored", [255, 3, -1, 2**32])
def test_ignored_labels_carry_no_signal(ignored, backend, device):
    inputs = operands("joint_noising", "tiny", device=device) | dict(t=torch.tensor([0, 999], device=device))
    inputs |= dict(label=torch.full_like(inputs["label"], ignored, dtype=torch.int64), backend=backend)
    _, noise_alone, _ = joint_noising(**inputs | dict(b=0.0))
    assert torch.equal(joint_noising(**inputs)[1], noise_alone)
    if 0 <= ignored <= 255:
        assert torch.equal(joint_noising(**inputs | dict(label=inputs["label"].to(torch.uint8)))[1], noise_alone)


@pytest.mark.parametrize(("backend", "device"), VARIANTS)
def test_images_without_labels_get_the_same_noise(backend, device):
    inputs = operands("joint_noising", "tiny", device=device) | dict(backend=backend)
    x_t, y_t, t = joint_noising(**inputs | dict(label=None))
    wanted_x, _, wanted_t = joint_noising(**inputs)
    assert y_t is None and torch.equal(x_t, wanted_x) and torch.equal(t, wanted_t)


@pytest.mark.parametrize(("backend", "device"), VARIANTS)
def test_given_timesteps_are_used_and_drawn_ones_follow_the_seed(backend, device):
    sizes = dict(batch=4, num_classes=2, height=4, width=4)
    inputs = operands("joint_noising", sizes, device=device) | dict(backend=backend)
    drawn = joint_noising(**inputs)[2]
    assert not torch.equal(drawn, joint_noising(**inputs | dict(seed=4))[2])
    t = torch.tensor([0, 1, 2, 999], device=device)
    assert torch.equal(joint_noising(**inputs, t=t)[2], t)
    assert torch.equal(joint_noising(**inputs, t=drawn)[0], joint_noising(**inputs)[0])


@pytest.mark.parametrize(("backend", "device"), variants("joint_noising", without=("reference", "cpu")))
def test_a_timestep_outside_the_tables_is_not_a_number(backend, device):
    inputs = operands("joint_noising", "tiny", device=device) | dict(t=torch.tensor([-1, 1000], device=device))
    x_t, y_t, _ = joint_noising(**inputs, backend=backend)
    assert bool(x_t.isnan().all()) and bool(y_t.isnan().all())


@pytest.mark.parametrize(("backend", "device"), VARIANTS)
def test_two_calls_give_the_same_bits(backend, device):
    inputs = operands("joint_noising", "tiny", device=device) | dict(backend=backend)
    for first, second in zip(joint_noising(**inputs), joint_noising(**inputs), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize(("backend", "device"), variants("joint_noising", without=("reference", "cpu", "cuda")))
@pytest.mark.parametrize("given", [True, False])
def test_timesteps_and_both_modalities_take_one_launch(given, backend, device, monkeypatch):
    launches, launch = [], triton_runtime.launch
    monkeypatch.setattr(triton_runtime, "launch", lambda *args, **kwargs: launches.append(launch(*args, **kwargs)))
    t = torch.tensor([3, 4], device=device) if given else None
    joint_noising(**operands("joint_noising", "tiny", device=device), t=t, backend=backend)
    assert len(launches) == 1


@pytest.mark.parametrize(("backend", "device"), VARIANTS)
@pytest.mark.parametrize("with_label", [True, False])
def test_operator_contract_holds(with_label, backend, device):
    inputs = operands("joint_noising", "tiny", device=device)
    label = inputs["label"] if with_label else None
    arguments = (inputs["image"].mT.contiguous().mT, label, inputs["positions"], inputs["tables"], 0.5, 3, 1)
    torch.library.opcheck(ops.joint_noising, (*arguments, None, torch.bfloat16, backend))


@pytest.mark.parametrize(("backend", "device"), VARIANTS)
def test_compiles_to_one_graph(backend, device):
    inputs = operands("joint_noising", "tiny", device=device) | dict(backend=backend)
    compiled = torch.compile(joint_noising, fullgraph=True, backend="aot_eager")
    for seed in (3, 4, 2**63 + 5):
        change = inputs | dict(seed=seed)
        for got, wanted in zip(compiled(**change), joint_noising(**change), strict=True):
            assert torch.equal(got, wanted)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(image=torch.zeros(2, 1, 2, 3)), TypeError, "image has dtype torch.float32; expected torch.uint8"),
        (dict(image=torch.zeros(2, 3, 2, 3, dtype=torch.uint8)), ValueError, "image has shape"),
        (dict(image=torch.zeros(2, 1, 0, 3, dtype=torch.uint8)), ValueError, "expected at least one pixel"),
        (dict(label=torch.zeros(2, 3, 2, dtype=torch.uint8)), ValueError, "label has shape"),
        (dict(positions=torch.zeros(3, dtype=torch.int64)), ValueError, r"positions has shape \(3,\)"),
        (dict(tables=torch.zeros(1000, 3)), ValueError, r"expected \(T, 2\)"),
        (dict(seed=-1), ValueError, "seed is -1; expected an integer from 0"),
        (dict(backend="mamba_ssm"), RuntimeError, "has no such variant"),
    ],
)
def test_misfits_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        joint_noising(**operands("joint_noising", "tiny") | change)
