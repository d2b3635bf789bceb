"""Crop, flip and pad keep image, label and soft label together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dakd.data import transforms
from dakd.data.sample import IGNORE_INDEX, Sample
from dakd.data.transforms import IMAGENET_MEAN, IMAGENET_STD, pad, random_crop, random_flip, to_student, to_teacher


def tied(shape=(9, 13)) -> Sample:
    """Image, label and soft label tell the same number at each pixel."""
    sar = np.arange(shape[0] * shape[1]).reshape(shape).astype(np.uint8)
    return Sample("a", sar, (sar % 5).astype(np.uint8), np.stack([sar, sar, sar]).astype(np.float16))


def assert_tied(sample: Sample) -> None:
    assert np.array_equal(sample.label, sample.sar % 5)
    assert (sample.soft_label == sample.sar).all()


def test_crop_and_flip_move_all_arrays_alike():
    seen = set()
    for i in range(60):
        rng = np.random.default_rng(i)
        sample = random_flip(random_crop(tied(), (5, 6), rng), rng)
        assert sample.sar.shape == (5, 6)
        assert_tied(sample)
        seen.add(sample.sar.tobytes())
    assert len(seen) > 40


def test_every_window_can_be_drawn_and_the_whole_image_is_one():
    corners = {int(random_crop(tied((3, 3)), (2, 2), np.random.default_rng(i)).sar[0, 0]) for i in range(60)}
    assert corners == {0, 1, 3, 4}
    assert np.array_equal(random_crop(tied(), (9, 13), np.random.default_rng(0)).sar, tied().sar)


def test_all_four_flips_occur():
    flips = {random_flip(tied((2, 2)), np.random.default_rng(i)).sar.tobytes() for i in range(40)}
    assert len(flips) == 4


def test_a_small_image_is_reflected_and_its_padding_is_ignored():
    padded = pad(tied((3, 4)), (5, 9))
    assert padded.sar.shape == (5, 9) == padded.label.shape and padded.soft_label.shape == (3, 5, 9)
    assert np.array_equal(padded.sar[3], padded.sar[1]) and np.array_equal(padded.sar[:, 4], padded.sar[:, 2])
    assert (padded.label[3:] == IGNORE_INDEX).all() and (padded.label[:, 4:] == IGNORE_INDEX).all()
    assert (padded.soft_label == padded.sar).all()
    assert np.array_equal(padded.label[:3, :4], tied((3, 4)).label)


def test_an_image_without_labels_is_cropped_alone():
    sample = random_crop(Sample("a", np.zeros((1, 1), np.uint8)), (4, 4), np.random.default_rng(0))
    assert sample.sar.shape == (4, 4) and sample.label is None and sample.soft_label is None


def test_normalisations_are_those_of_the_two_nets():
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    assert torch.allclose(to_teacher(image).flatten(), torch.tensor([-1.0, -0.6, 1.0]))
    student = to_student(image)
    assert student.shape == (1, 3, 1, 3) and student.dtype == torch.float32
    for channel in range(3):
        wanted = (0.2 - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
        assert student[0, channel, 0, 1].item() == pytest.approx(wanted, abs=1e-6)
    with pytest.raises(ValueError, match=r"\(B, 1, H, W\)"):
        to_student(image[0])


def test_the_students_statistics_are_made_once_and_serve_a_training_after_an_evaluation(monkeypatch):
    transforms._kept_statistics.cache_clear()
    image = torch.randint(0, 256, (1, 1, 2, 3), dtype=torch.uint8)
    with torch.inference_mode():
        first = to_student(image)
    monkeypatch.setattr(transforms, "_imagenet_statistics", None)
    weight = torch.ones(1, 3, 1, 1, requires_grad=True)
    (to_student(image) * weight).sum().backward()
    torch.testing.assert_close(weight.grad, first.clone().sum((2, 3), keepdim=True))
