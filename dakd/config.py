"""One experiment is one YAML with a section per step; this file types every setting, with its default, unit and reason.

`load_config(path, overrides)` reads a YAML (strictly: an unknown key is an error that names the nearest known one),
expands `${VARIABLES}` from the environment, applies dotted overrides (`train_jointnet.stage1.steps=100`) and returns a
validated `Config`. Defaults are the values of the paper (arXiv 2412.08116) where it states them; where it is silent a
comment says `inferred`.
"""

from __future__ import annotations

import difflib
import itertools
import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from dakd.shipped import find_file, not_found

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Scale = Annotated[float, Field(gt=0, le=8)]  # a side over the image's own
Byte = Annotated[int, Field(ge=0, le=255)]
Size = tuple[Positive, Positive]  # (height, width) in pixels


def wanted(text: str) -> WrapValidator:
    """One error that says what is wanted, in place of one for each kind of value that a union has."""

    def check(value: object, validate: ValidatorFunctionWrapHandler) -> object:
        try:
            return validate(value)
        except ValidationError:
            raise ValueError(f"wanted {text}") from None

    return WrapValidator(check)


class Section(BaseModel):
    """A strict, immutable part of the configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# --- prepare ----------------------------------------------------------------------------------------------------------


SceneSide = Annotated[int, Field(ge=8)]  # pixels; a smaller scene shows nothing


class SimulationConfig(Section):
    """The embedded dataset: SAR scenes under multiplicative speckle, five classes in OSD's ids and colours."""

    num_train: Positive = 600
    num_test: Positive = 120
    seed: NonNegative | None = None  # of the scenes; None: the experiment's
    size: tuple[SceneSide, SceneSide] = (64, 64)
    looks: Annotated[float, Field(gt=0)] = 6.0  # equivalent number of looks of the gamma speckle
    # Mean pixel shares that the scenes aim at; sea is what remains (OSD: 88.30 / 1.01 / 5.59 / 0.04 / 5.06 %).
    oil_share: Fraction = 0.0101
    look_alike_share: Fraction = 0.0559
    ship_share: Fraction = 0.0004
    land_share: Fraction = 0.0506
    # A slick damps the sea's backscatter by this many dB, a look-alike by fewer (ranges, drawn per object).
    oil_damping_db: tuple[float, float] = (6.0, 11.0)
    look_alike_damping_db: tuple[float, float] = (2.0, 4.5)


class PrepareConfig(Section):
    """Which dataset, and how it is packed into shards."""

    dataset: Literal["simulated", "osd", "sos", "folder"] = "simulated"
    root: str | None = None  # folder of the dataset; unused by "simulated"
    sensor: Literal["palsar", "sentinel"] | None = None  # sos only
    polarity: Literal["oil_is_white", "oil_is_black"] = "oil_is_white"  # sos only; checked against the images
    mask_threshold: Annotated[int, Field(ge=1, le=255)] = 128  # sos: grey values at or above it are white
    # folder only: class names and colours in the order of the ids; masks hold ids or these colours.
    classes: dict[str, tuple[Byte, Byte, Byte]] | None = None
    resize: Size | None = None  # every image is brought to this size (area average; labels by nearest neighbour)
    max_samples: Positive | None = None  # per split; None takes all
    shard_size: Positive = 256  # samples a shard
    on_bad_file: Literal["stop", "skip"] = "stop"
    simulation: SimulationConfig = SimulationConfig()

    @model_validator(mode="after")
    def _dataset_has_what_it_needs(self) -> PrepareConfig:
        if self.dataset != "simulated" and not self.root:
            raise ValueError(f"dataset {self.dataset!r} has no root; set prepare.root to its folder")
        if self.dataset == "sos" and self.sensor is None:
            raise ValueError("dataset 'sos' has no sensor; set prepare.sensor to palsar or sentinel")
        if self.dataset == "folder" and not self.classes:
            raise ValueError("dataset 'folder' has no classes; set prepare.classes to {name: [r, g, b], ...}")
        return self


class BalanceConfig(Section):
    """The balancing factor b of the mask's noisy input (paper, Eq. 1 and 4)."""

    b: Annotated[
        Literal["auto"] | Annotated[float, Field(gt=0, le=4)], wanted('"auto" or a number above 0 and at most 4')
    ] = "auto"


