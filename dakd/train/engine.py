"""One DeepSpeed engine: a training module under ZeRO, its steps, and its state by parameter name.

A training module's forward takes a batch and returns per-sample losses, so that ZeRO-3 and autocast see the whole
computation. State leaves and enters by name, as fp32 tensors, through DeepSpeed's public getters and setters: it
depends neither on the ZeRO stage nor on the number of ranks.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dakd.config import EngineConfig, OptimizerConfig
from dakd.data.batch import Batch
from dakd.runtime import distributed
from dakd.shipped import config_folder, extra_remedy, find_file, not_found
from dakd.train.ema import decays_of
from dakd.train.optim import build_optimizer
from dakd.weights import save_weights

MOMENTS = ("exp_avg", "exp_avg_sq")


class NonFiniteLoss(RuntimeError):
    """A loss or gradient that is not a number: raised on all ranks, before the optimizer has moved."""


@dataclass(frozen=True)
class StepResult:
    """Means over the global batch (totals for names in num_), the gradient's norm before clipping, summed wishes."""

    losses: dict[str, float]
    grad_norm: float
    wishes: list[float]


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


def import_deepspeed() -> Any:
    """DeepSpeed, told that there is no GPU where there is none; a clear error where it is not installed."""
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

    logger.setLevel(logging.ERROR)  # what it warns of (clients' optimizers, overflow) is dealt with here
    # DeepSpeed would compile this op when the process group starts, for a minute or more; nothing here uses it.
    __compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def zero_config(path: str) -> dict:
    """The ZeRO section of a JSON file: at the path, or one that comes with dakd, such as `zero2`."""
    in_checkout = config_folder().parent / path
    found = find_file(path, "deepspeed", ".json") or (in_checkout if in_checkout.is_file() else None)
    if found is None:
        raise ValueError(not_found(path, "DeepSpeed configuration", "deepspeed", ".json"))
    tree = json.loads(found.read_text())
    unknown = set(tree) - {"zero_optimization"}
    stage = tree.get("zero_optimization", {}).get("stage")
    if unknown or stage not in (1, 2, 3):
        raise ValueError(
            f"{found} has stage {stage} and {sorted(unknown) or 'no other key'}; wanted zero_optimization "
            "alone, with stage 1, 2 or 3: everything else is said by the YAML"
        )
    return tree


def resolve_precision(precision: str, on_gpu: str) -> str:
    """`auto` is fp32 on a CPU and `on_gpu` on a GPU."""
    return precision if precision != "auto" else (on_gpu if torch.cuda.is_available() else "fp32")


