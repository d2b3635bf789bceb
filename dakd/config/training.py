"""The settings that the teacher and the students share: reading shards, the optimizer, how steps run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from dakd.config.base import NonNegative, Positive, Section, WrittenPath


class DataConfig(Section):
    """How all trainings read their shards."""

    window_shards: Positive = 64
    """Number of shards whose records are shuffled among themselves, and so the most that a reader has open at a time. A
    value of at least the number of shards shuffles the whole set."""

    on_bad_record: Literal["stop", "skip"] = "stop"
    """What to do about a truncated tar, a damaged record or a missing shard: "stop" ends with an error, "skip" counts
    and reports it and takes the next good record. pseudo_label and refine leave it out."""

    cache: WrittenPath | None = None
    """Folder for shards that come from URLs. null takes the folder dakd in XDG_CACHE_HOME, or else in ~/.cache."""

    cache_gib: Annotated[float, Field(gt=0)] = 64.0
    """Largest size of the cache in GiB. With less than the shards of two windows, shards are fetched again and again.
    """


class OptimizerConfig(Section):
    """AdamW (paper) with an EMA of the weights, kept as one more state of the optimizer."""

    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    """Decoupled weight decay of AdamW (inferred: torch's default)."""

    warmup_steps: NonNegative = 500
    """Optimizer steps in which the learning rate rises linearly (inferred). 0 means no warm-up."""

    lr_decay: Literal["constant", "cosine", "poly"] = "constant"
    """Course of the learning rate after the warm-up: constant, or falling to zero at the last step (inferred)."""

    grad_clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest global L2 norm of the gradient. 0 means no clipping."""

    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    """Largest decay of the EMA of the weights (inferred); the first steps have a smaller one, so that the EMA is useful
    in a short run too. 0 makes the EMA equal to the weights."""

    posthoc_every: NonNegative = 0
    """Optimizer steps between snapshots of two more averages, from which `dakd ema` makes an average of any length
    afterwards. 0 means no snapshots. They cost 8 bytes per trained parameter (as optimizer state) in memory and in each
    snapshot."""


class EngineConfig(Section):
    """How the steps run: DeepSpeed's ZeRO, precision, memory layout, logging and checkpoints."""

    deepspeed: str = "configs/deepspeed/zero1.json"
    """File with the ZeRO and offload settings of DeepSpeed, and no others. A path relative to the current folder, or
    the name of a file that comes with dakd."""

    precision: Literal["auto", "fp32", "bf16", "autocast"] = "auto"
    """Number format of the training. "auto" takes bf16 parameters for the teacher (GroupNorm) and autocast for the
    student (BatchNorm) on a GPU, and on a CPU with AMX for teachers that have a level of 64 channels or more and for
    students of 10 million parameters or more; else fp32. On a CPU a training that resumes keeps its own. Masters and
    the optimizer's state are fp32. "bf16" and "autocast" are refused on a CPU without instructions for bf16."""

    channels_last: bool = True
    """Whether images and weights have their channels last in memory."""

    compile: bool = False
    """Whether the net is compiled with torch.compile; the first step then takes a minute or more."""

    num_workers: NonNegative = 2
    """Reader processes per rank. 0 reads in the training process."""

    threads: NonNegative = 0
    """CPU threads per rank. 0 divides the cores of a host among its ranks."""

    log_every: Positive = 50
    """Optimizer steps between log lines."""

    checkpoint_every: Positive = 1000
    """Optimizer steps between checkpoints."""

    keep_checkpoints: Positive = 2
    """Number of the newest checkpoints that are kept."""

    max_hours: Annotated[float, Field(gt=0)] | None = None
    """Hours after which the training writes a checkpoint and ends, to be started again. null means no limit but the end
    of a SLURM job."""

    wandb: Literal["off", "auto", "online", "offline"] = "auto"
    """Logging to Weights & Biases. "auto" is online where there is a key and the server answers, and offline elsewhere.
    """

    @field_validator("wandb", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: object) -> object:
        """YAML reads a bare `off` as false."""
        return "off" if value is False else value
