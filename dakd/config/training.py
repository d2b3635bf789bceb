"""The settings that the teacher and the students share: reading shards, the optimizer, how steps run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from dakd.config.base import NonNegative, Positive, Section


class DataConfig(Section):
    """How shards are read."""

    # Shards whose records are shuffled among themselves, and so the most that a reader has open at a time; as many as
    # there are shards, or more, shuffle the whole set.
    window_shards: Positive = 64
    # A truncated tar, a damaged record, a missing shard: stop, or count it, tell it and take the next good record.
    on_bad_record: Literal["stop", "skip"] = "stop"
    # Shards of URLs are kept in `cache` (None: dakd in XDG_CACHE_HOME or ~/.cache), up to `cache_gib`: at least
    # those of two windows, or they are fetched again and again.
    cache: str | None = None
    cache_gib: Annotated[float, Field(gt=0)] = 64.0


EmaLength = Annotated[float, Field(gt=0, le=0.28)]  # standard deviation of an average's profile; 0.28: nearly flat


class OptimizerConfig(Section):
    """AdamW (paper) with an EMA of the weights kept as one more state of the optimizer."""

    lr: Annotated[float, Field(gt=0)] = 1e-4  # inferred
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2  # inferred: torch's default
    betas: tuple[float, float] = (0.9, 0.999)  # inferred: torch's default
    eps: Annotated[float, Field(gt=0)] = 1e-8
    warmup_steps: NonNegative = 500  # linear, inferred
    lr_decay: Literal["constant", "cosine", "poly"] = "constant"  # to zero at the last step; inferred
    grad_clip: Annotated[float, Field(ge=0)] = 1.0  # global L2 norm; 0 means none
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999  # inferred
    # decay(step) = min(ema_decay, (1 + step) / (ema_ramp + step)): the EMA means something in a short run too.
    ema_ramp: Annotated[float, Field(ge=1)] = 10.0
    # Optimizer steps between snapshots of two more averages, from which `dakd ema` makes one of any length afterwards;
    # 0: none. They cost 8 bytes a trained parameter (as optimizer state) in memory and in each snapshot.
    posthoc_every: NonNegative = 0
    posthoc_lengths: tuple[EmaLength, EmaLength] = (0.05, 0.10)  # relative to the training's (Karras et al. 2024)


class EngineConfig(Section):
    """How the steps run: DeepSpeed's ZeRO, precision, memory layout, logging and checkpoints."""

    deepspeed: str = "configs/deepspeed/zero1.json"  # ZeRO and offload only; relative to the repository or the cwd
    # auto: fp32 on a CPU; on a GPU bf16 parameters for JointNet (GroupNorm), autocast for the student (BatchNorm).
    precision: Literal["auto", "fp32", "bf16", "autocast"] = "auto"
    channels_last: bool = True
    compile: bool = False  # torch.compile; the first step then takes a minute or more
    num_workers: NonNegative = 2  # reader processes a rank; 0 reads in the training process
    threads: NonNegative = 0  # CPU threads a rank; 0 shares the cores among the ranks of a host
    log_every: Positive = 50  # optimizer steps
    checkpoint_every: Positive = 1000  # optimizer steps
    keep_checkpoints: Positive = 2
    # After this time the training writes a checkpoint and leaves, to be started again; None: no limit.
    max_hours: Annotated[float, Field(gt=0)] | None = None
    # The same before the end of a SLURM job (SLURM_JOB_END_TIME): time for the running step and its checkpoint.
    stop_margin_minutes: Annotated[float, Field(ge=0)] = 5.0
    sample_every: NonNegative = 5000  # optimizer steps; 0 makes no grids
    num_samples: Positive = 8  # pairs in a grid
    sample_steps: Positive = 50  # DDIM steps of a grid
    # auto: online where there is a key and the server answers, else offline
    wandb: Literal["off", "auto", "online", "offline"] = "auto"

    @field_validator("wandb", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: object) -> object:
        """YAML reads a bare `off` as false."""
        return "off" if value is False else value