# --- reading shards: what all trainings share -------------------------------------------------------------------------


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


# --- train_jointnet ---------------------------------------------------------------------------------------------------


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


# --- generate ---------------------------------------------------------------------------------------------------------


class Bounds(Section):
    """The range that a value must lie in, ends included; None leaves an end open."""

    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Bounds:
        if self.is_set and self.low > self.high:
            raise ValueError(f"at_least {self.at_least} is above at_most {self.at_most}")
        return self

    @property
    def is_set(self) -> bool:
        return not self.at_least is self.at_most is None

    @property
    def low(self) -> float:
        return -math.inf if self.at_least is None else self.at_least

    @property
    def high(self) -> float:
        return math.inf if self.at_most is None else self.at_most


class ShareBounds(Bounds):
    """Bounds of a share."""

    at_least: Fraction | None = None
    at_most: Fraction | None = None


class GateConfig(Section):
    """Which candidates a set keeps: each must lie within the bounds, and all that are kept fulfil the quotas.

    The shards do not depend on it: another gate chooses anew from the candidates that are there.
    """

    enabled: bool = False  # off, every candidate is kept
    areas: dict[str, ShareBounds] = {}  # by class: its share of an image's pixels
    entropy: Bounds = Bounds()  # nats: mean over the pixels of the entropy of softmax(soft label), at temperature 1
    agreement: ShareBounds = ShareBounds()  # mIoU of a student's prediction with the teacher's label
    student: str | None = None  # the student's weights file; None measures no agreement
    # Equivalent number of looks in windows of `enl_class` alone, from grey values as they are stored: bounds are to be
    # chosen by what the training images have (the audit tells).
    enl: Bounds = Bounds()
    enl_class: str = "sea"
    enl_window: Annotated[int, Field(ge=4)] = 8  # pixels, the side of a window
    enl_min_windows: Positive = 4  # with fewer of them an image has no ENL, and is not judged by it
    presence_pixels: Positive = 8  # an image with fewer pixels of a class does not hold it
    quotas: dict[str, ShareBounds] = {}  # by class: the share of the kept images that hold it
    max_candidates: Annotated[float, Field(ge=1)] = 4.0  # stop when so many times `num_samples` are not enough

    @model_validator(mode="after")
    def _can_be_met(self) -> GateConfig:
        if self.agreement.is_set and self.student is None:
            raise ValueError("agreement is bounded but there is no student; set student to a student's weights file")
        wanted = sum(quota.at_least or 0 for quota in self.quotas.values())
        if wanted > 1:
            raise ValueError(f"quotas want at_least {wanted:.3g} of the images in all; wanted at most 1")
        return self


class AuditConfig(Section):
    """The search for training images among the generated ones (`generate --audit`)."""

    student: str | None = None  # weights file whose encoder makes the features; None takes greys and gradients
    max_samples: Positive = 5000  # pairs that are looked up, evenly spaced
    num_yardsticks: Positive = 1000  # held-out windows, and as many training windows, that are looked up too
    cells: Annotated[int, Field(ge=4)] = 16  # blocks on a side of the means that are correlated
    # A distance is small where it is below this percentile of those from held-out images to training images.
    percentile: Annotated[float, Field(gt=0, lt=100)] = 1.0
    num_pictures: Positive = 12  # most suspicious pairs that are drawn


