"""joint_noising: both modalities follow the forward process, and the noise belongs to the sample."""

from __future__ import annotations

import pytest
import torch

from dakd.kernels.joint_noising import joint_noising, ops
from dakd.testing import numerics, plain
from dakd.testing.inputs import operands


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", ["tiny", "one", "odd", "empty"])
def test_matches_plain_torch(shape, dtype):
    tables = torch.float64 if dtype == torch.float64 else torch.float32
    inputs = operands("joint_noising", shape, dtype=tables)
    exact = plain.joint_noising(**inputs | dict(tables=inputs["tables"].double(), out_dtype=torch.float64))
    eager = plain.joint_noising(**inputs, out_dtype=dtype)
    with numerics.poisoned_memory():
        got = joint_noising(**inputs, out_dtype=dtype)
    assert torch.equal(got[2], exact[2])
    for name, index in (("x_t", 0), ("y_t", 1)):
        assert got[index].dtype == dtype
        numerics.assert_within_budget(name, got[index], exact[index], eager[index])


def test_signal_and_noise_have_the_moments_of_the_process():
    # At one t, over many samples: mean a x_0 (or a b y_0), standard deviation s.
    batch, t = 4000, 600
    inputs = operands("joint_noising", dict(batch=batch, num_classes=2, height=2, width=2), dtype=torch.float64)
    inputs |= dict(image=torch.full((batch, 1, 2, 2), 200, dtype=torch.uint8), label=torch.ones(batch, 2, 2).byte())
    x_t, y_t, _ = joint_noising(**inputs, t=torch.full((batch,), t), out_dtype=torch.float64)
    a, s = inputs["tables"][t].tolist()
    wanted = torch.tensor([a * (200 / 127.5 - 1), -a * inputs["b"], a * inputs["b"]], dtype=torch.float64)
    both = torch.cat([x_t, y_t], dim=1)
    assert (both.mean((0, 2, 3)) - wanted).abs().max() < 4 * s / (4 * batch) ** 0.5
    assert (both.std((0, 2, 3)) - s).abs().max() < 4 * s / (8 * batch) ** 0.5
    noise = (both - wanted[:, None, None]).permute(1, 2, 3, 0).flatten(0, 2)
    assert (torch.corrcoef(noise) - torch.eye(12)).abs().max() < 5 / batch**0.5


def test_a_sample_is_noised_alike_in_any_batch():
    inputs = operands("joint_noising", "tiny")
    alone = {name: inputs[name][1:] for name in ("image", "label", "positions")}
    for whole, part in zip(joint_noising(**inputs), joint_noising(**inputs | alone), strict=True):
        assert torch.equal(whole[1:], part)


def test_ignored_labels_carry_no_signal():
    inputs = operands("joint_noising", "tiny") | dict(t=torch.tensor([0, 999]))
    inputs["label"] = torch.full_like(inputs["label"], 255)
    _, noise_alone, _ = joint_noising(**inputs | dict(b=0.0))
    assert torch.equal(joint_noising(**inputs)[1], noise_alone)
    assert torch.equal(joint_noising(**inputs | dict(label=inputs["label"].long()))[1], noise_alone)


def test_images_without_labels_get_the_same_noise():
    inputs = operands("joint_noising", "tiny")
    x_t, y_t, t = joint_noising(**inputs | dict(label=None))
    wanted_x, _, wanted_t = joint_noising(**inputs)
    assert y_t is None and torch.equal(x_t, wanted_x) and torch.equal(t, wanted_t)


def test_given_timesteps_are_used_and_drawn_ones_follow_the_seed():
    inputs = operands("joint_noising", "small")
    drawn = joint_noising(**inputs)[2]
    assert not torch.equal(drawn, joint_noising(**inputs | dict(seed=4))[2])
    t = torch.tensor([0, 1, 2, 999])
    assert torch.equal(joint_noising(**inputs, t=t)[2], t)
    assert torch.equal(joint_noising(**inputs, t=drawn)[0], joint_noising(**inputs)[0])


@pytest.mark.parametrize("with_label", [True, False])
def test_operator_contract_holds(with_label):
    inputs = operands("joint_noising", "tiny")
    label = inputs["label"] if with_label else None
    arguments = (inputs["image"].mT.contiguous().mT, label, inputs["positions"], inputs["tables"], 0.5, 3, 1)
    torch.library.opcheck(ops.joint_noising, (*arguments, None, torch.bfloat16, "reference"))


def test_compiles_to_one_graph():
    inputs = operands("joint_noising", "tiny")
    compiled = torch.compile(joint_noising, fullgraph=True, backend="aot_eager")
    for got, wanted in zip(compiled(**inputs), joint_noising(**inputs), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(image=torch.zeros(2, 1, 2, 3)), TypeError, "image has dtype torch.float32; wanted torch.uint8"),
        (dict(image=torch.zeros(2, 3, 2, 3, dtype=torch.uint8)), ValueError, "image has shape"),
        (dict(label=torch.zeros(2, 3, 2, dtype=torch.uint8)), ValueError, "label has shape"),
        (dict(positions=torch.zeros(3, dtype=torch.int64)), ValueError, r"positions has shape \(3,\)"),
        (dict(tables=torch.zeros(1000, 3)), ValueError, r"wanted \(T, 2\)"),
        (dict(backend="cuda"), RuntimeError, "has no such variant"),
    ],
)
def test_misfits_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        joint_noising(**operands("joint_noising", "tiny") | change)
