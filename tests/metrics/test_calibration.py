"""Calibration against torchmetrics and by hand."""

from __future__ import annotations

import pytest
import torch

from dakd.metrics.calibration import CalibrationCounts


def random_maps(seed: int, sharpness: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(3, 5, 16, 20, generator=generator)
    target = torch.multinomial(logits.softmax(1).movedim(1, -1).reshape(-1, 5), 1, generator=generator)
    return (1.7 * logits).softmax(1), target.reshape(3, 16, 20).to(torch.uint8)  # over-confident by 1.7


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("sharpness", [0.3, 1.0, 3.0])
def test_the_error_is_that_of_torchmetrics(torchmetrics, sharpness, bins):
    probabilities, target = random_maps(0, sharpness)
    target[0, :4] = 255
    ece = CalibrationCounts(bins).update(probabilities, target).to_dict()["ece"]
    expected = torchmetrics.functional.classification.multiclass_calibration_error(
        probabilities.double(), target.long(), 5, n_bins=bins, norm="l1", ignore_index=255
    )
    assert ece == pytest.approx(float(expected), abs=2e-6)  # it sums in float32


def test_pooled_batches_give_the_counts_of_the_whole():
    probabilities, target = random_maps(1, 1.0)
    whole, parts = CalibrationCounts(), CalibrationCounts()
    whole.update(probabilities, target)
    for place in (2, 0, 1):
        parts.update(probabilities[place : place + 1], target[place : place + 1])
    assert torch.equal(whole.counts, parts.counts) and whole.counts[:, 0].sum() == target.numel()


def test_a_table_worked_by_hand():
    guesses = torch.tensor([0.95, 0.91, 0.65, 1.0])
    probabilities = torch.stack([guesses, 1 - guesses])[None, :, None]  # (1, 2, 1, 4)
    table = CalibrationCounts(10).update(probabilities, torch.tensor([[[0, 1, 1, 0]]])).to_dict()
    assert [one["pixels"] for one in table["bins"]] == [0] * 6 + [1, 0, 0, 3]
    last = table["bins"][-1]
    assert last["accuracy"] == 2 / 3 and last["confidence"] == pytest.approx(2.86 / 3, abs=1e-6)
    assert table["bins"][0]["accuracy"] is None and table["bins"][0]["confidence"] is None
    assert table["ece"] == pytest.approx((0.65 + abs(2 - 2.86)) / 4, abs=1e-6)


def test_a_student_that_is_as_sure_as_it_is_right_has_no_error():
    probabilities = torch.tensor([0.75, 0.25]).view(1, 2, 1, 1).expand(1, 2, 1, 8)
    target = torch.tensor([0, 0, 0, 1] * 2).view(1, 1, 8)
    assert CalibrationCounts().update(probabilities, target).to_dict()["ece"] == pytest.approx(0, abs=1e-7)


def test_nothing_counted_and_bad_shapes_are_refused():
    counts = CalibrationCounts()
    counts.update(torch.full((1, 2, 2, 2), 0.5), torch.full((1, 2, 2), 255))
    with pytest.raises(ValueError, match="no pixel was counted"):
        counts.to_dict()
    with pytest.raises(ValueError, match=r"expected \(B, K, H, W\)"):
        counts.update(torch.zeros(2, 2, 2), torch.zeros(2, 2))


def test_floats_and_ids_beyond_the_classes_are_refused():
    target = torch.arange(12).reshape(1, 3, 4) % 3
    with pytest.raises(ValueError, match=r"target is torch\.float32; expected integer"):
        CalibrationCounts().update(torch.full((1, 3, 3, 4), 1 / 3), target + 0.9)
    with pytest.raises(ValueError, match="target has class ids from 0 to 2; expected 0 to 1"):
        CalibrationCounts().update(torch.full((1, 2, 3, 4), 0.5), target)


@pytest.mark.parametrize(
    "change",
    [lambda p: p.log(), lambda p: 100 * p, lambda p: (255 * p).byte(), lambda p: p * torch.nan, lambda p: p[:, :4]],
    ids=["logits", "percent", "bytes", "NaN", "a class less"],
)
def test_what_are_no_probabilities_is_refused(change):
    probabilities, target = random_maps(2, 1.0)
    with pytest.raises(ValueError, match=r"probabilities are torch.* sums over the classes .*softmax"):
        CalibrationCounts().update(change(probabilities), target.clamp(max=3))


def test_probabilities_of_few_bits_are_taken():
    probabilities, target = random_maps(2, 1.0)
    for dtype in (torch.float16, torch.bfloat16):
        assert CalibrationCounts().update(probabilities.to(dtype), target).counts[:, 0].sum() == target.numel()