class GenerateConfig(Section):
    """Synthetic pairs from the teacher: DDIM, deterministic unless eta > 0 (paper)."""

    num_samples: Positive = 4480  # pairs that the set keeps; candidates are made in whole shards
    size: Size = (256, 256)
    sampling_steps: Positive = 200
    eta: Annotated[float, Field(ge=0, le=1)] = 0.0
    clip: Annotated[float, Field(gt=0)] = 1.0  # |x0| bound, applied before the update
    weights: Literal["ema", "raw"] = "ema"
    micro_batch: Positive = 16
    shard_size: Positive = 128
    # How soft labels are stored: fp16 logits serve any temperature; logprob8 codes take a quarter of the bytes, and the
    # softened target is off by at most 0.01 at `temperature`.
    codec: Literal["fp16", "logprob8"] = "fp16"
    temperature: Annotated[float, Field(gt=0)] | None = None  # None: the student's, train_saross.loss.temperature
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    capture: Literal["auto"] | bool = "auto"  # replay one step from a CUDA graph; auto: on a GPU
    seed: NonNegative = 0
    # Bitwise equal shards on one device type: whole micro-batches (the last one padded), fixed threads.
    deterministic: bool = False
    threads: NonNegative = 0  # CPU threads a process; 0 shares the host's cores, or takes 1 where deterministic
    # Another worker's claim on a shard stands for so long without a sign of progress; then the shard is made again.
    claim_patience_s: Annotated[float, Field(gt=0)] = 120.0
    gate: GateConfig = GateConfig()
    audit: AuditConfig = AuditConfig()


# --- train_saross -----------------------------------------------------------------------------------------------------

TrainingSet = Literal["real", "real+synthetic", "synthetic"]


# Students by name, each with the encoder that it takes where none is named: SAROSS-Net's is the paper's; those of the
# others are what their authors (deeplabv2, segformer, cbdnet) or their library takes, and for DeepLabV3+ the best one
# on OSD (ResNet-50, arXiv 2305.01386). The paper names the rivals' encoders nowhere (inferred).
DEFAULT_ENCODERS: dict[str, str | None] = {
    "saross": "mamba_vision_b",
    "unet": "resnet34",
    "linknet": "resnet34",
    "pspnet": "resnet34",
    "deeplabv3plus": "resnet50",
    "segformer": "mit_b2",
    "unetplusplus": "resnet34",
    "deeplabv2": "resnet101",
    "cbdnet": "resnet34",
    "sam_oil": "fasterrcnn_resnet50_fpn",
}
_SAROSS_SETTINGS = ("decoder_channels", "caft_ratio", "caft_heads", "skip_module")


class SamOilConfig(Section):
    """SAM-OIL: what becomes of the detector's boxes (Wu et al. 2024); its sizes are stated nowhere (inferred)."""

    min_score: Fraction = 0.25  # of a detection that is kept
    min_pixels: Positive = 4  # of a component of the label that counts as an object
    max_objects: Positive = 200  # of a training image, the largest ones: a speckled label would have thousands
    # Class ids, the first of which wins a pixel that masks of several classes claim; None: the higher score wins.
    order: tuple[Positive, ...] | None = None
    adapter_channels: Positive = 64  # inner width of the adapter on SAM's image embeddings
    max_masks: Positive = 16  # objects an image that the adapter learns from in a step
    mask_loss: Annotated[float, Field(ge=0)] = 1.0  # BCE + Dice of the masks against the detector's loss
    sam_config: dict[str, Any] | None = None  # SAM's sizes; None reads config.json of the folder `pretrained`


