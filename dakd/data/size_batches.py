"""Samples of whole images in batches: only images of one size fit into a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dakd.data.sample import Sample


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
