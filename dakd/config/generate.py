"""The settings of `generate`: sampling from the teacher, the gate and the audit."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dakd.config.base import Fraction, NonNegative, Positive, Section, Size
from dakd.sampling import Solver, Spacing, check_solver, spacing_of

OWN_STUDENT = "real"  # of `gate.student`: the run's own student of that training set


class Bounds(Section):
    """The range that a value must lie in, ends included; null leaves an end open."""

    at_least: float | None = None
    """Lower end of the range. null means no lower end."""

    at_most: float | None = None
    """Upper end of the range. null means no upper end."""

    @model_validator(mode="after")
    def _in_order(self) -> Bounds:
        if self.is_set and self.low > self.high:
            raise ValueError(f"at_least {self.at_least} is above at_most {self.at_most}; change one of them")
        return self

    @property
    def is_set(self) -> bool:
        return self.at_least is not None or self.at_most is not None

    @property
    def low(self) -> float:
        return -math.inf if self.at_least is None else self.at_least

    @property
    def high(self) -> float:
        return math.inf if self.at_most is None else self.at_most


class ShareBounds(Bounds):
    """The range that a share must lie in, ends included; null leaves an end open."""

    at_least: Fraction | None = None
    """Lower end of the range, a share. null means no lower end."""

    at_most: Fraction | None = None
    """Upper end of the range, a share. null means no upper end."""


class GateConfig(Section):
    """The choice of the candidates that a set keeps: each lies within the bounds, and all kept ones fulfil the quotas.

    The shards do not depend on it: another gate chooses again from the same candidates.
    """

    enabled: bool = False
    """Whether the gate judges the candidates. false keeps every candidate."""

    areas: dict[str, ShareBounds] = Field(default={})
    """Bounds, by class name, of the share of an image's pixels that have the class: {NAME: {at_least: ..., at_most:
    ...}}."""

    entropy: Bounds = Bounds()
    """Bounds of the uncertainty of an image's soft label in nats: the entropy of its softmax at temperature 1, a mean
    over the pixels."""

    agreement: ShareBounds = ShareBounds()
    """Bounds of the mIoU between a student's prediction and the teacher's label."""

    student: str | None = None
    """Weights file of the student that `agreement` is measured with. "real" is the run's own student of the set real
    (its file student.safetensors), which is then trained first; a file of that name is ./real. null measures no
    agreement."""

    enl: Bounds = Bounds()
    """Bounds of the equivalent number of looks (ENL) in windows of 8 x 8 pixels of `enl_class`, from grey values as
    they are stored; to be chosen by the ENL of the training images, which the audit reports. An image with fewer than 4
    such windows is not judged by it."""

    enl_class: str = "sea"
    """Class whose windows the ENL is measured in."""

    quotas: dict[str, ShareBounds] = Field(default={})
    """Bounds, by class name, of the share of the kept images that hold the class, at least 8 pixels of it: {NAME:
    {at_least: ..., at_most: ...}}."""

    max_candidates: Annotated[float, Field(ge=1)] = 4.0
    """Largest number of candidates, as a multiple of `num_samples`; generation stops there even if too few are kept."""

    @property
    def asks_own_student(self) -> bool:
        """Whether candidates are judged by the run's own student of real images."""
        return self.enabled and self.student == OWN_STUDENT

    @model_validator(mode="after")
    def _can_be_met(self) -> GateConfig:
        if self.agreement.is_set and self.student is None:
            raise ValueError(
                f"agreement is bounded ({self.agreement.at_least} to {self.agreement.at_most}) but there is no "
                "student; set "
                "student to a student's weights file"
            )
        wanted = sum(quota.at_least or 0 for quota in self.quotas.values())
        if wanted > 1:
            raise ValueError(f"quotas want at_least {wanted:.3g} of the images in all; expected at most 1")
        return self


class AuditConfig(Section):
    """The search for training images among the generated ones (`generate --audit`)."""

    student: str | None = None
    """Weights file of a student whose encoder makes the features. null takes greys and gradients."""

    max_samples: Positive = 5000
    """Largest number of generated pairs that are compared with the training images, evenly spaced."""


class GenerateConfig(Section):
    """Synthetic pairs from the teacher, deterministic unless eta > 0 (paper)."""

    num_samples: Positive = 4480
    """Pairs that the set keeps; candidates are made in whole shards."""

    size: Size = (256, 256)
    """Size of the pairs."""

    sampling_steps: Positive = 200
    """Steps of the solver per pair; the paper takes 200 of DDIM. `dakd sample --convergence` shows how many a teacher
    needs."""

    solver: Solver = "ddim"
    """Solver of the sampling. "ddim" (paper) is of first order. "dpmpp_2m" is DPM-Solver++(2M), of second order at the
    same cost: 20 steps of it on the spacing "logsnr" give the pairs of the paper's 200, but for 1 % of the label's
    pixels (demo's teacher). "heun" is of second order too, and calls the nets twice in each step but the last."""

    spacing: Spacing | None = None
    """Spacing of the steps' timesteps. null takes "leading" for "ddim", and "logsnr" for the others. "leading" (paper)
    takes multiples of 1000 / sampling_steps; it begins before the timestep that pure noise belongs to, the farther the
    fewer the steps. "trailing" begins at the last timestep. "logsnr" has equal steps of the signal-to-noise ratio's
    logarithm, and a solver of second order needs fewest steps with it."""

    eta: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of fresh noise in a step. 0 is deterministic (paper), 1 is DDPM or, with "dpmpp_2m", SDE-DPM-Solver++;
    "heun" has none."""

    weights: Literal["ema", "raw"] = "ema"
    """Weights of the teacher: their EMA or the last ones."""

    micro_batch: Positive = 16
    """Pairs that are sampled together."""

    shard_size: Positive = 128
    """Pairs per shard."""

    codec: Literal["fp16", "logprob8"] = "fp16"
    """Format of the stored soft labels. "fp16" logits serve any temperature; "logprob8" codes take a quarter of the
    bytes, and the softened target is off by at most 0.01 at `temperature` (a little more beyond ten classes)."""

    temperature: Annotated[float, Field(gt=0)] | None = None
    """Temperature that soft labels are stored for. null takes the student's, train_saross.loss.temperature."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the sampling. "auto" takes bf16 on a GPU, and on a CPU with AMX where a level of the teacher has
    64 channels or more; else fp32. On a CPU a set that was begun keeps its own. "bf16" is refused on a CPU without
    instructions for it."""

    capture: Literal["auto"] | bool = "auto"
    """Whether a sampling step is replayed from a CUDA graph. "auto" does so on a GPU."""

    seed: NonNegative | None = None
    """Seed of the noise; pair i depends on the seed and i only. null takes the seed of the experiment."""

    deterministic: bool = False
    """Whether shards are bitwise equal on one type of device: whole micro-batches, the last one padded, and a fixed
    number of threads."""

    threads: NonNegative = 0
    """CPU threads per process. 0 divides the cores of the host, or takes 1 where `deterministic` is set."""

    claim_patience_s: Annotated[float, Field(gt=0)] = 120.0
    """Seconds without progress after which another worker's claim on a shard lapses; then the shard is made again."""

    gate: GateConfig = GateConfig()

    audit: AuditConfig = AuditConfig()

    @property
    def steps_spacing(self) -> str:
        return spacing_of(self.solver, self.spacing)

    @model_validator(mode="after")
    def _solver_fits(self) -> GenerateConfig:
        check_solver(self.solver, self.spacing, self.eta)
        return self
