"""`train_jointnet.sigma_data`, which a configuration gives as a number or leaves to the training images."""

from __future__ import annotations

from dakd.data.shards import ShardSet
from dakd.diffusion.precondition import fine_detail
from dakd.runtime.runlog import say

_MAX_IMAGES = 512


def resolve_sigma_data(setting: float | str | None, train: ShardSet) -> float | None:
    """The sigma_data to train with; "auto": the deviation of the fine detail of the training images.

    It is that of at most 512 of them, evenly spread, to four digits. Raises ValueError where they are all flat.
    """
    if setting != "auto":
        return setting
    count = min(len(train), _MAX_IMAGES)
    images = (train.read(i * len(train) // count).sar for i in range(count))
    deviation = round(fine_detail(images), 4)
    if deviation == 0:
        raise ValueError(
            f"sigma_data is auto and the {count} training images have no fine detail; set train_jointnet.sigma_data"
        )
    say(f"sigma_data {deviation} (auto: the deviation of the fine detail of {count} training images)")
    return deviation
