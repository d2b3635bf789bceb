"""The settings of `balance` and `train_jointnet`: the balancing factor and the teacher."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dakd.config.base import NonNegative, Positive, Section, Size, expected
from dakd.config.training import EngineConfig, OptimizerConfig


class BalanceConfig(Section):
    """The balancing factor b of the mask's noisy input (paper, Eq. 1 and 4)."""

    b: Annotated[
        Literal["auto"] | Annotated[float, Field(gt=0, le=4)], expected('"auto" or a number above 0 and at most 4')
    ] = "auto"
    """Balancing factor: the scale of the mask's clean state, b (2 onehot - 1). "auto" computes it from the training
    set."""


class UNetConfig(Section):
    """One branch of the teacher.

    The default is the usual unconditional 256-pixel U-Net, 113.67 M parameters (inferred).
    """

    channels: Annotated[tuple[Positive, ...], Field(min_length=1)] = (128, 128, 256, 256, 512, 512)
    """Channels of each level, from the full resolution down; each further level halves the resolution."""

    blocks_per_level: Positive = 2
    """Residual blocks per level."""

    attention_levels: tuple[NonNegative, ...] = (4,)
    """Levels with self-attention, counted from 0. The default is the level at 1/16 of the resolution."""

    norm_groups: Positive = 32
    """Groups of GroupNorm; fewer where they do not divide the channels of a level."""

    @model_validator(mode="after")
    def _levels_exist(self) -> UNetConfig:
        if any(level >= len(self.channels) for level in self.attention_levels):
            raise ValueError(
                f"attention_levels are {list(self.attention_levels)}, but channels has the levels 0 to "
                f"{len(self.channels) - 1}; leave out the others, or give each level its channels"
            )
        return self


class ScheduleConfig(Section):
    """The forward process: squared-cosine betas (paper)."""

    num_train_timesteps: Positive = 1000
    """Timesteps of the forward process."""


class StageConfig(Section):
    """One of the teacher's three stages (paper)."""

    steps: Positive
    """Optimizer steps of the stage ("iterations" in the paper)."""

    lr: Annotated[float, Field(gt=0)] = 1e-4
    """Learning rate of the stage after the warm-up."""


class Stage1Config(StageConfig):
    """Stage 1 trains SAR-Net on images; labels are not read (paper)."""

    extra_images: tuple[str, ...] = ()
    """Sets of shards whose images, with or without labels, are added to the training images: folders or URLs. Tars
    without an index are indexed."""

    streams: tuple[Annotated[str, Field(pattern="^pipe:.")], ...] = ()
    """Shell commands, `pipe:COMMAND`, that replace the prepared images and `extra_images`: each writes a tar of images
    to its standard output. Every reader of every rank needs at least one. Streams are not shuffled, and a resumed run
    reads them again."""


class TeacherEngineConfig(EngineConfig):
    """How the teacher's steps run, and how often pictures of sampled pairs are drawn."""

    sample_every: NonNegative = 5000
    """Optimizer steps between grids of sampled pairs. 0 makes no grids."""

    num_samples: Positive = 8
    """Pairs in a grid."""

    sample_steps: Positive = 50
    """Steps for the pairs of a grid, of `generate.solver` on `generate.spacing`."""


class TrainJointNetConfig(Section):
    """The teacher: SAR-JointNet in three stages (paper), or one of its rivals (`generator`, `label_loss`)."""

    unet: UNetConfig = UNetConfig()

    schedule: ScheduleConfig = ScheduleConfig()

    crop: Size = (256, 256)
    """Size of the training crops."""

    flip: bool = False
    """Whether crops are flipped at random."""

    global_batch: Positive = 32
    """Samples per optimizer step, over all ranks; 16 per GPU on two GPUs (paper)."""

    micro_batch: Positive = 16
    """Samples per rank and forward pass; the rest of the global batch is gradient accumulation."""

    label_loss_weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of the label loss L_y; the image loss L_x has weight 1 (inferred)."""

    label_loss: Literal["ce", "l2"] = "ce"
    """Loss of Label-Net: "ce" is cross-entropy with the mask (paper); "l2" is the squared error of the clean state b (2
    onehot - 1), as in the rows without CE. JointNet is "l2" with balance.b=1, and its students have
    loss.hard_labels=true. The soft label of an "l2" teacher is the logarithm of (output / b + 1) / 2, normalised: the
    mean of one-hot masks is their probability."""

    sigma_data: Annotated[
        Literal["auto"] | Annotated[float, Field(gt=0, le=8)] | None,
        expected('null, "auto" or a number above 0 and at most 8'),
    ] = None
    """Preconditioning of the image branch. With null its output is the clean image (paper). With a number the output is
    added to a share of the noisy image; the number is the standard deviation of the detail in images in [-1, 1]
    (diffusion/precondition.py; 1 makes the output the velocity). A short training then keeps the speckle. "auto" takes
    the deviation of the training images from their 5 x 5 means."""

    image_loss: Literal["clean", "output"] = "clean"
    """Squared error that the image branch is trained by: "clean" is that of the estimated clean image (paper); "output"
    is that of the branch's output, the estimate's weighted as in Karras et al. 2022, and needs sigma_data. By "clean"
    a short training learns nothing about the last steps of a sampling, which then darken the image."""

    generator: Literal["sar_jointnet", "ddpm"] = "sar_jointnet"
    """Kind of teacher: "sar_jointnet" (also JointNet), or the rival "ddpm", one U-Net of `unet` over the image and the
    label's bits with L2 on all of them. "ddpm" trains in one stage with the steps of all three at the learning rate of
    stage 1 (inferred: equal budgets), on labelled images only: no extra_images or streams. It does not use balance.b
    and label_loss."""

    init_from: Literal["ema", "raw"] = "ema"
    """Weights of the previous stage that a stage starts from: its EMA or its last weights."""

    optimizer: OptimizerConfig = OptimizerConfig()

    engine: TeacherEngineConfig = TeacherEngineConfig()

    stage1: Stage1Config = Stage1Config(steps=50_000)
    """Stage 1: SAR-Net on images; labels are not read (paper)."""

    stage2: StageConfig = StageConfig(steps=250_000)
    """Stage 2 of the teacher's training (paper)."""

    stage3: StageConfig = StageConfig(steps=100_000, lr=1e-5)
    """Stage 3 of the teacher's training (paper)."""

    @model_validator(mode="after")
    def _an_output_differs_from_the_clean_image(self) -> TrainJointNetConfig:
        if self.image_loss == "output" and self.sigma_data is None:
            raise ValueError(
                f"image_loss is output, and sigma_data {self.sigma_data}, with which the output is the clean image; "
                "set sigma_data to auto or a number, or image_loss to clean"
            )
        return self

    @property
    def stages(self) -> tuple[str, ...]:
        """The folders that the trainings have within train_jointnet/, in order; pairs are sampled from the last's."""
        return ("ddpm",) if self.generator == "ddpm" else ("stage1", "stage2", "stage3")
