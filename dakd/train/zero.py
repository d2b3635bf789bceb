"""DeepSpeed's ZeRO: its settings, and the reading and writing of its sharded states by parameter.

Under ZeRO a rank holds only its share of the optimizer's states, and under stage 3 of the weights too. The fp32 master
weights and the states are flat tensors without names, each cut over the ranks. Here a state is read and written as the
full tensor of one parameter, through DeepSpeed's `safe_get_...` and `safe_set_...`; what those leave to the caller is
explained where it is done.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from dakd.config import EngineConfig, OptimizerConfig
from dakd.runtime import distributed
from dakd.runtime.files import parse_json
from dakd.shipped import config_folder, extra_remedy, find_file, not_found

MASTER = "master"  # the fp32 weights; other states are named as in the optimizer
_LARGEST_BUCKET = 500_000_000  # gradients that DeepSpeed adds up at once, by its default


def import_deepspeed() -> Any:
    """DeepSpeed, set to the CPU where there is no GPU; a clear error where it is not installed."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    try:
        import deepspeed
    except ImportError:
        raise RuntimeError(f"training needs DeepSpeed, which is not installed; run: {extra_remedy('train')}") from None
    import logging

    from deepspeed.ops import __compatible_ops__
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)  # what it warns of (clients' optimizers, overflow) is handled by the engine
    # DeepSpeed compiles its shared-memory collectives when the process group starts on CPUs, which takes a minute or
    # more, unless this table says that they cannot be built. Nothing here uses them: gloo does the work.
    __compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def zero_config(path: str) -> dict:
    """The ZeRO section of a JSON file: at the path, or one that comes with dakd, such as `zero2`."""
    in_checkout = config_folder().parent / path
    found = find_file(path, "deepspeed", ".json") or (in_checkout if os.path.isfile(in_checkout) else None)
    if found is None:
        raise ValueError(not_found(path, "DeepSpeed configuration", "deepspeed", ".json"))
    tree = parse_json(found.read_bytes(), found, 'expected {"zero_optimization": {"stage": 1}}')
    unknown = set(tree) - {"zero_optimization"}
    section = tree.get("zero_optimization", {})
    stage = section.get("stage") if isinstance(section, dict) else None
    if unknown or stage not in (1, 2, 3):
        raise ValueError(
            f"{found} has stage {stage} and {sorted(unknown) or 'no other key'}; expected only "
            "zero_optimization, with stage 1, 2 or 3: everything else is set in the YAML"
        )
    return tree


def deepspeed_config(
    engine: EngineConfig,
    optimizer: OptimizerConfig,
    precision: str,
    micro_batch: int,
    accumulation: int,
    num_trained: int,
) -> dict:
    """The whole configuration that DeepSpeed reads: the file's ZeRO section, and the rest from the YAML's settings.

    num_trained: trained parameters.
    """
    config = zero_config(engine.deepspeed)
    # DeepSpeed makes two buffers of this size, whatever the net: 4 GB in fp32 for a net of 4 million parameters.
    config["zero_optimization"].setdefault("reduce_bucket_size", min(_LARGEST_BUCKET, num_trained))
    config |= {
        "train_batch_size": micro_batch * accumulation * distributed.world_size(),
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": float(optimizer.grad_clip),  # DeepSpeed's default would clip to 1.0
        # DeepSpeed refuses optimizers that are not its own, and under offload all but its compiled CPU Adam.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,  # never: the loop reports
    }
    if precision == "bf16":
        config["bf16"] = {"enabled": True}
    elif precision == "autocast":
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return config


def fitting_micro_batch(global_batch: int, largest: int, world: int) -> int:
    """Samples a rank and forward pass: the largest divisor of a rank's share of the batch that is at most `largest`.

    ValueError where the ranks cannot share the global batch evenly.
    """
    if global_batch % world:
        raise ValueError(
            f"global_batch ({global_batch}) is not a multiple of the {world} processes; "
            f"set it to {world * max(1, round(global_batch / world))}, or start another number of processes"
        )
    share = global_batch // world
    return max(size for size in range(1, min(share, largest) + 1) if share % size == 0)


# --- states -----------------------------------------------------------------------------------------------------------


def get_state(parameter: nn.Parameter, kind: str) -> Tensor:
    """A parameter's full fp32 `master` weights or state of the optimizer, such as `exp_avg`; a collective."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    return safe_get_full_fp32_param(parameter) if kind == MASTER else safe_get_full_optimizer_state(parameter, kind)


def set_state(parameter: nn.Parameter, kind: str, value: Tensor) -> None:
    """Write a parameter's `master` weights or state of the optimizer from the full tensor, which all ranks have."""
    from deepspeed.utils import (
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    # Only ZeRO-3 gives its parameters a ds_id. There DeepSpeed's setter of a full tensor cuts it without the padding
    # that its own partitions have, and fails where the ranks do not divide the size: each rank cuts its slice itself.
    if hasattr(parameter, "ds_id"):
        own = _slice_of_rank(value)
        if kind == MASTER:
            safe_set_local_fp32_param(parameter, own)
        else:
            safe_set_local_optimizer_state(parameter, own, kind)
    elif kind == MASTER:
        safe_set_full_fp32_param(parameter, value)
    else:
        safe_set_full_optimizer_state(parameter, value, kind)


def _slice_of_rank(value: Tensor) -> Tensor:
    """This rank's part of a tensor as ZeRO-3 cuts it: flat, padded with zeros to equal parts."""
    world = distributed.world_size()
    flat = value.flatten()
    width = -(-flat.numel() // world)
    padded = torch.nn.functional.pad(flat, (0, width * world - flat.numel()))
    return padded[distributed.rank() * width : (distributed.rank() + 1) * width].contiguous()


def inner_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer within DeepSpeed's wrappers (ZeRO around bf16 around ours, by stage and precision)."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer
