"""The boundary term against masks worked out by hand, and its gradient."""

from __future__ import annotations

import pytest
import torch
from fixed_logits import FixedLogits

from dakd.config import StudentLossConfig
from dakd.data.batch import Batch
from dakd.train.boundary_loss import boundary_loss
from dakd.train.saross import StudentLoss


def square(left: int, width: int = 11) -> torch.Tensor:
    """(1, 7, width) with a square of 3 x 3 ones in rows 2 to 4: 8 pixels of it, and 16 around it, are boundary."""
    mask = torch.zeros(1, 7, width, dtype=torch.int64)
    mask[:, 2:5, left : left + 3] = 1
    return mask


def certain(mask: torch.Tensor) -> torch.Tensor:
    """Logits whose softmax is the one-hot mask."""
    return torch.nn.functional.one_hot(mask, 2).movedim(-1, 1).double() * 200


@pytest.mark.parametrize(
    ("predicted", "wanted"),
    [
        (square(2), 0.0),
        (square(3), 0.0),  # a pixel aside is within the tolerance
        # Four aside: 3 of 8 pixels of the square and 9 of 16 of the sea's boundary are within two of the true ones.
        (square(6), ((1 - 4 / 9) + (1 - 10 / 17)) / 2),
        # Nothing found: P = 1, R = 1 / 9 of the square, 1 / 17 of the sea.
        (torch.zeros(1, 7, 11, dtype=torch.int64), ((1 - 0.2) + (1 - 1 / 9)) / 2),
    ],
    ids=["equal", "one aside", "four aside", "nothing"],
)
def test_loss_of_a_square_is_that_worked_out_by_hand(predicted, wanted):
    assert boundary_loss(certain(predicted), square(2)).item() == pytest.approx(wanted, abs=1e-12)


def test_a_boundary_where_there_is_none_costs_and_an_image_of_one_class_costs_nothing():
    sea = torch.zeros(1, 7, 11, dtype=torch.int64)
    assert boundary_loss(certain(sea), sea).item() == 0
    # P = 1 / 9 and 1 / 17, R = 1
    assert boundary_loss(certain(square(2)), sea).item() == pytest.approx(((1 - 0.2) + (1 - 1 / 9)) / 2)


def test_gradient_is_that_of_differences():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 6, 7, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 3, (2, 6, 7))
    labels[0, :2] = 255
    assert torch.autograd.gradcheck(lambda x: boundary_loss(x, labels), logits)


def test_descent_moves_a_boundary_to_its_place():
    mask = square(2)
    logits = certain(square(6)).div(50).requires_grad_(True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    losses = []
    for _ in range(100):
        loss = boundary_loss(logits, mask).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_unlabelled_pixels_and_labels_outside_the_table_count_nothing():
    torch.manual_seed(0)
    labels = square(2)
    labels[0, 3, 4], labels[0, 0, 10] = 255, 7
    logits = torch.randn(1, 2, 7, 11, requires_grad=True)
    loss = boundary_loss(logits, labels)
    loss.sum().backward()
    unknown = labels[0] > 1
    assert (logits.grad[0, :, unknown] == 0).all() and logits.grad.any()
    other = logits.detach().clone()
    other[0, 0, unknown], other[0, 1, unknown] = 9.0, -9.0  # the least of class 1 wherever it is looked at
    assert torch.equal(boundary_loss(other, labels), loss)
    nothing = torch.full_like(labels, 255)
    assert boundary_loss(logits, nothing).item() == 0


def test_each_sample_has_its_own_loss_and_soft_labelled_ones_have_none():
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 2, 7, 11), torch.cat([square(1), square(2), square(3)])
    alone = torch.cat([boundary_loss(logits[i : i + 1], labels[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(boundary_loss(logits, labels), alone)
    rows = torch.tensor([-1, 0, -1])
    torch.testing.assert_close(boundary_loss(logits, labels, rows), alone * (rows < 0))


def test_training_adds_the_term_with_its_weight():
    torch.manual_seed(0)

    logits = torch.randn(2, 2, 7, 11)
    batch = Batch(
        image=torch.zeros(2, 1, 7, 11, dtype=torch.uint8),
        positions=torch.arange(2),
        label=torch.cat([square(1), square(2)]).to(torch.uint8),
        teacher=torch.randn(1, 2, 7, 11),
        teacher_row=torch.tensor([-1, 0]),
    )
    without, with_it = (
        StudentLoss(FixedLogits(logits), StudentLossConfig(boundary=weight), 0, torch.contiguous_format)(batch)
        for weight in (0.0, 0.5)
    )
    term = boundary_loss(logits, batch.label, batch.teacher_row)
    torch.testing.assert_close(with_it["loss"], without["loss"] + 0.5 * term)
    torch.testing.assert_close(with_it["boundary"], term)
    assert "boundary" not in without and term[0] > 0 and term[1] == 0
