"""The settings of `generate`: sampling from the teacher, the gate and the audit."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dakd.config.base import Fraction, NonNegative, Positive, Section, Size


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
    areas: dict[str, ShareBounds] = Field(default={})  # by class: its share of an image's pixels
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
    quotas: dict[str, ShareBounds] = Field(default={})  # by class: the share of the kept images that hold it
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