class Engine:
    """A training module, its optimizer and DeepSpeed around both."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: OptimizerConfig,
        engine: EngineConfig,
        *,
        global_batch: int,
        micro_batch: int,
        precision: str,
        decays_vectors: bool,
    ):
        deepspeed = import_deepspeed()
        distributed.init_process_group()
        self.device = distributed.device()
        self.micro_batch = micro_batch
        self.accumulation = global_batch // (micro_batch * distributed.world_size())
        # The engine may round frozen parameters to bf16, and its getters do not know them: keep the originals.
        self._frozen = {n: p.detach().clone() for n, p in module.named_parameters() if not p.requires_grad}
        exact = {n: p.detach().clone() for n, p in module.named_parameters()} if precision == "bf16" else {}
        self._num_steps, self._decays = 0, decays_of(optimizer)
        self._state_kinds = ("master", *MOMENTS, *self._decays)
        config = zero_config(engine.deepspeed) | {
            "train_batch_size": global_batch,
            "train_micro_batch_size_per_gpu": micro_batch,
            "gradient_accumulation_steps": self.accumulation,
            "gradient_clipping": float(optimizer.grad_clip),  # DeepSpeed clips to 1.0 unless told otherwise
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 2**31,
        }
        if precision == "bf16":
            config["bf16"] = {"enabled": True}
        elif precision == "autocast":
            config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
        if engine.compile:
            module.net.compile()
        self.engine, self._optimizer, _, _ = deepspeed.initialize(
            model=module, optimizer=build_optimizer(module, optimizer, decays_vectors), config=config
        )
        self.module: nn.Module = self.engine.module
        # DeepSpeed takes its fp32 masters from weights that it has rounded to bf16 already: give them back in full.
        for name, parameter in self.module.named_parameters():
            if name in exact and name not in self._frozen:
                self._set(parameter, "master", exact[name])
        _inner_optimizer(self._optimizer).create_states()
        # Batch norm's statistics are averaged as the weights are, so that the two fit each other.
        self._averaged_buffers = {
            kind: {name: buffer.detach().clone() for name, buffer in self._persistent_buffers()}
            for kind in self._decays
        }

    # -- steps --------------------------------------------------------------------------------------------------------

    def train_step(self, batches: Iterator[Batch], lr: float, wishes: Sequence[float] = ()) -> StepResult:
        """One optimizer step on the next micro-batches. Raises NonFiniteLoss on all ranks before the weights move.

        wishes: this rank's numbers that the step adds up over the ranks beside its losses.
        """
        self._set_lr(lr)
        self.engine.train()
        sums: dict[str, Tensor] = {}
        seen: list[tuple[list[str], Tensor]] = []
        num_bad = 0
        for _ in range(self.accumulation):
            batch = next(batches)
            num_bad += len(batch.skipped)
            losses = self.engine(batch.to(self.device))
            seen.append((batch.keys, losses["loss"].detach()))
            self.engine.backward(losses["loss"].sum() / self.micro_batch)
            for name, values in losses.items():
                sums[name] = sums.get(name, 0) + values.detach().double().sum()
            if not self.engine.is_gradient_accumulation_boundary():
                self.engine.step()
        sums["num_bad_records"] = sums["loss"].new_tensor(num_bad)
        means, summed_wishes = self._add_up(sums, wishes)
        if not math.isfinite(means["loss"]):
            raise NonFiniteLoss(_non_finite_message("loss", means["loss"], seen))
        self.engine.step()
        norm = float(self.engine.get_global_grad_norm() or 0.0)
        if not self.engine.was_step_applied() or not math.isfinite(norm) or norm == -1.0:
            raise NonFiniteLoss(_non_finite_message("gradient", norm, seen))
        self._num_steps += 1
        self._average_buffers()
        return StepResult(means, norm, summed_wishes)

    @torch.no_grad()
    def _average_buffers(self) -> None:
        for kind, decay in self._decays.items():
            for name, buffer in self._persistent_buffers():
                if buffer.is_floating_point():
                    self._averaged_buffers[kind][name].lerp_(buffer, 1 - decay(self._num_steps))
                else:
                    self._averaged_buffers[kind][name].copy_(buffer)

    def _add_up(self, sums: dict[str, Tensor], wishes: Sequence[float] = ()) -> tuple[dict[str, float], list[float]]:
        """Global means of the losses and sums of the wishes, in one collective."""
        names = sorted(sums)
        totals = distributed.all_reduce_sum([*torch.stack([sums[name] for name in names]).tolist(), *wishes])
        batch = self.accumulation * self.micro_batch * distributed.world_size()
        means = {name: total / (1 if name.startswith("num_") else batch) for name, total in zip(names, totals)}
        return means, totals[len(names) :]

    def _set_lr(self, lr: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = lr

    # -- state by name ------------------------------------------------------------------------------------------------

    def collect(self, what: str) -> dict[str, Tensor]:
        """A full fp32 copy by name, on the CPU: `master` weights, Adam's `exp_avg` or `exp_avg_sq`, or an average.

        A collective: every rank calls it. Only rank 0 keeps what comes of it, and the others return nothing: a copy a
        rank would fill the host.
        """
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        collected = {}
        for name, parameter in self.module.named_parameters():
            if name not in self._frozen:
                value = (
                    safe_get_full_fp32_param(parameter)
                    if what == "master"
                    else safe_get_full_optimizer_state(parameter, what)
                )
                if distributed.is_main():
                    collected[name] = value.detach().float().cpu().clone()
        return collected

    def _persistent_buffers(self) -> Iterator[tuple[str, Tensor]]:
        for name, buffer in self.module.named_buffers():
            if name.rpartition(".")[2] not in _non_persistent(self.module, name):
                yield name, buffer

    def buffers(self, kind: str) -> dict[str, Tensor]:
        """`raw` or averaged buffers by name on the CPU; floating ones (batch norm's) are means over the ranks."""
        world = distributed.world_size()
        averaged = {}
        for name, buffer in self._persistent_buffers():
            value = (buffer if kind == "raw" else self._averaged_buffers[kind][name]).detach().clone()
            if world > 1 and value.is_floating_point():
                dist.all_reduce(value)
                value /= world
            averaged[name] = value.cpu()
        return averaged

    def weights(self, kind: str) -> dict[str, Tensor]:
        """The whole state dict, fp32, of the `raw` or the `ema` weights, on rank 0; a collective."""
        trained = self.collect("master" if kind == "raw" else "ema")
        frozen = {name: value.float().cpu() for name, value in self._frozen.items()}
        return trained | frozen | self.buffers(kind)

    def net_weights(self, kind: str) -> dict[str, Tensor]:
        """`weights` under the names of the net within the training module; a collective."""
        return {name.removeprefix("net."): value for name, value in self.weights(kind).items()}

    def save_net_weights(self, file_of: Callable[[str], Path], metadata: dict) -> None:
        """Write the net's `raw` and `ema` weights to the files that `file_of` names, on rank 0; a collective."""
        for kind in ("raw", "ema"):
            weights = self.net_weights(kind)
            if distributed.is_main():
                save_weights(file_of(kind), weights, metadata | {"weights": kind})

    def averages(self, kinds: Sequence[str]) -> dict[str, Tensor]:
        """The named averages of trained parameters and buffers, flat, by `kind/name`, on rank 0; a collective."""
        parts = {kind: self.collect(kind) | self.buffers(kind) for kind in kinds}
        return {f"{kind}/{name}": value for kind, values in parts.items() for name, value in values.items()}

    def state(self) -> dict[str, Tensor]:
        """All that a resume needs, flat, by `kind/name`, on rank 0; a collective."""
        parts = {kind: self.collect(kind) for kind in self._state_kinds}
        parts["frozen"] = {name: value.cpu() for name, value in self._frozen.items()}
        parts |= {"buffer": self.buffers("raw")} | {f"{kind}_buffer": self.buffers(kind) for kind in self._decays}
        return {f"{kind}/{name}": value for kind, values in parts.items() for name, value in values.items()}

    def restore(self, state: dict[str, Tensor], step: int, batches: Callable[[], Iterator[Batch]]) -> None:
        """Put a `state()` back. The module must have been built with the state's weights already.

        Optimizer states exist only after a step: one is taken on a zero loss at rate 0, which moves nothing, and what
        it made is then overwritten.
        """
        self._set_lr(0.0)
        self.engine.train()
        source = batches()
        for _ in range(self.accumulation):
            batch = next(source)
            losses = self.engine(batch.to(self.device))["loss"]
            total = self._add_up({"loss": losses.detach().double().sum()})[0]["loss"]
            if not math.isfinite(total):  # zero times it would not be zero
                raise NonFiniteLoss(_non_finite_message("loss", total, [(batch.keys, losses.detach())]))
            self.engine.backward(losses.sum() * 0.0)
            self.engine.step()
        for name, parameter in self.module.named_parameters():
            if name not in self._frozen:
                for kind in self._state_kinds:
                    self._set(parameter, kind, state[f"{kind}/{name}"])
        for entry in _inner_optimizer(self._optimizer).state.values():
            entry["step"] = torch.full_like(torch.as_tensor(entry["step"]), step)
        self._num_steps = step
        for name, buffer in self._persistent_buffers():
            buffer.copy_(state[f"buffer/{name}"])
            for kind, averaged in self._averaged_buffers.items():
                averaged[name].copy_(state[f"{kind}_buffer/{name}"])

    def _set(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        from deepspeed.utils import (
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        value = value.to(self.device)
        if hasattr(parameter, "ds_id"):  # ZeRO-3: this rank's slice of the zero-padded flat tensor
            local = _rank_slice(value)
            if kind == "master":
                safe_set_local_fp32_param(parameter, local)
            else:
                safe_set_local_optimizer_state(parameter, local, kind)
        elif kind == "master":
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, kind)

    def close(self) -> None:
        self.engine.destroy()


def _non_finite_message(what: str, value: float, seen: list[tuple[list[str], Tensor]]) -> str:
    """Names the samples of all ranks whose loss is not finite, or every sample where all losses are; a collective."""
    keys = [key for batch, _ in seen for key in batch]
    finite = torch.cat([losses.isfinite() for _, losses in seen]).tolist()
    by_rank = {
        rank: json.loads(told)
        for rank, told in enumerate(distributed.all_gather_text(json.dumps([keys, finite])))
    }
    culprits = {rank: [key for key, fine in zip(*told) if not fine] for rank, told in by_rank.items()}
    if not any(culprits.values()):
        culprits = {rank: told[0] for rank, told in by_rank.items()}
    named = "; ".join(f"rank {rank}: {', '.join(names)}" for rank, names in culprits.items() if names)
    return (
        f"the {what} is {value}; the optimizer was not run and the last checkpoint stands. The batch: {named}. "
        "Lower the learning rate or set grad_clip, or look at these samples"
    )


def _rank_slice(value: Tensor) -> Tensor:
    world = distributed.world_size()
    flat = value.flatten()
    width = -(-flat.numel() // world)
    padded = torch.nn.functional.pad(flat, (0, width * world - flat.numel()))
    return padded[distributed.rank() * width : (distributed.rank() + 1) * width].contiguous()


def _inner_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def _non_persistent(module: nn.Module, name: str) -> set[str]:
    return module.get_submodule(name.rpartition(".")[0])._non_persistent_buffers_set
