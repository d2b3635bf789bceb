"""`train_jointnet.sigma_data`, which a configuration gives as a number or leaves to the training images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dakd.data.lookup import BadRecord
from dakd.data.shards import ShardSet
from dakd.diffusion.precondition import fine_detail
from dakd.runtime.runlog import say

_MAX_IMAGES = 512


def resolve_sigma_data(setting: float | str | None, train: ShardSet, on_bad_record: str = "stop") -> float | None:
    """The sigma_data to train with; "auto": the deviation of the fine detail of the training images.

    It is that of at most 512 of them, evenly spread, to four digits. Damaged ones raise BadRecord or are left out, as
    `data.on_bad_record` has it. Raises ValueError where all are flat or damaged.
    """
    if setting != "auto":
        return setting
    count = min(len(train), _MAX_IMAGES)
    deviation = round(fine_detail(_images(train, count, on_bad_record)), 4)
    if deviation == 0:
        raise ValueError(
            f"sigma_data is auto and the {count} training images have no fine detail; set train_jointnet.sigma_data"
        )
    say(f"sigma_data {deviation} (auto: the deviation of the fine detail of {count} training images)")
    return deviation


def _images(train: ShardSet, count: int, on_bad_record: str) -> Iterator[np.ndarray]:
    for i in range(count):
        try:
            yield train.read(i * len(train) // count).sar
        except BadRecord:
            if on_bad_record == "stop":
                raise
