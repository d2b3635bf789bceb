"""A student on whole held-out images at their original size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dakd.data.sample import Sample
from dakd.data.shards import ShardSet
from dakd.data.soft_labels import likeliest_class
from dakd.data.transforms import to_student
from dakd.evaluate.details import Details
from dakd.metrics.confusion import ConfusionMatrix, count_pairs, sum_over_ranks
from dakd.metrics.scores import mean_iou
from dakd.runtime.runlog import progress


@dataclass(frozen=True)
class StudentEvaluation:
    """matrix: pooled over all images and ranks.  per_image: (num_images, K, K) int64 counts in the set's order.

    details: pooled too, or None where none were asked for.
    """

    matrix: ConfusionMatrix
    per_image: np.ndarray
    details: Details | None = None

    def image_mious(self) -> np.ndarray:
        """(num_images,) mIoU of each image over the classes that occur or are predicted in it; NaN without pixels."""
        return np.array([mean_iou(counts) for counts in self.per_image])


@torch.inference_mode()
def predict_logits(model: nn.Module, sar: Tensor) -> Tensor:
    """(B, K, H, W) logits; sar: (B, 1, H, W) uint8 on the model's device."""
    return model(to_student(sar))


def predict_classes(model: nn.Module, sar: Tensor) -> Tensor:
    """(B, H, W) int64 class ids; sar: (B, 1, H, W) uint8 on the model's device."""
    return predict_logits(model, sar).argmax(dim=1)


def evaluate_student(
    model: nn.Module,
    shard_set: ShardSet,
    batch_size: int = 1,
    device: str | torch.device = "cpu",
    rank: int = 0,
    world: int = 1,
    label: str = "evaluate",
    details: Details | None = None,
) -> StudentEvaluation:
    """Predict all images of a labelled set and pool the counts over the ranks.

    Rank r of `world` takes images i with i % world == r; neighbours of one size form batches of at most `batch_size`.
    details: empty counts to be filled in the same pass.
    """
    num_classes = shard_set.classes.num_classes
    per_image = torch.zeros(len(shard_set), num_classes, num_classes, dtype=torch.int64, device=device)
    indices = range(rank, len(shard_set), world)
    samples = ((index, shard_set.read(index)) for index in progress(indices, len(indices), label))
    for batch in batches_of_one_size(samples, batch_size):
        logits = predict_logits(model, stack_images((sample for _, sample in batch), device))
        predictions, labels = logits.argmax(dim=1), [labels_of(sample) for _, sample in batch]
        for (index, _), prediction, label_map in zip(batch, predictions, labels):
            per_image[index] = count_pairs(prediction, torch.as_tensor(label_map), num_classes)
        if details is not None:
            details.update(logits, predictions, labels)
    sum_over_ranks(per_image)
    if details is not None:
        details.all_reduce()
    matrix = ConfusionMatrix(num_classes, device=device)
    matrix.counts += per_image.sum(dim=0)
    return StudentEvaluation(matrix, per_image.cpu().numpy(), details)


def labels_of(sample: Sample) -> np.ndarray:
    """(H, W) uint8 class ids: the label, or the argmax of the soft label; ValueError where there is neither."""
    if sample.label is not None:
        return sample.label
    if sample.soft_label is not None:
        return likeliest_class(sample.soft_label)
    raise ValueError(f"sample {sample.key} has neither label nor soft label; evaluate wants labelled images")


def stack_images(samples: Iterable[Sample], device: str | torch.device) -> Tensor:
    """(B, 1, H, W) uint8 on the device."""
    return torch.as_tensor(np.stack([sample.sar for sample in samples]), device=device)[:, None]


def batches_of_one_size(samples: Iterable[tuple[int, Sample]], batch_size: int) -> Iterator[list[tuple[int, Sample]]]:
    """Group consecutive samples; a batch ends when it is full or the image size changes."""
    batch: list[tuple[int, Sample]] = []
    for index, sample in samples:
        if batch and (len(batch) == batch_size or batch[0][1].sar.shape != sample.sar.shape):
            yield batch
            batch = []
        batch.append((index, sample))
    if batch:
        yield batch