class StudentConfig(Section):
    """SAROSS-Net (an encoder and the CAFT triangle), or one of its rivals by name."""

    name: Literal[
        "saross", "unet", "linknet", "pspnet", "deeplabv3plus", "segformer", "unetplusplus", "deeplabv2", "cbdnet",
        "sam_oil",
    ] = "saross"  # fmt: skip
    # None: the one of DEFAULT_ENCODERS, which takes its place. saross: mamba_vision_{t,t2,s,b,l}; mamba_vision (with
    # encoder_options); resnet18; resnet34; timm:<name of a feature extractor>. cbdnet: resnet18, resnet34. The others:
    # any encoder of segmentation_models_pytorch. sam_oil: the detector, a fasterrcnn_... of torchvision (resnet50_fpn,
    # resnet50_fpn_v2, mobilenet_v3_large_fpn, mobilenet_v3_large_320_fpn) or package.module:Class.
    encoder: str | None = None
    # saross, cbdnet: of the encoder. deeplabv2: rates, output_stride. sam_oil: of the detector. The others: keyword
    # arguments of their class in segmentation_models_pytorch, such as decoder_channels of unet.
    encoder_options: dict[str, Any] = {}
    pretrained: str | None = None  # a public checkpoint file of the encoder; sam_oil: SAM's folder
    # Of saross alone:
    decoder_channels: tuple[Positive, Positive, Positive, Positive] = (256, 256, 128, 64)  # inferred
    caft_ratio: Annotated[float, Field(gt=0, le=1)] = 0.5  # inner width over HR width (inferred)
    caft_heads: tuple[Positive, Positive, Positive] = (1, 2, 4)  # rows 1, 2, 3 (inferred)
    skip_module: Literal["caft", "conv3x3", "none"] = "caft"
    sam_oil: SamOilConfig = SamOilConfig()  # of sam_oil alone

    @model_validator(mode="before")
    @classmethod
    def _default_encoder(cls, tree: Any) -> Any:
        """The encoder stands in what is saved, so that it does not move with a default."""
        if not isinstance(tree, dict) or tree.get("encoder") is not None:
            return tree
        name = tree.get("name", "saross")
        return tree | {"encoder": DEFAULT_ENCODERS.get(name) if isinstance(name, str) else None}

    @model_validator(mode="after")
    def _has_its_own_settings(self) -> StudentConfig:
        fields = type(self).model_fields
        foreign = [key for key in _SAROSS_SETTINGS if getattr(self, key) != fields[key].default]
        if self.name != "saross" and foreign:
            raise ValueError(
                f"{', '.join(foreign)}: of SAROSS-Net alone, found with {self.name}; leave them out, or replace the "
                f"whole section: train_saross.student={{name: {self.name}}}"
            )
        if self.name != "sam_oil" and self.sam_oil != fields["sam_oil"].default:
            raise ValueError(f"sam_oil holds settings of the student sam_oil, found with {self.name}; leave it out")
        return self


class StudentLossConfig(Section):
    """L = l_ce CE + l_kd tau^2 KD + l_dice Dice, a sum over samples divided by the global batch (paper, Eq. 8-10)."""

    ce: Annotated[float, Field(ge=0)] = 1.0  # inferred
    kd: Annotated[float, Field(ge=0)] = 1.0  # inferred
    dice: Annotated[float, Field(ge=0)] = 1.0  # inferred
    temperature: Annotated[float, Field(gt=0)] = 2.0  # tau (inferred)
    # What the stored codes may cost a softened target, as the codec states it; beyond, training is refused.
    max_target_error: Fraction = 0.01
    dice_samples: Literal["real", "all"] = "real"  # inferred
    dice_form: Literal["soft", "generalized"] = "soft"
    class_weights: tuple[float, ...] | None = None
    hard_labels: bool = False  # synthetic samples carry the teacher's argmax and are treated as real ones
    # What a student learns from soft labels; temperature is the paper's, the others (train/distillation.py) compare.
    kd_form: Literal["temperature", "confidence", "standardized", "dist"] = "temperature"
    dist_inter: Annotated[float, Field(ge=0)] = 1.0  # DIST's beta, of its term over classes (Huang et al. 2022)
    dist_intra: Annotated[float, Field(ge=0)] = 1.0  # DIST's gamma, of its term over pixels (Huang et al. 2022)
    # Weight of CBD-Net's boundary term (train/boundary_loss.py) on samples with hard labels, for any student; CBD-Net's
    # own rows have 1 (inferred).
    boundary: Annotated[float, Field(ge=0)] = 0.0


class TrainSarossConfig(Section):
    """The student on real and synthetic pairs."""

    student: StudentConfig = StudentConfig()
    loss: StudentLossConfig = StudentLossConfig()
    training_sets: tuple[TrainingSet, ...] = ("real+synthetic",)  # one student each, with equal numbers of steps
    crop: Size = (512, 512)
    mosaic: bool = True  # four synthetic images tiled to one of twice the size
    flip: bool = True  # inferred
    synthetic: str | None = None  # folder or URL of the synthetic pairs; None: what this run has generated
    num_synthetic: Positive | None = None  # use only the first N pairs; None takes all
    # Share of an epoch's samples that is synthetic (a mosaic is one), beside every real one once; the synthetic pairs
    # then go round at their own pace. None: every pair once an epoch.
    synthetic_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    # How batch norm normalises while training (inferred). local: by each rank's micro-batch, so that the losses depend
    # on how the global batch is cut; sync: by the micro-batches of all ranks (GPUs); frozen: by the statistics that the
    # encoder came with, so that neither ranks nor micro-batch matter. Drop-path is a function of (seed, position).
    batch_norm: Literal["local", "sync", "frozen"] = "local"
    global_batch: Positive = 16
    micro_batch: Positive = 16
    epochs: Positive = 200  # of real + synthetic; every training set gets the steps that this makes
    steps: Positive | None = None  # overrides epochs
    optimizer: OptimizerConfig = OptimizerConfig(lr_decay="poly")
    engine: EngineConfig = EngineConfig(sample_every=0)


