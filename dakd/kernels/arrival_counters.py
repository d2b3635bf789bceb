"""Zeroed counters of a launch's blocks that have finished: the last one to arrive adds up the results of all.

A kernel finds the counters at zero and resets them. Only integers are counted, so no result depends on the blocks'
order.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BY_STREAM: dict[tuple[torch.device, int], Tensor] = {}


def zeros(device: torch.device, count: int) -> Tensor:
    """At least `count` int64 zeros for one launch on the current stream, which must leave zeros.

    Launches on one stream never overlap, so they share their counters and need no memset. A captured graph may be
    replayed on any stream, so its launches get counters of their own.
    """
    stream = 0
    if device.type == "cuda":
        with torch.cuda.device(device):  # the capture query is about the current device's stream
            if torch.cuda.is_current_stream_capturing():
                return torch.zeros(count, dtype=torch.int64, device=device)
            stream = torch.cuda.current_stream().cuda_stream
    key = (device, stream)
    if key not in _BY_STREAM or len(_BY_STREAM[key]) < count:
        _BY_STREAM[key] = torch.zeros(max(256, 2 * count), dtype=torch.int64, device=device)
    return _BY_STREAM[key]
