"""The settings of `balance` and `train_jointnet`: the balancing factor and the teacher."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dakd.config.base import NonNegative, Positive, Section, Size, wanted
from dakd.config.training import EngineConfig, OptimizerConfig


class BalanceConfig(Section):
    """The balancing factor b of the mask's noisy input (paper, Eq. 1 and 4)."""

    b: Annotated[
        Literal["auto"] | Annotated[float, Field(gt=0, le=4)], wanted('"auto" or a number above 0 and at most 4')
    ] = "auto"


class UNetConfig(Section):
    """One branch. The default is the usual unconditional 256-pixel U-Net, 113.67 M parameters (inferred)."""

    channels: tuple[Positive, ...] = (128, 128, 256, 256, 512, 512)
    blocks_per_level: Positive = 2
    attention_levels: tuple[NonNegative, ...] = (4,)  # 1/16 of the resolution
    attention_head_dim: Positive = 8
    norm_groups: Positive = 32  # fewer where a level has fewer channels

    @model_validator(mode="after")
    def _levels_exist(self) -> UNetConfig:
        if any(level >= len(self.channels) for level in self.attention_levels):
            raise ValueError(
                f"attention_levels {self.attention_levels} name a level beyond the last, {len(self.channels) - 1}"
            )
        return self


class ScheduleConfig(Section):
    """The forward process: squared-cosine betas (paper)."""

    num_train_timesteps: Positive = 1000
    max_beta: Annotated[float, Field(gt=0, lt=1)] = 0.999


class StageConfig(Section):
    """One of the teacher's three stages (paper)."""

    steps: Positive  # optimizer steps ("iterations")
    lr: Annotated[float, Field(gt=0)] = 1e-4


class Stage1Config(StageConfig):
    """SAR-Net alone, on images; labels are not looked at."""

    # Sets of shards whose images (with or without labels) join in: folders or URLs; tars without an index are indexed.
    extra_images: tuple[str, ...] = ()
    # In place of all these: shell commands, `pipe:COMMAND`, each of which writes a tar of images to its standard
    # output; at least one for every reader of every rank. Streams are not shuffled, and a resumed run reads them again.
    streams: tuple[Annotated[str, Field(pattern="^pipe:.")], ...] = ()


class TrainJointNetConfig(Section):
    """The teacher, SAR-JointNet: three stages (paper)."""

    unet: UNetConfig = UNetConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    crop: Size = (256, 256)
    flip: bool = False
    global_batch: Positive = 32  # 16 a GPU on two GPUs (paper)
    micro_batch: Positive = 16  # samples a rank and forward pass; the rest is gradient accumulation
    label_loss_weight: Annotated[float, Field(gt=0)] = 1.0  # L_y against L_x (inferred)
    # What Label-Net learns: cross-entropy with the mask (paper), or the clean state b (2 onehot - 1) by its square (the
    # rows without CE; JointNet is l2 with balance.b=1 and students with loss.hard_labels=true). The soft label of an l2
    # teacher is the logarithm of (output / b + 1) / 2, normalised: the mean of one-hot masks is their probability.
    label_loss: Literal["ce", "l2"] = "ce"
    # None: the image branch's output is the clean image (paper). A number: it is added to a share of the noisy image,
    # that of detail with this standard deviation, image in [-1, 1] (diffusion/precondition.py; 1 is the velocity): with
    # it a short training keeps the speckle. auto: the deviation of the training images from their means over 5 x 5.
    sigma_data: Annotated[
        Literal["auto"] | Annotated[float, Field(gt=0, le=8)] | None,
        wanted('null, "auto" or a number above 0 and at most 8'),
    ] = None
    # sar_jointnet, also JointNet's; or ddpm, the rival: one U-Net of `unet` over the image and the label's bits, with
    # L2 on all of them. It trains in one stage, with the steps of all three at stage 1's lr (inferred: equal budgets),
    # on labelled images only: no extra_images or streams. balance.b and label_loss have no part in it.
    generator: Literal["sar_jointnet", "ddpm"] = "sar_jointnet"
    init_from: Literal["ema", "raw"] = "ema"  # which weights a stage takes from the one before
    optimizer: OptimizerConfig = OptimizerConfig()
    engine: EngineConfig = EngineConfig()
    stage1: Stage1Config = Stage1Config(steps=50_000)
    stage2: StageConfig = StageConfig(steps=250_000)
    stage3: StageConfig = StageConfig(steps=100_000, lr=1e-5)

    @property
    def stages(self) -> tuple[str, ...]:
        """The folders that the trainings have within train_jointnet/, in order; pairs are sampled from the last's."""
        return ("ddpm",) if self.generator == "ddpm" else ("stage1", "stage2", "stage3")