# --- evaluate, predict ------------------------------------------------------------------------------------------------


class FidelityConfig(Section):
    """FID and its relatives: synthetic images against real training images, through torch-fidelity."""

    # inception: FID, IS, KID, precision, recall. small: fixed random filters, whose numbers have other names. none: the
    # weights of InceptionV3 are a download, and a CPU core makes about eight images a second.
    extractor: Literal["none", "inception", "small"] = "none"
    weights: str | None = None  # InceptionV3's file; None: torch-fidelity's own download
    num_images: Annotated[int, Field(ge=20)] | None = None  # of each set; None: the smaller set's number
    # Resamples of the intervals; one of 4,480 images takes seconds with InceptionV3's 2048 features on a CPU.
    bootstrap: Annotated[int, Field(ge=20)] = 100
    batch_size: Positive = 16


class EvaluateConfig(Section):
    """One pooled confusion matrix over the test split."""

    batch_size: Positive = 1  # images of one size are batched
    split: Literal["test", "train"] = "test"
    # Other images with masks than the prepared ones: a folder, and how it is read (auto: as the run's own dataset; for
    # a simulated one as `folder`, with the student's class table). It is brought to prepare.resize.
    folder: str | None = None
    dataset: Literal["auto", "osd", "sos", "folder"] = "auto"
    student: str | None = None  # one weights file from anywhere in place of the run's students
    # Objects (connected pixels of a class) are found where this share of their pixels is predicted as their class; of
    # the classes, those that the table has; in bins of size with these lower edges in pixels.
    object_classes: tuple[str, ...] = ("ship", "oil")
    object_coverage: Annotated[float, Field(gt=0, le=1)] = 0.5
    object_sizes: Annotated[tuple[Positive, ...], Field(min_length=1)] = (16, 64, 256, 1024)
    boundary_width: Annotated[float, Field(gt=0, lt=1)] = 0.02  # of the diagonal (Cheng et al. 2021)
    calibration_bins: Positive = 15  # of equal width in confidence (Guo et al. 2017)
    bootstrap: NonNegative = 1000  # resamples of the images for the intervals; 0 makes none
    weights: Literal["ema", "raw"] = "ema"  # of the students, in predict too
    # Sizes of the image, times its own, at which students look, in predict too: the largest logit of all counts.
    # DeepLabv2's multi-scale test is (0.5, 0.75, 1).
    scales: Annotated[tuple[Scale, ...], Field(min_length=1)] = (1.0,)
    num_pictures: NonNegative = 12  # predictions kept for the report
    fidelity: FidelityConfig = FidelityConfig()


class PredictConfig(Section):
    """Class maps for images: a file or a folder, or the test split where none is named."""

    inputs: str | None = None
    training_set: TrainingSet | None = None  # whose student; None takes the last of train_saross.training_sets
    num_images: Positive = 8  # taken from the test split where `inputs` is not set
    overlay_alpha: Fraction = 0.45


class Config(Section):
    """The whole experiment, in pipeline order."""

    name: str = Field(min_length=1)
    run_dir: str | None = None  # default: runs/NAME
    seed: NonNegative = 0
    prepare: PrepareConfig = PrepareConfig()
    balance: BalanceConfig = BalanceConfig()
    data: DataConfig = DataConfig()
    train_jointnet: TrainJointNetConfig = TrainJointNetConfig()
    generate: GenerateConfig = GenerateConfig()
    train_saross: TrainSarossConfig = TrainSarossConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    predict: PredictConfig = PredictConfig()

    @field_validator("name", mode="before")
    @classmethod
    def _number_is_a_name(cls, value: object) -> object:
        """YAML reads a name such as 2024 as a number."""
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value

    @property
    def soft_label_temperature(self) -> float:
        """What generated soft labels are written for."""
        return self.generate.temperature or self.train_saross.loss.temperature

    @property
    def run_path(self) -> Path:
        return Path(self.run_dir) if self.run_dir else Path("runs") / self.name


