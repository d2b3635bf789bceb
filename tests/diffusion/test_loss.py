"""The teacher's losses against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dakd.data.sample import IGNORE_INDEX
from dakd.diffusion.loss import image_loss, label_l2_loss, label_loss


def test_image_loss_is_the_mean_square_of_each_sample():
    x_0, x_hat = torch.randn(2, 3, 1, 8, 9)
    wanted = torch.stack([F.mse_loss(x_hat[i], x_0[i]) for i in range(3)])
    torch.testing.assert_close(image_loss(x_0, x_hat), wanted)


def test_label_loss_is_the_cross_entropy_of_each_sample():
    logits, label = torch.randn(3, 5, 8, 9), torch.randint(0, 5, (3, 8, 9))
    wanted = torch.stack([F.cross_entropy(logits[i : i + 1], label[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(label_loss(logits, label.to(torch.uint8)), wanted)


def test_unknown_pixels_do_not_count():
    logits, label = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    label[0, :2] = IGNORE_INDEX
    label[1] = IGNORE_INDEX
    loss = label_loss(logits, label)
    torch.testing.assert_close(loss[0], F.cross_entropy(logits[:1, :, 2:], label[:1, 2:]))
    assert float(loss[1]) == 0.0


def test_losses_are_fp32_for_bf16_outputs():
    logits = torch.randn(1, 3, 4, 4).bfloat16()
    assert label_loss(logits, torch.zeros(1, 4, 4, dtype=torch.uint8)).dtype == torch.float32
    assert image_loss(torch.zeros(1, 1, 4, 4), logits[:, :1]).dtype == torch.float32


@pytest.mark.parametrize("b", [0.4, 1.0])
def test_label_l2_loss_is_the_square_against_the_scaled_mask_over_known_pixels(b):
    y_hat, label = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    signed = 2 * torch.nn.functional.one_hot(label, 3).permute(0, 3, 1, 2).float() - 1
    wanted = (y_hat - b * signed).square()
    torch.testing.assert_close(label_l2_loss(y_hat, label.to(torch.uint8), b), wanted.mean(dim=(1, 2, 3)))
    label[0, :2], label[1] = IGNORE_INDEX, IGNORE_INDEX
    loss = label_l2_loss(y_hat.requires_grad_(), label, b)
    torch.testing.assert_close(loss[0], wanted[0, :, 2:].mean())
    assert loss[1].item() == 0.0
    loss.sum().backward()
    assert not y_hat.grad[0, :, :2].any() and not y_hat.grad[1].any() and y_hat.grad[0, :, 2:].all()
