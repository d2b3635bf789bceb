"""The pairs of a student: images with its logits, and the pixels of which it is not sure enough."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from dakd.data.sample import IGNORE_INDEX, Sample
from dakd.data.size_batches import batches_of_one_size
from dakd.data.transforms import to_student


def labelled(
    net: nn.Module, images: Iterable[tuple[int, Sample]], batch_size: int, min_confidence: float, device: torch.device
) -> Iterator[Sample]:
    """Numbered images, whole, each with its key and the net's logits (K, H, W) float32.

    Labels that they have are left out.  batch_size: images of one size per pass.  min_confidence: see
    `confident_label`; 0 gives no hard label.
    """
    for numbered in batches_of_one_size(images, batch_size):
        batch = [sample for _, sample in numbered]
        logits = _logits(net, np.stack([sample.sar for sample in batch]), device)
        labels = [confident_label(one, min_confidence) if min_confidence else None for one in logits]
        for sample, soft, label in zip(batch, logits.cpu().numpy(), labels):
            yield Sample(sample.key, sample.sar, label, soft)


def confident_label(logits: Tensor, min_confidence: float) -> np.ndarray:
    """(H, W) uint8 of logits (K, H, W): the likeliest class, 255 where its probability at temperature 1 is lower."""
    confidence, label = logits.softmax(dim=0).max(dim=0)
    label = label.to(torch.uint8)
    return label.masked_fill(confidence < min_confidence, IGNORE_INDEX).cpu().numpy()


@torch.inference_mode()
def _logits(net: nn.Module, images: np.ndarray, device: torch.device) -> Tensor:
    return net(to_student(torch.as_tensor(images, device=device)[:, None])).float()