# --- reading ----------------------------------------------------------------------------------------------------------

# Beside its own, the parser lets through what Python makes of bad bytes, dates and numbers.
_YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError)
_MAX_VALUES = 10_000


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """The validated configuration of a YAML file with dotted overrides (`section.key=value`, values in YAML).

    path: a file, or the name of an experiment that comes with dakd, such as `demo`.
    Raises ValueError naming the key, what was found and what was wanted.
    """
    found = find_file(path)
    if found is None and Path(path).is_dir():
        raise ValueError(f"{path} is a folder; give the YAML file of one experiment")
    if found is None:
        raise ValueError(not_found(path, "configuration"))
    path = found
    try:
        tree = yaml.safe_load(path.read_text())
    except _YAML_ERRORS as error:
        raise ValueError(f"{path} is not valid YAML: {_yaml_problem(error)}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path} holds {type(tree).__name__}; wanted a mapping with sections prepare, balance, ...")
    for override in overrides or []:
        _apply_override(tree, override)
    return build_config(_expand_variables(tree, source=str(path)), source=str(path))


def build_config(tree: dict, source: str = "configuration") -> Config:
    """Validate a plain mapping; errors of all keys are told at once."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        lines = [f"  {_explain(detail)}" for detail in error.errors()]
        raise ValueError(f"{source} is not a valid configuration:\n" + "\n".join(lines)) from None


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _apply_override(tree: dict, override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise ValueError(f"override {override!r} is not of the form section.key=value")
    node = tree
    *parents, last = key.strip().split(".")
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ValueError(f"override {override!r}: {parent!r} is a value, not a section")
    try:
        node[last] = yaml.safe_load(value)
    except _YAML_ERRORS as error:
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise ValueError(f"override {override!r}: the value is not valid YAML ({problem}); quote it") from None


def _yaml_problem(error: Exception) -> str:
    return "it nests too deeply" if isinstance(error, RecursionError) else str(error)


def _expand_variables(tree: Any, source: str) -> Any:
    """The tree with `${NAME}` replaced. ValueError where aliases make it larger than any experiment, or endless."""
    num_values = itertools.count(1)

    def expand(node: Any) -> Any:
        if next(num_values) > _MAX_VALUES:
            raise ValueError(f"{source} unfolds to more than {_MAX_VALUES} values; write it without aliases (*name)")
        if isinstance(node, dict):
            return {key: expand(value) for key, value in node.items()}
        if isinstance(node, list):
            return [expand(value) for value in node]
        if isinstance(node, str):
            return re.sub(r"\$\{(\w+)\}", _environment_value, node)
        return node

    try:
        return expand(tree)
    except RecursionError:
        raise ValueError(f"{source} nests too deeply, or an alias (*name) leads into itself") from None


def _environment_value(match: re.Match) -> str:
    name = match.group(1)
    if name not in os.environ:
        raise ValueError(f"the configuration uses ${{{name}}}, which is not set; run: export {name}=/path/to/it")
    return os.environ[name]


def _explain(detail: dict) -> str:
    where = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        names = _known_keys(detail["loc"][:-1])
        nearest = difflib.get_close_matches(str(detail["loc"][-1]), names, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known keys here: {', '.join(names)}"
        return f"{where}: unknown key; {hint}"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error" and isinstance(detail["input"], dict):
        return f"{where}: {message}"  # of a whole section, which says itself what was found
    return f"{where}: {message} (found {detail['input']!r})"


def _known_keys(location: tuple) -> list[str]:
    model: Any = Config
    for part in location:
        if get_origin(model) is dict:  # of sections by a name that is free
            model = get_args(model)[-1]
        else:
            field = getattr(model, "model_fields", {}).get(part)
            model = field.annotation if field else None
    return sorted(getattr(model, "model_fields", {}))
