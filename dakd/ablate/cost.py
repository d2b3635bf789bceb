"""The cost of a skip module to the whole net: parameters, multiply-adds, time and memory, as in the paper's table.

Costs are also given as the difference to the same net without skip modules, measured in turns (paper, 6.5, 7.3).
"""

from __future__ import annotations

import statistics
import time
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from dakd.config import Config
from dakd.models.registry import build_student
from dakd.runtime.distributed import device as own_device
from dakd.runtime.distributed import limit_threads

_WARM_UPS = 3
_NUM_CLASSES = 5  # OSD's


def measure_cost(config: Config, runs: int) -> dict:
    """Costs of the configured student and of the same without skip modules, on one image of `train_saross.crop`.

    Returns of both: params, macs (see `count_macs`), mean time (s) over `runs` passes taken in turns, peak memory
    (bytes) of weights and a pass; and the differences, under "more".
    Raises ValueError for a student that has no skip modules.
    """
    cfg = config.train_saross
    if cfg.student.name != "saross":
        raise ValueError(f"the student is {cfg.student.name}; expected saross, whose skip modules have a cost")
    limit_threads(cfg.engine.threads)
    device = own_device()
    variants = {"with": cfg.student, "without": cfg.student.model_copy(update={"skip_module": "none"})}
    nets = {name: build_student(one, _NUM_CLASSES).to(device).eval() for name, one in variants.items()}
    image = torch.rand(1, 3, *cfg.crop, device=device)
    with torch.inference_mode():
        costs = {name: _count(net, image) | {"memory": peak_bytes(net, image)} for name, net in nets.items()}
        for name, seconds in _time_in_turns(nets, image, runs).items():
            costs[name]["seconds"] = seconds
            costs[name]["memory"] += sum(one.nbytes for one in nets[name].state_dict().values())
    with_modules, without = costs["with"], costs["without"]
    more = {key: value - without[key] for key, value in with_modules.items()}
    return with_modules | {"without": without, "more": more, "runs": runs, "size": list(cfg.crop)}


def _count(net: nn.Module, image: Tensor) -> dict[str, float]:
    return {"params": sum(one.numel() for one in net.parameters()), "macs": count_macs(net, image)}


def count_macs(net: nn.Module, *inputs: Tensor) -> float:
    """Multiply-adds of a pass as thop counts them: of layers, without the products within CAFT's attention.

    CAFT's last layer, a 1x1 convolution (paper, 6.2), is folded into the op of the attention, and counted here. Its
    1x1 of the queries runs before the upsampling, where it costs a quarter, and is counted so.
    """

    def last_layer(q: torch.Size, k: object, v: object, t: object, weight: torch.Size, *_: object, **__: object) -> int:
        return 2 * q[0] * q[2] * q[3] * weight[0] * weight[1]

    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.dakd.transposed_attention: last_layer})
    with counter:
        net(*inputs)
    return counter.get_total_flops() / 2


def _time_in_turns(nets: dict[str, nn.Module], image: Tensor, runs: int) -> dict[str, float]:
    """Mean seconds of a pass: the nets take turns, so that a slow moment of the machine slows all of them."""
    spent: dict[str, list[float]] = {name: [] for name in nets}
    for turn in range(_WARM_UPS + runs):
        for name, net in nets.items():
            _wait(image.device)
            start = time.perf_counter()
            net(image)
            _wait(image.device)
            if turn >= _WARM_UPS:
                spent[name].append(time.perf_counter() - start)
    return {name: statistics.fmean(seconds) for name, seconds in spent.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(net: nn.Module, image: Tensor) -> int:
    """The most bytes of tensors alive at one time in a pass, beyond those that were there before it."""
    if image.is_cuda:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        net(image)
        return torch.cuda.max_memory_allocated() - before
    with LiveBytes(net, image) as live:
        net(image)
    return live.peak


class LiveBytes(TorchDispatchMode):
    """Adds up the storages that operators return, as long as each lives; memory within operators is not seen.

    Storages of `known` (modules or tensors) are not counted.
    """

    def __init__(self, *known: nn.Module | Tensor) -> None:
        super().__init__()
        lists = [[item] if isinstance(item, Tensor) else item.state_dict().values() for item in known]
        self._known = {tensor.untyped_storage()._cdata for tensors in lists for tensor in tensors}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict | None = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return outputs

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, storage.nbytes())

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
