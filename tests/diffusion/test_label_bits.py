"""Labels as bits: there and back for any number of classes, codes of no class, and probabilities."""

from __future__ import annotations

import math

import pytest
import torch

from dakd.data.sample import IGNORE_INDEX
from dakd.data.transforms import to_teacher
from dakd.diffusion.label_bits import MIN_PROBABILITY, bits_as_grey, code_logits, num_bits, to_bits
from dakd.diffusion.loss import bit_loss


def column(*values):
    """Bits of one pixel, lowest first: (1, n, 1, 1)."""
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)


def test_numbers_of_bits():
    assert [num_bits(k) for k in (1, 2, 3, 4, 5, 8, 9)] == [1, 1, 2, 2, 3, 3, 4]


@pytest.mark.parametrize("num_classes", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_labels_come_back_from_their_bits_and_from_noisy_ones(num_classes, dtype):
    label = torch.randint(0, num_classes, (2, 9, 7), dtype=dtype)
    bits = to_bits(label, num_classes)
    assert bits.shape == (2, num_bits(num_classes), 9, 7) and set(bits.unique().tolist()) == {-1.0, 1.0}
    for y_hat in (bits, 0.3 * bits, 1.8 * bits, bits + 0.8 * (2 * torch.rand_like(bits) - 1)):
        logits = code_logits(y_hat, num_classes)
        assert logits.shape == (2, num_classes, 9, 7)
        assert torch.equal(logits.argmax(1), label.long())


@pytest.mark.parametrize("num_classes", [3, 5])
def test_an_invalid_code_goes_to_the_nearest_class(num_classes):
    codes = to_bits(torch.arange(num_classes).view(1, 1, -1), num_classes)[0, :, 0].T
    for code in range(num_classes, 2 ** num_bits(num_classes)):
        bits = to_bits(torch.tensor([[[code]]]), 2 ** num_bits(num_classes))
        distances = (codes - bits.flatten()).abs().sum(1)
        assert distances[code_logits(bits, num_classes).argmax()] == distances.min()


def test_the_least_certain_bit_of_an_invalid_code_gives_way():
    assert int(code_logits(column(0.9, 0.2), 3).argmax()) == 1 and int(code_logits(column(0.2, 0.9), 3).argmax()) == 2
    assert int(code_logits(column(0.3, -0.9, 0.9), 5).argmax()) == 4  # 101 of five classes
    assert int(code_logits(column(0.9, -0.9, 0.3), 5).argmax()) == 1


def test_probabilities_are_the_products_of_the_bits_own_among_the_classes():
    p = (0.7, 0.1, 0.4)  # of bits 0, 1, 2 being set
    products = [math.prod(q if code >> k & 1 else 1 - q for k, q in enumerate(p)) for code in range(5)]
    wanted = torch.tensor(products) / sum(products)
    logits = code_logits(column(*(2 * q - 1 for q in p)), 5).flatten()
    torch.testing.assert_close(logits, wanted.log())


def test_outputs_beyond_a_bit_are_finite():
    logits = code_logits(column(1.7, -2.0).to(torch.bfloat16), 4).flatten()
    assert logits.dtype == torch.float32
    wanted = 2 * math.log(1 - MIN_PROBABILITY), math.log(MIN_PROBABILITY) + math.log(1 - MIN_PROBABILITY)
    torch.testing.assert_close(logits[[1, 0]], torch.tensor(wanted), rtol=0, atol=1e-3)


def test_grey_levels_normalise_to_the_bits_and_unknown_pixels_to_almost_nothing():
    label = torch.randint(0, 5, (2, 6, 6), dtype=torch.uint8)
    grey = bits_as_grey(label, 5)
    assert grey.dtype == torch.uint8 and torch.equal(to_teacher(grey), to_bits(label, 5))
    label[0, 2:4] = IGNORE_INDEX
    unknown = to_teacher(bits_as_grey(label, 5))[0, :, 2:4]
    torch.testing.assert_close(unknown, torch.full_like(unknown, 1 / 255))


def test_bit_loss_is_the_square_over_known_pixels():
    y_hat, label = torch.randn(2, 2, 4, 4, requires_grad=True), torch.randint(0, 3, (2, 4, 4))
    wanted = (y_hat - to_bits(label, 3)).square().detach()
    label[0, 1] = label[1] = IGNORE_INDEX
    loss = bit_loss(y_hat, label, 3)
    torch.testing.assert_close(loss[0], wanted[0, :, [0, 2, 3]].mean())
    assert loss[1].item() == 0
    loss.sum().backward()
    assert not y_hat.grad[0, :, 1].any() and not y_hat.grad[1].any() and y_hat.grad[0, :, 2].all()
