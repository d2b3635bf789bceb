"""Counters by which the last of a launch's blocks learns that it is the last: it can then add up what all have left.

Such a kernel needs zeros, and leaves zeros. Only integers are counted, so no result depends on the blocks' order.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BY_STREAM: dict[tuple[torch.device, int], Tensor] = {}


def zeros(device: torch.device, count: int) -> Tensor:
    """At least `count` int64 zeros for one launch on the current stream, which must leave zeros.

    Launches on one stream never overlap, so they share theirs and need no memset. A captured graph may be replayed on
    any stream: its launches get their own.
    """
    stream = 0
    if device.type == "cuda":
        with torch.cuda.device(device):  # capture is asked of the current device's stream
            if torch.cuda.is_current_stream_capturing():
                return torch.zeros(count, dtype=torch.int64, device=device)
            stream = torch.cuda.current_stream().cuda_stream
    key = (device, stream)
    if key not in _BY_STREAM or len(_BY_STREAM[key]) < count:
        _BY_STREAM[key] = torch.zeros(max(256, 2 * count), dtype=torch.int64, device=device)
    return _BY_STREAM[key]
