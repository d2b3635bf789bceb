"""The training engine: a loss module and its optimizer under DeepSpeed, their steps, and all state by parameter name.

A loss module's forward takes a batch and returns losses by sample, so that ZeRO-3 and autocast see the whole
computation. State leaves and enters by name, as full fp32 tensors: a checkpoint depends neither on the ZeRO stage nor
on the number of ranks.

DeepSpeed and not torch's FSDP2: these nets fit on one GPU, and of what can be sharded the optimizer's states (fp32
master, two moments, the averages) are the most; activations, which take more, are bounded by `micro_batch`. ZeRO-1
shards exactly those states and leaves the forward pass alone. FSDP2 shards the parameters
too, always, and has no counterpart of it. Larger nets need a JSON file with stage 2 or 3 or offload, and no other code.
Everything that touches DeepSpeed lies here and in `zero`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dakd.config import EngineConfig, OptimizerConfig
from dakd.data.batch import Batch
from dakd.models.separate_norm import without_auxiliary
from dakd.runtime import distributed
from dakd.runtime.tensor_files import save_weights
from dakd.train.optim import build_optimizer, decays_of
from dakd.train.zero import MASTER, deepspeed_config, get_state, import_deepspeed, inner_optimizer, set_state

MOMENTS = ("exp_avg", "exp_avg_sq")


class NonFiniteLoss(RuntimeError):
    """A loss or gradient that is not finite: raised on all ranks, before the optimizer has moved."""


@dataclass(frozen=True)
class StepResult:
    """The outcome of one optimizer step, the same on every rank.

    losses: means over the global batch, and sums for names that begin with num_.  grad_norm: before clipping.
    stop_votes: the ranks' votes added up.
    """

    losses: dict[str, float]
    grad_norm: float
    stop_votes: list[float]


class Engine:
    """A loss module and its optimizer, with DeepSpeed around both."""

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
        # DeepSpeed may round frozen parameters to bf16, and its getters do not know them: keep the originals.
        self._frozen = {n: p.detach().clone() for n, p in module.named_parameters() if not p.requires_grad}
        exact = {n: p.detach().clone() for n, p in module.named_parameters()} if precision == "bf16" else {}
        self._num_steps, self._decays = 0, decays_of(optimizer)
        self._state_kinds = (MASTER, *MOMENTS, *self._decays)
        num_trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        if engine.compile:
            module.net.compile()
        self.engine, self._optimizer, _, _ = deepspeed.initialize(
            model=module,
            optimizer=build_optimizer(module, optimizer, decays_vectors),
            config=deepspeed_config(engine, optimizer, precision, micro_batch, self.accumulation, num_trained),
        )
        self.module: nn.Module = self.engine.module
        # DeepSpeed takes its fp32 masters from weights that it has rounded to bf16 already: give them back in full.
        for name, parameter in self._trained():
            if name in exact:
                set_state(parameter, MASTER, exact[name].to(self.device))
        # States must all exist before the first step (see create_states), and hold the averages' initial weights.
        inner_optimizer(self._optimizer).create_states()
        # Batch norm's statistics are averaged as the weights are, so that the two fit each other.
        self._averaged_buffers = {
            kind: {name: buffer.detach().clone() for name, buffer in self._persistent_buffers()}
            for kind in self._decays
        }

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The trained parameters by name. DeepSpeed may freeze or convert others, so the names decide."""
        for name, parameter in self.module.named_parameters():
            if name not in self._frozen:
                yield name, parameter

    # -- steps --------------------------------------------------------------------------------------------------------

    def train_step(self, batches: Iterator[Batch], lr: float, stop_votes: Sequence[float] = ()) -> StepResult:
        """One optimizer step on the next micro-batches. Raises NonFiniteLoss on all ranks before the weights move.

        stop_votes: this rank's, which the step adds up over the ranks in the sum that it takes of the losses.
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
            # DeepSpeed divides by the accumulation steps and averages over the ranks; the mean over samples is ours.
            self.engine.backward(losses["loss"].sum() / self.micro_batch)
            for name, values in losses.items():
                sums[name] = sums.get(name, 0) + values.detach().double().sum()
            # The step of the last micro-batch is taken below, once the losses of all ranks are known to be finite.
            if not self.engine.is_gradient_accumulation_boundary():
                self.engine.step()
        sums["num_bad_records"] = sums["loss"].new_tensor(num_bad)
        means, summed_votes = self._add_up(sums, stop_votes)
        if not math.isfinite(means["loss"]):
            raise NonFiniteLoss(_non_finite_message("loss", means["loss"], seen))
        self.engine.step()
        norm = float(self.engine.get_global_grad_norm() or 0.0)
        # With a gradient that is not finite DeepSpeed skips the step, and some of its optimizers report a norm of -1.
        if not self.engine.was_step_applied() or not math.isfinite(norm) or norm == -1.0:
            raise NonFiniteLoss(_non_finite_message("gradient", norm, seen))
        self._num_steps += 1
        self._average_buffers()
        return StepResult(means, norm, summed_votes)

    @torch.no_grad()
    def _average_buffers(self) -> None:
        for kind, decay in self._decays.items():
            for name, buffer in self._persistent_buffers():
                if buffer.is_floating_point():
                    self._averaged_buffers[kind][name].lerp_(buffer, 1 - decay(self._num_steps))
                else:
                    self._averaged_buffers[kind][name].copy_(buffer)

    def _add_up(self, sums: dict[str, Tensor], votes: Sequence[float] = ()) -> tuple[dict[str, float], list[float]]:
        """Global means of the losses and sums of the votes, in one collective."""
        # Sorted: all ranks must add up the same loss at the same place.
        names = sorted(sums)
        totals = distributed.all_reduce_sum([*torch.stack([sums[name] for name in names]).tolist(), *votes])
        batch = self.accumulation * self.micro_batch * distributed.world_size()
        means = {name: total / (1 if name.startswith("num_") else batch) for name, total in zip(names, totals)}
        return means, totals[len(names) :]

    def _set_lr(self, lr: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = lr

    # -- state by name ------------------------------------------------------------------------------------------------

    def collect(self, kind: str) -> dict[str, Tensor]:
        """A full fp32 copy by name, on the CPU: `master` weights, Adam's `exp_avg` or `exp_avg_sq`, or an average.

        A collective: every rank calls it. Only rank 0 keeps the copy and the others return nothing, since a copy for
        every rank would fill the host.
        """
        collected = {}
        for name, parameter in self._trained():
            value = get_state(parameter, kind)
            if distributed.is_main():
                # float() and cpu() copy only where they must, and a checkpoint must not share memory with the training.
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
            # Each rank may have statistics of its own; a checkpoint holds one set, for any number of ranks.
            if world > 1 and value.is_floating_point():
                dist.all_reduce(value)
                value /= world
            averaged[name] = value.cpu()
        return averaged

    def weights(self, kind: str) -> dict[str, Tensor]:
        """The whole state dict, fp32, of the `raw` or the `ema` weights, on rank 0; a collective."""
        trained = self.collect(MASTER if kind == "raw" else "ema")
        frozen = {name: value.float().cpu() for name, value in self._frozen.items()}
        return trained | frozen | self.buffers(kind)

    def net_weights(self, kind: str) -> dict[str, Tensor]:
        """`weights` that the net has outside its training, under its own names; a collective."""
        return {name.removeprefix("net."): value for name, value in without_auxiliary(self.weights(kind)).items()}

    def save_net_weights(self, file_of: Callable[[str], Path], metadata: dict) -> None:
        """Write the net's `raw` and `ema` weights to the files that `file_of` names, on rank 0; a collective."""
        for kind in ("raw", "ema"):
            weights = self.net_weights(kind)
            if distributed.is_main():
                save_weights(file_of(kind), weights, metadata | {"weights": kind})

    def averages(self, kinds: Sequence[str]) -> dict[str, Tensor]:
        """The named averages of the net's parameters and buffers, flat, by `kind/name`, on rank 0; a collective."""
        parts = {kind: without_auxiliary(self.collect(kind) | self.buffers(kind)) for kind in kinds}
        return {f"{kind}/{name}": value for kind, values in parts.items() for name, value in values.items()}

    def state(self) -> dict[str, Tensor]:
        """The whole state that a resume needs, flat, by `kind/name`, on rank 0; a collective."""
        parts = {kind: self.collect(kind) for kind in self._state_kinds}
        parts["frozen"] = {name: value.cpu() for name, value in self._frozen.items()}
        parts |= {"buffer": self.buffers("raw")} | {f"{kind}_buffer": self.buffers(kind) for kind in self._decays}
        return {f"{kind}/{name}": value for kind, values in parts.items() for name, value in values.items()}

    def restore(self, state: dict[str, Tensor], step: int, batches: Callable[[], Iterator[Batch]]) -> None:
        """Put a `state()` back. The module must have been built with the state's weights already.

        DeepSpeed links its states to parameters only in a step. So one is taken, on a zero loss at rate 0, which moves
        nothing, and the states that it made are overwritten.
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
        for name, parameter in self._trained():
            for kind in self._state_kinds:
                set_state(parameter, kind, state[f"{kind}/{name}"].to(self.device))
        # The step above was counted; Adam's bias correction needs the checkpoint's count.
        for entry in inner_optimizer(self._optimizer).state.values():
            entry["step"] = torch.full_like(torch.as_tensor(entry["step"]), step)
        self._num_steps = step
        # Last, because the forward pass above has moved batch norm's statistics.
        for name, buffer in self._persistent_buffers():
            buffer.copy_(state[f"buffer/{name}"])
            for kind, averaged in self._averaged_buffers.items():
                averaged[name].copy_(state[f"{kind}_buffer/{name}"])

    def close(self) -> None:
        self.engine.destroy()


def _non_finite_message(what: str, value: float, seen: list[tuple[list[str], Tensor]]) -> str:
    """Names the samples of all ranks whose loss is not finite, or every sample where all losses are; a collective."""
    keys = [key for batch, _ in seen for key in batch]
    finite = torch.cat([losses.isfinite() for _, losses in seen]).tolist()
    by_rank = {
        rank: json.loads(text)
        for rank, text in enumerate(distributed.all_gather_text(json.dumps([keys, finite])))
    }
    culprits = {rank: [key for key, fine in zip(*pair) if not fine] for rank, pair in by_rank.items()}
    if not any(culprits.values()):
        culprits = {rank: pair[0] for rank, pair in by_rank.items()}
    named = "; ".join(f"rank {rank}: {', '.join(names)}" for rank, names in culprits.items() if names)
    return (
        f"the {what} is {value}; the optimizer was not run and the last checkpoint stands. The batch: {named}. "
        "Lower the learning rate or set grad_clip, or look at these samples"
    )


def _non_persistent(module: nn.Module, name: str) -> set[str]:
    # torch lists them nowhere in public, but a state dict has none of them.
    return module.get_submodule(name.rpartition(".")[0])._non_persistent_buffers_set
